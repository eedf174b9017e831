"""Walk folders for input files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.paths import RemotePath

logger = logging.getLogger(__name__)


def files_below(folder: Path, accepts: Callable[[Path], bool], ignored: Counter[str] | None = None) -> Iterator[str]:
    """Yield the accepted files below a folder, relative to it and in sorted order.

    Links to folders are followed, except back to a folder that contains them. A folder that cannot be listed is
    yielded like a file: reading it then reports the reason.

    Args:
        ignored: Counts the files that are not accepted by their suffix, hidden files aside.

    Raises:
        MediaError: `folder` itself cannot be listed.
    """

    def accept(name: str) -> bool:
        path = Path(name)
        if accepts(path):
            return True
        if ignored is not None and not path.name.startswith("."):
            ignored[path.suffix.lower()] += 1
        return False

    if isinstance(folder, RemotePath):
        yield from filter(accept, folder.names_below())
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
            if accept(name):
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
            logger.info("%s: left out, it links back to a folder that contains it", folder / path)


def describe_ignored(ignored: Mapping[str, int]) -> str:
    """Return one line about ignored files, most frequent suffix first."""
    total = sum(ignored.values())
    counts = ", ".join(
        f"{count} {suffix or 'without suffix'}"
        for suffix, count in sorted(ignored.items(), key=lambda item: (-item[1], item[0]))
    )
    files = "1 file of another kind" if total == 1 else f"{total} files of other kinds"
    return f"passed over {files}: {counts}"


class _Level:
    """One folder of the walk: the entries that remain, last first.

    Raises:
        OSError: The folder cannot be listed.
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
    except OSError:  # A link to itself, for example; reading it reports the reason.
        return False


def _is_special(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a socket, pipe or device. Links count as what they look like, not where they lead."""
    return not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False) or entry.is_symlink())
