"""Suppress what C libraries print to stderr, such as libmpg123 about damaged frames."""

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
"""A copy of descriptor 2 while that is redirected to the null device."""


def separate_stderr() -> None:
    """Move `sys.stderr` to another descriptor, so that only C libraries write to descriptor 2."""
    if sys.stderr is sys.__stderr__ and isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr.fileno() == _STDERR:
        sys.stderr.flush()
        binary = io.FileIO(os.dup(_STDERR), "w")
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(binary), sys.stderr.encoding, sys.stderr.errors, line_buffering=True
        )


@contextmanager
def native_stderr_closed() -> Iterator[None]:
    """Redirect descriptor 2 to the null device while any thread is inside, unless Python itself writes to it."""
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
    except OSError:  # It is closed, and the next file to be opened may get its number.
        return True
    try:
        return sys.stderr is not None and sys.stderr.fileno() == _STDERR
    except (OSError, ValueError):
        return False
