"""The main job: original, passport, protected network, fakes, report."""

import abc
import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags

import keras_passport as kp
from common import data, distribution, report, training
from common.errors import UserError, in_one_line
from common.identity import identity_images
from common.rundir import (
    PRIVATE,
    RunDirectory,
    load_model,
    read_json,
    replacing,
    save_model,
    write_json,
)
from keras_passport.passports import specs

# Fakes that are tried between two writings of what they reached.
_CHUNK = 50
# Training pictures, augmented, that statistics are estimated from, and what
# hiding them may take, in points of accuracy.
_STATISTICS = 2000
_MOST_LOST = 2.0
# Training pictures that a network is tried on before it is relied upon.
_CHECKED = 100
# Pictures, of the test set, that the attacker makes fakes of.
_ATTACKER_IMAGES = 100


def main(make_job: Callable[[distribution.Distribution], "Job"]) -> None:
    """Runs a job, or what is left of it; says in one line what went wrong.

    Args:
        make_job: makes it, for what it is spread over; what it raises is the
            user's to hear, too.
    """
    with in_one_line():
        spread = distribution.start(flags.FLAGS.strategy)
        with spread.guarded():
            make_job(spread).run()


class Job(abc.ABC):
    """The main job's stages; one that is finished is read, not done again.

    Args:
        spread: over what the trainings and the fakes are spread.
        name: of the network and its data, for the directory of the runs.
        config: all that the results depend on.
        dataset: what the networks classify.
        from_logits: whether their outputs are logits, not probabilities.
        run_dir: where results go; `runs/<name>-<passport>-<function>` if not
            given.
        identity_images: the owner's picture files, or folders of them.
    """

    # Whether the protected network starts from the original's weights, and
    # with its scales and shifts; whether kernel layers without a normalisation
    # are protected too, and which are, if not all.
    fine_tunes = False
    calibrates = True
    inserts = False
    selects = None

    def __init__(
        self,
        spread: distribution.Distribution,
        name: str,
        config: dict[str, Any],
        dataset: data.Dataset,
        from_logits: bool = True,
        *,
        run_dir: str | os.PathLike | None = None,
        identity_images: Sequence[str] | None = None,
    ):
        batch_size = min(config["batch_size"], len(dataset.x_train))
        spread.check_batch_size(batch_size)
        self.spread = spread
        self.config = config
        self.dataset = dataset
        self.kind = config["passport"]
        self.function = config["function"]
        self.recipe = training.Recipe(
            epochs=config["epochs"],
            batch_size=batch_size,
            learning_rate=config["learning_rate"],
            weight_decay=config["weight_decay"],
            seed=config["seed"],
            from_logits=from_logits,
            steps_per_execution=config.get("steps_per_execution", 1),
        )
        self.scaling = {"key_scaling": config["key_scaling"]}
        self._identity_images = identity_images
        self.directory = RunDirectory(
            run_dir
            or pathlib.Path("runs") / f"{name}-{self.kind}-{self.function}"
        )

    @abc.abstractmethod
    def prepare(self) -> None:
        """Checks what the user gave, before anything is written."""

    @abc.abstractmethod
    def make_original(self) -> keras.Model:
        """The unprotected network, trained."""

    def run(self) -> None:
        """All stages, one after the other."""
        # What can be wrong with the user's files is said before hours of
        # training, and before anything is written.
        images = None
        if self.spread.is_chief and not self.directory.passport.exists():
            images = identity_images(
                self.dataset,
                self.kind,
                self.function,
                self._identity_images,
                self.config["num_images"],
            )
        self.prepare()
        with self._alone():
            if self.spread.is_chief:
                self.directory.open(self.config)
            self.spread.agree()
            self.directory.check(self.config)
            print(f"Results go to {self.directory.path}")
            original = self._original()
            protected = self._protected(original, images)
            fakes = self._fakes(protected, original)
            if self.spread.is_chief:
                self._record(protected)
                report.write(self.directory, self.config, self.dataset, fakes)
            # Who goes first would seem lost to the others.
            self.spread.agree()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other programs from the directory; the chief does so for all.

        The other workers hear of it if it can't: they would wait for it.
        """
        refused = None
        with contextlib.ExitStack() as stack:
            if self.spread.is_chief:
                try:
                    stack.enter_context(self.directory.locked())
                except UserError as error:
                    refused = error
            if not self.spread.agree(refused is None):
                raise refused or UserError(
                    f"The chief can't write to --run_dir={self.directory.path}."
                )
            yield

    def _original(self) -> keras.Model:
        path = self.directory.original
        if self.spread.agree(path.exists()):
            with self.spread.scope():
                return load_model(path)
        model = self.make_original()
        self._finish(model, "original", path, PRIVATE)
        return model

    def _protected(
        self, original: keras.Model, images: np.ndarray | None
    ) -> keras.Model:
        path = self.directory.protected
        if self.spread.agree(path.exists()):
            with self.spread.scope():
                return self.directory.load_protected()
        with self.spread.scope():
            model = kp.protect(
                original, self.function, self.selects, insert=self.inserts
            )
        if self.spread.is_chief and not self.directory.passport.exists():
            self._make_passport(model, original, images)
        self.spread.agree()
        claimed = self.directory.secret.exists()
        with self.spread.scope():
            passport = kp.Passport.load(self.directory.passport)
            if not self.fine_tunes:
                # The paper finds that a protected network ends up better so
                # than from the original's kernels (its Figure 3). Whoever
                # can draw what it is trained from undoes an order of rows.
                kp.reinitialize(model, seed=passport.seed)
            kp.bind(model, passport)
        if not self.calibrates:
            pass
        elif self.fine_tunes:
            # What is inserted starts from the statistics that it meets.
            batches = self._some_batches() if self.inserts else None
            kp.calibrate(model, like=original, batches=batches)
            self._estimate_statistics(model)
        elif claimed:
            signature = kp.ownership.Signature(
                self.directory.secret.read_bytes(), self.config["owner"]
            )
            kp.calibrate(model, signs=signature)
        else:
            kp.calibrate(model)
        self._train_protected(model)
        if self.fine_tunes:
            # Few steps, and a model with a momentum that is made for many.
            self._estimate_statistics(model)
            self.check_scores(model, "protected")
        if self.config["hide_statistics"]:
            model = self._without_statistics(model)
        if self.config.get("hide_rows", False):
            model = self._in_secret_order(model)
        if claimed:
            self._claim(model, original)
        self._finish(model, "protected", path)
        return model

    def _train_protected(self, model: keras.Model) -> None:
        """Trains a protected network, and follows one layer of it."""
        layers = kp.protected_layers(model)
        print(f"Training the protected network, {len(layers)} passport layers")
        # One in the middle, neither the picture's own nor next to the logits.
        watched = list(layers)[len(layers) // 2]
        self.train(
            model, "protected", report.LayerWatch(watched, layers[watched])
        )

    def _without_statistics(self, model: keras.Model) -> keras.Model:
        """A copy whose statistics are hidden; the model if that costs much."""
        with self.spread.scope():
            hidden = kp.bind(
                kp.public(model), kp.Passport.load(self.directory.passport)
            )
        try:
            kp.hide_statistics(hidden, self._some_batches())
        except kp.PassportError as error:
            print(f"Statistics are published as they are. {error}")
            return model
        lost = self._accuracy(model) - self._accuracy(hidden)
        if lost > _MOST_LOST:
            print(
                "Statistics are published as they are: hiding them takes "
                f"{lost:.1f} points of accuracy on training pictures."
            )
            return model
        return hidden

    def _in_secret_order(self, model: keras.Model) -> keras.Model:
        """A copy whose rows are hidden; the model if no key could follow."""
        passport = kp.Passport.load(self.directory.passport)
        try:
            with self.spread.scope():
                return kp.hide_rows(model, passport)
        except kp.PassportError as error:
            print(f"Kernels are published as they are. {error}")
            return model

    def _accuracy(self, model: keras.Model) -> float:
        """In per cent, on some training pictures as they are."""
        x, y = self._some_pictures(_STATISTICS)
        return 100 * float(np.mean(training.predict_labels(model, x) == y))

    def check_scores(self, model: keras.Model, name: str) -> None:
        """Raises a `UserError` unless a network's scores are finite.

        Args:
            model: the network.
            name: of the network, for the message.
        """
        training.count_right(model, *self._some_pictures(_CHECKED), name)

    def _some_pictures(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """About so many training pictures, normalised, and their labels."""
        # Folders are read class by class: a part of all of them.
        part = slice(None, None, max(1, len(self.dataset.y_train) // count))
        pictures = self.dataset.normalize(self.dataset.x_train[part])
        return pictures, self.dataset.y_train[part]

    def _estimate_statistics(self, model: keras.Model) -> None:
        kp.estimate_statistics(model, self._some_batches())

    def _some_batches(self) -> Iterator[np.ndarray]:
        """Training pictures that statistics are estimated from."""
        batches = data.TrainingBatches(
            self.dataset, self.recipe.batch_size, self.recipe.seed
        )
        count = min(len(batches), -(-_STATISTICS // batches.batch_size))
        return (batches[i][0] for i in range(count))

    def _make_passport(
        self,
        model: keras.Model,
        original: keras.Model,
        images: np.ndarray | None,
    ) -> None:
        options = dict(self.scaling)
        owner = self.config.get("owner")
        if owner:
            secret = kp.ownership.new_secret()
            options["seed"] = kp.ownership.passport_seed(secret)
            with replacing(self.directory.secret, PRIVATE) as temporary:
                temporary.write_bytes(secret)
        if images is None:
            passport = kp.Passport.random_pattern(model, **options)
        else:
            passport = getattr(kp.Passport, self.kind)(
                model,
                self.dataset.normalize(images),
                reference=original,
                **options,
            )
        # The last of them: a run that has a passport goes on with it.
        with replacing(self.directory.passport, PRIVATE) as temporary:
            passport.save(temporary)

    def _claim(self, model: keras.Model, original: keras.Model) -> None:
        """Claims the network as it will be published (Section 3.2)."""
        if self.spread.is_chief:
            passport = kp.Passport.load(self.directory.passport)
            claim, opening = kp.ownership.claim(
                passport,
                owner=self.config["owner"],
                model=model,
                reference=None if passport.images is None else original,
                secret=self.directory.secret.read_bytes(),
            )
            opening.save(self.directory.opening)
            claim.save(self.directory.claim)
            print(
                f"To be published before the network, and dated by others: "
                f"{self.directory.claim}"
            )
        self.spread.agree()
        kp.ownership.attach(
            model, kp.ownership.Claim.load(self.directory.claim)
        )

    def _fakes(
        self, protected: keras.Model, original: keras.Model
    ) -> dict[str, Any]:
        """Accuracies (fractions) and entropies (bits), one per fake."""
        total = self.config["num_fakes"]
        done = read_json(self.directory.fakes) or {
            "accuracies": [],
            "entropies": [],
            "seconds": 0.0,
        }
        # As for a checkpoint: read by all before the chief writes another.
        self.spread.agree()
        x_test, y_test = self.dataset.test_examples(
            self.config["fake_examples"]
        )
        print(f"Trying {total} fake passports on {len(y_test):,} pictures")
        passport = kp.Passport.load(self.directory.passport).fitted(protected)
        # More than a real attacker has: the order of rows; pictures of the
        # same sort, and the very network that the passport was made with.
        sources = {"order_seeds": specs.order_seeds(passport)}
        if self.kind != "random_pattern":
            sources["images"], _ = self.dataset.test_examples(_ATTACKER_IMAGES)
            sources["reference"] = original
        while (start := len(done["accuracies"])) < total:
            with self.spread.scope():
                tried = kp.attacks.fake_passports(
                    protected,
                    self.kind,
                    min(_CHUNK, total - start),
                    (x_test, y_test),
                    seed=self.recipe.seed,
                    start=start,
                    progress=self.spread.is_chief and sys.stdout.isatty(),
                    **sources,
                    **self.scaling,
                )
            done["accuracies"] += tried.accuracies
            done["entropies"] += tried.entropies
            done["seconds"] += tried.seconds
            if self.spread.is_chief:
                write_json(self.directory.fakes, done, PRIVATE)
        return done

    def _record(self, protected: keras.Model) -> None:
        """Writes down what the owner of a claim expects of the network."""
        directory = self.directory
        if not directory.opening.exists() or directory.record.exists():
            return
        print("Writing down the accuracy under noise, for a dispute")
        kp.ownership.record(
            protected,
            kp.Passport.load(directory.passport),
            self.dataset.test_examples(self.config["fake_examples"]),
        ).save(directory.record)

    def train(
        self,
        model: keras.Model,
        stage: str,
        watch: "report.LayerWatch | None" = None,
    ) -> None:
        """Trains a stage's model, or goes on; keeps its history."""
        try:
            history = training.train(
                model,
                self.dataset,
                self.recipe,
                self.directory.checkpoint(stage),
                watch=watch,
                distribution=self.spread,
            )
        except training.DivergedError as error:
            self._keep(stage, _of_json(error.history), watch)
            raise UserError(self._advice(stage, error)) from error
        self._keep(stage, history, watch)

    def _advice(self, stage: str, error: training.DivergedError) -> str:
        """What happened, what is left of it, and what to change."""
        rate = self.recipe.learning_rate
        changes = [
            f"a lower --learning_rate (now {rate:g})",
            f"more --epochs, a tenth of which warm up (now "
            f"{self.recipe.epochs})",
            f"a larger --batch_size (now {self.recipe.batch_size})",
        ]
        if self.config.get("mixed_precision", "none") != "none":
            changes.insert(1, "--mixed_precision=none")
        if stage == "protected" and self.config["key_scaling"] == "paper":
            changes.append("--key_scaling=unit or orthogonal")
        return (
            f"The training of the {stage} network diverged in epoch "
            f"{error.epoch} of {self.recipe.epochs}: not finite any more are "
            f"{', '.join(error.what)}. Nothing was published, no fakes were "
            f"tried; its course until then is in {self.directory.history}. "
            f"Try {', '.join(changes)}, with another --run_dir."
        )

    def _keep(
        self,
        stage: str,
        history: dict[str, list],
        watch: "report.LayerWatch | None",
    ) -> None:
        """Writes the course of a stage's training."""
        if not self.spread.is_chief:
            return
        histories = read_json(self.directory.history) or {}
        histories[stage] = history
        if watch:
            histories["layer"] = watch.name
        write_json(self.directory.history, histories, PRIVATE)

    def _finish(
        self,
        model: keras.Model,
        stage: str,
        path: pathlib.Path,
        mode: int | None = None,
    ) -> None:
        """Writes a stage's model; then its checkpoint has served."""
        if self.spread.is_chief:
            save_model(model, path, mode)
            self.directory.checkpoint(stage).unlink(missing_ok=True)


def _of_json(history: dict[str, list[float]]) -> dict[str, list]:
    """The history without what JSON has no numbers for."""
    return {
        name: [value if math.isfinite(value) else None for value in values]
        for name, values in history.items()
    }
