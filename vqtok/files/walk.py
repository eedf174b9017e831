"""Walk folders for input files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.paths import RemotePath
from vqtok.files.sidecars import is_sidecar

logger = logging.getLogger(__name__)


def files_below(folder: Path, accepts: Callable[[Path], bool], ignored: Counter[str] | None = None) -> Iterator[str]:
    """Yield the accepted files below a folder, relative to it and in sorted order.

    Links to folders are followed, except back to a folder that contains them. A folder that cannot be listed is
    yielded like a file: reading it then reports the reason.

    Args:
        ignored: Counts the files that are not accepted by their suffix, except hidden files and captions.

    Raises:
        MediaError: `folder` itself cannot be listed.
    """

    def accept(name: str, siblings: Sequence[str]) -> bool:
        path = Path(name)
        if accepts(path):
            return True
        hidden = path.name.startswith(".")
        if ignored is not None and not hidden and not is_sidecar(name, siblings, accepts):
            ignored[path.suffix.lower()] += 1
        return False

    if isinstance(folder, RemotePath):
        names = folder.names_below()
        yield from (name for name in names if accept(name, names))
        return
    try:
        levels = [_Level(folder, "")]
    except OSError as error:
        raise MediaError(f"{folder}: cannot be read: {error.strerror}") from error
    while levels:
        level = levels[-1]
        name = next(level.remaining, None)
        if name is None:
            levels.pop()
            continue
        path = level.prefix + name
        if name not in level.folders:
            if accept(name, level.names):
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
    """One folder of the walk.

    Raises:
        OSError: The folder cannot be listed.
    """

    def __init__(self, folder: Path, prefix: str) -> None:
        self.prefix = prefix
        with os.scandir(folder) as entries:
            kinds = {entry.name: _is_folder(entry) for entry in entries if not _is_special(entry)}
        self.names = sorted(kinds)
        self.folders = {name for name, is_folder in kinds.items() if is_folder}
        self.remaining = iter(self.names)
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
