"""From a classifier's scores to its classes, and what no answer counts.

`numpy.argmax` takes the first NaN of a row for its largest number, so that a
network of NaN would be right on every example of class 0. Here a row with a
number that is not finite is no answer: attacks and fake passports may make
such rows (their numbers overflow), and are wrong there; a network under its
valid passport must not.
"""

import numbers

import numpy as np

# What a row without a class is given: no label is negative.
NO_CLASS = -1


def predict(model, inputs, batch_size: int = 500) -> np.ndarray:
    """A classifier's scores, in inference mode.

    On TensorFlow no function is traced: for a few batches of many models that
    takes longer than the batches do, and TensorFlow warns of it.

    Args:
        model: Keras classifier with one output of class scores.
        inputs: Array `(examples, ...)`, or a structure of them as the model
            takes it.
        batch_size: Examples per call, at most.

    Returns:
        Array `(examples, classes)`, float32.
    """
    import keras

    from keras_passport import graph

    check_batch_size(batch_size)
    flat = keras.tree.flatten(inputs)
    if len(flat) == 1 and graph.is_model(model):
        # As `predict` takes it; a call would warn of a list of one.
        inputs = keras.tree.pack_sequence_as(graph.inputs_of(model), flat)
    scores = []
    for start in range(0, len(flat[0]), batch_size):
        batch = keras.tree.map_structure(
            lambda array, at=start: array[at : at + batch_size], inputs
        )
        if keras.backend.backend() == "tensorflow":
            batch = model(batch, training=False)
        else:
            batch = model.predict_on_batch(batch)
        # NumPy does not compare bfloat16 as it does others.
        values = np.asarray(keras.ops.convert_to_numpy(only(batch)), "float32")
        if values.ndim != 2:
            raise ValueError(
                "Expected a classifier, whose output is (examples, classes). "
                f"Received: an output of shape {values.shape}"
            )
        scores.append(values)
    return np.concatenate(scores)


def check_batch_size(batch_size) -> None:
    """Raises `ValueError` unless it is a number of examples per call."""
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(
            "Expected batch_size to be a whole number of 1 or more. "
            f"Received: batch_size={batch_size!r}"
        )


def only(outputs):
    """The one tensor of a classifier's outputs, which may be in a structure.

    Args:
        outputs: A tensor, or a list or dict of one.

    Raises:
        ValueError: If there are several.
    """
    import keras

    flat = keras.tree.flatten(outputs)
    if len(flat) != 1:
        raise ValueError(
            "Expected a classifier with one output. "
            f"Received: {len(flat)} outputs"
        )
    return flat[0]


def only_shape(shape):
    """A model's `input_shape` or `output_shape` where there is but one.

    Args:
        shape: As Keras has it: a tuple, or a structure of tuples.

    Returns:
        The tuple; of a structure of several, the structure.

    Example:

    >>> from keras_passport import scores
    >>> scores.only_shape([(None, 8, 8, 3)])
    (None, 8, 8, 3)
    """
    parts = list(shape.values()) if isinstance(shape, dict) else shape
    if isinstance(parts, (list, tuple)) and len(parts) == 1:
        return only_shape(parts[0])
    return shape


def classes_of(scores) -> np.ndarray:
    """The class of every row of scores, `NO_CLASS` where there is none.

    Args:
        scores: Float array `(examples, classes)`.

    Returns:
        Integer array `(examples,)`.

    Example:

    >>> from keras_passport import scores
    >>> scores.classes_of([[0.1, 0.9], [float("nan"), 0.9]]).tolist()
    [1, -1]
    """
    scores = np.asarray(scores)
    finite = np.isfinite(scores.astype("float32")).all(axis=-1)
    return np.where(finite, np.argmax(scores, axis=-1), NO_CLASS)


def finite_classes_of(scores, of: str) -> np.ndarray:
    """The class of every row of scores, of a network that must have one.

    Args:
        scores: Float array `(examples, classes)`.
        of: Whose they are, for the message.

    Returns:
        Integer array `(examples,)`.

    Raises:
        ValueError: If a score is not finite.
    """
    classes = classes_of(scores)
    wrong = np.flatnonzero(classes == NO_CLASS)
    if wrong.size:
        raise ValueError(
            f"Expected finite scores of {of}. Received: NaN or infinite ones "
            f"for {wrong.size:,} of {len(classes):,} examples, the first for "
            f"number {wrong[0]:,} counted from 0"
        )
    return classes


def pair(data, name: str = "data") -> tuple:
    """Inputs and labels of a user's data.

    Args:
        data: Two arrays, or structures of them, in a tuple or list.
        name: Of the argument, for the message.

    Returns:
        Tuple of the inputs, NumPy's arrays in their structure, and the labels
        as they are given.

    Raises:
        ValueError: If it is something else, such as a dataset, or the inputs
            are no arrays of equally many examples, or not finite: what comes
            out of such ones would count as an attack that failed.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return inputs_of(data[0], f"inputs of {name}"), data[1]
    held = f" of {len(data)}" if isinstance(data, (tuple, list)) else ""
    raise ValueError(
        f"Expected {name} to be a tuple of two arrays, inputs and labels (of "
        "a tf.data.Dataset: what its batches hold, concatenated). Received: a "
        f"{type(data).__name__}{held}"
    )


def inputs_of(x, name: str = "inputs"):
    """A user's inputs as NumPy's arrays; see `pair`.

    Args:
        x: Arrays or tensors, `(examples, ...)`, in a structure.
        name: Of the argument, for the message.
    """
    import keras

    counts = set()

    def array_of(part):
        if keras.ops.is_tensor(part):
            part = keras.ops.convert_to_numpy(part)
        # Of a list of numbers, every one would be an input.
        array = np.asarray(part) if hasattr(part, "shape") else np.zeros(())
        if not array.ndim or array.dtype.kind == "O" and not _are_texts(array):
            raise ValueError(
                f"Expected {name} to be an array (examples, ...), or a "
                "structure of such arrays as the model takes it. Received: a "
                f"{type(x).__name__} with a {type(part).__name__} in it"
            )
        counts.add(len(array))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(
                f"Expected {name} of finite numbers. Received: NaN or infinity"
            )
        return array

    arrays = keras.tree.map_structure(array_of, x)
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"Expected examples, equally many in all {name}. "
            f"Received: {sorted(counts) or 'none'}"
        )
    return arrays


def _are_texts(array) -> bool:
    return all(isinstance(one, (str, bytes)) for one in array.ravel()[:100])


def labels_of(
    y, examples: int, classes: int | None = None, name: str = "y"
) -> np.ndarray:
    """Labels that a classifier can be right about.

    Args:
        y: Class numbers, `(examples,)` or `(examples, 1)`.
        examples: How many there must be.
        classes: How many classes there are, if that is known.
        name: Of the argument, for the message.

    Returns:
        Integer array `(examples,)`.

    Raises:
        ValueError: If a label is none of the classes, or of another shape.
    """
    labels = np.asarray(y)
    if labels.shape not in ((examples,), (examples, 1)):
        hint = ""
        if labels.ndim == 2 and labels.shape[0] == examples:
            hint = " (numpy.argmax(y, axis=-1), if these are one-hot rows)"
        raise ValueError(
            f"Expected {name} of shape ({examples},), a class number for each "
            f"example. Received: {name} of shape {labels.shape}{hint}"
        )
    labels = labels.reshape(-1)
    whole = labels.dtype.kind in "biu" or (
        labels.dtype.kind == "f" and np.all(labels == np.floor(labels))
    )
    if not whole:
        raise ValueError(
            f"Expected {name} of whole numbers, the classes'. Received: "
            f"{name} of dtype {labels.dtype}"
            + (
                f" with {labels[labels != np.floor(labels)][0]} in it"
                if labels.dtype.kind == "f"
                else ""
            )
        )
    most = np.inf if classes is None else classes
    outside = labels[(labels < 0) | (labels >= most)]
    if outside.size:
        raise ValueError(
            f"Expected {name} in [0, {'...' if classes is None else classes}), "
            "a number for each class. Received: "
            f"{outside[0]}, and {outside.size - 1:,} more outside"
            + (
                " (a binary classifier is judged by two outputs: p = "
                "model.outputs[0]; keras.Model(model.inputs, "
                "keras.ops.concatenate([1 - p, p], axis=-1)))"
                if classes == 1
                else ""
            )
        )
    return labels.astype("int64")


def from_one_hot(y, name: str = "y") -> np.ndarray:
    """The class numbers of one-hot rows.

    Args:
        y: Array `(examples, classes)`, a single 1 in each row.
        name: Of the argument, for the message.

    Returns:
        Integer array `(examples,)`.

    Raises:
        ValueError: If a row is not of zeros and a single 1.
    """
    rows = np.asarray(y)
    ones = rows == 1
    if not (np.all(ones | (rows == 0)) and np.all(ones.sum(axis=-1) == 1)):
        wrong = ~(np.all(ones | (rows == 0), axis=-1) & (ones.sum(-1) == 1))
        raise ValueError(
            f"Expected one-hot rows in {name}, zeros and a single 1 each. "
            f"Received: another row, number {np.flatnonzero(wrong)[0]:,} "
            "counted from 0"
        )
    return np.argmax(ones, axis=-1)
