"""Process many items concurrently. A failure does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeAlias, TypeVar

import torch

from vqtok.codec.threads import MemoryBudget, in_order
from vqtok.errors import DiskError, MediaError, VqtokError
from vqtok.files.atomic import atomic_open, make_folder
from vqtok.files.paths import STDIO, is_stream
from vqtok.jobs.job import Existing, Job, Outcome, failed

MAX_CONCURRENT_ITEMS = 64
"""Enough to fill batches with the windows of small images."""
MEDIA_BYTES = 1 << 29
"""Memory for the media of all items in work; a larger item is processed by itself."""
BYTES_PER_PIXEL = 16
"""Memory per pixel while an image is encoded or decoded, including Pillow's copies and float32 windows."""
T = TypeVar("T")
Result = TypeVar("Result")
OnFinished: TypeAlias = Callable[[object], None]
"""Called with the result of each item as it finishes, from any thread."""


def ignore(result: object) -> None:
    """An `OnFinished` that does nothing."""


def run_jobs(
    items: Iterable[T],
    job_of: Callable[[T], Job],
    work: Callable[[T, MemoryBudget], Result],
    on_finished: OnFinished = ignore,
) -> Generator[Result | Outcome, None, None]:
    """Process items concurrently; yield results in input order, and a failed `Outcome` where there is none."""
    budget = MemoryBudget(MEDIA_BYTES)

    def run(item: T) -> Result | Outcome:
        result = attempt(job_of(item), lambda: work(item, budget))
        on_finished(result)
        return result

    # Reading a pipe may block forever, which only an interrupt of the main thread can end.
    several = not isinstance(items, Sequence) or len(items) > 1
    yield from in_order(
        run, items, MAX_CONCURRENT_ITEMS, here=lambda item: not several or is_stream(job_of(item).source)
    )


def attempt(job: Job, work: Callable[[], Result]) -> Result | Outcome:
    """Return the result of `work`, or a failed outcome.

    Raises:
        DiskError, BrokenPipeError: Other items would fail in the same way.
    """
    try:
        return work()
    except (DiskError, BrokenPipeError):
        raise
    except VqtokError as raised:
        error = raised if job.name in str(raised) else type(raised)(f"{job.name}: {raised}")
    except OSError as raised:
        error = MediaError(": ".join(str(part) for part in (job.name, raised.filename, raised.strerror) if part))
    except (MemoryError, torch.OutOfMemoryError):
        error = MediaError(f"{job.name}: too large for the memory of this machine; scale it down or split it")
    return failed(job, error)


def is_settled(job: Job, existing: Existing, is_current: Callable[[Path], bool]) -> bool:
    """Return whether the output exists and can stay. A job that is a fault has no output.

    Raises:
        OutputError: It exists, and is neither to be overwritten nor skipped.
    """
    if job.row is not None and job.row.fault:
        return False
    try:
        return existing.check(job.target) and is_current(job.target)
    except OSError:
        return False


@contextmanager
def open_output(target: Path) -> Iterator[BinaryIO]:
    """Open an output with `atomic_open`, and create its folder."""
    if target != STDIO:
        make_folder(target.parent)
    with atomic_open(target) as file:
        yield file
