"""Walk folders for input files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.paths import RemotePath

logger = logging.getLogger(__name__)


def files_below(folder: Path, accepts: Callable[[Path], bool]) -> Iterator[str]:
    """Give the files below a folder that are accepted, by their paths in it, part by part in order.

    Links to folders are followed, but not back to a folder that they lie in. A folder that cannot be listed is given
    like a file: reading it tells what is wrong.

    Raises:
        MediaError: this folder cannot be listed.
    """
    if isinstance(folder, RemotePath):
        yield from (name for name in folder.names_below() if accepts(Path(name)))
        return
    try:
        levels = [_Level(folder, "")]
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read: {error.strerror}") from error
    while levels:
        level = levels[-1]
        if not level.entries:
            levels.pop()
            continue
        name, is_folder = level.entries.pop()
        path = level.prefix + name
        if not is_folder:
            if accepts(Path(name)):
                yield path
            continue
        try:
            below = _Level(folder / path, f"{path}/")
        except OSError:
            yield path
            continue
        if all(below.identity != above.identity for above in levels):
            levels.append(below)
        else:
            logger.info("%s: left out, it leads back to a folder that it lies in", folder / path)


class _Level:
    """A folder on the way down, and what of it is still to come, last first.

    Raises:
        OSError: it cannot be listed.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.prefix = prefix
        with os.scandir(folder) as entries:
            self.entries = sorted(((e.name, _is_folder(e)) for e in entries if not _is_special(e)), reverse=True)
        found = os.stat(folder)
        self.identity = found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself, say; reading it as a file tells.
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Tell sockets, pipes and devices; what links lead to is not looked at."""
    return not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink())
