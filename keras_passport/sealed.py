"""JSON files in which no bit can change unseen: claims, records, ledgers.

A file is one canonical text, so that there is but one way to write what it
says, and it ends with a seal over the rest: SHA-256, or an HMAC where whoever
reads it has the secret that it was sealed with.
"""

import hashlib
import hmac
import json
import os

from keras_passport import files
from keras_passport.errors import PassportError
from keras_passport.secrecy import hidden
from keras_passport.texts import shown

_LARGEST = 2**28


def canonical(content) -> bytes:
    """The one text, UTF-8, of JSON values: sorted names, no spaces.

    Args:
        content: Dicts, lists, texts, whole numbers, floats, booleans, None.

    Raises:
        ValueError: If a number is not finite.

    Example:

    >>> kp.sealed.canonical({"b": 1, "a": [2.5]})
    b'{"a":[2.5],"b":1}'
    """
    return json.dumps(
        content, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def dumps(kind: str, content: dict, secret: bytes | None = None) -> bytes:
    """A sealed text.

    Args:
        kind: What it is, such as `"claim"`.
        content: What it says.
        secret: Key of the seal; `None` for a plain hash, which tells damage
            from none, but stops nobody who makes a new file.

    Returns:
        Bytes of one line.
    """
    body = {"content": content, "kind": kind}
    # What has a secret's seal may hold the secret itself.
    return hidden(canonical({**body, "seal": _seal(body, secret)}) + b"\n")


def loads(
    text: bytes, kind: str, secret: bytes | None = None, where: str = "text"
) -> dict:
    """What a sealed text says.

    Args:
        text: As `dumps` returned it.
        kind: What it must be.
        secret: As for `dumps`.
        where: What to call it in messages.

    Raises:
        PassportError: If it is of another kind, or any bit of it changed.
    """
    text = hidden(text)
    content, problem = _opened(text, kind, secret)
    if problem is not None:
        raise PassportError(
            f"Expected a {kind} in '{shown(where)}'. Received: {problem}"
        )
    return content


def _opened(text, kind, secret) -> tuple:
    """What a text says, or `None`, and what is wrong with it, or `None`.

    Nothing is raised while it has what the text says for local variables.
    """
    try:
        parsed = json.loads(bytes(text))
        body = {name: parsed[name] for name in ("content", "kind")}
        if parsed["kind"] != kind:
            return None, f"a {shown(parsed['kind'], 40)}"
        sealed = canonical({**body, "seal": _seal(body, secret)}) + b"\n"
        if not hmac.compare_digest(sealed, bytes(text)):
            problem = "one that was changed, or sealed with another secret"
            return None, problem
        if not isinstance(parsed["content"], dict):
            return None, "one without content"
        return parsed["content"], None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None, "a file of another kind, or one that is damaged"


def save(
    path: str | os.PathLike,
    kind: str,
    content: dict,
    secret: bytes | None = None,
    private: bool = True,
) -> None:
    """Writes a sealed file, whole or not at all.

    Args:
        path: File to write, replaced if it exists.
        kind: As for `dumps`.
        content: As for `dumps`.
        secret: As for `dumps`.
        private: Whether only its owner may read it.

    Raises:
        OSError: If it can't be written.
    """
    text = dumps(kind, content, secret)
    files.write_bytes(path, text, mode=0o600 if private else None)


def load(
    path: str | os.PathLike, kind: str, secret: bytes | None = None
) -> dict:
    """Reads what `save` wrote.

    Args:
        path: The file.
        kind: As for `loads`.
        secret: As for `loads`.

    Raises:
        PassportError: If it is missing, of another kind, or changed.
    """
    return loads(read(path, kind), kind, secret, os.fspath(path))


def read(path: str | os.PathLike, kind: str) -> bytes:
    """A file's bytes, as they are.

    Args:
        path: The file.
        kind: What to call it in messages.

    Raises:
        PassportError: If it can't be read.
    """
    try:
        with files.open_regular(path) as file:
            text = hidden(file.read(_LARGEST + 1))
    except OSError as error:
        raise PassportError(
            f"Expected a {kind} at '{shown(path)}'. "
            f"Received: {error.strerror or shown(error)}"
        ) from None
    if len(text) > _LARGEST:
        raise PassportError(
            f"Expected a {kind} of at most {_LARGEST:,} bytes at "
            f"'{shown(path)}'. Received: a longer file"
        )
    return text


def peek(text: bytes, name: str):
    """What a text says under a name, before anything of it is believed.

    Args:
        text: Bytes of any kind.
        name: Of its content.

    Returns:
        The value; `None` if there is none.
    """
    try:
        return json.loads(bytes(text))["content"][name]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _seal(body, secret) -> str:
    text = hidden(canonical(body))
    if secret is None:
        return hashlib.sha256(text).hexdigest()
    return hmac.new(secret, text, hashlib.sha256).hexdigest()
