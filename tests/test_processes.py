"""Functions called in other processes."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import threading

import pytest

from vqtok.errors import CorruptFileError
from vqtok.processes import Processes
from vqtok.tokens.vqt import load


def process_id() -> int:
    return os.getpid()


def joined(own: list[int], shared: list[int]) -> list[int]:
    return own + shared


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(os.path.dirname(__file__))  # where the processes find this module, too
    with Processes(2) as processes:
        yield processes


def test_calls_go_to_another_process_which_stays(processes):
    first = processes.call(process_id)
    assert first not in (0, os.getpid())
    assert processes.call(process_id) == first
    assert processes.call(operator.add, [1], [2]) == [1, 2]


def test_shared_objects_are_given_once(processes):
    shared = [1, 2]
    assert processes.call(joined, [], shared=shared) == [1, 2]
    shared.append(3)
    assert processes.call(joined, [], shared=shared) == [1, 2]
    assert processes.call(joined, [], shared=list(shared)) == [1, 2, 3]


def test_errors_come_back(processes):
    with pytest.raises(CorruptFileError, match="not a token file"):
        processes.call(load, b"nonsense")
    assert processes.call(operator.add, 1, 2) == 3


def test_a_process_that_dies_fails_its_call_alone(processes):
    with pytest.raises(MemoryError):
        processes.call(os.kill, processes.call(process_id), 9)
    assert processes.call(operator.add, 1, 2) == 3


def test_as_many_as_asked_for(processes):
    found = set()
    threads = [threading.Thread(target=lambda: found.add(processes.call(process_id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(found) <= 2


def test_none_calls_here():
    assert Processes(0).call(process_id) == os.getpid()


def test_they_end_with_the_process_that_started_them():
    """Even if that is killed, and although Ctrl-C does not reach them."""
    code = (
        "import os, sys\n"
        f"sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from vqtok.processes import Processes\n"
        "from test_processes import process_id\n"
        "print(Processes(1).call(process_id), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, complaints = starter.communicate(timeout=60)  # which waits for all that hold its standard error, too
    assert int(out)
    assert complaints == ""
