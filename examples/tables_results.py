"""What cells reached, in small JSON files that hold no secret."""

import pathlib
from typing import Any

import numpy as np

from common.rundir import RunDirectory, read_json, write_json
from keras_passport.attacks import AttackResult, advantage
from tables_cells import Cell
from tables_runs import CONTROL, FAKES, Runs

# Of a run's settings, those that say how large it is.
_SIZES = (
    *("epochs", "batch_size", "key_scaling", "hide_statistics"),
    "mixed_precision",
)


def of_cell(runs: Runs, cell: Cell) -> dict[str, Any] | None:
    """A cell in plain values, accuracies in per cent; None if it isn't there.

    Means over a layer are all that is told of γ and β, and of the noise on a
    passport what it leaves of the accuracy.

    Args:
        runs: where the cells are.
        cell: one of them.
    """
    directory = RunDirectory(cell.path(runs.folder))
    result = read_json(directory.result)
    if result is None:
        return None
    records = runs.records(cell)
    config = result["config"]
    found = {
        "cell": {
            "network": cell.network,
            "dataset": cell.dataset,
            "way": cell.way,
            "function": cell.function,
            "kind": cell.kind,
            "seed": cell.seed,
        },
        "network": result["network"],
        "parameters": result["parameters"],
        "classes": result["num_classes"],
        **{name: config[name] for name in _SIZES if name in config},
        "original": round(result["original_accuracy"], 2),
        "valid": round(result["valid_accuracy"], 2),
        "fakes": _fakes(result, records),
        "attacks": _attacks(records, runs.controls(cell)),
        "course": _course(directory),
        "noise": _noise(directory),
        "seconds": result.get("seconds"),
        "versions": result.get("versions"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _fakes(result, records) -> dict[str, Any] | None:
    """Accuracies under fakes, and on how many pictures each."""
    if "fake_accuracies" in result:
        accuracies = result["fake_accuracies"]
        examples = result["examples"]["fakes"]
    else:
        own = [record for record in records if record["attack"] == FAKES]
        if not own:
            return None
        accuracies = [100 * a for a in own[0]["result"]["accuracies"]]
        examples = own[0]["examples"]
    return {
        "examples": examples,
        "accuracies": [round(accuracy, 2) for accuracy in accuracies],
    }


def _attacks(records, controls) -> list[dict[str, Any]]:
    """What attackers with labels reached, and what the labels are worth."""
    rows = []
    for record in records:
        if "fraction" not in record["budget"]:
            continue
        result = AttackResult.from_dict(record["result"])
        row = {
            "attack": record["attack"],
            "title": record["title"],
            "fraction": record["budget"]["fraction"],
            "epochs": record["budget"]["epochs"],
            "tuned": record["budget"].get("tuned", False),
            "examples": record["examples"],
            "accuracy": round(100 * result.accuracy, 2),
        }
        for control in controls:
            if (control["attack"], control["budget"]) != (
                CONTROL,
                record["budget"],
            ):
                continue
            scratch = AttackResult.from_dict(control["result"])
            gained = advantage(result, scratch, record["examples"])
            row["scratch"] = round(100 * scratch.accuracy, 2)
            row["advantage"] = round(gained.value, 2)
            row["interval"] = [round(gained.low, 2), round(gained.high, 2)]
        rows.append(row)
    return sorted(rows, key=lambda row: (row["attack"], row["fraction"]))


def _course(directory: RunDirectory) -> dict[str, Any] | None:
    """One passport layer through the training, as `training.png` shows it."""
    history = read_json(directory.history)
    if not history or "layer" not in history:
        return None
    course = history["protected"]
    return {
        "layer": history["layer"],
        **{
            name: [float(f"{value:.4g}") for value in course[name]]
            for name in (
                *("accuracy", "val_accuracy"),
                *("weight_change", "gamma", "beta"),
            )
            if name in course
        },
    }


def _noise(directory: RunDirectory) -> dict[str, Any] | None:
    noise = read_json(directory.owner / "noise.json")
    return noise and {
        name: {
            "fractions": part["fractions"],
            "accuracies": [
                [round(100 * accuracy, 2) for accuracy in accuracies]
                for accuracies in part["accuracies"]
            ],
        }
        for name, part in noise.items()
        if name != "of"
    }


def write(runs: Runs, cells: list[Cell], folder: pathlib.Path) -> None:
    """Writes a file for each cell that is there.

    Args:
        runs: where the cells are.
        cells: those asked for.
        folder: gets `<network>-<dataset>/<cell>.json`.
    """
    for cell in cells:
        found = of_cell(runs, cell)
        if found is not None:
            path = folder / cell.group / f"{cell.name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, found)


class Results:
    """What cells reached, repeats together.

    Args:
        folder: as `write` filled it; what somebody wrote on the differences
            is in its `notes.md`.
    """

    def __init__(self, folder: pathlib.Path):
        self.all = [read_json(p) for p in sorted(folder.glob("*/*.json"))]
        notes = folder / "notes.md"
        self.notes = notes.read_text("utf-8").strip() if notes.exists() else ""

    def repeats(
        self, dataset: str, network: str, way: str, function: str, kind: str
    ) -> "Repeats":
        """The networks of one cell of a table, which may be none."""
        wanted = (dataset, network, way, function, kind)
        names = ("dataset", "network", "way", "function", "kind")
        return Repeats(
            [
                found
                for found in self.all
                if tuple(found["cell"][name] for name in names) == wanted
            ]
        )


class Repeats:
    """Networks that differ in their seed alone.

    Args:
        found: as `of_cell` returns them.
    """

    def __init__(self, found: list[dict]):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def of(self, name: str) -> np.ndarray:
        """A number of each."""
        return np.array([one[name] for one in self.found])

    @property
    def inconsistencies(self) -> np.ndarray:
        return self.of("original") - self.of("valid")

    @property
    def strengths(self) -> list[np.ndarray]:
        """For each network with fakes, S of each fake."""
        return [
            one["valid"] - np.array(one["fakes"]["accuracies"])
            for one in self.found
            if "fakes" in one
        ]

    @property
    def fakes(self) -> list[float]:
        """Accuracies under all fakes of all networks."""
        return [
            accuracy
            for one in self.found
            for accuracy in one.get("fakes", {}).get("accuracies", ())
        ]

    def attacked(
        self, attack: str, fraction: float | None = None, tuned: bool = False
    ) -> list:
        """Pairs of a network and its row of an attack, of those attacked.

        Args:
            attack: its name.
            fraction: part of the training set; the largest tried if None.
            tuned: whether the attacker tried optimizers and learning rates.
        """
        pairs = [
            (one, row)
            for one in self.found
            for row in one["attacks"]
            if row["attack"] == attack
            and row["tuned"] == tuned
            and fraction in (None, row["fraction"])
        ]
        # Networks that have not met it yet are no repeats of those that have.
        most = max((row["fraction"] for _, row in pairs), default=None)
        return [(one, row) for one, row in pairs if row["fraction"] == most]
