"""What a model's layers see: their input shapes, and their inputs."""

import contextlib
import dataclasses
import numbers
import pathlib
import threading

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.layers import kernels
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import binding, checks, inputs
from keras_passport.passports import matching
from keras_passport.secrecy import hidden, type_of
from keras_passport.shapes import fits
from keras_passport.texts import shown

# How many images run at once, and how many numbers of theirs: at a VGG's widest
# layer these are some 200 MB.
_TOGETHER = 32
_NUMBERS = 2**21


def input_shapes(model, spatial_size=None) -> dict[str, tuple[int, ...]]:
    """Input shape of each protected layer, without the batch axis.

    Args:
        model: Protected model.
        spatial_size: Size of the model's inputs along axes that it leaves
            open: an int for all of them, or a tuple in their order.

    Raises:
        PassportError: If the model leaves axes open and no size is given.
    """
    layers = protected_layers(model)
    shapes = {path: layer.inputs_shape[1:] for path, layer in layers.items()}
    if _are_known(shapes):
        return shapes
    checks.check_graph(model)
    is_open = any(None in tensor.shape[1:] for tensor in model.inputs)
    if spatial_size is None and is_open:
        raise PassportError(
            "Expected spatial_size, since the model leaves its input size "
            f"open ({model.input_shape}). Received: spatial_size=None"
        )
    filled = keras.tree.map_structure(
        lambda tensor: keras.KerasTensor(
            _filled(tensor.shape, spatial_size), dtype=tensor.dtype
        ),
        graph.inputs_of(model),
    )
    with graph.any_sizes(model):
        seen = _seen(layers, "compute_output_spec", model, filled)
        if not _are_known(seen):
            # Layers such as an EinsumDense with `output_shape=(None, 64)` don't
            # say how many positions they give out until they are called.
            zeros = keras.tree.map_structure(
                lambda spec: ops.zeros(spec.shape, spec.dtype), filled
            )
            channels = {
                path: layer.adapter.units(layer.layer)
                for path, layer in layers.items()
            }
            neutral = {
                path: (np.ones(size), np.zeros(size))
                for path, size in channels.items()
            }
            with binding.assumed(model, neutral):
                seen = _seen(layers, "call", model, zeros)
    return {path: seen[path] for path in layers}


def _are_known(shapes) -> bool:
    return all(None not in shape for shape in shapes.values())


def _seen(layers, method, model, x) -> dict:
    """The shape in which each layer sees its inputs first, per path."""
    seen = {}

    def note(path, inputs):
        seen.setdefault(path, tuple(inputs.shape[1:]))

    with watching(layers, method, note):
        if method == "call":
            model(x, training=False)
        else:
            model.compute_output_spec(x)
    return seen


def map_shapes(model) -> dict[str, tuple]:
    """Input shape of each protected layer, `None` for what may be any size.

    A Sequential in a model may be called with another size than it was built
    for, so of layers in one the channels alone are known.

    Args:
        model: Protected model.
    """
    layers = protected_layers(model)
    inside = tuple(
        f"{path}/"
        for path, layer in graph.walk(model)
        if isinstance(layer, keras.Sequential)
    )
    shapes = {}
    for path, layer in layers.items():
        shape = layer.inputs_shape
        if path.startswith(inside) and inside:
            geometry = layer.geometry
            first = geometry.data_format == "channels_first"
            channels = 1 if first and geometry.kernel_size else len(shape) - 1
            shape = tuple(
                size if axis == channels else None
                for axis, size in enumerate(shape)
            )
        shapes[path] = shape
    return shapes


def open_sizes(model, x) -> tuple[int, ...] | None:
    """Sizes that inputs have along the axes that a model leaves open.

    Args:
        model: Protected model.
        x: Array `(examples, ...)` or a structure of them for several
            inputs; the first with open axes counts.

    Returns:
        A `spatial_size` as `input_shapes` takes it; `None` for no open axis.
    """
    for tensor, array in zip(model.inputs, inputs.flat(model, x), strict=True):
        # Keras adds or takes a last axis of 1.
        sizes = tuple(
            size
            for expected_size, size in zip(
                tensor.shape[1:], array.shape[1:], strict=False
            )
            if expected_size is None
        )
        if sizes:
            return sizes
    return None


def _filled(shape, spatial_size):
    several = isinstance(spatial_size, (tuple, list, np.ndarray))
    given = spatial_size if several else [spatial_size] * len(shape)
    if spatial_size is not None and not all(
        isinstance(size, numbers.Integral) and size > 0 for size in given
    ):
        raise PassportError(
            "Expected spatial_size to be whole numbers of 1 or more. "
            f"Received: spatial_size={spatial_size!r}"
        )
    sizes = map(int, given)
    try:
        rest = [next(sizes) if n is None else n for n in shape[1:]]
    except StopIteration:
        raise PassportError(
            "Expected spatial_size to hold a size for each open axis of "
            f"{shape}. Received: spatial_size={spatial_size}"
        ) from None
    return (shape[0] or 1, *rest)


def layer_inputs(
    model, reference, images, wanted, take=lambda path, value: value.copy()
) -> dict:
    """Runs images through a reference and takes what each layer sees.

    Args:
        model: Protected model, for the paths and shapes of its layers.
        reference: Trained network of the same architecture, protected (and
            bound) or not.
        images: Float array `(n, ...)` in the model's input domain, or a dict
            of them for several inputs.
        wanted: Dict from path to indices of images.
        take: Function of a path and a feature map, float32: what to take of
            it, for as long as some images' maps fit into memory.

    Returns:
        Dict from path to dict from image index to what was taken of its map.

    Raises:
        PassportError: If the reference has no layer of a path, or its input
            there has another shape.
    """
    if not isinstance(reference, keras.Model):
        raise PassportError(
            "Expected reference to be a trained network of the model's "
            f"architecture. Received: a {type_of(reference)}"
        )
    watched = _counterparts(model, reference, wanted)
    shapes = map_shapes(model)
    taken = {path: {} for path in wanted}
    flat = _for_reference(model, reference, inputs.flat(model, images))
    order = sorted({i for indices in wanted.values() for i in indices})

    def run(chosen):
        def note(path, seen):
            if all(i in taken[path] or i not in wanted[path] for i in chosen):
                return
            values = ops.convert_to_numpy(ops.cast(seen, "float32"))
            values = hidden(values)
            if len(chosen) > 1 and len(values) != len(chosen):
                raise PassportError("Expected a row per image")
            for index, value in zip(chosen, values, strict=False):
                if index in wanted[path] and index not in taken[path]:
                    _check_seen(path, shapes[path], value[None])
                    taken[path][index] = take(path, value)

        with watching(watched, "call", note):
            _run(reference, [array[chosen] for array in flat])

    together = max(1, min(_TOGETHER, _NUMBERS // max(1, flat[0][0].size)))
    for start in range(0, len(order), together):
        some = order[start : start + together]
        try:
            run(some)
        except PassportError:
            if len(some) == 1:
                raise
            # What takes one image alone, or makes several rows of it.
            for index in some:
                run([index])
    return taken


def _counterparts(model, reference, wanted) -> dict:
    """The reference's layer for each protected layer of a model."""
    available = dict(graph.walk(reference, stop=(PassportNormalization,)))
    names = {path: path for path in wanted}
    if not set(wanted) <= set(available):
        # Another architecture's may lack some, or it is the same made anew.
        with contextlib.suppress(PassportError):
            names = matching.match(
                _geometries(model), _geometries(reference), "reference"
            )
    missing = sorted(path for path in wanted if names[path] not in available)
    if missing:
        raise PassportError(
            "Expected a reference of the model's architecture, with a layer "
            f"of every protected path. Received: '{reference.name}' without "
            f"{missing[:3]}{' and others' if len(missing) > 3 else ''}"
        )
    return {path: available[names[path]] for path in wanted}


def _geometries(model) -> dict:
    """The geometry of each kernel layer of a model, protected or not."""
    geometries = {}
    for path, layer in graph.walk(model, stop=(PassportNormalization,)):
        adapter = kernels.adapter_for(layer)
        if isinstance(layer, PassportNormalization):
            # Without what its keys have, and no reference.
            geometries[path] = dataclasses.replace(
                layer.geometry.in_own_order(), key_groups=1
            )
        elif adapter is not None and adapter.refusal(layer) is None:
            geometries[path] = adapter.geometry(layer)
    return geometries


def _check_seen(path, expected, value) -> None:
    if not fits((None, *expected[1:]), value.shape):
        raise PassportError(
            f"Expected the reference's input of layer '{shown(path)}' to have "
            f"shape {expected[1:]}. Received: shape={value.shape[1:]}"
        )


def _for_reference(model, reference, flat) -> list:
    """Flat inputs of a model in the order of a reference's, and checked.

    What the reference would not take, Keras would print.
    """
    if not graph.is_model(reference):
        return flat
    ours = [tensor.name for tensor in model.inputs]
    theirs = reference.inputs
    names = [tensor.name for tensor in theirs]
    if sorted(names) == sorted(ours) and len(set(ours)) == len(ours):
        flat = [flat[ours.index(name)] for name in names]
    if len(flat) != len(theirs) or not all(
        fits((None, *tensor.shape[1:]), array.shape)
        for tensor, array in zip(theirs, flat, strict=True)
    ):
        raise PassportError(
            "Expected a reference that takes the model's inputs. Received: "
            f"'{shown(reference.name)}' with inputs of shape "
            f"{[tensor.shape for tensor in theirs]}"
        )
    return flat


def _run(reference, flat) -> None:
    functional = graph.is_model(reference)
    one = inputs.packed(reference, flat) if functional else flat
    if not functional and len(flat) == 1:
        one = flat[0]
    failed = None
    try:
        reference(one, training=False)
    except PassportError:
        raise
    # Keras's errors print what a layer was called with.
    except (TypeError, ValueError) as error:
        failed = type(error).__name__
    if failed:
        raise PassportError(
            "Expected a reference that runs on the images. Received: a "
            f"{failed} from calling '{shown(reference.name)}' with them"
        )


def check_images(model, images):
    """The images as float32 arrays, checked against the model's inputs.

    Args:
        model: Protected model.
        images: In any form in which Keras's `predict` takes them.

    Returns:
        One array `(n, ...)` for one input, else a dict or list of them.

    Raises:
        PassportError: If they are not what the model takes.
    """
    images = hidden(images)
    if isinstance(images, (str, pathlib.PurePath)):
        raise PassportError(
            "Expected images, in an array. Received: a path (keras_passport."
            "pictures.read_images reads pictures and folders of them)"
        )
    checked = []
    given = inputs.flat(model, images)
    for tensor, array in zip(model.inputs, given, strict=True):
        shape = tensor.shape
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            raise PassportError(
                f"Expected images of shape {('n', *shape[1:])}, arrays of "
                f"numbers. Received: a {type_of(array)}, "
                f"dtype={getattr(array, 'dtype', None)}"
            )
        received = array.shape
        array = inputs.of_rank(array, shape)
        if len(array) == 0 or not fits((None, *shape[1:]), array.shape):
            raise PassportError(
                f"Expected images of shape {('n', *shape[1:])} in the model's "
                f"input domain. Received: shape={received}, "
                f"dtype={array.dtype}"
            )
        if not np.all(np.isfinite(array)):
            raise PassportError(
                "Expected images without NaN or infinity. Received: some"
            )
        checked.append(array.astype("float32", copy=False))
    counts = {len(array) for array in checked}
    if len(counts) != 1:
        raise PassportError(
            "Expected equally many images for every input. "
            f"Received: {sorted(counts)}"
        )
    return inputs.plain(model, checked)


# Held while layers are watched: a second watcher would be taken away by the
# first one's end.
_WATCHING = threading.RLock()


@contextlib.contextmanager
def watching(layers, method, note):
    """Calls `note(path, first argument)` at each call of a layers' method.

    Of this thread's calls alone: what others run through the same network
    meanwhile is not what is to be seen.
    """
    watcher = threading.get_ident()

    def watch(path, original):
        def watched(*args, **kwargs):
            if threading.get_ident() == watcher:
                note(path, [*args, *kwargs.values()][0])
            return original(*args, **kwargs)

        return watched

    with _WATCHING:
        for path, layer in layers.items():
            setattr(layer, method, watch(path, getattr(layer, method)))
        try:
            yield
        finally:
            for layer in layers.values():
                delattr(layer, method)
