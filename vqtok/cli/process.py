"""Set up the process for running networks in threads."""

from __future__ import annotations

import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, from malloc.h."""


def set_up_process() -> None:
    """Prepare this process for running networks in its own threads."""
    import ctypes

    from vqtok.media.quiet import separate_stderr

    separate_stderr()

    # numpy only computes small products here; its threads would mostly spin while they wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Keep freed memory: the system would clear every page again for the next feature map.
    with suppress(AttributeError, OSError, TypeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 25)
        mallopt(_TRIM_THRESHOLD, 1 << 28)
