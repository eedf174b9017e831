"""`compiled`: loops over numbers in machine code, where numpy has no words for them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function, *, without_numba: Callable[..., Any] | None = None) -> Function:
    """Compile a function of numbers and arrays, on its first call, for this machine; other threads go on meanwhile.

    What was compiled is kept beside the module, or in the user's cache folder, for the next process. Sums of floats may
    be taken in any order: let them be whole numbers that no order rounds.

    Args:
        without_numba: Computes the same where numba cannot be imported; by default the function itself, in Python.
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
        except RuntimeError:  # There is no folder to keep it in.
            return compile_(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    return call  # type: ignore[return-value]


@functools.cache
def _numba() -> Any:
    """Import numba, which takes half a second that packed tokens need not wait for; None where that fails."""
    try:
        import numba
    except (ImportError, OSError) as error:  # An OSError: its own library cannot be loaded.
        logger.warning("numba cannot be imported: entropy coding takes many times as long (%s)", error)
        return None
    return numba
