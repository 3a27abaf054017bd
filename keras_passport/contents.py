"""What files hold: their bytes, unpacked, and the arrays stored in them."""

import dataclasses
import functools
import gzip
import io
import itertools
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator

import h5py
import numpy as np

# Archives in archives are opened this deep.
_DEEPEST = 8
# Larger files of an unknown format are searched for runs of bytes alone.
LARGEST_UNKNOWN = 2**24
_NUMBER = re.compile(rb"[-+]?\d*\.\d+(?:[eE][-+]?\d{1,3})?")


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers that a text shows, in its order.

    Args:
        values: float64 array of them.
        errors: By how much each may have been rounded.
        digits: How many significant digits each has.
    """

    values: np.ndarray
    errors: np.ndarray
    digits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, or a member of an archive.

    Args:
        path: The file.
        place: Names of members, outermost first, joined by "/"; "" for the
            file itself.
        data: Its bytes, a uint8 array.
        stored: Arrays in it: pairs of name and NumPy array.
        unread: Why no arrays were read that its format promises, or "".
        raw: Whether no format is known that says where its arrays are.
    """

    path: pathlib.Path
    place: str
    data: np.ndarray
    stored: tuple
    unread: str
    raw: bool

    def numbers(self) -> Numbers:
        """The numbers with a decimal point in its text."""
        found = _NUMBER.findall(self.data)
        values, errors, digits = np.zeros((3, len(found)))
        for i, text in enumerate(found):
            mantissa, _, exponent = text.lower().partition(b"e")
            decimals = len(mantissa) - mantissa.index(b".") - 1
            values[i] = float(text)
            errors[i] = 0.51 * 10.0 ** (int(exponent or 0) - decimals)
            digits[i] = len(mantissa.lstrip(b"+-0.").replace(b".", b""))
        return Numbers(values, errors, digits)

    def arrays(self, blank=()) -> Iterator[tuple[str, np.ndarray]]:
        """All that may be taken for an array: pairs of name and array.

        Where no format says what is an array, the bytes count as float32,
        from each of four places on.

        Args:
            blank: Bytes that are then overwritten with zeros where they occur.
        """
        yield from self.stored
        if self.raw and self.data.size <= LARGEST_UNKNOWN:
            data = bytearray(self.data)
            for known in blank:
                while (found := data.find(known)) >= 0:
                    data[found : found + len(known)] = bytes(len(known))
            for offset in range(min(4, len(data))):
                count = (len(data) - offset) // 4
                values = np.frombuffer(data, "<f4", count, offset)
                yield f"bytes as float32 from {offset}", values


def parts_of(path: pathlib.Path) -> Iterator[Part]:
    """The parts of a file: itself, and what its archives hold, unpacked."""
    size = path.stat().st_size
    data = np.memmap(path, mode="r") if size else np.zeros(0, "uint8")
    yield from _parts(path, "", data, path)


def _parts(path, place, data, source, depth=0):
    """`source` is what readers open: a path, or a function to a stream."""
    head = bytes(data[:16])
    stored, unread, members, raw = (), "", (), False
    try:
        if head.startswith(b"PK\x03\x04"):
            members = _unzipped(source)
        elif head.startswith(b"\x1f\x8b"):
            members = (("gunzipped", gzip.decompress(data)),)
        else:
            reader = _reader(place or path.name, head, data)
            raw = reader is None and b"\0" in bytes(data[:4096])
            if reader:
                stored = tuple(
                    (name, np.asarray(array))
                    for name, array in reader(source, data)
                )
    # A damaged file may fail in any way, and is searched all the same.
    except Exception as error:
        unread, raw = f"not readable ({type(error).__name__})", True
    yield Part(path, place, data, stored, unread, raw)
    if depth == _DEEPEST:
        return
    for name, content in members:
        inside = f"{place}/{name}".lstrip("/")
        content = np.frombuffer(content, "uint8")
        source = functools.partial(io.BytesIO, content)
        yield from _parts(path, inside, content, source, depth + 1)


def _open(source):
    return source() if callable(source) else source


def _unzipped(source):
    with zipfile.ZipFile(_open(source)) as archive:
        return [
            (name, archive.read(name))
            for name in archive.namelist()
            if not name.endswith("/")
        ]


def _reader(name, head, data):
    """The function that reads a format's arrays, or None."""
    suffix = pathlib.PurePath(name).suffix
    if b"\x89HDF\r\n\x1a\n" in bytes(data[:2048]):
        return _hdf5
    if head.startswith(b"\x93NUMPY"):
        return _npy
    if head[4:8] == b"TFL3":
        return _tflite
    if re.search(r"\.data-\d+-of-\d+$", name):
        return _checkpoint_data
    if pathlib.PurePath(name).name == "saved_model.pb":
        return _saved_model
    return {".index": _checkpoint, ".onnx": _onnx}.get(suffix)


def _hdf5(source, data):
    found = []
    with h5py.File(_open(source), "r") as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                found.append((name, item[()]))
            for key, value in item.attrs.items():
                found.append((f"{name}@{key}", value))

        visit("", file)
        file.visititems(visit)
    return found


def _npy(source, data):
    stream = io.BytesIO(data)
    return [("array", np.load(stream, allow_pickle=False))]


def _checkpoint(source, data):
    import tensorflow as tf

    if callable(source):
        raise ValueError("a checkpoint inside an archive")
    reader = tf.train.load_checkpoint(str(source.with_suffix("")))
    return [
        (name, reader.get_tensor(name))
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype.is_floating or dtype.is_integer
    ]


def _checkpoint_data(source, data):
    # Its index says what is in it, and is read with it.
    if callable(source) or not list(
        source.parent.glob(source.name.rpartition(".data-")[0] + ".index")
    ):
        raise ValueError("a checkpoint's data without its index")
    return ()


def _saved_model(source, data):
    """The constants in a SavedModel's graphs."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString(bytes(data))
    graphs = [graph.graph_def for graph in model.meta_graphs]
    functions = [f for graph in graphs for f in graph.library.function]
    nodes = itertools.chain(
        *(graph.node for graph in graphs), *(f.node_def for f in functions)
    )
    return [
        (node.name, tf.make_ndarray(node.attr["value"].tensor))
        for node in nodes
        if node.op == "Const"
    ]


def _tflite(source, data):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        import tensorflow as tf

        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        # TensorFlow's asks to be replaced by the other.
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_content=bytes(data))
    found = []
    for about in interpreter.get_tensor_details():
        try:
            value = interpreter.get_tensor(about["index"])
        except ValueError:  # It is no constant.
            continue
        found.append((about["name"], value))
    return found


def _onnx(source, data):
    import onnx

    graph = onnx.load_model_from_string(bytes(data)).graph
    return [(t.name, onnx.numpy_helper.to_array(t)) for t in graph.initializer]
