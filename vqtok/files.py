"""Which inputs, which outputs; reading, and writing so that a half-written file never bears its final name."""

from __future__ import annotations

import os
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


def plan_jobs(
    inputs: Sequence[Path],
    output: str | None,
    *,
    suffix: Callable[[Path], str],
    accepts: Callable[[Path], bool],
    what: str,
) -> list[Job]:
    """Decide the output of every input before any work is done.

    One input goes beside itself or to `output`; several go beside themselves or below the folder `output`; a folder's
    tree is mirrored below `output`.

    Args:
        output: A file, a folder (one that exists, or with a slash at its end), or - for standard output.
        suffix: Gives the suffix of the output of an input.
        accepts: Tells which files of a folder are inputs.
        what: The files of a folder that are inputs, in messages.

    Raises:
        UsageError: a folder without an output, an input that is missing, or two inputs with the same output.
        MediaError: a folder without inputs.
    """
    for path in inputs:
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    folders = [path for path in inputs if path.is_dir()]
    several = bool(folders) or len(inputs) > 1
    if folders and output is None:
        raise UsageError(f"{folders[0]}: is a folder; give -o DIR for its outputs")
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
            sources = [source for source in sorted(path.rglob("*")) if source.is_file() and accepts(source)]
            if not sources:
                raise MediaError(f"{path}: no {what} in this folder")
            jobs += [Job(source, below / source.relative_to(path).with_suffix(suffix(source))) for source in sources]
        elif below is not None:
            name = Path("stdin") if path == STDIO else Path(path.name)
            jobs.append(Job(path, below / name.with_suffix(suffix(path))))
        else:
            jobs.append(Job(path, target or (STDIO if path == STDIO else path.with_suffix(suffix(path)))))
    _refuse_collisions(jobs)
    return jobs


def _refuse_collisions(jobs: Iterable[Job]) -> None:
    sources: dict[str, Path] = {}
    for job in jobs:
        # Names that differ in case alone are one file on many systems.
        key = os.path.normcase(os.path.abspath(job.target)).casefold()
        if job.target != STDIO and key in sources:
            raise UsageError(f"{sources[key]} and {job.source} would both become {job.target}; rename one")
        if job.target != STDIO and os.path.abspath(job.source) == os.path.abspath(job.target):
            raise UsageError(f"{job.source}: would be overwritten by its own output; give another -o")
        sources[key] = job.source


@contextmanager
def naming(source: Path) -> Iterator[None]:
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
    with atomic_file(path) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that is renamed to `path` once it is written to the end; until then it has a temporary name.

    It can seek, also where `path` is a device, a pipe or standard output: these get it in one go.

    Raises:
        OutputError: as `atomic_write`.
    """
    temporary: str | None = None
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
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
        with open(handle, "w+b") as file:
            file.raw.name = str(path)  # type: ignore[attr-defined]
            yield file
        # mkstemp makes files private; give the permissions that a plain open would.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        raise
