"""Map inputs to outputs, and files to the keys of a shard, before any work is done."""

from __future__ import annotations

import functools
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import STDIO, SpooledPath, absolute, as_path, is_stream
from vqtok.files.walk import files_below
from vqtok.jobs.job import Job
from vqtok.jobs.worklist import Listed, WorkList


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    suffix: Callable[[Path, str | None], str] | str,
    accepts: Callable[[Path], bool],
    what: str,
    items: Callable[[Path], Iterable[str] | None] = lambda path: None,
    stem: Callable[[str], str] = lambda key: key,
    listed: Iterable[Listed] | None = None,
    ignored: Counter[str] | None = None,
) -> WorkList[Job]:
    """Decide the output of every input.

    One input goes beside itself or to `output`; several go beside themselves or into the folder `output`. The tree of
    a folder is mirrored in `output`, under the folder's own name if there are several folders. An input with several
    items becomes a folder. Where outputs would have the same name, all of them keep the suffix of their input:
    `a.jpg.vqt` and `a.png.vqt`. `stem` undoes this.

    Args:
        output: A file, a folder (an existing one, or a name that ends in a slash), or - for standard output.
        suffix: The suffix of outputs, or a function that returns it for an input and the key of an item in it.
        accepts: Returns whether a file in a folder is an input.
        what: What the inputs in a folder are, for messages.
        items: Returns the keys of the items in an input; None for an input that is a single item.
        stem: Returns the name of an output, without its suffix, for the key of an item or the name of an input without
            its suffix.
        listed: Listed files, instead of `inputs`.
        ignored: Counts the files in folders that are not inputs, by their suffix.

    Raises:
        UsageError: A folder without an output, a single input that does not exist, or inputs with the same output.
        MediaError: A folder or an input without items.
    """
    inputs = inputs if listed is None else []
    for path in inputs:
        check_input(path, len(inputs), output)
    keys = {path: list(found) for path in inputs if path.is_file() and (found := items(path)) is not None}
    for path, found in keys.items():
        if not found:
            raise MediaError(f"{path}: contains no items")
    folders = [path for path in inputs if path.is_dir() or len(keys.get(path, ())) > 1]
    several = bool(folders) or len(inputs) > 1 or listed is not None
    if folders and output is None:
        kind = "is a folder" if folders[0].is_dir() else "contains several items"
        raise UsageError(f"{folders[0]}: {kind}; give -o DIR for its outputs")
    if several and output == "-":
        raise UsageError("-o -: only one input can go to standard output")
    target = None if output is None else as_path(output)
    is_file = target is not None and target.exists() and not target.is_dir()
    if several and is_file:
        raise UsageError(f"{output}: is a file; several inputs need a folder")
    root = None
    if target is not None and (several or target.is_dir() or str(output).endswith("/")):
        root = target

    def suffix_of(folder: Path, name: str = "", key: str | None = None) -> str:
        return suffix if isinstance(suffix, str) else suffix(folder / name if name else folder, key)

    jobs = _Jobs()
    for path in inputs:
        if path.is_dir() and root is not None:
            mirror = root / folder_prefix(path, inputs)
            for name in _names_below(path, accepts, what, ignored):
                inside = items(path / name)
                if inside is None:
                    jobs.mirror(path, name, mirror, suffix_of(path, name), stem)
                    continue
                for key in inside:
                    folder = mirror / os.path.splitext(name)[0]
                    jobs.add_item(path / name, key, folder, stem, suffix_of(path, name, key))
        elif path in keys and root is not None:
            for key in keys[path]:
                jobs.add_item(path, key, root, stem, suffix_of(path, key=key))
        elif root is not None:
            name = "stdin" if str(path) == str(STDIO) else Path(str(path)).name
            short, kept = _outputs(name, suffix_of(path), stem)
            jobs.add(Job(path, root / short), root / kept)
        else:
            is_stdin = str(path) == str(STDIO)
            short, kept = _outputs(path.name, suffix_of(path), stem)
            job = Job(path, target or (STDIO if is_stdin else path.with_name(short)), *keys.get(path, ()))
            jobs.add(job, None if target or is_stdin else path.with_name(kept))
    for folder, name in listed or ():
        jobs.mirror(folder, name, root or folder, suffix_of(folder, name), stem)
    return jobs.resolve()


def plan_items(
    inputs: Sequence[Path],
    *,
    accepts: Callable[[Path], bool],
    what: str,
    listed: Iterable[Listed] | None = None,
    ignored: Counter[str] | None = None,
) -> WorkList[tuple[str, Path]]:
    """Return the key in a shard of each input file: its name, or its path in the given folder.

    If there are several folders, keys begin with the name of theirs.

    Args:
        accepts, what, listed, ignored: As for `plan_jobs`.

    Raises:
        UsageError: An input that does not exist or has no name, or two inputs with the same key.
        MediaError: A folder without inputs.
    """
    items: WorkList[tuple[str, Path]] = WorkList()
    seen: set[int] = set()
    sources = _each_input(inputs, accepts, what, ignored) if listed is None else (("", *file) for file in listed)
    for prefix, folder, name in sources:
        key = prefix + name
        if hash(key) in seen:
            for twin in (source for other, source in items if other == key):
                raise UsageError(f"{twin} and {folder / name} would both have the key {key}; rename one")
        seen.add(hash(key))
        items.add(key, _Keyed(folder, len(prefix)))
    return items


def check_input(path: Path, num_inputs: int, output: str | None) -> None:
    """Raise if an input cannot be used at all. One of several that does not exist fails when its turn comes."""
    if is_stream(path) or isinstance(path, SpooledPath):
        if output is None and str(path) != str(STDIO):
            raise UsageError(f"{path}: is a pipe or device; give -o FILE for its output")
    elif num_inputs == 1 and not path.exists():
        raise UsageError(f"{path}: no such file or folder")


def _each_input(
    inputs: Sequence[Path], accepts: Callable[[Path], bool], what: str, ignored: Counter[str] | None
) -> Iterator[tuple[str, Path, str]]:
    """Yield the prefix of the key, the folder and the name of each input file."""
    for path in inputs:
        if path == STDIO:
            raise UsageError(f"{path}: has no name that could be its key")
        check_input(path, len(inputs), "")
        if path.is_dir():
            prefix = folder_prefix(path, inputs)
            yield from ((prefix, path, name) for name in _names_below(path, accepts, what, ignored))
        else:
            yield "", path.parent, path.name


def folder_prefix(folder: Path, inputs: Sequence[Path]) -> str:
    """Return the name of a folder and a slash if it is one of several folders, which must not be merged; else ''."""
    several = sum(path.is_dir() for path in inputs) > 1
    return os.path.basename(absolute(folder).rstrip("/")) + "/" if several else ""


@dataclass(frozen=True)
class _Keyed:
    """Makes the item of a key in a work list."""

    folder: Path
    prefix_length: int

    def __call__(self, key: str) -> tuple[str, Path]:
        return key, self.folder / key[self.prefix_length :]


class _Maker(Protocol):
    """Makes the job of a name in a work list, on demand: a million jobs as objects would fill the memory."""

    def __call__(self, name: str) -> Job: ...

    def keeping_suffix(self) -> _Maker | None:
        """Return the maker for the same jobs whose outputs keep the suffix of their inputs; None if they cannot."""


@dataclass(frozen=True)
class _Single:
    """Makes one job, which is known."""

    job: Job
    kept: Path | None

    def __call__(self, name: str) -> Job:
        return self.job

    def keeping_suffix(self) -> _Single | None:
        return None if self.kept is None else _Single(replace(self.job, target=self.kept), None)


@dataclass(frozen=True)
class _Mirrored:
    """Makes the job of a file in a folder, whose output has the same place in another folder."""

    folder: Path
    mirror: Path
    suffix: str
    stem: Callable[[str], str]
    keeps_suffix: bool = False

    def __call__(self, name: str) -> Job:
        return Job(self.folder / name, self.mirror / self.output(name))

    def output(self, name: str) -> str:
        return _outputs(name, self.suffix, self.stem)[self.keeps_suffix]

    def keeping_suffix(self) -> _Mirrored | None:
        return None if self.keeps_suffix else replace(self, keeps_suffix=True)


class _Jobs:
    """Collects jobs, and resolves outputs with the same name."""

    def __init__(self) -> None:
        self._planned: WorkList[Job] = WorkList()
        self._makers: list[_Maker] = []
        self._maker_of = array("L")
        self._outputs = array("q")
        """Hash of the output of each job. Names that differ in case alone count as equal, as on many file systems."""
        self._absolute = functools.cache(lambda folder: absolute(folder).rstrip("/"))

    def add(self, job: Job, kept: Path | None) -> None:
        """Add a job; `kept` is its target with the suffix of the input, if it may have that."""
        target = absolute(job.target)
        if job.target != STDIO and absolute(job.source) == target:
            raise _overwrites(job)
        self._append(job.key or job.source.name, _Single(job, kept), target)

    def add_item(self, source: Path, key: str, folder: Path, stem: Callable[[str], str], suffix: str) -> None:
        """Add the job of an item inside `source`."""
        target, kept = (folder / _inside(name + suffix, source) for name in (stem(key), key))
        self.add(Job(source, target, key), kept)

    def mirror(self, folder: Path, name: str, mirror: Path, suffix: str, stem: Callable[[str], str]) -> None:
        """Add the job of a file in a folder; a fraction of the time of `add`."""
        make = _Mirrored(folder, mirror, suffix, stem)
        target = f"{self._absolute(mirror)}/{make.output(name)}"
        if f"{self._absolute(folder)}/{name}" == target:
            raise _overwrites(make(name))
        self._append(name, make, target)

    def resolve(self) -> WorkList[Job]:
        """Return the jobs, after those with equal outputs have been given outputs that keep their suffix.

        Raises:
            UsageError: Outputs are equal nevertheless.
        """
        equal = _repeated(self._outputs)
        changed = [index for index, output in enumerate(self._outputs) if output in equal]
        for index in changed:
            kept = self._makers[self._maker_of[index]].keeping_suffix()
            if kept is not None:
                self._planned.replace(index, kept)
                self._outputs[index] = _output_hash(absolute(self._planned[index].target))
        equal = _repeated(self._outputs) if changed else set()
        for output in equal:
            first, second = [job for job, own in zip(self._planned, self._outputs, strict=True) if own == output][:2]
            raise same_output(first, second)
        return self._planned

    def _append(self, name: str, make: _Maker, target: str) -> None:
        if not self._makers or self._makers[-1] != make:
            self._makers.append(make)
        self._maker_of.append(len(self._makers) - 1)
        self._outputs.append(_output_hash(target))
        self._planned.add(name, make)


def _output_hash(target: str) -> int:
    return hash(os.path.normcase(target).casefold())


def _repeated(values: Iterable[int]) -> set[int]:
    seen: set[int] = set()
    repeated: set[int] = set()
    for value in values:
        (repeated if value in seen else seen).add(value)
    return repeated


def same_output(first: Job, second: Job) -> UsageError:
    if (first.source, first.key) == (second.source, second.key):
        return UsageError(f"{first.name}: is given twice")
    return UsageError(f"{first.name} and {second.name} would both become {first.target}; rename one")


def _overwrites(job: Job) -> UsageError:
    return UsageError(f"{job.source}: would be overwritten by its own output; give another -o")


def _names_below(
    folder: Path, accepts: Callable[[Path], bool], what: str, ignored: Counter[str] | None
) -> Iterator[str]:
    name = None
    for name in files_below(folder, accepts, ignored):
        yield name
    if name is None:
        raise MediaError(f"{folder}: no {what} in this folder")


def _outputs(name: str, suffix: str, stem: Callable[[str], str]) -> tuple[str, str]:
    """Return the name of the output of an input, and the name if it has to keep the suffix of the input."""
    bare = os.path.splitext(name)[0]
    short = stem(bare)
    return short + suffix, (name if short == bare else bare) + suffix


def _inside(name: str, source: Path) -> Path:
    """Return an item's name as a path.

    Raises:
        UsageError: It leads out of the folder for outputs.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{source}: the name of item {name!r} leads out of the folder for outputs")
    return path
