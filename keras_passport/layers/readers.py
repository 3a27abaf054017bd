"""What a compiled function fetches whenever it runs, packed into one array.

A compiled function holds no keys. It has a reader, which collects what the
calling context sees: how it is called is the backend's (`graph_access`,
`jit_access`).
"""

import keras
import numpy as np

from keras_passport import secrecy
from keras_passport.errors import PassportError
from keras_passport.layers.bindings import (
    DUALS,
    KEYS,
    PARAMETERS,
    ROWS,
    Frame,
    Keys,
    is_symbolic,
    lock,
    name_of,
    required,
    shown_to,
    sizes_of,
)


class Reader:
    """Fetches what a compiled function needs, each time that it runs.

    It packs what all layers of a call need into one array, so that they are
    of one moment.

    Args:
        secrets: Of the layers that the call can reach.
        kind: As for `read`, or `ROWS`.
        frame: What a block inside of the function presents, to be seen
            whoever calls it. Defaults to what its caller's context sees.
    """

    def __init__(self, secrets, kind: str, frame: Frame | None = None):
        self.kind = kind
        self._secrets = secrets
        self._frame = frame
        self._used = set()
        self._last = (None, None)
        self._places = {}
        self.size = 0
        for secret in secrets:
            sizes = sizes_of(secret, kind)
            self._places[secret] = self.size, sizes
            self.size += sum(sizes)

    def serves(self, secret, kind, frame) -> bool:
        return (
            secret in self._places
            and kind == self.kind
            and frame is self._frame
        )

    def part(self, tensor, secret):
        """One layer's part of the packed tensor; it is missed from now on."""
        self._used.add(secret)
        start, sizes = self._places[secret]
        parts = []
        for size in sizes:
            parts.append(tensor[:, start : start + size])
            start += size
        if self.kind == PARAMETERS:
            return tuple(part[0] for part in parts)
        return tuple(parts) if self.kind == DUALS else parts[0]

    def frame(self):
        """The block in this context that shows something to these layers."""
        if self._frame is not None:
            return self._frame
        frames = (shown_to(secret) for secret in self._used)
        return next((frame for frame in frames if frame is not None), None)

    def is_shown(self) -> bool:
        """Whether any context presents something to these layers."""
        return any(secret.shown for secret in self._used)

    def symbolic(self, read):
        """What a block of the function being traced shows: a tensor of it.

        Args:
            read: The `read` of the module that traces.
        """
        parts = []
        for secret in self._secrets:
            frame = self._frame or shown_to(secret)
            if secret not in self._used:
                sizes = self._places[secret][1]
                parts += [keras.ops.zeros((1, size)) for size in sizes]
                continue
            if frame is not None and (
                frame.assumes != (self.kind == PARAMETERS)
                or (self.kind == DUALS and not frame.values[secret].is_one)
            ):
                raise self._mismatch(secret, frame)
            tensors = read(secret, self.kind, frame)
            tensors = tensors if isinstance(tensors, tuple) else (tensors,)
            parts += [
                keras.ops.reshape(one, (-1, one.shape[-1])) for one in tensors
            ]
        return keras.ops.concatenate(parts, axis=1)

    def collect(self) -> np.ndarray:
        """What the calling context sees now, packed: `(rows, size)`.

        Raises:
            PassportRequiredError: If a layer that needs a passport has none.
            PassportError: If the function was traced for something else.
        """
        with lock:
            values = [self._value(secret) for secret in self._secrets]
            last, packed = self._last
        # Variables among γ and β may have changed.
        if (
            last is not None
            and self.kind != PARAMETERS
            and all(a is b for a, b in zip(last, values, strict=True))
        ):
            return packed
        packed = self._pack(values)
        self._last = (values, packed)
        return packed

    def _value(self, secret):
        frame = self._frame or shown_to(secret)
        if frame is None:
            value = None if self.kind == PARAMETERS else secret.bound
        elif frame.assumes != (self.kind == PARAMETERS):
            if secret in self._used:
                raise self._mismatch(secret, frame)
            value = None
        else:
            value = frame.values[secret]
        if value is None and secret in self._used:
            raise required(secret)
        if isinstance(value, Keys) and not (
            value.is_one or (self.kind == ROWS and value.array is not None)
        ):
            raise self._mismatch(secret, frame)
        return value

    def _pack(self, values):
        parts, rows = [], 1
        for secret, value in zip(self._secrets, values, strict=True):
            _, sizes = self._places[secret]
            if value is None:
                arrays = [np.zeros((1, size), "float32") for size in sizes]
            elif self.kind == PARAMETERS:
                arrays = [
                    _row(part, size)
                    for part, size in zip(value, sizes, strict=True)
                ]
            elif self.kind == DUALS:
                arrays = [value.array, value.duals]
            else:
                arrays = [value.array]
            parts += arrays
            rows = max([rows, *map(len, arrays)])
        packed = np.concatenate(
            [np.broadcast_to(part, (rows, part.shape[1])) for part in parts],
            axis=1,
        )
        return secrecy.hidden(packed)

    def _mismatch(self, secret, frame):
        wants = {
            KEYS: "the keys of one passport",
            DUALS: "the keys of one passport",
            ROWS: "keys",
            PARAMETERS: "γ and β of kp.assumed",
        }[self.kind]
        got = "nothing"
        if frame is not None and frame.assumes:
            got = "γ and β of kp.assumed"
        elif frame is not None:
            rows = frame.values[secret].array
            got = "a tensor" if rows is None else f"keys of {len(rows)} rows"
        return PassportError(
            f"Expected {wants} for layer '{name_of(secret)}' in a function "
            "that was traced for that. Trace it anew inside the block, or "
            "make the keys an argument of it, as "
            "keras_passport.models.keyed_function does. "
            f"Received: {got}"
        )

    def __repr__(self):
        return "<reader of passports>"


def collect(readers) -> list:
    """Pairs of a reader and what it collects, all at one moment."""
    with lock:
        return [(reader, reader.collect()) for reader in list(readers)]


def _row(value, size):
    """γ or β as an array; zeros for one that the function has itself."""
    if is_symbolic(value):
        return np.zeros((1, size), "float32")
    value = keras.ops.convert_to_numpy(value)
    return np.asarray(value, "float32").reshape(1, size)
