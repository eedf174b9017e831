"""Write files so that an incomplete file never has its final name."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from vqtok.errors import DiskError, OutputError
from vqtok.files.paths import STDIO, RemotePath, is_stream, stdout, stream_number


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write `data` with `atomic_open`.

    Raises:
        OutputError: The folder is missing, read-only or full; nothing is left behind.
    """
    with atomic_open(path) as file:
        file.write(data)


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a temporary name in the same folder; it gets its final name when it is complete.

    The file can seek, also where `path` is remote, a pipe, a device or a standard stream: these receive the content
    when it is complete. A link is written through, and a file that is replaced keeps its permissions.

    Raises:
        OutputError: As for `atomic_write`.
    """
    temporary: Path | None = None
    with ExitStack() as opened:
        try:
            if isinstance(path, RemotePath):
                local = Path(opened.enter_context(tempfile.TemporaryDirectory())) / "file"
                with local.open("w+b") as file:
                    yield _with_name(file, path)
                path.upload(local)
            elif is_stream(path):
                with tempfile.TemporaryFile() as file:
                    yield _with_name(file, path)
                    file.seek(0)
                    with _open_stream(path) as target:
                        shutil.copyfileobj(file, target)
                        target.flush()
            else:
                final = Path(os.path.realpath(path))
                handle, temporary = _open_temporary(final)
                opened.callback(os.close, handle)  # Hold the lock until the file has its final name.
                with suppress(OSError):
                    os.fchmod(handle, stat.S_IMODE(os.stat(final).st_mode))
                with open(os.dup(handle), "w+b") as file:
                    yield _with_name(file, path)
                os.replace(temporary, final)
        except BaseException as error:
            if temporary is not None:
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise write_error(path, error) from error
            raise


@contextmanager
def _open_stream(path: Path) -> Iterator[BinaryIO]:
    """Open a standard stream, pipe or device for writing, without truncating what it is redirected to."""
    number = stream_number(path)
    if path == STDIO or number == 1:
        yield stdout()
        return
    with os.fdopen(os.dup(number), "wb") if number is not None else path.open("wb") as file:
        yield file


def refuse_existing(path: Path, *, skippable: bool = False) -> None:
    """Raise if an output exists. Streams and devices can always be written to.

    Args:
        skippable: Whether the caller has a `skip_existing` that the message should mention.

    Raises:
        OutputError: It exists.
    """
    if not is_stream(path) and path.exists():
        keep = ", `skip_existing` keeps it" if skippable else ""
        raise OutputError(f"{path}: output exists; `overwrite` replaces it{keep}")


def write_error(path: Path, error: OSError, what: str = "written") -> OutputError:
    """Return the error for a path that cannot be written; `what` may be another participle, such as "created"."""
    kind = DiskError if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS) else OutputError
    return kind(f"{path}: cannot be {what}: {error.strerror}")


def _with_name(file: Any, path: Path) -> BinaryIO:
    """Set the name by which messages call an open file."""
    file.raw.name = str(path)
    return file  # type: ignore[no-any-return]


def _open_temporary(path: Path) -> tuple[int, Path]:
    """Open the temporary file of an output.

    Its name is derived from the output's, so that the next run overwrites what a killed run has left. If another
    process is writing the same output, or the file system has no locks, the name is random instead.
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
    """Open `path` for writing, creating it if needed, under an exclusive lock.

    Returns:
        The file descriptor, and whether it is locked; some file systems have no locks. Closing it releases the lock.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file cannot be opened.
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
        os.close(handle)  # The previous owner of the lock has renamed the file; try again.


def make_folder(folder: Path) -> None:
    """Create a folder for outputs and its parents. A remote folder is created with its first file.

    Raises:
        OutputError: It cannot be created.
    """
    if isinstance(folder, RemotePath):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error, "created") from error
