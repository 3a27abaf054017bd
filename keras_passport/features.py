"""What a model's layers see: their input shapes, and their inputs."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_passport import graph, models
from keras_passport.errors import PassportError


def input_shapes(model, spatial_size=None) -> dict[str, tuple[int, ...]]:
    """Input shape of each protected layer, without the batch axis.

    Args:
        model: Protected model.
        spatial_size: Size of the model's inputs along axes that it leaves
            open: an int for all of them, or a tuple in their order.

    Raises:
        PassportError: If the model leaves axes open and no size is given.
    """
    layers = models.protected_layers(model)
    shapes = {path: layer.inputs_shape[1:] for path, layer in layers.items()}
    if all(None not in shape for shape in shapes.values()):
        return shapes
    if spatial_size is None:
        raise PassportError(
            "Expected spatial_size, since the model leaves its input size "
            f"open ({model.input_shape}). Received: spatial_size=None"
        )
    seen = {}

    def note(path, spec):
        seen.setdefault(path, tuple(spec.shape[1:]))

    with _watching(layers, "compute_output_spec", note):
        model.compute_output_spec(
            keras.tree.map_structure(
                lambda tensor: keras.KerasTensor(
                    _filled(tensor.shape, spatial_size), dtype=tensor.dtype
                ),
                graph.functional_of(model)._inputs_struct,
            )
        )
    return {path: seen[path] for path in layers}


def open_sizes(model, inputs) -> tuple[int, ...] | None:
    """Sizes that inputs have along the axes that a model leaves open.

    Args:
        model: Protected model.
        inputs: Array `(examples, ...)` or a structure of them for several
            inputs; the first with open axes counts.

    Returns:
        A `spatial_size` as `input_shapes` takes it; `None` for no open axis.
    """
    expected = keras.tree.flatten(graph.functional_of(model)._inputs_struct)
    given = keras.tree.flatten(inputs)
    for tensor, array in zip(expected, given, strict=False):
        sizes = tuple(
            size
            for own, size in zip(tensor.shape[1:], array.shape[1:], strict=True)
            if own is None
        )
        if sizes:
            return sizes
    return None


def _filled(shape, spatial_size):
    sizes = (
        iter(spatial_size)
        if isinstance(spatial_size, (tuple, list))
        else iter([spatial_size] * len(shape))
    )
    try:
        rest = [next(sizes) if n is None else n for n in shape[1:]]
    except StopIteration:
        raise PassportError(
            "Expected spatial_size to hold a size for each open axis of "
            f"{shape}. Received: spatial_size={spatial_size}"
        ) from None
    return (1, *rest)


def layer_inputs(model, reference, images, wanted) -> dict:
    """Runs images through a reference and takes what each layer sees.

    Args:
        model: Protected model, for the paths and shapes of its layers.
        reference: Trained network of the same architecture, protected (and
            bound) or not.
        images: Float array `(n, ...)` in the model's input domain, or a dict
            of them for several inputs.
        wanted: Dict from path to indices of images.

    Returns:
        Dict from path to dict from image index to feature map, float32.

    Raises:
        PassportError: If the reference has no layer of a path, or its input
            there has another shape.
    """
    layers = models.protected_layers(model)
    if not isinstance(reference, keras.Model):
        raise PassportError(
            "Expected reference to be a trained network of the model's "
            f"architecture. Received: reference={reference!r}"
        )
    available = dict(
        graph.walk(reference, stop=(type(next(iter(layers.values()))),))
    )
    missing = sorted(set(wanted) - set(available))
    if missing:
        raise PassportError(
            "Expected a reference of the model's architecture, with a layer "
            f"of every protected path. Received: '{reference.name}' without "
            f"{missing[:3]}{' and others' if len(missing) > 3 else ''}"
        )
    maps = {path: {} for path in wanted}
    for index in sorted({i for some in wanted.values() for i in some}):

        def note(path, inputs, index=index):
            if index in wanted[path] and index not in maps[path]:
                value = ops.convert_to_numpy(ops.cast(inputs, "float32"))
                maps[path][index] = value[0]

        watched = {path: available[path] for path in wanted}
        with _watching(watched, "call", note):
            one = keras.tree.map_structure(
                lambda array, index=index: array[index : index + 1], images
            )
            reference(one, training=False)
    for path, found in maps.items():
        expected = layers[path].inputs_shape[1:]
        for value in found.values():
            if len(value.shape) != len(expected) or any(
                n not in (None, m)
                for n, m in zip(expected, value.shape, strict=True)
            ):
                raise PassportError(
                    f"Expected the reference's input of layer '{path}' to "
                    f"have shape {expected}. Received: shape={value.shape}"
                )
    return maps


def check_images(model, images):
    """The images as float32 arrays, checked against the model's inputs.

    Raises:
        PassportError: If they are not what the model takes.
    """
    expected = graph.functional_of(model)._inputs_struct
    try:
        images = keras.tree.map_structure(np.asarray, images)
        keras.tree.assert_same_structure(expected, images)
    except (ValueError, TypeError):
        given = type(images).__name__
        raise PassportError(
            "Expected images in the structure of the model's inputs, "
            f"{keras.tree.map_structure(lambda t: t.shape, expected)}. "
            f"Received: {given}"
        ) from None
    counts = set()
    flat = zip(
        keras.tree.flatten(expected), keras.tree.flatten(images), strict=True
    )
    for tensor, array in flat:
        shape = tensor.shape
        if (
            array.dtype.kind not in "fiub"
            or len(array.shape) != len(shape)
            or len(array) == 0
            or any(
                n not in (None, m)
                for n, m in zip(shape[1:], array.shape[1:], strict=True)
            )
        ):
            raise PassportError(
                f"Expected images of shape {('n', *shape[1:])} in the model's "
                f"input domain. Received: shape={array.shape}, "
                f"dtype={array.dtype}"
            )
        if not np.all(np.isfinite(array)):
            raise PassportError(
                "Expected images without NaN or infinity. Received: some"
            )
        counts.add(len(array))
    if len(counts) != 1:
        raise PassportError(
            "Expected equally many images for every input. "
            f"Received: {sorted(counts)}"
        )
    return keras.tree.map_structure(
        lambda array: np.asarray(array, "float32"), images
    )


@contextlib.contextmanager
def _watching(layers, method, note):
    """Calls `note(path, first argument)` at each call of a layers' method."""

    def watch(path, original):
        def watched(inputs, *args, **kwargs):
            note(path, inputs)
            return original(inputs, *args, **kwargs)

        return watched

    for path, layer in layers.items():
        setattr(layer, method, watch(path, getattr(layer, method)))
    try:
        yield
    finally:
        for layer in layers.values():
            delattr(layer, method)
