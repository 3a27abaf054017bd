"""Text from outside, in a form that can go to a terminal or a message.

A file's name, a layer's path or what stands in somebody's file may hold line
breaks, which forge a line of a report, and escape sequences, which terminals
obey.
"""

import os


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
