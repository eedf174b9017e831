"""Run a network on windows from many threads, in batches whose size depends on the shape of the windows alone."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array: TypeAlias = NDArray[Any]
Run: TypeAlias = Callable[[Array], Array]
Result = TypeVar("Result")


class _Kind(NamedTuple):
    """What windows must have in common to share a batch."""

    run: Run
    shape: tuple[int, ...]
    size: int
    """Windows in a full batch."""
    is_filled: bool
    """Whether smaller batches are filled up with zeros."""


class Batches:
    """Worker threads that run functions `(batch, *shape) -> (batch, *shape)` on batches of windows of one shape.

    Libraries round convolutions differently for other batch shapes and other numbers of threads. To make the result for
    a window independent of what else is computed and of the number of workers, a single thread computes each batch, and
    all batches of windows of one shape have the same size: large windows are computed one by one, batches of small ones
    are filled up with zeros. Functions whose results do not depend on the batch run on what is waiting, without zeros.

    Args:
        workers: Threads, each of which keeps one processor core busy.
        positions: Pixels or samples in a batch, unless a single window has more.
    """

    def __init__(self, workers: int, positions: int) -> None:
        self.workers, self._positions = workers, positions
        self._pool = ThreadPoolExecutor(workers, "vqtok-network", _compute_alone, (torch.get_num_threads(),))
        self._lock = threading.Lock()
        self._waiting: dict[_Kind, list[tuple[Array, Future[Array]]]] = {}
        self._limits: dict[_Kind, int] = {}
        """Batch sizes that were reduced because the memory was not sufficient."""

    def submit(self, run: Run, window: Array, positions: int, *, independent: int = 0) -> Future[Array]:
        """Run a function on a window, which has no batch axis and this number of pixels or samples.

        Args:
            independent: The least number of pixels or samples that a full batch has room for, if the results of the
                function do not depend on the batch; 0 if they do.
        """
        future: Future[Array] = Future()
        size = max(1, max(self._positions, independent) // positions)
        kind = _Kind(run, window.shape, size, is_filled=not independent)
        with self._lock:
            self._waiting.setdefault(kind, []).append((window, future))
        # One call per window. Calls that come after a full batch find nothing left to do.
        self._pool.submit(self._take)
        return future

    def alone(self, run: Callable[[], Result]) -> Future[Result]:
        """Run a function in one of the threads, outside of batches."""
        return self._pool.submit(run)

    def _take(self) -> None:
        with self._lock:
            if not self._waiting:
                return
            full = (kind for kind, waiting in self._waiting.items() if len(waiting) >= self._size(kind))
            kind = next(
                full, next(iter(self._waiting))
            )  # Without a full batch, take the windows that have waited longest.
            waiting, size = self._waiting.pop(kind), self._size(kind)
            if waiting[size:]:
                self._waiting[kind] = waiting[size:]
        batch = [(window, future) for window, future in waiting[:size] if future.set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self._compute(kind, [window for window, _ in batch])
        except BaseException as error:
            for _, future in batch:
                future.set_exception(error)
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)

    def _size(self, kind: _Kind) -> int:
        return self._limits.get(kind, kind.size)

    def _compute(self, kind: _Kind, windows: list[Array]) -> list[Array]:
        """Run a batch. If the memory is not sufficient, use smaller ones from now on."""
        results: list[Array] = []
        while len(results) < len(windows):
            size = self._size(kind)
            part = windows[len(results) :][:size]
            batch = np.zeros((size if kind.is_filled else len(part), *kind.shape), windows[0].dtype)
            batch[: len(part)] = part
            try:
                results += list(kind.run(batch)[: len(part)])
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self._limits[kind] = math.ceil(size / 2)
                logger.warning("not enough memory for batches of %d; continuing with %d", size, self._limits[kind])
            if size > self._size(kind) and torch.cuda.is_available():
                torch.cuda.empty_cache()  # Not earlier: the exception kept the allocated memory alive.
        return results


def _compute_alone(threads: int) -> None:
    """Make this thread compute with one core, and threads that start later with `threads` cores, as before."""
    torch.get_num_threads()  # The first call in a thread sets the number, which would undo the next line later.
    torch.set_num_threads(1)
    # This also changed the number for threads that start later; a call in another thread restores it.
    other = threading.Thread(target=torch.set_num_threads, args=(threads,))
    other.start()
    other.join()
