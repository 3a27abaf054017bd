"""Text from outside, in a form that can go to a terminal or a message.

A file's name, a layer's path or what stands in somebody's file may hold line
breaks, which forge a line of a report, and escape sequences, which terminals
obey.
"""

import os
import textwrap
from collections.abc import Sequence

# Characters that the last column of a table has, however narrow the terminal.
_NARROWEST = 20


def shown(text, limit: int | None = 300) -> str:
    """A text on one line, with what can't be printed escaped.

    Args:
        text: A string, path or other object; `str` of it counts.
        limit: Most characters of it; the middle of a longer one is left out.
            `None` shows all.

    Returns:
        Printable characters and spaces alone.

    Example:

    >>> from keras_passport.texts import shown
    >>> shown("owner.h5\\nfingerprint  00")
    'owner.h5\\\\nfingerprint  00'
    """
    if isinstance(text, (bytes, os.PathLike)):
        text = os.fsdecode(text)
    text = str(text)
    if limit is not None and len(text) > limit:
        half = (limit - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable()
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def table(
    rows: Sequence[Sequence],
    width: int | None = None,
    widest: int | None = None,
    right: Sequence[int] = (),
) -> str:
    """Rows of cells as lines of text, in columns.

    Args:
        rows: Equally many cells in each; the first may be a head.
        width: Most characters a line: the widest columns give way, and the
            ends of their cells stay. `None` for what it takes.
        widest: Most characters of a column but the last, which then takes
            what is left of `width` and goes on in further lines.
        right: Numbers of the columns that end alike, as numbers do.

    Returns:
        Lines without a line break at the end.

    Example:

    >>> from keras_passport.texts import table
    >>> print(table([("layer", "key"), ("conv", "3x3x8"), ("logits", "128")]))
    layer   key
    conv    3x3x8
    logits  128
    """
    rows = [[shown(cell, None) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    gaps = 2 * (len(widths) - 1)
    if widest is not None:
        widths[:-1] = [min(size, widest) for size in widths[:-1]]
        if width is not None:
            left = width - gaps - sum(widths[:-1])
            widths[-1] = max(_NARROWEST, left)
    elif width is not None:
        while sum(widths) + gaps > width:
            widths[widths.index(max(widths))] -= 1
    lines = []
    for *cells, last in rows:
        parts = [last] if widest is None else _wrapped(last, widths[-1])
        for number, part in enumerate(parts):
            shows = [*(cells if number == 0 else [""] * len(cells)), part]
            fitted = [
                _cut(cell, size).rjust(size)
                if column in right
                else _cut(cell, size).ljust(size)
                for column, (cell, size) in enumerate(
                    zip(shows, widths, strict=True)
                )
            ]
            lines.append("  ".join(fitted).rstrip())
    return "\n".join(lines)


def _wrapped(text, width) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _cut(text, width) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def chance(bound: float) -> str:
    """A bound on a chance, which is never told as 0: nothing is that sure.

    Example:

    >>> from keras_passport.texts import chance
    >>> chance(0.0), chance(3.2e-7)
    ('1.0e-300', '3.2e-07')
    """
    return f"{max(bound, 1e-300):.1e}"
