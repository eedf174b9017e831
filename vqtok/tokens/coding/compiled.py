"""`compiled`: loops over numbers in machine code, where numpy has no words for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function of numbers and arrays, on its first call, for this machine; other threads go on meanwhile.

    What was compiled is kept beside the module, or in the user's cache folder, for the next process. Sums of floats may
    be taken in any order: let them be whole numbers that no order rounds.
    """

    @functools.cache
    def machine_code() -> Callable[..., Any]:
        import numba  # takes half a second, which packed tokens need not wait for

        compile_ = functools.partial(numba.njit, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
        try:
            return compile_(function, cache=True)
        except RuntimeError:  # There is no folder to keep it in.
            return compile_(function)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*arguments)

    return call  # type: ignore[return-value]
