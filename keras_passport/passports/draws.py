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


def order_of_rows(
    seed: bytes, orders: tuple[tuple[int, int], ...]
) -> np.ndarray:
    """A secret order of kernels' rows, and signs; see `layers.row_order`.

    Args:
        seed: What `derive` returns.
        orders: How many rows each kernel has, and how many orders.

    Returns:
        float32 array `(Geometry.order_size,)`: for each kernel `(rows,
        orders)`, of which each column has 1 to the number of rows in random
        order, each with a random sign. float32 has all whole numbers up to
        2²⁴.
    """
    sizes = [2 * rows * groups for rows, groups in orders]
    parts, start, drawn = [], 0, words(seed, sum(sizes))
    for size, (rows, groups) in zip(sizes, orders, strict=True):
        places, flips = drawn[start : start + size].reshape(2, groups, rows)
        order = np.argsort(places, kind="stable").astype("float32") + 1
        np.negative(order, out=order, where=flips >= 2**63)
        parts.append(order.T.ravel())
        start += size
    return hidden(np.concatenate(parts))
