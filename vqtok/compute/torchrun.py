"""The environment variables that torchrun sets for each of its processes, read without torch."""

from __future__ import annotations

import os


def world_size() -> int:
    """Return the number of processes; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine, from 0, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_secondary() -> bool:
    """Return whether this process is one of several and not the first, which reports for all."""
    return os.environ.get("RANK", "0") != "0"
