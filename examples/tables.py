"""Tables 2 and 4 of the paper: every function with every kind of passport.

The paper's network on all of CIFAR-10, on a GPU with JAX (what follows `--`
goes to the trainer):

    KERAS_BACKEND=jax python examples/tables.py --dir=runs/tables -- \
        --data_dir=folder_of_cifar10_npz --depth=18 --width=64 --epochs=200 \
        --mixed_precision=bfloat16 --steps_per_execution=10 --num_fakes=1000 \
        --nohide_statistics

The paper's networks publish their statistics, hence the last flag. The same
on the digits, in some ten minutes on two cores:

    python examples/tables.py --dir=runs/tables-digits -- --dataset=digits \
        --nohide_statistics

Each network is a run of its own in a folder of `--dir`, with RevA behind it.
They are trained in turn, against one original; interrupted, the same command
goes on. `tables.json` has all that the two tables are made of, `fakes.png` and
`reva.png` are as Figures 6 to 9.
"""

import pathlib
import subprocess
import sys

from absl import app, flags

from common.errors import UserError, in_one_line
from common.rundir import (
    PRIVATE,
    RunDirectory,
    read_json,
    replacing,
    write_json,
)
from keras_passport import plots, texts
from keras_passport.attacks import AttackResult

_KINDS = {
    "random_pattern": "T1",
    "fixed_image": "T2",
    "random_image": "T3",
}
_HERE = pathlib.Path(__file__).parent

_DIR = flags.DEFINE_string("dir", None, "Where the runs go.", required=True)
_NETWORK = flags.DEFINE_enum(
    "network", "resnet", ["resnet", "vgg", "alexnet"], "Which trainer."
)
_FUNCTIONS = flags.DEFINE_list("functions", ["V1", "V2", "V3"], "Which rows.")
_KIND = flags.DEFINE_list("kinds", list(_KINDS), "Which kinds of passport.")
_FRACTION = flags.DEFINE_float(
    "fraction", 1.0, "Part of the training set that RevA has.", 0, 1
)
_EPOCHS = flags.DEFINE_integer("reva_epochs", 20, "Of RevA.", 1)


def run(program: str, *arguments: str) -> None:
    """Runs a program of this folder; its output is shown as it comes."""
    command = [sys.executable, str(_HERE / program), *arguments]
    if status := subprocess.run(command).returncode:
        raise UserError(
            f"{program} {' '.join(arguments)} ended with status {status}."
        )


def measure(
    function: str, kind: str, folder: pathlib.Path, trainer: list[str]
) -> dict:
    """One network's numbers, in per cent; trains and attacks it if need be."""
    directory = RunDirectory(folder / f"{function}-{_KINDS[kind]}")
    original = folder / "original.keras"
    # A run goes on with the flags that it was started with.
    started = read_json(directory.config)
    if original.exists() and (started is None or started["reference"]):
        trainer = [*trainer, f"--reference={original}"]
    run(
        f"cifar_{_NETWORK.value}.py",
        f"--run_dir={directory.path}",
        f"--function={function}",
        f"--passport={kind}",
        *trainer,
    )
    if not original.exists():
        with replacing(original, PRIVATE) as temporary:
            temporary.write_bytes(directory.original.read_bytes())
    data = [a for a in trainer if a.startswith("--data_dir")]
    run(
        "attack.py",
        f"--run_dir={directory.path}",
        "--attack=reverse_engineering",
        f"--fraction={_FRACTION.value}",
        f"--epochs={_EPOCHS.value}",
        *data,
    )
    result = read_json(directory.result)
    reverse = max(attack.accuracy for attack in reverse_engineered(directory))
    valid = result["valid_accuracy"]
    return {
        "network": result["network"],
        "original": result["original_accuracy"],
        "valid": valid,
        "inconsistency": result["inconsistency"],
        "fakes": result["fake_mean"],
        "fake_deviation": result["fake_deviation"],
        "best_fake": result["fake_maximum"],
        "strength": result["protection_strength"],
        "reva": 100 * reverse,
        "reva_strength": valid - 100 * reverse,
    }


def reverse_engineered(directory: RunDirectory) -> list[AttackResult]:
    """What RevA reached on a run's network, with the flags' budget."""
    budget = {"fraction": _FRACTION.value, "epochs": _EPOCHS.value}
    records = map(
        read_json, directory.attacks.glob("reverse_engineering-*.json")
    )
    return [
        AttackResult.from_dict(record["result"])
        for record in records
        if budget.items() <= record["budget"].items()
    ]


def draw(rows: dict[str, dict], folder: pathlib.Path) -> None:
    """Histograms of the fakes, and of RevA, one panel for each network."""
    fakes, reverse = [], []
    for name in rows:
        directory = RunDirectory(folder / name.replace("/", "-"))
        result = {**read_json(directory.result), "title": name}
        fakes.append(result)
        accuracies = [
            100 * accuracy
            for attack in reverse_engineered(directory)
            for accuracy in attack.accuracies
        ]
        reverse.append(
            {**result, "fake_accuracies": accuracies, "attack": "RevA"}
        )
    plots.plot_histograms({"panels": fakes}, folder / "fakes.png")
    plots.plot_histograms({"panels": reverse}, folder / "reva.png")


def table(rows: dict[str, dict]) -> list[str]:
    """The tables' rows as lines of text."""
    columns = {
        "original": "original",
        "valid": "valid",
        "I": "inconsistency",
        "fakes": "fakes",
        "(dev.)": "fake_deviation",
        "best": "best_fake",
        "S": "strength",
        "RevA": "reva",
        "S RevA": "reva_strength",
    }
    cells = [
        (name, *(f"{row[key]:.2f}" for key in columns.values()))
        for name, row in rows.items()
    ]
    numbers = range(1, 1 + len(columns))
    return [
        "Test accuracy in %; fakes of the passport's own kind (Table 2), and "
        "RevA (Table 4)",
        *texts.table([("", *columns), *cells], right=numbers).split("\n"),
    ]


def main(arguments):
    with in_one_line():
        for flag, known in (
            (_FUNCTIONS, ["V1", "V2", "V3"]),
            (_KIND, list(_KINDS)),
        ):
            if unknown := [v for v in flag.value if v not in known]:
                raise UserError(
                    f"Expected --{flag.name} of {', '.join(known)}. "
                    f"Received: {', '.join(unknown)}"
                )
        folder = pathlib.Path(_DIR.value)
        with RunDirectory(folder).locked():
            rows = {}
            for function in _FUNCTIONS.value:
                for kind in _KIND.value:
                    name = f"{function}/{_KINDS[kind]}"
                    rows[name] = measure(function, kind, folder, arguments[1:])
                    write_json(folder / "tables.json", rows)
            draw(rows, folder)
            print(*table(rows), sep="\n")


if __name__ == "__main__":
    app.run(main)
