"""The program of the paper's tables: its cells, one of them made, its pages."""

import tables_cells
from support.programs import EXAMPLES, run_here
from tables_cells import Cell

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


def test_mistakes_are_named_in_one_line(tmp_path):
    status, _, errors = run_here(
        f"--dir={tmp_path}", "--kinds=random_pattern", program=PROGRAM
    )
    assert status == 2
    assert "--kinds of T1, T2, T3" in errors
    assert "Traceback" not in errors
