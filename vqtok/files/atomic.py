"""Write files so that an incomplete file never has its final name."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqtok.errors import DiskError, OutputError
from vqtok.files.paths import STDIO, RemotePath


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write `data` under a temporary name in the same folder, then rename it to `path`.

    A device or a pipe is written to as it is.

    Raises:
        OutputError: the folder is missing, read-only or full; nothing is left behind.
    """
    with atomic_open(path) as file:
        file.write(data)


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is renamed to `path` once it is written to the end; until then it has a temporary name.

    It can seek, also where `path` is remote, a device, a pipe or standard output: these get it in one go.

    Raises:
        OutputError: as `atomic_write`.
    """
    temporary: Path | None = None
    with ExitStack() as opened:
        try:
            if isinstance(path, RemotePath):
                local = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "file"
                with local.open("w+b") as file:
                    yield _named(file, path)
                path.upload(local)
            elif path == STDIO or (path.exists() and not path.is_file()):
                with tempfile.TemporaryFile() as file:
                    yield _named(file, path)
                    file.seek(0)
                    with nullcontext(sys.stdout.buffer) if path == STDIO else path.open("wb") as target:
                        shutil.copyfileobj(file, target)
                        target.flush()
            else:
                handle, temporary = _open_temporary(path)
                opened.callback(os.close, handle)  # The lock is held until the file has its name.
                with open(os.dup(handle), "w+b") as file:
                    yield _named(file, path)
                os.replace(temporary, path)
        except BaseException as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise write_error(path, error) from error
            raise


def write_error(path: Path, error: OSError, what: str = "written") -> OutputError:
    """Say that a file cannot be written, and why."""
    kind = DiskError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else OutputError
    return kind(f"{path}: cannot be {what}: {error.strerror}")


def _named(file: Any, path: Path) -> BinaryIO:
    """Give an open file the name that messages call it by."""
    file.raw.name = str(path)
    return file  # type: ignore[no-any-return]


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Open the temporary file of an output; its name follows from the output's.

    So what a killed run left is written over by the next one. Where another run is writing the same output right now,
    or the file system has no locks, it gets a name of its own.
    """
    start = f".{path.name[:50]}.{zlib.crc32(os.fsencode(path.name)):08x}"
    temporary = path.with_name(f"{start}.tmp")
    with suppress(BlockingIOError):
        handle, is_locked = open_locked(temporary, os.O_NOFOLLOW)
        if is_locked:
            os.ftruncate(handle, 0)
            return handle, temporary
        os.close(handle)
        temporary.unlink()
    temporary = path.with_name(f"{start}{secrets.token_hex(4)}.tmp")
    return os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), temporary


def open_locked(path: Path, flags: int = 0) -> tuple[int, bool]:
    """Open a file to write, made if it is not there, that no other process has open by this; the lock ends with it.

    Returns:
        The file's number, and whether it is locked: some file systems cannot.

    Raises:
        BlockingIOError: another process has it. OSError: it cannot be opened.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle, True
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            return handle, False
        os.close(handle)  # Who had the lock before has renamed the file.


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those above it; a remote one comes with its first file.

    Raises:
        OutputError: it cannot be made.
    """
    if isinstance(folder, RemotePath):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error, "made") from error
