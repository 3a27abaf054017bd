"""The main job: original, passport, protected network, fakes, report."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import flags, logging

import keras_passport as kp
from common import data, report, training
from common.errors import UserError
from common.identity import identity_images
from common.rundir import (
    PRIVATE,
    RunDirectory,
    load_model,
    read_json,
    save_model,
    write_json,
)
from common.settings import settings

# Fakes that are tried between two writings of what they reached.
_CHUNK = 50
# Pictures, of the test set, that the attacker makes fakes of.
_ATTACKER_IMAGES = 100


def main(name: str, build: Callable[..., keras.Model], **options: Any) -> None:
    """Runs the main job, or what is left of it.

    Args:
        name: of the network, for the directory of its runs.
        build: `(input_shape, num_classes, **options)` -> the network.
        options: the network's own flags.
    """
    if flags.FLAGS["verbosity"].using_default_value:
        # tensorflow-datasets and JAX tell much at the default one.
        logging.set_verbosity(logging.WARNING)
    try:
        Job(name, build, options).run()
    except (UserError, kp.PassportError) as error:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")


class Job:
    """The main job's stages; one that is finished is read, not done again.

    Args:
        name: as for `main`.
        build: as for `main`.
        options: as for `main`.
    """

    def __init__(
        self, name: str, build: Callable[..., keras.Model], options: dict
    ):
        config = settings()
        self.config = {**config, **options}
        self.kind = config["passport"]
        self.function = config["function"]
        self.recipe = training.Recipe(
            epochs=config["epochs"],
            batch_size=config["batch_size"],
            learning_rate=config["learning_rate"],
            weight_decay=config["weight_decay"],
            seed=config["seed"],
            precision=config["mixed_precision"],
        )
        self.scaling = {}
        if config["key_scaling"]:
            self.scaling["key_scaling"] = config["key_scaling"]
        self.scope = training.strategy_scope(config["strategy"])
        self.dataset = data.load(config["dataset"], flags.FLAGS.data_dir)
        self.directory = RunDirectory(
            flags.FLAGS.run_dir
            or pathlib.Path("runs")
            / f"{name}-{config['dataset']}-{self.kind}-{self.function}"
        )
        self._build = lambda: build(
            self.dataset.input_shape, self.dataset.num_classes, **options
        )

    def run(self) -> None:
        """All stages, one after the other."""
        # What can be wrong with the user's files is said before hours of
        # training, and before anything is written.
        images = None
        if not self.directory.passport.exists():
            images = identity_images(
                self.dataset,
                self.kind,
                self.function,
                flags.FLAGS.identity_images,
                flags.FLAGS.num_images,
            )
        reference = None
        if flags.FLAGS.reference and not self.directory.original.exists():
            reference = self._copy_of(flags.FLAGS.reference)
        self.directory.open(self.config)
        print(f"Results go to {self.directory.path}")
        original = self._original(reference)
        protected = self._protected(original, images)
        fakes = self._fakes(protected, original)
        report.write(
            self.directory,
            self.config,
            self.dataset,
            original,
            protected,
            fakes,
        )

    def _original(self, reference: keras.Model | None) -> keras.Model:
        path = self.directory.original
        if path.exists():
            with self.scope():
                return load_model(path)
        model = reference
        if model is None:
            model = self._new_network()
            print(f"Training the original, {model.count_params():,} parameters")
            self._train(model, "original")
        self._finish(model, "original", path, PRIVATE)
        return model

    def _protected(
        self, original: keras.Model, images: np.ndarray | None
    ) -> keras.Model:
        path = self.directory.protected
        if path.exists():
            with self.scope():
                model = load_model(path)
            return kp.bind(model, kp.Passport.load(self.directory.passport))
        with self.scope():
            model = kp.protect(original, function=self.function)
            # From scratch: the paper finds that a protected network ends up
            # better so than from the original's kernels (its Figure 3).
            kp.reinitialize(model, seed=self.recipe.seed)
        if not self.directory.passport.exists():
            self._make_passport(model, original, images)
        kp.bind(model, kp.Passport.load(self.directory.passport))
        kp.calibrate(model)
        layers = kp.protected_layers(model)
        print(f"Training the protected network, {len(layers)} passport layers")
        # One in the middle, neither the picture's own nor next to the logits.
        watched = list(layers)[len(layers) // 2]
        self._train(
            model, "protected", report.LayerWatch(watched, layers[watched])
        )
        self._finish(model, "protected", path)
        return model

    def _make_passport(
        self,
        model: keras.Model,
        original: keras.Model,
        images: np.ndarray | None,
    ) -> None:
        if images is None:
            passport = kp.Passport.random_pattern(model, **self.scaling)
        else:
            passport = getattr(kp.Passport, self.kind)(
                model,
                self.dataset.normalize(images),
                reference=original,
                **self.scaling,
            )
        passport.save(self.directory.passport)

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
        x_test, y_test = self.dataset.test_examples(
            self.config["fake_examples"]
        )
        print(f"Trying {total} fake passports on {len(y_test):,} pictures")
        sources = {}
        if self.kind != "random_pattern":
            # More than a real attacker has: pictures of the same sort, and
            # the very network that the passport was made with.
            sources["images"], _ = self.dataset.test_examples(_ATTACKER_IMAGES)
            sources["reference"] = original
        while (start := len(done["accuracies"])) < total:
            tried = kp.attacks.fake_passports(
                protected,
                self.kind,
                min(_CHUNK, total - start),
                (x_test, y_test),
                seed=self.recipe.seed,
                start=start,
                progress=sys.stdout.isatty(),
                **sources,
                **self.scaling,
            )
            done["accuracies"] += tried.accuracies
            done["entropies"] += tried.entropies
            done["seconds"] += tried.seconds
            write_json(self.directory.fakes, done, PRIVATE)
        return done

    def _new_network(self) -> keras.Model:
        keras.utils.set_random_seed(self.recipe.seed)
        with self.scope(), training.precision(self.recipe.precision):
            return self._build()

    def _copy_of(self, reference: str) -> keras.Model:
        """The network that the flags build, with weights from a file.

        So its names, and the types that it computes in, are the flags', too.
        """
        found, model = load_model(reference), self._new_network()
        if _weight_shapes(found) != _weight_shapes(model):
            raise UserError(
                f"--reference={reference} is another network than these flags "
                f"build ({model.name}, {model.count_params():,} parameters). "
                f"Received: {found.name}, {found.count_params():,} parameters"
            )
        model.set_weights(found.get_weights())
        return model

    def _checkpoint(self, stage: str) -> pathlib.Path:
        return self.directory.checkpoints / f"{stage}.h5"

    def _train(
        self,
        model: keras.Model,
        stage: str,
        watch: "report.LayerWatch | None" = None,
    ) -> None:
        history = training.train(
            model,
            self.dataset,
            self.recipe,
            self._checkpoint(stage),
            watch=watch,
            scope=self.scope,
        )
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
        save_model(model, path, mode)
        self._checkpoint(stage).unlink(missing_ok=True)


def _weight_shapes(model: keras.Model) -> list[tuple]:
    return [tuple(weight.shape) for weight in model.weights]
