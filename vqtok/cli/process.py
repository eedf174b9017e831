"""Set up the process for running networks in threads."""

from __future__ import annotations

import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt, in malloc.h."""


def set_up_process() -> None:
    """Make this process one that runs networks in threads of its own."""
    import ctypes

    from vqtok.media.quiet import separate_stderr

    separate_stderr()

    # The products that are left to numpy are small: its threads would mostly wait for each other, at full speed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What glibc gives back to the system, the next map of features gets cleared anew, page by page.
    with suppress(AttributeError, OSError, TypeError):  # where there is no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 25)
        mallopt(_TRIM_THRESHOLD, 1 << 28)
