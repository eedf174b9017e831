"""Map inputs to outputs, and files to the keys of a shard."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import STDIO, absolute, as_path
from vqtok.files.walk import files_below
from vqtok.jobs.job import Job
from vqtok.jobs.worklist import Listed, WorkList


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    suffix: Callable[[Path], str] | str,
    accepts: Callable[[Path], bool],
    what: str,
    items: Callable[[Path], Iterable[str] | None] = lambda path: None,
    stem: Callable[[str], str] = lambda key: key,
    listed: Iterable[Listed] | None = None,
) -> WorkList[Job]:
    """Decide the output of every input before any work is done.

    One input goes beside itself or to `output`; several go beside themselves or below the folder `output`; a folder's
    tree is mirrored below `output`, and so are a list of files and the keys of an input that holds several items. Such
    a file in a folder becomes a folder itself.

    Args:
        output: A file, a folder (one that exists, or with a slash at its end), or - for standard output.
        suffix: That of outputs, or what gives it for an input.
        accepts: Tells which files of a folder are inputs.
        what: The files of a folder that are inputs, in messages.
        items: Gives the keys of the items that an input holds; None for one that is an item itself.
        stem: Gives the name of an item's output, but for its suffix, from its key.
        listed: Files that were listed, which take the place of `inputs`.

    Raises:
        UsageError: a folder without an output, an input that is missing, or two inputs with the same output.
        MediaError: a folder or an input without items.
    """
    inputs = inputs if listed is None else []
    for path in inputs:
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    keys = {path: list(found) for path in inputs if path.is_file() and (found := items(path)) is not None}
    for path, found in keys.items():
        if not found:
            raise MediaError(f"{path}: holds no items")
    folders = [path for path in inputs if path.is_dir() or len(keys.get(path, ())) > 1]
    several = bool(folders) or len(inputs) > 1 or listed is not None
    if folders and output is None:
        kind = "is a folder" if folders[0].is_dir() else "holds several items"
        raise UsageError(f"{folders[0]}: {kind}; give -o DIR for its outputs")
    if several and output == "-":
        raise UsageError("-o -: only one input can go to standard output")
    target = None if output is None else as_path(output)
    is_file = target is not None and target.exists() and not target.is_dir()
    if several and is_file:
        raise UsageError(f"{output}: is a file; several inputs need a folder")
    below = None
    if target is not None and (several or target.is_dir() or str(output).endswith("/")):
        below = target

    def ending(folder: Path, name: str = "") -> str:
        return suffix if isinstance(suffix, str) else suffix(folder / name if name else folder)

    jobs = _Jobs()
    for path in inputs:
        if path.is_dir() and below is not None:
            for name in _names_below(path, accepts, what):
                inside = items(path / name)
                if inside is None:
                    jobs.mirror(path, name, below, ending(path, name))
                    continue
                for key in inside:
                    output_name = _inside(stem(key) + ending(path, name), path / name)
                    jobs.add(Job(path / name, below / _with_suffix(name, "") / output_name, key))
        elif path in keys and below is not None:
            for key in keys[path]:
                jobs.add(Job(path, below / _inside(stem(key) + ending(path), path), key))
        elif below is not None:
            name = "stdin" if path == STDIO else path.name
            jobs.add(Job(path, below / _with_suffix(name, ending(path))))
        else:
            beside = STDIO if path == STDIO else path.with_suffix(ending(path))
            jobs.add(Job(path, target or beside, *keys.get(path, ())))
    for folder, name in listed or ():
        jobs.mirror(folder, name, below or folder, ending(folder, name))
    return jobs.planned


def plan_items(
    inputs: Sequence[Path],
    *,
    accepts: Callable[[Path], bool],
    what: str,
    listed: Iterable[Listed] | None = None,
) -> WorkList[tuple[str, Path]]:
    """Give each input its key in a shard: its name, or its path in the folder that was given.

    Args:
        accepts, what, listed: As `plan_jobs` takes them.

    Raises:
        UsageError: an input that is missing or has no name, or two with the same key. MediaError: a folder without
            inputs.
    """
    items: WorkList[tuple[str, Path]] = WorkList()
    seen: set[int] = set()
    for folder, key in _each_input(inputs, accepts, what) if listed is None else listed:
        if hash(key) in seen:
            for twin in (source for other, source in items if other == key):
                raise UsageError(f"{twin} and {folder / key} would both have the key {key}; rename one")
        seen.add(hash(key))
        items.add(key, _Keyed(folder))
    return items


def _each_input(inputs: Sequence[Path], accepts: Callable[[Path], bool], what: str) -> Iterator[Listed]:
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{path}: " + ("has no name to be a key" if path == STDIO else "no such file or folder"))
        if path.is_dir():
            yield from ((path, name) for name in _names_below(path, accepts, what))
        else:
            yield path.parent, path.name


@dataclass(frozen=True)
class _Keyed:
    """Make an item of its key."""

    folder: Path

    def __call__(self, key: str) -> tuple[str, Path]:
        return key, self.folder / key


@dataclass(frozen=True)
class _Mirrored:
    """Make a job of the name of a file in a folder, whose output in another has the same name but for the suffix."""

    folder: Path
    below: Path
    suffix: str

    def __call__(self, name: str) -> Job:
        return Job(self.folder / name, self.below / _with_suffix(name, self.suffix))


class _Jobs:
    """The jobs planned so far, no two with one output and none whose output is its input."""

    def __init__(self) -> None:
        self.planned: WorkList[Job] = WorkList()
        self._outputs: set[int] = set()
        self._root = functools.cache(lambda folder: absolute(folder).rstrip("/"))

    def add(self, job: Job) -> None:
        def make(_: str) -> Job:
            return job

        if job.target != STDIO:
            self._check(make, "", absolute(job.source), absolute(job.target))
        self.planned.add(job.key or job.source.name, make)

    def mirror(self, folder: Path, name: str, below: Path, suffix: str) -> None:
        """Add the job of a file in a folder as `add` would, in a fraction of the time."""
        make = _Mirrored(folder, below, suffix)
        output = _with_suffix(name, suffix)
        self._check(make, name, f"{self._root(folder)}/{name}", f"{self._root(below)}/{output}")
        self.planned.add(name, make)

    def _check(self, make: Callable[[str], Job], name: str, source: str, target: str) -> None:
        if source == target:
            raise UsageError(f"{make(name).source}: would be overwritten by its own output; give another -o")
        # Names that differ in case alone are one file on many systems.
        one = os.path.normcase(target).casefold()
        if hash(one) in self._outputs:
            for other in self.planned:
                if os.path.normcase(absolute(other.target)).casefold() == one:
                    job = make(name)
                    raise UsageError(f"{other.name} and {job.name} would both become {job.target}; rename one")
        self._outputs.add(hash(one))


def _names_below(folder: Path, accepts: Callable[[Path], bool], what: str) -> Iterator[str]:
    name = None
    for name in files_below(folder, accepts):
        yield name
    if name is None:
        raise MediaError(f"{folder}: no {what} in this folder")


def _with_suffix(name: str, suffix: str) -> str:
    return os.path.splitext(name)[0] + suffix


def _inside(name: str, source: Path) -> Path:
    """Refuse an item's name that leads out of the folder for outputs."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{source}: the name of item {name!r} leads out of the folder for outputs")
    return path
