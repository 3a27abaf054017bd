"""Makes cells of the tables: protects a network, then attacks it."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator

import keras

import keras_passport as kp
from common import attacked, data, training
from common.distribution import Distribution
from common.errors import UserError, users_mistakes
from common.original import Trainer
from common.rundir import (
    PRIVATE,
    RunDirectory,
    load_model,
    read_json,
    remove_unfinished,
    replacing,
    save_model,
    write_json,
)
from keras_passport.evaluation import Budget, Case, Records
from keras_passport.evaluation.owner import Owner
from tables_cells import COURSES, Cell, Scale
from tables_timeline import Timeline

# What attackers with labels try. The control is training from scratch.
ATTACKS = ("reverse_engineering",)
CONTROL = "from_scratch"
# Fakes of the networks that are not trained, whose trainer tries none.
FAKES = "fake_random_pattern"


class Pretrained(Trainer):
    """Starts the protected network from the original's weights (Figure 3)."""

    fine_tunes = True
    calibrates = False


class Calibrated(Trainer):
    """The same, and from the original's scales and shifts."""

    fine_tunes = True


class TunedExactly(Trainer):
    """Protects the original exactly, then trains on."""

    def _protected(self, original, images):
        if self.directory.protected.exists():
            return self.directory.load_protected()
        # What an interrupted training started from.
        start = self.directory.checkpoints / "start.keras"
        if not start.exists():
            model, passport = kp.protect_trained(original)
            with replacing(self.directory.passport, PRIVATE) as temporary:
                passport.save(temporary)
            save_model(model, start, PRIVATE)
        passport = kp.Passport.load(self.directory.passport)
        model = kp.bind(load_model(start), passport)
        self._train_protected(model)
        self._finish(model, "protected", self.directory.protected)
        return model


JOBS = {
    "pretrained": Pretrained,
    "calibrated": Calibrated,
    "exact-tuned": TunedExactly,
}


class Runs:
    """The cells in a folder, and what makes them.

    Args:
        folder: where the cells are.
        scale: how large they are.
        data_dir: where the pictures are, as for the trainers.
        spread: over what trainings are spread.
        tuned: whether attackers of what stands beside the paper's, and their
            control, try optimizers and learning rates as well.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        scale: Scale,
        data_dir: str | None = None,
        spread: Distribution | None = None,
        tuned: bool = False,
    ):
        self.folder = folder
        self.scale = scale
        self._spread = spread or Distribution()
        self.timeline = Timeline(self._spread)
        self._tuned = tuned
        self._data_dir = data_dir
        self._loaded: dict[str, data.Dataset | UserError] = {}

    def _load(self, name: str) -> data.Dataset:
        """A dataset, read once; one that isn't there is looked for once."""
        if name not in self._loaded:
            try:
                self._loaded[name] = data.load(name, self._data_dir)
            except UserError as error:
                self._loaded[name] = error
        if isinstance(self._loaded[name], UserError):
            raise self._loaded[name]
        return self._loaded[name]

    def make(self, cell: Cell) -> None:
        """Does what is left to do of a cell."""
        directory = RunDirectory(cell.path(self.folder))
        if not directory.result.exists():
            protect = self._train if cell.trains else self._protect_exactly
            with self.timeline.stage("protecting, fakes included"):
                protect(cell, directory)
        noise = directory.owner / "noise.json"
        if not self._is_attacked(cell) or (
            cell.shows_noise and not noise.exists()
        ):
            with directory.locked(), self.timeline.stage("attacking"):
                self._attack(cell, directory)

    def _train(self, cell: Cell, directory: RunDirectory) -> None:
        original = cell.original(self.folder)
        config = read_json(directory.config)
        if config is None:
            config = cell.config(self.scale, self._find_original(cell))
        if cell.way in COURSES and not config["reference"]:
            raise UserError(
                f"{cell.name} starts from an original: make another cell of "
                f"{cell.group} first."
            )
        JOBS.get(cell.way, Trainer)(
            self._spread,
            cell.group,
            cell.builder(config),
            config,
            self._load(cell.dataset),
            # A run goes on with what it was started with.
            reference=original if config["reference"] else None,
            run_dir=directory.path,
        ).run()
        self._find_original(cell)

    def _find_original(self, cell: Cell) -> bool:
        """Whether there is one that cells share, made by any of them."""
        original = cell.original(self.folder)
        if original.exists():
            return True
        for config in sorted(original.parent.glob("*/config.json")):
            found = RunDirectory(config.parent)
            if (
                found.original.exists()
                and read_json(config)["seed"] == cell.seed
            ):
                remove_unfinished(original.parent)
                with replacing(original, PRIVATE) as temporary:
                    temporary.write_bytes(found.original.read_bytes())
                return True
        return False

    def _protect_exactly(self, cell: Cell, directory: RunDirectory) -> None:
        """What `protect_model.py` does, with the original of the others."""
        dataset = self._load(cell.dataset)
        config = {
            "method": "exact",
            "order": cell.way == "exact-order",
            **{
                name: value
                for name, value in cell.config(self.scale, True).items()
                if name in ("dataset", "seed", "depth", "width", "epochs")
            },
        }
        if not self._find_original(cell):
            self._train_original(cell, dataset)
        original = self._in_full_precision(cell, dataset)
        with directory.locked():
            directory.open(config)
            protected, passport = kp.protect_trained(
                original, order=cell.way == "exact-order"
            )
            # One without the other, of a run that was killed, is of no use:
            # both are new ones.
            with replacing(directory.passport, PRIVATE) as temporary:
                passport.save(temporary)
            save_model(protected, directory.protected)
            save_model(original, directory.original, PRIVATE)
            x, y = dataset.normalize(dataset.x_test), dataset.y_test
            accuracies = {
                f"{name}_accuracy": 100
                * training.count_right(model, x, y, name)
                / len(y)
                for name, model in (
                    ("original", original),
                    ("valid", protected),
                )
            }
            write_json(
                directory.result,
                {
                    **accuracies,
                    "network": original.name,
                    "num_classes": dataset.num_classes,
                    "parameters": original.count_params(),
                    "config": config,
                },
            )

    def _in_full_precision(
        self, cell: Cell, dataset: data.Dataset
    ) -> keras.Model:
        """The original in float32, as half precision rounds what is exact."""
        found = load_model(cell.original(self.folder))
        if {layer.compute_dtype for layer in found.layers} == {"float32"}:
            return found
        build = cell.builder(cell.config(self.scale, has_original=True))
        with training.precision("none"):
            model = build(dataset.input_shape, dataset.num_classes)
        model.set_weights(found.get_weights())
        return model

    def _train_original(self, cell: Cell, dataset: data.Dataset) -> None:
        """The original alone, where no trained cell has made one."""
        directory = RunDirectory(
            self.folder / cell.group / f"original-seed{cell.seed}"
        )
        config = dataclasses.replace(cell, way="paper").config(
            self.scale, has_original=False
        )
        job = Trainer(
            self._spread,
            cell.group,
            cell.builder(config),
            config,
            dataset,
            run_dir=directory.path,
        )
        with directory.locked():
            directory.open(config)
            save_model(job.make_original(), directory.original, PRIVATE)
        self._find_original(cell)

    def attacks(self, cell: Cell) -> Iterator[tuple[str, Budget]]:
        """What is tried on a cell, and with what budget."""
        if not cell.is_attacked:
            return
        num_fakes, examples = self.scale.fakes
        if not cell.trains:
            yield FAKES, Budget(num_fakes, examples, seed=cell.seed)
        ways = (False, True) if self._tuned and cell.is_compared else (False,)
        for fraction, epochs in self.scale.attackers:
            for name, tuned in itertools.product(ATTACKS, ways):
                yield (
                    name,
                    Budget(
                        fraction=fraction,
                        epochs=epochs,
                        seed=cell.seed,
                        tuned=tuned,
                    ),
                )

    def records(self, cell: Cell) -> list[dict]:
        """What attackers of a cell reached, as `kp.evaluation` keeps it."""
        folder = RunDirectory(cell.path(self.folder)).attacks
        return [read_json(path) for path in sorted(folder.glob("*.json"))]

    def controls(self, cell: Cell) -> list[dict]:
        """What training from scratch reached with the same labels."""
        folder = self._controls(cell)
        return [read_json(path) for path in sorted(folder.glob("*.json"))]

    def _controls(self, cell: Cell) -> pathlib.Path:
        name = f"controls-seed{cell.seed}" if cell.seed else "controls"
        return self.folder / cell.group / name

    def _is_attacked(self, cell: Cell) -> bool:
        """Whether all attacks are done; nothing large is read for that."""
        wanted = list(self.attacks(cell))
        found = [
            *self.records(cell),
            *self.controls(cell),
        ]
        wanted += [
            (CONTROL, budget) for name, budget in wanted if name in ATTACKS
        ]
        return all(
            any(
                record["attack"] == name
                and record["budget"]
                == kp.evaluation.ATTACKS[name].spends(budget)
                for record in found
            )
            for name, budget in wanted
        )

    def _attack(self, cell: Cell, directory: RunDirectory) -> None:
        self._find_original(cell)
        given = attacked.given(directory, self._load(cell.dataset))
        given.pop("title")
        with users_mistakes():
            case = Case.of(**given)
            records = Records(case, directory.attacks)
            # The labels are worth the same whatever is attacked.
            shared = hashlib.sha256(
                cell.original(self.folder).read_bytes()
            ).hexdigest()
            controls = Records(
                dataclasses.replace(case, fingerprint=shared),
                self._controls(cell),
            )
            for name, budget in self.attacks(cell):
                print(f"Trying {name}, {describe(name, budget)}", flush=True)
                records.perform(name, budget)
                if name in ATTACKS:
                    controls.perform(CONTROL, budget)
            if cell.shows_noise:
                Owner(case, given["passport"], directory.owner).noise()


def describe(name: str, budget: Budget) -> str:
    """What an attacker has, in words."""
    if name == FAKES:
        return f"{budget.num_fakes:,} on {budget.examples:,} pictures"
    tuned = ", tuned" if budget.tuned else ""
    return f"{100 * budget.fraction:g} % of the training set{tuned}"
