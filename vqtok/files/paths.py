"""Local and remote paths, standard input and output."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PosixPath
from typing import IO, Any

from vqtok.errors import MediaError, UsageError, VqtokError

STDIO = Path("-")
"""Standard input or output, as a path."""


@contextmanager
def naming(source: Path | str) -> Iterator[None]:
    """Put the input's name in front of the message of an error that lacks it."""
    try:
        yield
    except VqtokError as error:
        name = "stdin" if source == STDIO else str(source)
        if name in str(error):
            raise
        raise type(error)(f"{name}: {error}") from error


def read_bytes(source: Path) -> bytes:
    """Read a file, or standard input.

    Raises:
        MediaError: the file cannot be read.
    """
    if source == STDIO:
        return sys.stdin.buffer.read()
    try:
        return source.read_bytes()
    except OSError as error:
        raise MediaError(f"{source}: cannot be read: {error.strerror}") from error


_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # At least two characters: c:/ is a drive.
_WHOLE_OR_NOTHING = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
"""Where an upload that breaks off leaves nothing under the name it was for."""


def as_path(name: str) -> Path:
    """Make a path of a name: remote where it has a scheme such as `s3://`, but for `file://`.

    Raises:
        UsageError: a scheme without a host or bucket.
    """
    if name.startswith("file://"):
        return Path(name.removeprefix("file://"))
    if not _SCHEME.match(name):
        return Path(name)
    if ":///" in name:
        raise UsageError(f"{name}: name the host or bucket, behind two slashes")
    return RemotePath(name)


class RemotePath(PosixPath):
    """A path of a remote file system: it can be looked up, read and, by `upload`, written.

    What goes wrong on the way is an OSError that says what.
    """

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        with _told():
            return bool(self._system.exists(str(self)))

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        with _told():
            return bool(self._system.isfile(str(self)))

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        with _told():
            return bool(self._system.isdir(str(self)))

    def open(self, *args: Any, **kwargs: Any) -> IO[Any]:  # type: ignore[override]
        """Open for reading, from a local copy without a name."""
        with ExitStack() as opened:
            file: Any = opened.enter_context(tempfile.TemporaryFile())
            with _told(), self._system.open(str(self), "rb") as remote:
                shutil.copyfileobj(remote, file)
            file.seek(0)
            file.raw.name = str(self)
            opened.pop_all()
            return file  # type: ignore[no-any-return]

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Tell the size and nothing else."""
        with _told():
            return os.stat_result((0,) * 6 + (int(self._system.size(str(self))),) + (0,) * 3)

    def names_below(self) -> list[str]:
        """Give the names of all files below this folder, relative to it, in order."""
        with _told():
            root = self._system._strip_protocol(str(self)).rstrip("/") + "/"
            return sorted(name.removeprefix(root) for name in self._system.find(root) if not name.endswith("/"))

    def upload(self, file: Path) -> None:
        """Write what a local file holds, whole or not at all."""
        with _told():
            if self.scheme in _WHOLE_OR_NOTHING:
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
def _told() -> Iterator[None]:
    """Make whatever remote file systems raise an OSError with a text."""
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


def absolute(path: Path) -> str:
    """Give the name of a path from the root on, without a look at the disk."""
    return str(path) if isinstance(path, RemotePath) else os.path.abspath(path)
