"""Run many jobs concurrently."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from vqtok.codec.threads import Room, in_order
from vqtok.errors import DiskError, MediaError, OutputError, VqtokError
from vqtok.files.atomic import atomic_open, make_folder
from vqtok.files.paths import STDIO, RemotePath, naming
from vqtok.jobs.job import Existing, Job, Outcome

ITEMS_AHEAD = 64
"""Items under way at once: enough to fill batches with windows of small pictures."""
ROOM_BYTES = 1 << 29
"""Memory for the media of all items under way; one that takes more is worked on by itself."""
Item = TypeVar("Item")
Result = TypeVar("Result")


def _at_once(
    items: Sequence[Item], job_of: Callable[[Item], Job], work: Callable[[Item, Room], Result]
) -> Generator[Result | Outcome, None, None]:
    """Work on many items at once; give in order what comes of each, or the outcome that tells why it failed."""
    several, room = len(items) > 1, Room(ROOM_BYTES)
    yield from in_order(
        lambda item: _attempt(job_of(item), lambda _: work(item, room)),
        items,
        ITEMS_AHEAD,
        here=lambda item: not several or _may_wait(job_of(item).source),
    )


def _attempt(job: Job, work: Callable[[Job], Result]) -> Result | Outcome:
    try:
        with naming(job.name):
            return work(job)
    except DiskError:  # What else there is to do would fail likewise.
        raise
    except VqtokError as raised:
        error = raised
    except BrokenPipeError:
        raise
    except OSError as found:  # A folder on the way that may not be looked into, say.
        error = MediaError(": ".join(str(part) for part in (job.name, found.filename, found.strerror) if part))
    except (MemoryError, torch.OutOfMemoryError):
        error = MediaError(f"{job.name}: too large for this machine's memory; scale it down or cut it up")
    return Outcome(job, _named(job) | {"error": str(error), "exit_code": error.exit_code}, error)


def _may_wait(source: Path) -> bool:
    """Tell whether reading it may take for ever: standard input or a pipe."""
    if source == STDIO or isinstance(source, RemotePath):
        return source == STDIO
    try:
        return not stat.S_ISREG(os.stat(source).st_mode)
    except OSError:  # Reading it will say.
        return False


def _skipped(job: Job) -> Outcome:
    return Outcome(job, _named(job) | {"output": str(job.target), "skipped": True}, skipped=True)


def _named(job: Job) -> dict[str, Any]:
    return {"file": str(job.source)} | ({} if job.key is None else {"key": job.key})


def _settled(job: Job, existing: Existing, is_done: Callable[[Path], bool]) -> bool:
    """Tell whether the output is there already and may stay.

    Raises:
        OutputError: it is there, and neither overwriting nor skipping was asked for.
    """
    if job.target == STDIO or existing.overwrite or not job.target.is_file():
        return False
    if not existing.skip:
        raise OutputError(f"{job.target}: exists; give --force to overwrite it or --skip-existing to keep it")
    try:
        return is_done(job.target)
    except (VqtokError, OSError):
        return False


@contextmanager
def _output(target: Path) -> Iterator[BinaryIO]:
    """Open an output for writing, atomically, and make the folder it goes to."""
    if target != STDIO:
        make_folder(target.parent)
    with atomic_open(target) as file:
        yield file
