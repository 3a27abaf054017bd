"""The program of the paper's tables: its cells, one of them made, its pages."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

import keras_passport as kp
import tables_cells
import tables_pages
import tables_results
from common import data, original, training
from common.rundir import RunDirectory, save_model, write_json
from keras_passport.attacks import AttackResult
from keras_passport.evaluation import ATTACKS, Budget, Records
from support.programs import EXAMPLES, finished_run, run_here, succeed
from tables_cells import Cell
from tables_runs import Runs

PROGRAM = EXAMPLES / "tables.py"


def test_cells_that_say_most_come_first():
    cells = tables_cells.cells_of(tables_cells.SCALES["cpu"])
    names = [f"{cell.network}/{cell.name}" for cell in cells]
    assert len(set(names)) == len(names)
    at = names.index
    assert names[0] == "resnet/V3-T3"
    # The column of ResNet, all of Table 2's networks, repeats, Table 4's rest.
    column = [
        f"resnet/{f}-{k}" for f in ("V1", "V2", "V3") for k in ("T1", "T2")
    ]
    assert max(map(at, column)) < at("vgg/V3-T3") < at("resnet/V3-T3-seed1")
    assert at("resnet/V2-T2-seed1") < at("alexnet/V1-T1")
    assert "vgg/V3-T2" not in names
    paper = tables_cells.cells_of(tables_cells.SCALES["paper"], ways=["paper"])
    assert paper[-1].dataset == "cifar100"
    assert {cell.seed for cell in paper} == set(range(5))


def test_a_cell_is_a_run_of_the_trainer():
    # What `cifar_resnet.py --epochs=10 --num_fakes=1000` writes, of whose runs
    # one may be linked into a cell's place.
    cell = Cell("resnet", "cifar10", "hardened", "V3", "T3")
    assert cell.name == "V3-T3-hardened"
    assert cell.config(tables_cells.SCALES["cpu"], has_original=False) == {
        "passport": "random_image",
        "function": "V3",
        "key_scaling": "signed",
        "hide_statistics": True,
        "hide_rows": True,
        "identity_images": None,
        "num_images": None,
        "epochs": 10,
        "batch_size": 128,
        "learning_rate": 0.1,
        "weight_decay": 0.0005,
        "num_fakes": 1000,
        "fake_examples": 2000,
        "strategy": "none",
        "seed": 0,
        "dataset": "cifar10",
        "reference": None,
        "mixed_precision": "none",
        "steps_per_execution": 1,
        "depth": None,
        "width": 16,
    }


def test_half_precision_is_for_what_is_trained(tmp_path):
    scale = tables_cells.SCALES["digits"].in_precision("bfloat16")
    runs = Runs(tmp_path, scale)
    digits = data.load("digits", None)
    cell = Cell("resnet", "digits", "paper", "V3", "T3")
    settings = cell.config(scale, has_original=False)
    assert settings["mixed_precision"] == "bfloat16"
    with training.precision("bfloat16"):
        trained = cell.builder(settings)(digits.input_shape, 10)
    cell.original(tmp_path).parent.mkdir()
    save_model(trained, cell.original(tmp_path))
    # Outputs equal to the original's are what exact protection is judged by.
    model = runs._in_full_precision(cell, digits)
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    for mine, its in zip(model.weights, trained.weights, strict=True):
        np.testing.assert_array_equal(mine, its)


def test_what_table_4_lacks_is_not_attacked_with_labels(tmp_path):
    runs = Runs(tmp_path, tables_cells.SCALES["cpu"])
    for kind, attacks in (("T1", 2), ("T2", 0), ("T3", 2)):
        cell = Cell("resnet", "cifar10", "paper", "V3", kind)
        assert len(list(runs.attacks(cell))) == attacks


FLAGS = ("--scale=digits", "--ways=hardened", "--networks=resnet")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cell, of a run that was trained and attacked elsewhere, collected."""
    run, _, _ = finished_run(tmp_path_factory)
    folder = tmp_path_factory.mktemp("tables")
    place = RunDirectory(folder / "resnet-digits" / "V3-T3-hardened")
    shutil.copytree(run, place.path)
    attackers = tables_cells.SCALES["digits"].attackers
    for (part, epochs), tuned in itertools.product(attackers, (False, True)):
        budget = Budget(fraction=part, epochs=epochs, tuned=tuned)
        for name, where, right in (
            ("reverse_engineering", place.attacks, 0.4),
            ("from_scratch", place.path.parent / "controls", 0.25),
        ):
            where.mkdir(exist_ok=True)
            result = AttackResult(name, (right,), (1.0,), {}, {}, 1.0)
            record = {
                "attack": name,
                "title": name,
                "budget": ATTACKS[name].spends(budget),
                "examples": 300,
                "result": result.to_dict(),
            }
            write_json(where / f"{name}-{part}-{tuned}.json", record)
    noise = {"fractions": [0.0, 1.0], "accuracies": [[0.5], [0.1, 0.12]]}
    write_json(place.owner / "noise.json", {"of": "", "Added": noise})
    with pytest.MonkeyPatch.context() as patched:
        # What is finished is neither trained nor attacked again.
        patched.setattr(original.Trainer, "run", None)
        patched.setattr(Records, "perform", None)
        given = (f"--dir={folder}", *FLAGS)
        succeed(*given, "--tuned", program=PROGRAM)
        succeed(*given, f"--collect={folder}/collected", program=PROGRAM)
    return folder, place


def test_the_papers_values_stand_beside_ours(made):
    folder, directory = made
    page = (folder / "collected" / "README.md").read_text()
    # No cell of the paper's own keys was made here.
    assert "33.48 (24.21) / not run" in page
    assert "82.26 (0.35) / not run" in page
    result = json.loads(directory.result.read_text())
    numbers = [result[f"{name}_accuracy"] for name in ("original", "valid")]
    [row] = [line for line in page.splitlines() if "hardened" in line][:1]
    for number in numbers:
        assert f" {number:.2f} " in row
    assert " 50 % | 40.00 | 25.00 | +15.00 (" in row
    assert " 50 %, tuned | 40.00 | 25.00 |" in page
    assert (folder / "collected" / "figure5.png").stat().st_size > 10_000
    assert page == (folder / "results" / "README.md").read_text()
    # What somebody wrote on it stays part of it.
    results = tables_results.Results(folder / "collected")
    results.notes = "## Why ours differ"
    page = tables_pages.pages(results, ["digits"])
    assert "\n## Why ours differ\n\n## Figures\n" in page


def test_cifar100_has_its_own_table(made, tmp_path):
    # Stand-in data of the same form: it is not on every machine.
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}_{part}": rng.integers(0, top, (200, *shape), "uint8")
        for part in ("train", "test")
        for name, top, shape in (("x", 256, (32, 32, 3)), ("y", 100, (1,)))
    }
    np.savez(tmp_path / "cifar100.npz", **arrays)
    dataset = data.load("cifar100", str(tmp_path))
    cell = Cell("vgg", "cifar100", "paper", "V3", "T3")
    config = cell.config(tables_cells.SCALES["digits"], has_original=False)
    model = cell.builder(config)(dataset.input_shape, dataset.num_classes)
    scores = model(dataset.normalize(dataset.x_test[:2]))
    assert scores.shape == (2, 100)

    folder, _ = made
    [path] = (folder / "results").glob("*/*.json")
    found = json.loads(path.read_text())
    found["cell"] = dataclasses.asdict(cell)
    found.update(original=60.0, valid=58.5)
    (tmp_path / "results" / cell.group).mkdir(parents=True)
    for seed, fakes in enumerate(([1.0, 2.0], [1.5, 2.5])):
        found["cell"]["seed"] = seed
        found["fakes"]["accuracies"] = fakes
        name = dataclasses.replace(cell, seed=seed).name
        write_json(tmp_path / "results" / cell.group / f"{name}.json", found)
    results = tables_results.Results(tmp_path / "results")
    page = tables_pages.pages(results, ["cifar10", "cifar100"])
    # S, its deviation over fakes and over repeats; I; repeats.
    row = (
        "66.98 (0.01) / 56.75 (0.58; 0.35) | -2.88 (0.37) / +1.50 (0.00) | 2 |"
    )
    assert row in page
    assert "71.14 (0.19) / not run" in page
    assert list(tables_pages.figures(results, "cifar10")[9]) == ["figure9.png"]


def test_what_is_collected_holds_no_secret(made):
    folder, directory = made
    passport = kp.Passport.load(directory.passport)
    found = kp.find_leaks(
        passport, [folder / "collected"], model=directory.load_protected()
    )
    assert found.clean, str(found)
    path = folder / "collected" / "resnet-digits" / "V3-T3-hardened.json"
    found = json.loads(path.read_text())
    assert [row["advantage"] for row in found["attacks"]] == [15.0] * 4
    assert len(found["fakes"]["accuracies"]) == 3


@pytest.mark.benchmark
def test_all_ways_are_made(tmp_path):
    given = (f"--dir={tmp_path}", "--scale=digits", "--networks=resnet")
    output, _ = succeed(
        *given, "--functions=V3", "--kinds=T1,T3", program=PROGRAM
    )
    assert "Trying from_scratch" not in output
    assert f"Tables of {2 + len(tables_cells.WAYS) - 1} networks" in output


@pytest.mark.parametrize(
    "mistake, message",
    [
        (["--kinds=random_pattern"], "--kinds of T1, T2, T3"),
        # A solved passport's fakes are patterns.
        (["--ways=exact", "--kinds=T3"], "or T1 for exact, exact-order"),
        (["--networks=vgg", "--kinds=T2"], "T2 for --networks=resnet"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, mistake, message):
    folder = tmp_path / "tables"
    status, _, errors = run_here(f"--dir={folder}", *mistake, program=PROGRAM)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors
    assert not folder.exists()
