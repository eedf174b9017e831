"""What codebooks share between the processes that train one model together; nothing to do in a single one."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def together() -> bool:
    """Tell whether this process trains with others."""
    return dist.is_available() and dist.is_initialized()


def add_up(x: Tensor) -> Tensor:
    """Sum a tensor over the processes."""
    if together():
        dist.all_reduce(x)
    return x


def from_first(x: Tensor) -> Tensor:
    """Give all processes the tensor of the first."""
    if together():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x
