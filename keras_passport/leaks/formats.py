"""Readers of arrays, one for each format that says where its arrays are.

A reader takes a file's bytes and yields a name and an array, or a name and
the reason why there is no array, as a text. It may fail in any way on a
damaged file, but it ends, and asks for no more memory than it is given.
"""

import io
import itertools
import math
import pathlib
import re
from collections.abc import Callable, Iterator

import numpy as np

from keras_passport.leaks import hdf5_reader

# The name of Python objects' bytes.
OBJECTS = "objects"
# Tensors of a file. A constant that is one number many times is no secret.
_MOST_TENSORS = 100_000


class Refused(ValueError):
    """A file that can't be read here; its text says why."""


def reader_of(name: str, data: np.ndarray) -> Callable | None:
    """The function that reads a format's arrays, or None.

    Args:
        name: The file's name.
        data: Its bytes, a uint8 array.
    """
    path = pathlib.PurePath(name)
    head = data[:16].tobytes()
    # A user's own block may be before it, of one of these sizes.
    for start in (0, 512, 1024, 2048, 4096, 8192):
        if data[start : start + 8].tobytes() == b"\x89HDF\r\n\x1a\n":
            return _hdf5
    if head.startswith(b"\x93NUMPY"):
        return _npy
    if head[4:8] == b"TFL3":
        return _tflite
    if re.search(r"\.data-\d+-of-\d+$", path.name):
        return _checkpoint_data
    if is_picture(data):
        return None
    readers = {".pb": _graph, ".index": _checkpoint, ".onnx": _onnx}
    return readers.get(path.suffix)


def is_picture(data: np.ndarray) -> bool:
    """Whether the bytes are a picture's, by how they begin."""
    head = data[:12].tobytes()
    magics = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*")
    return (
        head.startswith(magics)
        or (head[:2] == b"BM" and head[6:10] == b"\0\0\0\0")
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] in (b"P5", b"P6") and head[2:3] in b"\n \t\r#")
    )


# NumPy -----------------------------------------------------------------------


def plain(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the arrays of simple numbers of which an array is made.

    Fields of structured arrays, real and imaginary parts, and what bytes
    without a type may be.
    """
    if array.dtype.names:
        for field in array.dtype.names:
            yield from plain(f"{name}.{field}", array[field])
    elif array.dtype.kind == "c":
        yield from plain(f"{name}.real", array.real)
        yield from plain(f"{name}.imag", array.imag)
    elif array.dtype.kind == "V" and array.dtype.name.startswith("void"):
        if array.dtype.itemsize == 2:  # NumPy's files don't know bfloat16.
            values = np.ascontiguousarray(array)
            yield f"{name} as bfloat16", from_bfloat16(values.view("<u2"))
            yield f"{name} as float16", values.view("<f2")
        elif array.dtype.itemsize == 1:
            yield name, np.ascontiguousarray(array).view("uint8")
    else:
        # Other byte orders are the machine's own from here on.
        yield name, array.astype(array.dtype.newbyteorder("="), copy=False)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 numbers of bfloat16's bits, an array of uint16."""
    return (bits.astype("uint32") << 16).view("float32")


def _npy(name, data, limit):
    stream = io.BytesIO(data[: 2**16].tobytes())
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:  # Version 3 has names in UTF-8, in the form of 2.
        read = np.lib.format.read_array_header_2_0
    shape, in_columns, dtype = read(stream)
    content = data[stream.tell() :]
    if dtype.hasobject:
        # Python objects are never made of a file's bytes; they are searched.
        yield OBJECTS, content
        return
    count = math.prod(shape)
    present = min(count, content.size // max(1, dtype.itemsize))
    values = np.frombuffer(content.data, dtype, present) if present else None
    if present < count:
        yield "", f"cut off: {count:,} elements were promised"
        if present:
            yield "array", values
    elif present:
        yield "array", values.reshape(shape, order="F" if in_columns else "C")


def _hdf5(name, data, limit):
    for place, array, problem in hdf5_reader.arrays_of(data, limit):
        yield place, problem if array is None else array


# TensorFlow ------------------------------------------------------------------


def _checkpoint(name, data, limit):
    path = pathlib.Path(name)
    if not path.is_file():
        raise Refused("a checkpoint inside an archive")
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path.with_suffix("")))
    shapes = reader.get_variable_to_shape_map()
    for place, dtype in reader.get_variable_to_dtype_map().items():
        if dtype.is_floating or dtype.is_integer or dtype.is_complex:
            size = math.prod(shapes[place]) * dtype.size
            if size > limit:
                yield place, f"claims {size:,} bytes"
                continue
            try:
                yield place, np.asarray(reader.get_tensor(place))
            except Exception as error:
                yield place, f"damaged ({type(error).__name__})"


def _checkpoint_data(name, data, limit):
    # Its index says what is in it, and is read with it.
    path = pathlib.Path(name)
    index = path.name.rpartition(".data-")[0] + ".index"
    if not path.is_file() or not (path.parent / index).is_file():
        raise Refused("a checkpoint's data without its index")
    yield from ()


def _graph(name, data, limit):
    """The constants in a SavedModel's graphs, or in a frozen graph."""
    try:
        from tensorflow.core.framework import graph_pb2
        from tensorflow.core.protobuf import saved_model_pb2
    except ImportError:
        raise Refused("TensorFlow is not installed") from None
    content = data.tobytes()
    try:
        model = saved_model_pb2.SavedModel.FromString(content)
        graphs = [graph.graph_def for graph in model.meta_graphs]
        frozen = not any(graph.node for graph in graphs)
    except Exception:
        frozen = True
    if frozen:
        graphs = [graph_pb2.GraphDef.FromString(content)]
    functions = [f for graph in graphs for f in graph.library.function]
    nodes = itertools.chain(
        *(graph.node for graph in graphs), *(f.node_def for f in functions)
    )
    for node in nodes:
        for key, value in node.attr.items():
            if value.HasField("tensor"):
                place = node.name if key == "value" else f"{node.name}@{key}"
                yield from _tensor(place, value.tensor)
            elif value.list.f:
                yield f"{node.name}@{key}", np.array(value.list.f)


def _tensor(name, proto):
    import tensorflow as tf

    dtype = tf.dtypes.as_dtype(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if dtype == tf.string:
        if proto.string_val:
            texts = b"\n".join(proto.string_val)
            yield name, np.frombuffer(texts, "uint8")
        return
    if proto.tensor_content:
        array = np.frombuffer(proto.tensor_content, dtype.as_numpy_dtype)
        yield name, array.reshape(shape)
    elif math.prod(shape) <= 2**24:  # Else it is one number many times.
        yield name, tf.make_ndarray(proto)


def _schema():
    for package in ("ai_edge_litert", "tensorflow.lite.python"):
        try:
            module = __import__(
                f"{package}.schema_py_generated", fromlist=["x"]
            )
        except ImportError:
            continue
        return module
    raise Refused("no library for LiteRT is installed")


def _tflite(name, data, limit):
    """A LiteRT model's constants, by its schema: nothing of it is run."""
    schema = _schema()
    model = schema.Model.GetRootAs(data.tobytes(), 0)
    names = {value: key for key, value in vars(schema.TensorType).items()}
    count = itertools.count()
    for i in range(min(model.SubgraphsLength(), 1000)):
        graph = model.Subgraphs(i)
        for j in range(graph.TensorsLength()):
            if next(count) > _MOST_TENSORS:
                yield "", f"more than {_MOST_TENSORS:,} tensors"
                return
            tensor = graph.Tensors(j)
            buffer = model.Buffers(tensor.Buffer())
            if buffer is None or not buffer.DataLength():
                if buffer is not None and _far(buffer):
                    yield "", "data behind the model's own buffers"
                continue
            place = (tensor.Name() or b"").decode("utf-8", "replace")
            kind = names.get(tensor.Type(), "").lower()
            raw = np.asarray(buffer.DataAsNumpy(), "uint8")
            try:
                dtype = "<u2" if kind == "bfloat16" else np.dtype(kind)
                array = raw.view(dtype)
                shape = np.atleast_1d(tensor.ShapeAsNumpy())
                if math.prod(shape.tolist()) == array.size:
                    array = array.reshape(shape)
            except (TypeError, ValueError):
                yield place, raw
                continue
            if kind == "bfloat16":
                array = from_bfloat16(array)
            yield place, _dequantised(tensor, array)


def _far(buffer):
    return bool(getattr(buffer, "Size", lambda: 0)())


def _dequantised(tensor, array):
    """A tensor's values where it has a scale for each channel."""
    about = tensor.Quantization()
    if about is None or about.ScaleLength() < 2 or array.dtype.kind != "i":
        return array
    scale, axis = about.ScaleAsNumpy(), about.QuantizedDimension()
    if axis >= array.ndim or array.shape[axis] != scale.size:
        return array
    shape = [1] * array.ndim
    shape[axis] = -1
    return array * scale.reshape(shape)


# ONNX ------------------------------------------------------------------------


def _onnx(name, data, limit):
    try:
        import onnx
    except ImportError:
        raise Refused("onnx is not installed") from None
    model = onnx.load_model_from_string(data.tobytes())
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        tensors = list(getattr(graph, "initializer", ()))
        for sparse in getattr(graph, "sparse_initializer", ()):
            tensors.append(sparse.values)
        for node in graph.node:
            for about in node.attribute:
                tensors += [about.t] if about.HasField("t") else []
                tensors += about.tensors
                waiting += [about.g] if about.HasField("g") else []
                waiting += about.graphs
                if len(about.floats) > 3:
                    yield f"{node.name}@{about.name}", np.array(about.floats)
        for tensor in tensors:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor.name, "its data are in another file"
            else:
                try:
                    yield tensor.name, onnx.numpy_helper.to_array(tensor)
                except Exception as error:
                    yield tensor.name, f"damaged ({type(error).__name__})"
