"""Many items at once."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pytest

from vqtok.codec.threads import MemoryBudget, Stopped, ahead, check_stop, in_order, wait


def test_results_come_in_order_though_work_ends_in_another():
    last = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last.wait(10)
        if item == 9:
            last.set()
        return item * item

    assert list(in_order(work, range(10), 16)) == [item * item for item in range(10)]


def test_so_many_ahead_and_no_more():
    started = []
    results = in_order(lambda item: started.append(item) or item, range(100), 4)
    with closing(results):
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        assert 3 <= len(started) <= 7


def test_an_error_comes_in_its_turn_and_stops_the_others():
    busy = threading.Event()
    stopped = []

    def work(item: int) -> int:
        if item == 1:
            assert busy.wait(10)
            raise KeyError(item)
        if item == 2:
            busy.set()
            try:
                wait(Future())  # which never comes
            except Stopped:
                stopped.append(item)
                raise
        return item

    results = in_order(work, range(50), 3)
    assert next(results) == 0
    with pytest.raises(KeyError, match="1"):
        list(results)
    assert stopped == [2]


def test_some_items_are_worked_on_in_the_calling_thread():
    threads = list(in_order(lambda item: threading.current_thread(), range(4), 2, here=lambda item: item % 2 == 1))
    assert [thread is threading.current_thread() for thread in threads] == [False, True, False, True]


def test_a_thread_of_nobodys_never_stops():
    check_stop()


def test_ahead_keeps_so_many_under_way_and_cancels_what_is_left():
    made: list[Future[int]] = []

    def submit(item: int) -> Future[int]:
        made.append(Future())
        if not item:
            made[0].set_result(0)
        return made[-1]

    results = ahead(submit, range(100), 3)
    with closing(results):
        assert next(results) == (0, 0)
        assert len(made) == 4
    assert [future.cancelled() for future in made] == [False, True, True, True]


def test_ahead_passes_on_what_went_wrong():
    def fail(item: int) -> None:
        raise TimeoutError("its own")

    with ThreadPoolExecutor(1) as pool, pytest.raises(TimeoutError, match="its own"):
        list(ahead(lambda item: pool.submit(fail, item), [1], 2))


def test_room():
    room = MemoryBudget(10)
    taken: list[str] = []
    got = threading.Event()

    def take(name: str, amount: int) -> None:
        with room.reserve(amount):
            taken.append(name)
            got.set()

    with room.reserve(6):
        large = threading.Thread(target=take, args=("large", 99))
        large.start()
        with room.reserve(4):
            assert not got.wait(0.3)
    assert got.wait(10)
    large.join()
    assert taken == ["large"]
