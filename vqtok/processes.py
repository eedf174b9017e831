"""Call functions in other processes: what is plain Python, the threads of one process can only do in turn."""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, TypeVar

Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = "import sys; sys.path[:] = {path!r}; from vqtok.processes import serve; serve()"


class _Process:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(_THREADS, "1"),
            process_group=0,
        )
        self._sent: dict[int, object] = {}
        """What it has been given to share, by address; held, so that no other object gets the address."""

    def call(self, function: object, arguments: object, shared: dict[str, object]) -> tuple[bool, Any]:
        assert self._process.stdin
        assert self._process.stdout
        keys = {name: id(value) for name, value in shared.items()}
        new = {id(value): value for value in shared.values() if id(value) not in self._sent}
        try:
            pickle.dump((function, arguments, keys, new), self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
            self._sent |= new
            succeeded, result = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise MemoryError("a process that helped has died") from error
        return succeeded, result

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes


class Processes:
    """Up to `count` processes, each started when all others are busy; with 0, functions are called right here.

    They are not of `multiprocessing`, which would run the user's main module again in each, and they have a process
    group of their own: Ctrl-C reaches this process alone, whose end is theirs.
    """

    def __init__(self, count: int) -> None:
        self._slots, self._idle = threading.BoundedSemaphore(count or 1), queue.LifoQueue[_Process]()
        self._count, self._all = count, list[_Process]()

    def call(self, function: Callable[..., Result], *arguments: object, **shared: object) -> Result:
        """Call a function of a module that loads quickly.

        Args:
            shared: Keyword arguments that many calls have in common: each process gets an object but once.

        Raises:
            MemoryError: the process died, as it does where the system runs out of memory; or what the function raises.
        """
        if not self._count:
            return function(*arguments, **shared)
        with self._slots:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                process = _Process()
                self._all.append(process)
            succeeded, result = process.call(function, arguments, shared)
            self._idle.put(process)
        if not succeeded:
            raise result
        return result  # type: ignore[no-any-return]

    def kill(self) -> None:
        """End them all, also those that are busy: calls that wait for them fail."""
        for process in self._all:
            process.kill()

    def close(self) -> None:
        """End them all, once no call waits for them."""
        for process in self._all:
            process.close()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


HERE = Processes(0)


def serve() -> None:
    """Do what the process that started this one calls for, until it closes the pipe."""
    calls, results = sys.stdin.buffer, _take_stdout()
    given: dict[int, object] = {}
    with suppress(EOFError, BrokenPipeError):  # it may end at any time
        while True:
            function, arguments, keys, new = pickle.load(calls)
            given |= new
            try:
                outcome = True, function(*arguments, **{name: given[key] for name, key in keys.items()})
            except Exception as error:
                outcome = False, error
            pickle.dump(outcome, results, pickle.HIGHEST_PROTOCOL)
            results.flush()


def _take_stdout() -> BinaryIO:
    """Keep standard output for results: what a library prints goes to standard error."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return results
