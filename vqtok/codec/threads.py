"""Many items at once: in threads, in order, so many ahead and no more, with an end that leaves nothing running."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE_SECONDS = 0.1
"""How long a thread waits before it looks whether it should stop."""
_this_thread = threading.local()


class Stopped(BaseException):
    """Nobody waits any more for what this thread does."""


def check_stop() -> None:
    """Leave the work of this thread, by `Stopped`, if nobody waits for it any more."""
    stop: threading.Event | None = getattr(_this_thread, "stop", None)
    if stop and stop.is_set():
        raise Stopped


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    limit: int,
    *,
    here: Callable[[Item], bool] = lambda item: False,
) -> Iterator[Result]:
    """Work on up to `limit` items at once, each in a thread, and give the results in the order of the items.

    Once this is left, be it by an error, Ctrl-C or `close`, the threads stop where they next call `check_stop`, and it
    waits until they have.

    Args:
        here: Tells items that are worked on in the calling thread, when their turn comes: those that may block for
            ever, from which only this thread can be interrupted.
    """
    stop = threading.Event()

    def run(item: Item) -> Result:
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


def ahead(submit: Callable[[Item], Future[Result]], items: Iterable[Item], count: int) -> Iterator[tuple[Item, Result]]:
    """Give items with their results, in order, while the next `count` are being worked on."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
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
    """Wait for a result, unless nobody waits for this thread any more."""
    while True:
        check_stop()
        try:
            return future.result(_PATIENCE_SECONDS)
        except TimeoutError:
            if future.done():
                raise


class Room:
    """An amount of memory that threads share; who wants more than all of it waits until nobody else has any."""

    def __init__(self, size: int) -> None:
        self._size, self._taken, self._changed = size, 0, threading.Condition()

    @contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Hold an amount, once it is free."""
        with self._changed:
            while self._taken and self._taken + amount > self._size:
                check_stop()
                self._changed.wait(_PATIENCE_SECONDS)
            self._taken += amount
        try:
            yield
        finally:
            with self._changed:
                self._taken -= amount
                self._changed.notify_all()
