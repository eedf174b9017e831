"""Local and remote paths, standard streams and pipes."""

from __future__ import annotations

import atexit
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PosixPath
from typing import IO, Any, BinaryIO

from vqtok.errors import MediaError, OutputError, UsageError, VqtokError

STDIO = Path("-")
"""Standard input or output, as a path."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # At least two characters: c:/ is a drive.
_COLLAPSED_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` merges the two slashes.
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+::")
_ATOMIC_SCHEMES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""File systems where an interrupted upload leaves nothing under the final name."""
_STREAM = re.compile(r"/dev/(stdin|stdout|stderr|fd/(\d+))|/proc/self/fd/(\d+)")
_STREAM_NUMBERS = {"stdin": 0, "stdout": 1, "stderr": 2}


@contextmanager
def error_context(source: Path | str) -> Iterator[None]:
    """Prefix the message of a `VqtokError` with the input's name, unless it is there already."""
    try:
        yield
    except VqtokError as error:
        name = "stdin" if str(source) == str(STDIO) else str(source)
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def stdin() -> BinaryIO:
    """Return standard input for reading bytes.

    Raises:
        MediaError: It is closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise MediaError("stdin is closed")
    return sys.stdin.buffer


def stdout() -> BinaryIO:
    """Return standard output for writing bytes.

    Raises:
        OutputError: It is closed.
    """
    if sys.stdout is None or sys.stdout.closed:
        raise OutputError("stdout is closed")
    return sys.stdout.buffer


def read_bytes(source: Path) -> bytes:
    """Read a file, or standard input.

    Raises:
        MediaError: The file cannot be read.
    """
    if source == STDIO:
        return stdin().read()
    try:
        return source.read_bytes()
    except OSError as error:
        raise MediaError(f"{source}: cannot be read: {error.strerror}") from error


def as_path(name: str | Path) -> Path:
    """Return the path of a name: a `RemotePath` if it has a scheme such as `s3://`, except for `file://`.

    Raises:
        UsageError: The scheme has no host or bucket, or several schemes are chained.
    """
    if isinstance(name, Path):
        return name
    if name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    if "://" in name and _CHAINED.match(name):
        raise UsageError(f"{name}: chained schemes are not supported; copy the files to a folder first")
    if not _SCHEME.match(name):
        return Path(name)
    if ":///" in name:
        raise UsageError(f"{name}: the scheme needs a host or bucket after two slashes; local paths need no scheme")
    return RemotePath(name)


def local_path(name: str | Path) -> Path:
    """Return the path of a name, for what can only read or write local files.

    Raises:
        UsageError: The name is remote.
    """
    text = str(name)
    if not isinstance(name, SpooledPath) and (_COLLAPSED_SCHEME.match(text) or _CHAINED.match(text)):
        path = as_path(text)
        if text.startswith("file:") and not isinstance(path, RemotePath):
            return Path(re.sub("file:/+", "/", text))
        raise UsageError(f"{text}: remote files are not supported here; only encode and decode read and write them")
    return name if isinstance(name, Path) else Path(name)


def is_stream(path: Path) -> bool:
    """Return whether a path is standard input or output, a pipe or a device, which is read or written in one pass."""
    if path == STDIO or stream_number(path) is not None:
        return True
    if isinstance(path, RemotePath | SpooledPath):
        return False
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def stream_number(path: Path) -> int | None:
    """Return the file descriptor that a path names, directly or through links, as /dev/stdout does; None for others.

    Such a path must never be replaced by a file, nor opened by its name: that would truncate what the shell has
    redirected it to.
    """
    text = os.fspath(path)
    for _ in range(40):  # the kernel's own limit for chains of links
        if found := _STREAM.fullmatch(text):
            return _STREAM_NUMBERS.get(found[1], int(found[2] or found[3] or 0))
        try:
            text = os.path.join(os.path.dirname(text), os.readlink(text))
        except OSError:
            return None
    return None


def spooled(path: Path) -> Path:
    """Return a path that can be read repeatedly: a pipe's content is copied to a temporary file, others stay.

    Raises:
        MediaError: The pipe cannot be read, or standard input is closed.
    """
    if not is_stream(path):
        return path
    number = 0 if path == STDIO else stream_number(path)
    handle, name = tempfile.mkstemp(prefix="vqtok-")
    atexit.register(_remove, name)
    try:
        with ExitStack() as opened:
            copy = opened.enter_context(os.fdopen(handle, "wb"))
            if number == 0:
                source = stdin()
            else:
                source = opened.enter_context(os.fdopen(os.dup(number), "rb") if number else path.open("rb"))
            shutil.copyfileobj(source, copy)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
    return SpooledPath.of(name, str(path))


def _remove(name: str) -> None:
    with suppress(OSError):
        os.unlink(name)


def absolute(path: Path) -> str:
    """Return the path from the root, without looking at the disk."""
    return str(path) if isinstance(path, RemotePath) else os.path.abspath(path)


class SpooledPath(PosixPath):
    """The temporary copy of a pipe's content; in messages it has the name of the pipe."""

    label: str

    @classmethod
    def of(cls, name: str, label: str) -> SpooledPath:
        path = cls(name)
        path.label = label
        return path

    def __str__(self) -> str:
        return getattr(self, "label", super().__str__())

    def __fspath__(self) -> str:
        return super().__str__()


class RemotePath(PosixPath):
    """A path on a remote file system, through fsspec: it can be looked up, read and, by `upload`, written.

    Failures are OSErrors with a message.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        with _as_os_errors():
            return bool(self._system.exists(str(self)))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        with _as_os_errors():
            return bool(self._system.isfile(str(self)))

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        with _as_os_errors():
            return bool(self._system.isdir(str(self)))

    def open(self, *args: Any, **kwargs: Any) -> IO[Any]:  # type: ignore[override]
        """Open for reading, from an unnamed local copy."""
        with ExitStack() as opened:
            file: Any = opened.enter_context(tempfile.TemporaryFile())
            with _as_os_errors(), self._system.open(str(self), "rb") as remote:
                shutil.copyfileobj(remote, file)
            file.seek(0)
            file.raw.name = str(self)
            opened.pop_all()
            return file  # type: ignore[no-any-return]

    def stream(self) -> BinaryIO:
        """Open for reading in one pass, without a local copy. Reading raises OSError."""
        with _as_os_errors():
            return self._system.open(str(self), "rb")  # type: ignore[no-any-return]

    def matches(self) -> list[Path]:
        """Return the files that this path matches as a pattern with wildcards, sorted."""
        with _as_os_errors():
            names = sorted(self._system.glob(str(self)))
            return [RemotePath(self._system.unstrip_protocol(name)) for name in names]

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the size; all other fields are 0."""
        with _as_os_errors():
            return os.stat_result((0,) * 6 + (int(self._system.size(str(self))),) + (0,) * 3)

    def names_below(self) -> list[str]:
        """Return the names of all files below this folder, relative to it and sorted."""
        with _as_os_errors():
            root = self._system._strip_protocol(str(self)).rstrip("/") + "/"
            return sorted(name.removeprefix(root) for name in self._system.find(root) if not name.endswith("/"))

    def upload(self, file: Path) -> None:
        """Write the content of a local file, completely or not at all."""
        with _as_os_errors():
            if self.scheme in _ATOMIC_SCHEMES:
                self._system.put_file(str(file), str(self))
                return
            self._system.makedirs(str(self.parent), exist_ok=True)
            temporary = str(self.with_name(f".{self.name}.tmp"))
            self._system.put_file(str(file), temporary)
            self._system.mv(temporary, str(self))

    @property
    def scheme(self) -> str:
        found = _SCHEME.match(str(self))
        assert found
        return found[1].lower()

    @property
    def _system(self) -> Any:
        try:
            import fsspec

            return fsspec.filesystem(self.scheme)
        except ImportError as error:
            why = "pip install fsspec" if error.name == "fsspec" else str(error)
            raise UsageError(f"{self}: remote files need fsspec and its part for {self.scheme}: {why}") from None
        except ValueError as error:
            raise UsageError(f"{self}: {error}") from None


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """Turn all exceptions of a remote file system but UsageError into OSErrors with a message."""
    try:
        yield
    except UsageError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory") from None
    except OSError as error:
        if error.strerror is None:
            raise OSError(errno.EIO, str(error) or type(error).__name__) from error
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
