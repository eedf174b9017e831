"""Which inputs, which outputs, and writing them so that a half-written file never bears its final name."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vqtok.errors import OutputError


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, then rename it to `path`.

    Raises:
        OutputError: the folder is missing, read-only or full; nothing is left behind.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files private; give the permissions that a plain open would.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        raise
