"""`compiled`: compile loops that numpy cannot express to machine code."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, *, without_numba: Callable[..., Any] | None = None) -> Function:
    """Compile a function of numbers and arrays for this machine on its first call. It runs without the GIL.

    The machine code is cached next to the module or in the user's cache folder. Floats may be summed in any order, so
    the function should only sum floats that are integers small enough to be exact.

    Args:
        function: The function.
        without_numba: Computes the same if numba cannot be imported; by default the function itself, in Python.
    """

    @functools.cache
    def machine_code() -> Callable[..., Any]:
        numba = _numba()
        if numba is None:
            return without_numba or function
        compile_: Callable[..., Callable[..., Any]] = functools.partial(
            numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"}
        )
        try:
            return compile_(function, cache=True)
        except RuntimeError:  # There is no writable cache folder.
            return compile_(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    return call  # type: ignore[return-value]


@functools.cache
def _numba() -> Any:
    """Import numba when it is needed, since that takes half a second. Return None if it cannot be imported."""
    try:
        import numba
    except (ImportError, OSError) as error:  # OSError if its own library cannot be loaded.
        logger.warning("numba cannot be imported, so entropy coding will be many times slower: %s", error)
        return None
    return numba
