"""Writing files so that a reader finds the old one or the new one, whole."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, mode: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary path that takes the place of `path` at the end.

    Args:
        path: File to write. Its folder must exist.
        mode: Permission bits from the first byte on, such as `0o600`.
            Defaults to the process's own.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected an existing folder to write '{path.name}' to. "
            f"Received: {path.parent}"
        )
    # The suffix stays at the end: Keras and matplotlib go by it.
    temporary = path.with_name(
        f".{path.stem}-{secrets.token_hex(4)}{path.suffix}"
    )
    try:
        if mode is not None:
            os.close(
                os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
            )
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
