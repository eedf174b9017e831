"""Which inputs, which outputs; reading, and writing so that a half-written file never bears its final name."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vqtok.errors import MediaError, OutputError, UsageError, VqtokError

STDIO = Path("-")
"""Standard input or output, as a path."""


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    target: Path
    key: str | None = None
    """Which item of an input that holds several."""

    @property
    def name(self) -> str:
        """What messages call the input."""
        name = "stdin" if self.source == STDIO else str(self.source)
        return name if self.key is None else f"{name}: {self.key}"


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    suffix: Callable[[Path], str],
    accepts: Callable[[Path], bool],
    what: str,
    items: Callable[[Path], Iterable[str] | None] = lambda path: None,
    stem: Callable[[str], str] = lambda key: key,
) -> list[Job]:
    """Decide the output of every input before any work is done.

    One input goes beside itself or to `output`; several go beside themselves or below the folder `output`; a folder's
    tree is mirrored below `output`, and so are the keys of an input that holds several items. Such a file in a folder
    becomes a folder itself.

    Args:
        output: A file, a folder (one that exists, or with a slash at its end), or - for standard output.
        suffix: Gives the suffix of the output of an input.
        accepts: Tells which files of a folder are inputs.
        what: The files of a folder that are inputs, in messages.
        items: Gives the keys of the items that an input holds; None for one that is an item itself.
        stem: Gives the name of an item's output, but for its suffix, from its key.

    Raises:
        UsageError: a folder without an output, an input that is missing, or two inputs with the same output.
        MediaError: a folder or an input without items.
    """
    for path in inputs:
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    keys = {path: list(found) for path in inputs if path.is_file() and (found := items(path)) is not None}
    for path, found in keys.items():
        if not found:
            raise MediaError(f"{path}: holds no items")
    folders = [path for path in inputs if path.is_dir() or len(keys.get(path, ())) > 1]
    several = bool(folders) or len(inputs) > 1
    if folders and output is None:
        kind = "is a folder" if folders[0].is_dir() else "holds several items"
        raise UsageError(f"{folders[0]}: {kind}; give -o DIR for its outputs")
    if several and output == "-":
        raise UsageError("-o -: only one input can go to standard output")
    target = None if output is None else Path(output)
    is_file = target is not None and target.exists() and not target.is_dir()
    if several and is_file:
        raise UsageError(f"{output}: is a file; several inputs need a folder")
    below = None
    if target is not None and (several or target.is_dir() or str(output).endswith("/")):
        below = target
    jobs = []
    for path in inputs:
        if path.is_dir() and below is not None:
            for source in _files_below(path, accepts, what):
                target, ending = below / source.relative_to(path), suffix(source)
                inside = items(source)
                if inside is None:
                    jobs.append(Job(source, target.with_suffix(ending)))
                else:
                    folder = target.with_suffix("")
                    jobs += [Job(source, folder / _inside(stem(key) + ending, source), key) for key in inside]
        elif path in keys and below is not None:
            jobs += [Job(path, below / _inside(stem(key) + suffix(path), path), key) for key in keys[path]]
        elif below is not None:
            name = Path("stdin") if path == STDIO else Path(path.name)
            jobs.append(Job(path, below / name.with_suffix(suffix(path))))
        else:
            beside = STDIO if path == STDIO else path.with_suffix(suffix(path))
            jobs.append(Job(path, target or beside, *keys.get(path, ())))
    _refuse_collisions(jobs)
    return jobs


def plan_items(inputs: Sequence[Path], *, accepts: Callable[[Path], bool], what: str) -> list[tuple[str, Path]]:
    """Give each input its key in a shard: its name, or its path in the folder that was given.

    Args:
        accepts, what: As `plan_jobs` takes them.

    Raises:
        UsageError: an input that is missing or has no name, or two with the same key. MediaError: a folder without
            inputs.
    """
    found: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise UsageError(f"{path}: " + ("has no name to be a key" if path == STDIO else "no such file or folder"))
        for source in _files_below(path, accepts, what) if path.is_dir() else [path]:
            key = source.relative_to(path).as_posix() if path.is_dir() else path.name
            if key in found:
                raise UsageError(f"{found[key]} and {source} would both have the key {key}; rename one")
            found[key] = source
    return list(found.items())


def _files_below(folder: Path, accepts: Callable[[Path], bool], what: str) -> list[Path]:
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and accepts(path)]
    if not found:
        raise MediaError(f"{folder}: no {what} in this folder")
    return found


def _inside(name: str, source: Path) -> Path:
    """Refuse an item's name that leads out of the folder for outputs."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise UsageError(f"{source}: the name of item {name!r} leads out of the folder for outputs")
    return path


def _refuse_collisions(jobs: Iterable[Job]) -> None:
    names: dict[str, str] = {}
    for job in jobs:
        # Names that differ in case alone are one file on many systems.
        key = os.path.normcase(os.path.abspath(job.target)).casefold()
        if job.target != STDIO and key in names:
            raise UsageError(f"{names[key]} and {job.name} would both become {job.target}; rename one")
        if job.target != STDIO and os.path.abspath(job.source) == os.path.abspath(job.target):
            raise UsageError(f"{job.source}: would be overwritten by its own output; give another -o")
        names[key] = job.name


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

    It can seek, also where `path` is a device, a pipe or standard output: these get it in one go.

    Raises:
        OutputError: as `atomic_write`.
    """
    temporary: Path | None = None
    try:
        if path == STDIO or (path.exists() and not path.is_file()):
            with tempfile.TemporaryFile() as file:
                file.raw.name = str(path)  # type: ignore[attr-defined]  # for messages
                yield file
                file.seek(0)
                with nullcontext(sys.stdout.buffer) if path == STDIO else path.open("wb") as target:
                    shutil.copyfileobj(file, target)
                    target.flush()
            return
        # Not by tempfile, whose files are private; to find out what others may have changes it for all threads.
        temporary = path.with_name(f".{path.name[:60]}.{secrets.token_hex(4)}.tmp")
        with temporary.open("x+b") as file:
            file.raw.name = str(path)  # type: ignore[attr-defined]
            yield file
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and temporary.exists():
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        raise


def make_folder(folder: Path) -> None:
    """Make a folder for outputs, and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
