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
from typing import Any, BinaryIO, Concatenate, ParamSpec, TypeVar

First = TypeVar("First")
Shared = TypeVar("Shared")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_START = "import sys; sys.path[:] = {path!r}; from vqtok.processes import serve; serve()"


class Processes:
    """Up to `count` processes, each started when all others are busy; with 0, functions are called right here.

    They are not of `multiprocessing`, which would run the user's main module again in each, and they have a process
    group of their own: Ctrl-C reaches this process alone, whose end is theirs.
    """

    def __init__(self, count: int) -> None:
        self._slots, self._idle = threading.BoundedSemaphore(count or 1), queue.LifoQueue[_Process]()
        self._count, self._all = count, list[_Process]()

    def call(
        self,
        function: Callable[Concatenate[First, Shared, Rest], Result],
        first: First,
        shared: Shared,
        *rest: Rest.args,
        **keywords: Rest.kwargs,
    ) -> Result:
        """Call a function of a module that loads quickly; `shared`, which many calls have, each process gets once.

        Raises:
            MemoryError: the process died, as it does where the system runs out of memory; or what the function raises.
        """
        if not self._count:
            return function(first, shared, *rest, **keywords)
        with self._slots:
            try:
                process = self._idle.get_nowait()
            except queue.Empty:
                process = _Process()
                self._all.append(process)
            succeeded, result = process.call(function, first, shared, rest, keywords)
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

    def call(self, function: object, first: object, shared: object, *rest: object) -> tuple[bool, Any]:
        assert self._process.stdin
        assert self._process.stdout
        key, is_new = id(shared), id(shared) not in self._sent
        try:
            pickle.dump((function, first, key, shared if is_new else None, *rest), self._process.stdin, -1)
            self._process.stdin.flush()
            self._sent[key] = shared
            succeeded, result = pickle.load(self._process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise MemoryError("a process that helped has died") from error
        return succeeded, result

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # closes the pipes


def serve() -> None:
    """Do what the process that started this one calls for, until it closes the pipe."""
    calls, results = sys.stdin.buffer, _take_stdout()
    given: dict[int, object] = {}
    with suppress(EOFError, BrokenPipeError):  # it may end at any time
        while True:
            function, first, key, shared, rest, keywords = pickle.load(calls)
            shared = given.setdefault(key, shared)
            try:
                outcome = True, function(first, shared, *rest, **keywords)
            except Exception as error:
                outcome = False, error
            pickle.dump(outcome, results, -1)
            results.flush()


def _take_stdout() -> BinaryIO:
    """Keep standard output for results: what a library prints goes to standard error."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return results
