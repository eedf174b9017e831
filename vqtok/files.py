"""Which inputs, which outputs, and writing them so that a half-written file never bears its final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import OutputError, UsageError

STDIO = Path("-")
"""Standard input or output, as a path."""


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    target: Path


def plan_jobs(
    inputs: Sequence[Path],
    output: Path | None,
    *,
    suffix: Callable[[Path], str],
    accepts: Callable[[Path], bool],
) -> list[Job]:
    """Decide the output of every input before any work is done.

    One input goes beside itself or to `output`; several go beside themselves or below the folder `output`; a folder's
    tree is mirrored below `output`.

    Args:
        suffix: Gives the suffix of the output of an input.
        accepts: Tells which files of a folder are inputs.

    Raises:
        UsageError: a folder without an output, an input that is missing, or two inputs with the same output.
    """
    for path in inputs:
        if path != STDIO and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    folders = [path for path in inputs if path.is_dir()]
    if folders and output is None:
        raise UsageError(f"{folders[0]}: is a folder; give -o DIR for its outputs")
    if (folders and output == STDIO) or (len(inputs) > 1 and output == STDIO):
        raise UsageError("-o -: only one input can go to standard output")
    below = output is not None and (bool(folders) or len(inputs) > 1 or output.is_dir())
    if below and output is not None and output.exists() and not output.is_dir():
        raise UsageError(f"{output}: is a file; several inputs need a folder")
    jobs = []
    for path in inputs:
        if path == STDIO:
            jobs.append(Job(path, output / f"stdin{suffix(path)}" if below and output else output or STDIO))
        elif path.is_dir():
            assert output is not None
            jobs += [
                Job(source, output / source.relative_to(path).with_suffix(suffix(source)))
                for source in sorted(path.rglob("*"))
                if source.is_file() and accepts(source)
            ]
        elif below and output is not None:
            jobs.append(Job(path, output / Path(path.name).with_suffix(suffix(path))))
        else:
            jobs.append(Job(path, output or path.with_suffix(suffix(path))))
    _refuse_collisions(jobs)
    return jobs


def _refuse_collisions(jobs: Iterable[Job]) -> None:
    sources: dict[str, Path] = {}
    for job in jobs:
        # Names that differ in case alone are one file on many systems.
        key = os.path.normcase(os.path.abspath(job.target)).casefold()
        if job.target != STDIO and key in sources:
            raise UsageError(f"{sources[key]} and {job.source} would both become {job.target}; rename one")
        if job.target != STDIO and job.source.absolute() == job.target.absolute():
            raise UsageError(f"{job.source}: would be overwritten by its own output; give another -o")
        sources[key] = job.source


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, then rename it to `path`.

    Raises:
        OutputError: the folder is missing, read-only or full; nothing is left behind.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:60]}.", suffix=".tmp", dir=path.parent)
        with open(handle, "wb") as file:
            file.write(data)
        # mkstemp makes files private; give the permissions that a plain open would.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
        raise
