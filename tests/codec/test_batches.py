"""Batches of windows of many threads."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from vqtok.codec.batches import Batches


def double(batch):
    return batch * 2


def test_small_windows_share_batches_that_are_filled_up():
    seen, go = [], threading.Event()

    def run(batch):
        assert go.wait(10)
        seen.append(batch.shape)
        return batch.sum(axis=(1, 2))

    batches = Batches(1, 64)
    windows = [np.full((2, 10 + i % 2), i, np.float32) for i in range(15)]
    futures = [batches.submit(run, window, window.shape[1]) for window in windows]
    go.set()
    assert [future.result(10) for future in futures] == [window.sum() for window in windows]
    assert set(seen) == {(6, 2, 10), (5, 2, 11)}
    assert len(seen) in (4, 5)  # 8 of one shape and 7 of the other; the first may have gone alone


def test_independent_windows_share_batches_that_are_not_filled_up():
    seen, go = [], threading.Event()

    def run(batch):
        assert go.wait(10)
        seen.append(len(batch))
        return batch

    batches = Batches(1, 4)
    futures = [batches.submit(run, np.full(10, i), 10, independent=60) for i in range(9)]
    go.set()
    assert [future.result(10)[0] for future in futures] == list(range(9))
    assert sorted(seen) in ([3, 6], [1, 2, 6])  # The first may have gone alone.


def test_large_windows_go_alone():
    batches, seen = Batches(2, 64), []
    futures = [batches.submit(lambda x: seen.append(len(x)) or x, np.ones((1, 100)), 100) for _ in range(3)]
    assert [future.result(10).shape for future in futures] == [(1, 100)] * 3
    assert seen == [1, 1, 1]


def test_errors_reach_all_that_wait_for_the_batch():
    def fail(batch):
        raise KeyError("x")

    batches = Batches(1, 64)
    for future in [batches.submit(fail, np.ones(1), 1) for _ in range(3)]:
        with pytest.raises(KeyError):
            future.result(10)
    assert batches.submit(double, np.ones(1), 1).result(10) == 2


def test_cancelled_windows_are_left_out():
    go, batches = threading.Event(), Batches(1, 1)
    blocking = batches.submit(lambda x: go.wait(10) and x, np.ones(1), 1)
    cancelled = batches.submit(double, np.ones(1), 1)
    assert cancelled.cancel()
    go.set()
    assert batches.submit(double, np.full(1, 3), 1).result(10) == 6
    assert blocking.result(10) == 1


def test_out_of_memory_halves_the_batch_for_good(caplog):
    seen = []

    def run(batch):
        seen.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("no")
        return batch * 2

    batches = Batches(1, 8)
    for _ in range(2):
        futures = [batches.submit(run, np.array([float(i)]), 1) for i in range(8)]
        assert [float(future.result(10)[0]) for future in futures] == [2.0 * i for i in range(8)]
    assert seen[:2] == [8, 4]
    assert set(seen[2:]) == {2}
    assert [record.message for record in caplog.records] == [
        "not enough memory for batches of 8; continuing with 4",
        "not enough memory for batches of 4; continuing with 2",
    ]

    def never(batch):
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        batches.submit(never, np.ones(1), 1).result(10)


def test_threads_of_torch_stay_as_they_are():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        threads = Batches(2, 1).submit(lambda x: np.full_like(x, torch.get_num_threads()), np.ones(1), 1).result(10)
        assert threads == 1
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_a_codec_that_is_let_go_takes_its_threads_along():
    batches = Batches(1, 1)
    gone = weakref.ref(batches)
    assert batches.submit(double, np.ones(1), 1).result(10) == 2
    del batches
    deadline = time.monotonic() + 10
    while gone() and time.monotonic() < deadline:
        time.sleep(0.01)  # The thread has just given the result.
    assert gone() is None
