"""Names that stand for many files: `train-{0000..0099}.tar`, `{a,b}.zip` and `*.parquet`, local and remote."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.paths import RemotePath, as_path

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MAX_FILES = 100_000
"""Of one range, so that a slip of the finger does not fill the memory."""


def is_pattern(path: Path) -> bool:
    """Return whether a path that does not exist by itself has braces or wildcards in it."""
    text = str(path)
    if not any(mark in text for mark in "{*?["):
        return False
    return isinstance(path, RemotePath) or not path.exists()


def expand(path: Path) -> list[Path]:
    """Return the files that a pattern stands for: ranges in their order, what wildcards find sorted.

    Raises:
        MediaError: Wildcards find nothing, a file of a range is missing, or a range is too long.
    """
    found: list[Path] = []
    missing: list[str] = []
    names = list(itertools.islice(_braces(str(path)), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise MediaError(f"{path}: stands for more than {MAX_FILES:,} files")
    for name in names:
        one = as_path(name)
        if glob.has_magic(name):
            matches = one.matches() if isinstance(one, RemotePath) else sorted(map(Path, glob.glob(name)))
        else:
            matches = [one] if one.exists() else []
        if not matches:
            missing.append(name)
        found += matches
    if missing:
        others = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MediaError(f"{path}: no such file: {missing[0]}{others}")
    return list(dict.fromkeys(found))


def _braces(text: str) -> Iterator[str]:
    """Yield what a text with ranges and lists in braces stands for, as shells expand it."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    between = _RANGE.fullmatch(match[1])
    choices: Iterator[str]
    if between:
        first, last, width = int(between[1]), int(between[2]), len(between[1])
        step = 1 if last >= first else -1
        choices = (f"{number:0{width}}" for number in range(first, last + step, step))
    else:
        choices = iter(match[1].split(","))
    for choice in choices:
        yield from _braces(text[: match.start()] + choice + text[match.end() :])
