"""10,000 damaged and hostile passport files, and what `Passport.load` does.

    python tests/support/damaged_files.py FOLDER

works in a folder and prints a JSON report; `test_fuzz.py` runs it in a process
of its own, since a crash, a hang or too much memory would be its end. The
files are the same each time, and the last one stays in the folder.
"""

import copy
import faulthandler
import functools
import hashlib
import io
import json
import pathlib
import random
import resource
import signal
import sys
import time
import zlib

import h5py
import numpy as np

import keras_passport as kp
from keras_passport.passports.derivation import array_hash
from keras_passport.passports.geometry import Geometry

BLOCK = 512  # bytes before the HDF5 file proper, with the checksum
NUMBERS = (0, 1, 96, 512, 2**15, 2**24, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
ROLES = ("gamma", "beta")
HANG = 20  # seconds after which a file counts as hanging


def passport():
    """Maps and keys, images, every kind of geometry; made without Keras."""
    draw = np.random.default_rng(0)

    def array(*shape):
        return draw.uniform(-1, 1, shape).astype("float32")

    plain = Geometry("convolution", 3, (3, 3), (1, 1), (1, 1), "same")
    first = Geometry(
        "convolution", 4, (3, 2), (2, 1), (1, 2), data_format="channels_first"
    )
    transpose = Geometry(
        "transpose", 2, (2, 2), (2, 2), (1, 1), output_padding=(0, 1)
    )
    causal = Geometry("convolution", 2, (3,), (1,), (2,), "causal")
    dense = Geometry("pointwise", 6)
    layers = {
        "stem": kp.PassportEntry(
            plain, array(6, 6, 3), array(6, 6, 3), gamma_image=0, beta_image=1
        ),
        "block/first": kp.PassportEntry(
            first, array(4, 7, 5), beta_key=array(3, 2, 4)
        ),
        "block/up": kp.PassportEntry(transpose, array(3, 3, 2), array(3, 3, 2)),
        "block/causal": kp.PassportEntry(
            causal, gamma_key=array(3, 2), beta=array(9, 2)
        ),
        "head": kp.PassportEntry(dense, gamma_key=array(6), beta_key=array(6)),
    }
    images = {"left": array(2, 6, 6, 3), "right": array(2, 4)}
    return kp.Passport(
        "fixed_image", "V3", layers, b"a seed of 16 byt", "fan_in", images
    )


class Valid:
    """A valid file's bytes, and what it holds, for others to be made of."""

    def __init__(self, path):
        self.passport = passport()
        self.passport.save(path)
        self.content = path.read_bytes()
        self.folder = path.parent
        self.arrays = {}
        with h5py.File(path) as file:
            self.about = json.loads(file["header"][()].tobytes())
            used = [(file["header"].id.get_offset(), file["header"].nbytes)]
            for group in ("layers", "images"):
                file[group].visititems(
                    lambda name, item, group=group: (
                        self.arrays.update({f"{group}/{name}": item[()]})
                        if isinstance(item, h5py.Dataset)
                        else None
                    )
                )
            for name in self.arrays:
                used.append((file[name].id.get_offset(), file[name].nbytes))
        # Where HDF5 describes itself: bytes that say something, and those
        # next to them.
        said = np.frombuffer(self.content, "uint8") != 0
        said = said | np.roll(said, 1) | np.roll(said, -1)
        said[:BLOCK] = False
        for start, size in used:
            said[start : start + size] = False
        self.metadata = np.flatnonzero(said).tolist()

    def parts(self):
        """Copies of the header and of the arrays by name."""
        arrays = {name: a.copy() for name, a in self.arrays.items()}
        return copy.deepcopy(self.about), arrays


def seal(content) -> bytes:
    """The bytes with a checksum that fits, as a writer would make it."""
    digest = hashlib.sha256(content[BLOCK:]).hexdigest().encode()
    return b"keras_passport passport file\n" + digest + content[93:]


def build(about, arrays, change=None, **options) -> bytes:
    """A file of a header (a dict, or bytes) and arrays, changed at the end."""
    options = {"libver": "earliest", "userblock_size": BLOCK} | options
    stream = io.BytesIO()
    if not isinstance(about, bytes):
        about = json.dumps(about, sort_keys=True).encode()
    with h5py.File(stream, "w", **options) as file:
        file["header"] = np.frombuffer(about, "uint8")
        for name, array in arrays.items():
            file[name] = array
        if change is not None:
            change(file)
    return seal(b"\0" * BLOCK + stream.getvalue()[BLOCK:])


def description(about, name) -> dict:
    """What the header says of an array."""
    if name.startswith("images/"):
        return about["images"][name.removeprefix("images/")]
    _, index, role = name.split("/")
    return about["layers"][int(index)]["roles"][role]


def describe(about, name, array):
    """Lets the header describe an array rightly."""
    description(about, name).update(
        shape=list(array.shape), sha256=array_hash(array)
    )


# Bytes ---------------------------------------------------------------------


def flipped_bits(draw, content, start=0):
    damaged = bytearray(content)
    total = (len(content) - start) * 8
    for place in draw.sample(range(total), draw.choice((1, 1, 2, 8, 64))):
        damaged[start + place // 8] ^= 1 << place % 8
    return bytes(damaged)


def overwritten(draw, content, start=0):
    size = draw.choice((1, 2, 4, 8, 64, 512))
    at = draw.randrange(start, len(content) - size)
    new = draw.choice(
        (b"\0" * size, b"\xff" * size, draw.randbytes(size), b"7" * size)
    )
    if new == content[at : at + size]:
        new = bytes(255 - byte for byte in new)
    return content[:at] + new + content[at + size :]


def truncated(draw, content, start=0):
    return content[: draw.randrange(start, len(content))]


def moved(draw, content, start=0):
    size = draw.choice((8, 40, 512, 1024))
    one, other = sorted(draw.sample(range(start, len(content) - size), 2))
    piece = content[one : one + size]
    cut = content[:one] + content[one + size :]
    changed = draw.choice(
        (
            cut,
            cut[:other] + piece + cut[other:],
            content[:other] + piece + content[other:],
            content[:other] + piece + content[other + size :],
            content + piece,
        )
    )
    return changed if changed != content else content + b"\0"


def other_start(draw, content):
    """A user block that is damaged alone, or the content after it alone."""
    if draw.random() < 0.5:
        return flipped_bits(draw, content[:BLOCK]) + content[BLOCK:]
    return content[:BLOCK] + flipped_bits(draw, content[BLOCK:])


def metadata(draw, valid):
    """Numbers in HDF5's own structures: addresses, sizes, types, counts."""
    damaged = bytearray(valid.content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.choice(valid.metadata)
        how = draw.random()
        if how < 0.3:
            damaged[at] ^= 1 << draw.randrange(8)
        elif how < 0.6:
            damaged[at] = draw.choice((0, 1, 2, 3, 4, 8, 16, 17, 127, 128, 255))
        else:
            size = draw.choice((2, 4, 8))
            number = draw.choice((*NUMBERS, draw.randrange(len(damaged))))
            new = (number % 2 ** (8 * size)).to_bytes(size, "little")
            damaged[at : at + size] = new
    return seal(bytes(damaged[: len(valid.content)]))


def copied_metadata(draw, valid):
    """Parts of HDF5's structures in one another's place, and so circles."""
    damaged = bytearray(valid.content)
    for _ in range(draw.choice((1, 2, 4))):
        size = draw.choice((2, 4, 8, 24, 40))
        source, target = draw.sample(valid.metadata, 2)
        damaged[target : target + size] = damaged[source : source + size]
    return seal(bytes(damaged[: len(valid.content)]))


def resealed(damage):
    """The damage, under a checksum that fits."""

    def damage_and_seal(draw, valid):
        return seal(damage(draw, valid.content, BLOCK))

    damage_and_seal.__name__ = f"resealed_{damage.__name__}"
    return damage_and_seal


def unsealed(damage):
    """The damage alone."""

    def only_damage(draw, valid):
        return damage(draw, valid.content)

    only_damage.__name__ = damage.__name__
    return only_damage


# Header --------------------------------------------------------------------

_DEEP, _LONG, _WIDE = "@deep", "@long", "@wide"
# JSON that `json.dumps` would not write.
_TEXTS = {
    _DEEP: "[" * 50_000 + "]" * 50_000,
    _LONG: "9" * 50_000,
    _WIDE: "[" + ",".join(["{}"] * 50_000) + "]",
}
_VALUES = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 1.5, -0.0, 1e308),
    *(2**20, 2**24, 2**31, 2**63, 2**64, 10**300),
    *(float("nan"), float("inf"), -float("inf")),
    *("", "x", "\0", "1", "gamma", "V1", "V3", "unit", "same", "é" * 99),
    *("../../../etc/passwd", "key", "map", "\ud800", "z" * 100_000),
    *([], {}, [[]], [None], {"": 0}, [-1], [0], [2**40], [1e9], "00" * 16),
    *([1, 1], [3, 3], [2**20, 2**20], [True, True], _DEEP, _LONG, _WIDE),
)


def _places(value):
    """Every (container, key) in a tree of dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        yield value, key
        if isinstance(child, (dict, list)):
            yield from _places(child)


def _texts(about) -> bytes:
    text = json.dumps(about, sort_keys=True)
    for name, raw in _TEXTS.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


def header_values(draw, valid):
    """Values of a header replaced, lost, added, doubled or exchanged."""
    about, arrays = valid.parts()
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(about))
        (one, key), (other, other_key) = draw.choices(places, k=2)
        how = draw.random()
        if how < 0.6:
            one[key] = draw.choice(_VALUES)
        elif how < 0.7:
            del one[key]
        elif how < 0.8:
            one[key] = copy.deepcopy(other[other_key])
        elif isinstance(one, list):
            one.insert(key, copy.deepcopy(one[key]))
        else:
            new = draw.choice(("", "path", "gamma", "extra", "output_padding"))
            one[new] = one.pop(key) if how < 0.9 else copy.deepcopy(one[key])
    return build(_texts(about), arrays)


def header_text(draw, valid):
    """A header's text damaged, doubled keys and other JSON among it."""
    about, arrays = valid.parts()
    text = json.dumps(about, sort_keys=True).encode()
    at = draw.randrange(len(text))
    how = draw.randrange(6)
    if how == 0:
        text = flipped_bits(draw, text)
    elif how == 1:
        text = truncated(draw, text)
    elif how == 2:
        text = (
            text[:at]
            + draw.choice((b" ", b"0", b"-", b'"', b"\xff"))
            + (text[at:])
        )
    elif how == 3:
        text = moved(draw, text)
    elif how == 4:
        key = draw.choice(sorted(about))
        again = json.dumps({key: draw.choice((about[key], 1, None))})
        text = text[:-1] + b", " + again[1:].encode()
    else:
        text = draw.choice((b"", b"{}", b"[]", b"null", b"7", b"NaN", b"\0"))
    return build(text, arrays)


def geometries(draw, valid):
    """Absurd layers, that their maps and keys may fit."""
    about, arrays = valid.parts()
    for layer in draw.sample(about["layers"], draw.choice((1, 1, 5))):
        geometry = layer["geometry"]
        rank = len(geometry["kernel_size"])
        for _ in range(draw.choice((1, 2, 3))):
            name = draw.choice(sorted(geometry))
            if isinstance(geometry[name], list):
                sizes = (0, 1, 2, 5, 40, 300, 2**12, 2**18, 2**20, 2**21, -1)
                length = draw.choice((rank, rank, rank, rank, 0, 3, 4))
                geometry[name] = draw.choices(sizes, k=length)
            else:
                words = ("transpose", "convolution", "pointwise", "same")
                words += ("valid", "causal", "channels_first", None, 1, 2**24)
                geometry[name] = draw.choice(words)
    return build(about, arrays)


# Arrays --------------------------------------------------------------------


def values(draw, valid):
    """Other values or shapes, with every hash as it should be."""
    about, arrays = valid.parts()
    for name in draw.sample(sorted(arrays), draw.choice((1, 2, len(arrays)))):
        array = arrays[name]
        how = draw.randrange(7)
        if how < 4:
            special = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0)
            array.flat[draw.randrange(array.size)] = draw.choice(special)
        elif how == 4:
            array[...] = draw.choice((0, 3.4e38, 1e30, 1e-30, 1e-45))
        elif how == 5:
            array = array.reshape(draw.choice((-1, (1, -1), array.shape[::-1])))
        else:
            shape = [draw.choice((0, 1, n, n + 1)) for n in array.shape]
            array = np.ones(shape[draw.choice((0, 0, 1)) :], "float32")
        arrays[name] = array
        if draw.random() < 0.9:
            describe(about, name, array)
    return build(about, arrays)


def exchanged(draw, valid):
    """Arrays in one another's place, lost, twice or too many."""
    about, arrays = valid.parts()
    one, other = draw.sample(sorted(arrays), 2)
    how = draw.randrange(4)
    if how == 0:
        arrays[one], arrays[other] = arrays[other], arrays[one]
    elif how == 1:
        del arrays[one]
    elif how == 2:
        arrays[one] = arrays[other]
    else:
        arrays["more/" * draw.choice((1, 3, 99)) + one] = arrays[one]
        if draw.random() < 0.5:
            del arrays[one]
    return build(about, arrays)


# HDF5 ----------------------------------------------------------------------
#
# The content is right and every hash fits: only the form can be refused.


def _dataset(**options):
    def change(draw, valid, file, name):
        array = file[name][()]
        del file[name]
        file.create_dataset(name, data=array, **options)

    return change


def _typed(dtype):
    def change(draw, valid, file, name):
        array = file[name][()].astype(dtype)
        del file[name]
        file[name] = array

    return change


def _linked(link):
    def change(draw, valid, file, name):
        file.move(name, "elsewhere")
        file[name] = link(valid, file, name)

    return change


def _other_file(valid, file, name):
    """The rest of the victim's disk: a file that holds what is missing."""
    other = valid.folder / "other.h5"
    if not other.exists():
        with h5py.File(other, "w") as victim:
            for path, array in valid.arrays.items():
                victim[path] = array
                (valid.folder / path.replace("/", "-")).write_bytes(
                    array.tobytes()
                )
    return str(other)


def _external_link(valid, file, name):
    return h5py.ExternalLink(_other_file(valid, file, name), name)


def external_storage(draw, valid, file, name):
    _other_file(valid, file, name)
    array = file[name][()]
    raw = str(valid.folder / name.replace("/", "-"))
    del file[name]
    file.create_dataset(
        name, array.shape, "<f4", external=[(raw, 0, array.nbytes)]
    )


def virtual(draw, valid, file, name):
    shape = file[name].shape
    layout = h5py.VirtualLayout(shape, "<f4")
    source = draw.choice((_other_file(valid, file, name), "."))
    layout[...] = h5py.VirtualSource(source, name, shape)
    del file[name]
    file.create_virtual_dataset(name, layout)


def huge(draw, valid, file, name):
    shape = draw.choice(
        ((2**40,), (2**20, 2**20), (2**60,), (2**31, 3), (1,) * 32)
    )
    del file[name]
    chunks = draw.choice((None, (1,) * len(shape)))
    file.create_dataset(name, shape, "<f4", chunks=chunks)


@functools.cache
def packed_zeros() -> bytes:
    return zlib.compress(bytes(2**26))


def bomb(draw, valid, file, name):
    """64 MB of zeros behind one small chunk."""
    shape = file[name].shape
    del file[name]
    stored = file.create_dataset(
        name, shape, "<f4", chunks=shape, compression="gzip"
    )
    stored.id.write_direct_chunk((0,) * len(shape), packed_zeros())


def compact(draw, valid, file, name):
    array = file[name][()]
    del file[name]
    form = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    form.set_layout(h5py.h5d.COMPACT)
    stored = h5py.h5d.create(
        file.id,
        name.encode(),
        h5py.h5t.IEEE_F32LE,
        h5py.h5s.create_simple(array.shape),
        form,
    )
    stored.write(h5py.h5s.ALL, h5py.h5s.ALL, array)


def attribute(draw, valid, file, name):
    place = file[draw.choice((name, "/", "layers", "header"))]
    place.attrs["note"] = draw.choice((1, "text", np.ones(99)))


def hard_link(draw, valid, file, name):
    other = draw.choice(sorted(valid.arrays))
    del file[name]
    file[name] = file[other] if other != name else file["layers"]


def circle(draw, valid, file, name):
    parent = file[name].parent
    parent["again"] = draw.choice((file["/"], parent))


def references(draw, valid, file, name):
    shape, reference = file[name].shape, file["layers"].ref
    del file[name]
    stored = file.create_dataset(name, shape, h5py.ref_dtype)
    stored[(0,) * len(shape)] = reference


def strings(draw, valid, file, name):
    del file[name]
    file[name] = draw.choice(("text", b"text", ["a", "b"]))


def empty(draw, valid, file, name):
    del file[name]
    file[name] = h5py.Empty("<f4")


def group(draw, valid, file, name):
    array = file[name][()]
    del file[name]
    file[f"{name}/{name}"] = array


def header_of_another_form(draw, valid, file, name):
    text = file["header"][()]
    del file["header"]
    how = draw.randrange(5)
    if how == 0:
        file.create_dataset("header", data=text, compression="gzip")
    elif how == 1:
        file["header"] = text.tobytes().decode()
    elif how == 2:
        file["header"] = text.astype("<f4")
    elif how == 3:
        file.create_dataset("header", (2**40,), "uint8")
    else:
        file["header"] = h5py.SoftLink("/header")


FORMS = {
    "gzip": _dataset(compression="gzip", shuffle=True),
    "lzf": _dataset(compression="lzf"),
    "chunked": _dataset(chunks=True),
    "extensible": _dataset(chunks=True, maxshape=None),
    "fletcher32": _dataset(fletcher32=True),
    "scaleoffset": _dataset(scaleoffset=3),
    "timed": _dataset(track_times=True),
    **{
        f"dtype {name}": _typed(name)
        for name in (">f4", "<f8", "<f2", "<i4", "<u4", "u1", "c8", "bool")
    },
    "external link": _linked(_external_link),
    "soft link": _linked(lambda *_: h5py.SoftLink("/elsewhere")),
    "soft link to itself": _linked(lambda _, __, name: h5py.SoftLink(name)),
}
FORMS |= {
    change.__name__: change
    for change in (
        *(external_storage, virtual, huge, bomb, compact, attribute),
        *(hard_link, circle, references, strings, empty, group),
        header_of_another_form,
    )
}


def form(name):
    """One way in which an HDF5 file may hold the right content."""

    def change_form(draw, valid):
        about, arrays = valid.parts()
        target = draw.choice(sorted(arrays))

        def change(file):
            FORMS[name](draw, valid, file, target)

        return build(about, arrays, change)

    change_form.__name__ = f"form: {name}"
    return change_form


def newer_format(draw, valid):
    """HDF5's newer structures, right or damaged."""
    about, arrays = valid.parts()
    libver = draw.choice(("v108", "v110", "latest"))
    content = build(about, arrays, libver=libver)
    if draw.random() < 0.8:
        content = seal(flipped_bits(draw, content, BLOCK))
    return content


# Size ----------------------------------------------------------------------


def _many_layers(about, arrays, count, map_shape):
    """Layers that all hold one array under another name."""
    layer = copy.deepcopy(about["layers"][0])
    array = np.ones(map_shape, "float32")
    for role in ROLES:
        layer["roles"][role].update(
            shape=list(map_shape), sha256=array_hash(array), image=None
        )
    about["layers"] = [layer | {"path": f"layer {i}"} for i in range(count)]
    about["images"] = {}

    def link(file):
        file["one"] = array
        for index in range(count):
            for role in ROLES:
                file[f"layers/{index}/{role}"] = file["one"]

    return build(about, {}, link)


def one_array_for_all(draw, valid):
    """A megabyte that 600 maps share: 600 MB for who reads them all."""
    about, arrays = valid.parts()
    return _many_layers(about, arrays, 300, (300, 300, 3))


def large_json(draw, valid):
    """As much as a header may hold, of what takes most memory."""
    about, arrays = valid.parts()
    item = draw.choice(("{}", "[]", '{"":0}', '{"":[]}', '{"":{}}', "0.5"))
    about[draw.choice(("layers", "images", "kind", "extra", "seed"))] = "@fill"
    text = json.dumps(about, sort_keys=True)
    size = draw.choice((2**20 - len(text), 2**20 - len(text), 2**22))
    filled = ",".join([item] * (size // (len(item) + 1)))
    return build(text.replace('"@fill"', f"[{filled}]").encode(), arrays)


def large_keys(draw, valid):
    """Keys of up to gigabytes, of maps of a few bytes."""
    about, arrays = valid.parts()
    layer = about["layers"][draw.choice((0, 2))]
    channels = layer["geometry"]["channels"]
    sizes = (1, 3, 400, 700, 2**13, 2**17, 2**20)
    layer["geometry"] |= {
        "kernel_size": draw.choices(sizes, k=2),
        "strides": draw.choices((1, 2, 2**20), k=2),
        "dilation": draw.choices((1, 2, 2**20), k=2),
        "padding": "same",
    }
    if draw.random() < 0.5:
        index = about["layers"].index(layer)
        long = draw.choice(((1, 40_000, channels), (40_000, 1, channels)))
        array = np.ones(long, "float32")
        for role in ROLES:
            arrays[f"layers/{index}/{role}"] = array
            describe(about, f"layers/{index}/{role}", array)
    return build(about, arrays)


def many_groups(draw, valid):
    """Long paths: names of a kilobyte, groups within groups."""
    about, arrays = valid.parts()
    part = draw.choice(("a", "b" * 250, "c" * 5000, "é" * 400))
    path = "/".join([part] * draw.choice((2, 20, 60)))

    def change(file):
        file.create_group(path)
        for index in range(draw.choice((1, 50))):
            file[f"{path}/{index}"] = np.ones(1, "float32")

    return build(about, arrays, change)


# Running -------------------------------------------------------------------

# How many files of each kind. Those of the first group have a checksum that
# does not fit.
DAMAGED = {
    unsealed(flipped_bits): 2000,
    unsealed(overwritten): 1500,
    unsealed(truncated): 1000,
    unsealed(moved): 1000,
    unsealed(other_start): 500,
}
SEALED = {
    metadata: 900,
    copied_metadata: 300,
    resealed(flipped_bits): 300,
    resealed(overwritten): 300,
    resealed(truncated): 200,
    resealed(moved): 200,
    header_values: 700,
    header_text: 150,
    geometries: 250,
    values: 250,
    exchanged: 100,
    **{form(name): 8 for name in FORMS},
    newer_format: 40,
    one_array_for_all: 1,
    large_json: 20,
    large_keys: 32,
    many_groups: 9,
}


def outcome(path, valid) -> str:
    """What happens to who loads a file and uses what it holds."""
    try:
        loaded = kp.Passport.load(path)
    except kp.PassportError:
        return "refused"
    # Slots that nothing refers to may hold anything.
    same = loaded.fingerprint == valid.passport.fingerprint
    repr(loaded)
    try:
        keys, packed = loaded.keys(), loaded.packed()
    except kp.PassportError:
        return "no keys"
    for name, entry in loaded.layers.items():
        for role in loaded.function.roles:
            assert keys[name][role].shape == entry.geometry.key_shape
    assert packed.dtype == np.float32 and np.all(np.isfinite(packed))
    return "the same" if same else "another passport"


def memory() -> int:
    """Most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(folder) -> None:
    faulthandler.enable()
    # Ends the process with a traceback, even from within a C library.
    faulthandler.register(signal.SIGALRM, chain=True)
    began = time.perf_counter()
    path = pathlib.Path(folder) / "fuzzed.h5"
    valid = Valid(path)
    assert outcome(path, valid) == "the same"
    # Written in place: to truncate a file first is slow on some disks.
    with open(path, "r+b") as file:

        def load(content):
            file.seek(0)
            file.write(content)
            file.truncate()
            file.flush()
            return outcome(path, valid)

        assert load(build(*valid.parts())) == "the same"
        report = fuzz(valid, load)
    seconds = time.perf_counter() - began
    imported = sorted({"keras", "tensorflow"} & set(sys.modules))
    print(json.dumps({**report, "seconds": seconds, "imported": imported}))


def fuzz(valid, load) -> dict:
    """Loads every file; outcomes by kind, failures, most time and memory."""
    baseline = memory()
    kinds, failures, slowest = {}, [], 0.0
    for make, count in (DAMAGED | SEALED).items():
        kind = kinds.setdefault(make.__name__, {})
        for index in range(count):
            name = f"{make.__name__} {index}"
            content = make(random.Random(name), valid)
            signal.alarm(HANG)
            start = time.process_time()
            try:
                found = load(content)
            except Exception as error:  # whatever it is, it is what we seek
                found = "failed"
                failures.append(f"{name}: {error!r}"[:300])
            slowest = max(slowest, time.process_time() - start)
            kind[found] = kind.get(found, 0) + 1
    signal.alarm(0)
    return {
        "kinds": kinds,
        "failures": failures,
        "slowest": slowest,
        "growth": memory() - baseline,
    }


if __name__ == "__main__":
    main(sys.argv[1])
