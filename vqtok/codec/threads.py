"""Work on many items in threads: results in order, a bounded number ahead, and a clean end."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

T = TypeVar("T")
Result = TypeVar("Result")

_PATIENCE_SECONDS = 0.1
"""How long a thread waits before it checks whether it should stop."""
_this_thread = threading.local()


class Stopped(BaseException):
    """Raised in a worker whose result is no longer needed."""


def check_stop() -> None:
    """Raise `Stopped` if the result of this thread is no longer needed."""
    stop: threading.Event | None = getattr(_this_thread, "stop", None)
    if stop and stop.is_set():
        raise Stopped


def in_order(
    work: Callable[[T], Result],
    items: Iterable[T],
    limit: int,
    *,
    here: Callable[[T], bool] = lambda item: False,
) -> Iterator[Result]:
    """Work on up to `limit` items at once, each in a thread; yield the results in the order of the items.

    When the generator ends, by an error, Ctrl-C or `close`, the threads stop at their next call of `check_stop`; it
    waits until they have.

    Args:
        here: Returns whether to work on an item in the calling thread, when its turn comes. Needed for work that may
            block forever, which only an interrupt of the main thread can end.
    """
    stop = threading.Event()

    def run(item: T) -> Result:
        _this_thread.stop = stop
        check_stop()
        return work(item)

    waiting: deque[Future[Result] | Callable[[], Result]] = deque()

    def first() -> Result:
        head = waiting.popleft()
        return head.result() if isinstance(head, Future) else head()

    pool = ThreadPoolExecutor(limit, thread_name_prefix="vqtok-item")
    try:
        for item in items:
            waiting.append(partial(work, item) if here(item) else pool.submit(run, item))
            while waiting and (len(waiting) == limit or (isinstance(waiting[0], Future) and waiting[0].done())):
                yield first()
        while waiting:
            yield first()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def ahead(submit: Callable[[T], Future[Result]], items: Iterable[T], count: int) -> Iterator[tuple[T, Result]]:
    """Yield items with their results, in order, while the next `count` are in work."""
    waiting: deque[tuple[T, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, submit(item)))
            if len(waiting) > count:
                yield waiting[0][0], wait(waiting[0][1])
                waiting.popleft()
        while waiting:
            yield waiting[0][0], wait(waiting[0][1])
            waiting.popleft()
    finally:
        for _, future in waiting:
            future.cancel()


def wait(future: Future[Result]) -> Result:
    """Wait for a result.

    Raises:
        Stopped: The result of this thread is no longer needed.
    """
    while True:
        check_stop()
        try:
            return future.result(_PATIENCE_SECONDS)
        except TimeoutError:
            if future.done():
                raise


class MemoryBudget:
    """An amount of memory that threads share. A request for more than all of it waits until nobody else holds any."""

    def __init__(self, size: int) -> None:
        self._size, self._reserved, self._changed = size, 0, threading.Condition()

    @contextmanager
    def reserve(self, amount: int) -> Iterator[None]:
        """Hold an amount for the duration of the context; wait until it is available."""
        with self._changed:
            while self._reserved and self._reserved + amount > self._size:
                check_stop()
                self._changed.wait(_PATIENCE_SECONDS)
            self._reserved += amount
        try:
            yield
        finally:
            with self._changed:
                self._reserved -= amount
                self._changed.notify_all()
