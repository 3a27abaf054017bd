"""Numbers that follow from a secret, and are the same in all versions of NumPy.

What a passport or a licence says of itself is drawn again whenever it is used,
in years to come as well: NumPy keeps the words of a bit generator, but not what
its `Generator` makes of them.
"""

import numpy as np

from keras_passport.secrecy import hidden


def words(seed: bytes, count: int) -> np.ndarray:
    """Random words that follow from what `derive` returns.

    Args:
        seed: 16 bytes or more, of which the first 16 count.
        count: How many.

    Returns:
        uint64 array `(count,)`.
    """
    key = hidden(int.from_bytes(seed[:16], "big"))
    return hidden(np.random.Philox(key=key).random_raw(count))


def uniform(seed: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Independent uniform elements in [-1, 1), float32 (Section 2.4 a)."""
    count = int(np.prod(shape, dtype="int64"))
    halves = words(seed, (count + 1) // 2).astype("<u8").view("<u4")[:count]
    drawn = (halves >> np.uint32(8)).astype("float32") * np.float32(2**-24)
    return hidden((drawn * 2 - 1).reshape(shape))


def chances(seed: bytes, count: int) -> np.ndarray:
    """Independent uniform numbers between 0 and 1, float64 `(count,)`."""
    return hidden(((words(seed, count) >> np.uint64(11)) + 0.5) * 2.0**-53)


def signs(seed: bytes, count: int) -> np.ndarray:
    """Independent 1 and -1, float64 `(count,)`: each word's highest bit."""
    highest = words(seed, count) >> np.uint64(63)
    return hidden(1.0 - 2.0 * highest)


def order_of_rows(seed: bytes, counts: tuple[int, ...]) -> np.ndarray:
    """A secret order of kernels' rows, and signs; see `layers.row_order`.

    Args:
        seed: What `derive` returns.
        counts: How many rows each kernel has.

    Returns:
        float32 array `(sum of counts,)`: for each kernel 1 to its number of
        rows in random order, each with a random sign. float32 has all whole
        numbers up to 2²⁴.
    """
    drawn = words(seed, 2 * sum(counts))
    parts, start = [], 0
    for rows in counts:
        places, flips = drawn[start : start + 2 * rows].reshape(2, rows)
        order = np.argsort(places, kind="stable") + 1
        parts.append(np.where(flips >> np.uint64(63), -order, order))
        start += 2 * rows
    return hidden(np.concatenate(parts).astype("float32"))
