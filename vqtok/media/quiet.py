"""Keep what C libraries print, such as libmpg123 about damaged frames, off the terminal."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_lock = threading.Lock()
_threads_inside = 0
_kept = -1
"""A copy of descriptor 2, while it leads to nowhere."""


def separate_stderr() -> None:
    """Move this process's `sys.stderr` to a descriptor of its own, so that 2 is left to C libraries."""
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.fileno() == _STDERR:
        sys.stderr.flush()
        binary = io.FileIO(os.dup(_STDERR), "w")
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(binary), sys.stderr.encoding, sys.stderr.errors, line_buffering=True
        )


@contextmanager
def native_stderr_closed() -> Iterator[None]:
    """Lead descriptor 2 to nowhere while any thread is in here; not where Python itself writes to it."""
    global _threads_inside, _kept
    if _python_writes_to_it():
        yield
        return
    with _lock:
        if not _threads_inside:
            _kept = os.dup(_STDERR)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), _STDERR)
        _threads_inside += 1
    try:
        yield
    finally:
        with _lock:
            _threads_inside -= 1
            if not _threads_inside:
                os.dup2(_kept, _STDERR)
                os.close(_kept)


def _python_writes_to_it() -> bool:
    try:
        os.fstat(_STDERR)
    except OSError:  # It is closed, and what is opened next may take its number.
        return True
    try:
        return sys.stderr is not None and sys.stderr.fileno() == _STDERR
    except (OSError, ValueError):
        return False
