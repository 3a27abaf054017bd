"""What a user gives on a command line: modules, models, layers, arrays.

`keras-passport` and the example programs share it. A user's mistake is a
`ValueError` of one line.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import textwrap
import zipfile
from collections.abc import Sequence

import numpy as np

from keras_passport import files, scores
from keras_passport.cli.pictures import ANOTHER
from keras_passport.cli.quiet import quiet
from keras_passport.shapes import fits
from keras_passport.texts import shown


def import_modules(names: Sequence[str]) -> None:
    """Imports modules, so that Keras finds the classes of a model's layers.

    What a module defines is found whether it is registered or not.

    Args:
        names: Of modules, which may lie in the working folder, or paths of
            `.py` files.

    Raises:
        ValueError: If one can't be imported.

    Example:

    >>> from keras_passport.cli import given
    >>> pathlib.Path("my_layers.py").write_text("ANSWER = 42") and None
    >>> given.import_modules(["my_layers.py"])
    """
    if not names:
        return
    with quiet():
        import keras
    known = keras.saving.get_custom_objects()
    for name in names:
        module = _imported(name)
        for label, value in vars(module).items():
            defined_in = str(getattr(value, "__module__", "")).split(".")
            is_its_own = defined_in[: module.__name__.count(".") + 1] == (
                module.__name__.split(".")
            )
            if is_its_own and (
                inspect.isclass(value) or inspect.isfunction(value)
            ):
                known.setdefault(label, value)


def _imported(name: str):
    path = pathlib.Path(name)
    is_file = path.suffix == ".py" or path.name != name
    if is_file and not path.is_file():
        raise ValueError(
            "Expected --import of a module's name, or of a .py file. "
            f"Received: '{shown(name)}', no such file"
        )
    # Last, so that nothing in there takes the place of a package.
    folder = str(path.resolve().parent if is_file else pathlib.Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        if not is_file:
            return importlib.import_module(name)
        return _imported_file(path)
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            reason = f"it imports '{shown(error.name)}', which is not installed"
        else:
            reason = "there is no module of this name, here or installed"
        raise _wrong(name, reason) from error
    # A module may raise what it likes, and end the process.
    except (Exception, SystemExit) as error:
        what = str(error).partition("\n")[0]
        raise _wrong(name, f"{type(error).__name__}: {what}") from error


def _imported_file(path: pathlib.Path):
    path = path.resolve()
    for module in list(sys.modules.values()):
        if getattr(module, "__file__", None) == str(path):
            return module
    # Models name the module of their layers: so it gets the name that it has
    # when a script imports it, unless that is another's.
    label = path.stem
    if label in sys.modules or not label.isidentifier():
        label = f"_given_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(label, path)
    if spec is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[label] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[label]
        raise
    return module


def _wrong(name, reason) -> ValueError:
    return ValueError(
        "Expected --import of a module that can be imported. "
        f"Received: '{shown(name)}': {shown(reason)}"
    )


def load_model(path: str | os.PathLike):
    """A model that Keras saved, not compiled.

    Args:
        path: A `.keras` file, or another that Keras loads.

    Raises:
        ValueError: If it is missing, damaged, or has layers whose code is not
            known.
    """
    name = shown(path)
    if not os.path.exists(path):
        raise ValueError(
            f"Expected a model file at '{name}'. Received: no such file"
        )
    suffix = pathlib.Path(path).suffix
    if not os.path.isdir(path):
        try:
            # A FIFO would keep whoever opens it waiting.
            files.open_regular(path).close()
        except OSError as error:
            raise ValueError(
                f"Expected '{name}' to be a model that Keras saved. "
                f"Received: {shown(error.strerror or error)}"
            ) from error
    if suffix == ".keras" and not zipfile.is_zipfile(path):
        # Keras would say that it is not there.
        raise ValueError(
            f"Expected '{name}' to be a model that Keras saved. "
            f"Received: a file {ANOTHER}"
        )
    with quiet():
        import keras
    try:
        return keras.saving.load_model(path, compile=False)
    # A file that is not what it should be fails in zipfile, h5py, json or
    # Keras, each in its own way, and at length.
    except Exception as error:
        said = textwrap.shorten(str(error), 200, placeholder=" ...")
        missing = re.search(
            "Could not locate (class|function) '.*?'", str(error)
        )
        if missing:
            said = (
                f"{missing[0]}, whose code is not part of the file: give the "
                "module that defines it with --import"
            )
        raise ValueError(
            f"Expected '{name}' to be a model that Keras can load. "
            f"Received: {shown(said) or type(error).__name__}"
        ) from error


def selection(
    text: str | None, kernels: Sequence[str]
) -> list[str] | re.Pattern | None:
    """What `select=` of `protect` and `inspect` is given for `--select`.

    Args:
        text: Layers' paths with commas between them, or a regular expression
            that is searched for in them.
        kernels: Paths of the model's kernel layers.

    Returns:
        The paths, or the expression; `None` for no text.

    Raises:
        ValueError: If it names a layer that the model does not have, is no
            regular expression, or finds no layer.

    Example:

    >>> from keras_passport.cli import given
    >>> given.selection("conv1,conv2", ["conv1", "conv2", "logits"])
    ['conv1', 'conv2']
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in kernels]
    if not unknown:
        return names
    if not text.strip():
        raise ValueError(
            "Expected --select of kernel layers' names, or a regular "
            "expression. Received: nothing"
        )
    if len(unknown) < len(names):
        raise ValueError(
            "Expected --select of kernel layers' names, or a regular "
            f"expression. Received: '{shown(unknown[0])}', "
            f"{_instead(unknown[0], kernels)}"
        )
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(
            "Expected --select of kernel layers' names, or a regular "
            f"expression. Received: '{shown(text)}': {error}"
        ) from error
    if not any(map(pattern.search, kernels)):
        raise ValueError(
            "Expected --select of kernel layers' names, or a regular "
            f"expression that finds some. Received: '{shown(text)}', "
            f"{_instead(names[0], kernels)}"
        )
    return pattern


def _instead(name: str, kernels: Sequence[str]) -> str:
    """What the model has, the nearest name first."""
    if near := difflib.get_close_matches(name, kernels, 1):
        return f"which it has not; did you mean '{shown(near[0])}'?"
    listed = ", ".join(shown(path) for path in list(kernels)[:8])
    rest = len(kernels) - 8
    more = f" and {rest:,} more" if rest > 0 else ""
    return f"which it has not; it has {listed or 'none'}{more}"


def examples(path: str | os.PathLike) -> tuple:
    """Arrays `x` and `y` of a file of `numpy.savez`.

    Args:
        path: The file.

    Raises:
        ValueError: If it is none, or has no examples.
    """
    found = arrays(path, "arrays x and y")
    if not {"x", "y"} <= set(found):
        raise ValueError(
            f"Expected arrays x and y in '{shown(path)}', saved by "
            "numpy.savez. Received: a file without one of them"
        )
    x, y = found["x"], found["y"]
    if x.ndim == 0 or len(x) == 0:
        raise ValueError(
            f"Expected examples in '{shown(path)}'. "
            f"Received: x of shape {x.shape}"
        )
    if x.dtype.kind not in "biuf" and x.dtype.name != "bfloat16":
        raise ValueError(
            f"Expected numbers for x in '{shown(path)}'. "
            f"Received: dtype {x.dtype}"
        )
    return x, y


def fitting_examples(path: str | os.PathLike, model) -> tuple:
    """`examples` of a model's input shape, and labels of its classes.

    Args:
        path: The file.
        model: A classifier.

    Raises:
        ValueError: If they are none.
    """
    x, y = examples(path)
    takes = scores.only_shape(model.input_shape)
    gives = scores.only_shape(model.output_shape)
    if not isinstance(gives, tuple) or len(gives) != 2 or gives[-1] == 1:
        raise ValueError(
            "Expected a classifier with one output per class. Received: "
            f"outputs {gives}"
        )
    if not isinstance(takes, tuple) or not fits(takes[1:], x.shape[1:]):
        raise ValueError(
            f"Expected x of the model's input shape, {takes}. "
            f"Received: x of shape {x.shape}"
        )
    if y.shape == (len(x), gives[-1]):
        y = scores.from_one_hot(y)
    return x, scores.labels_of(y, len(x), gives[-1])


def arrays(path: str | os.PathLike, what: str = "arrays") -> dict:
    """What a file of `numpy.savez` holds, by name.

    Args:
        path: The file.
        what: What is expected, for the message.

    Raises:
        ValueError: If it is none.
    """
    found = _loaded(path, f"{what} in '{shown(path)}', saved by numpy.savez")
    if not isinstance(found, dict):
        raise ValueError(
            f"Expected {what} in '{shown(path)}', saved by numpy.savez. "
            f"Received: a file {ANOTHER}"
        )
    return found


def array(path: str | os.PathLike) -> np.ndarray:
    """The array of numbers in a file of `numpy.save`.

    Args:
        path: The file.

    Raises:
        ValueError: If it is none.
    """
    wanted = f"'{shown(path)}' to be an array of numbers, saved by numpy.save"
    found = _loaded(path, wanted)
    if isinstance(found, dict) or found.dtype.kind not in "biuf":
        raise ValueError(f"Expected {wanted}. Received: a file {ANOTHER}")
    return found


def _loaded(path, wanted):
    try:
        with files.open_regular(path) as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            return {name: found[name] for name in found.files}
    except FileNotFoundError:
        raise
    # NumPy's own errors, and those of zipfile.
    except Exception as error:
        raise ValueError(
            f"Expected {wanted}. Received: a file {ANOTHER}"
        ) from error


def first_seed_warning(model) -> str | None:
    """What to tell an owner whose network others can begin again.

    Args:
        model: The original, as `audit.first_seed` takes it.
    """
    from keras_passport import audit

    seed = audit.first_seed(model)
    if seed is None:
        return None
    return (
        f"Its training began with the weights of seed {seed}. Whoever tries "
        "that seed knows what its kernels still have of them: after a short "
        "training nearly all. Train what you protect from "
        "keras_passport.reinitialize(network)."
    )
