"""What codebooks share between the processes that train one model together; nothing to do in a single one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


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


T = TypeVar("T")

TIMEOUT = timedelta(hours=12)
"""The others wait while the first validates."""


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; give the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield device
        dist.barrier()  # Who leaves while another still listens makes it abort.
    finally:
        dist.destroy_process_group()


def wait_for_others() -> None:
    """Wait until all processes that torchrun started have come here; it would end them when the first one fails."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available():
        dist.init_process_group("gloo", timeout=TIMEOUT)
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process, from 0; the first one writes and speaks."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    return dist.get_world_size() if together() else 1


def decided_by_first(decide: Callable[[], T]) -> T:
    """Give all processes what the first one finds; the others wait for it."""
    if not together():
        return decide()
    dist.barrier()  # What the first may write, others may still be looking for.
    values = [decide()] if rank() == 0 else [None]
    dist.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def largest(*values: float) -> list[float]:
    """Agree on the largest of each value."""
    if not together():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    agreed = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MAX)
    return agreed.tolist()


def gather(x: Tensor) -> Tensor:
    """Put the batches of all processes together, in their order."""
    if not together():
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def average(x: Tensor) -> Tensor:
    """Average a tensor over the processes."""
    return add_up(x) / world_size()


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of the trained parameters over the processes, in one message."""
    if not together():
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))


def synchronise(module: nn.Module) -> None:
    """Give all processes the weights and statistics of the first."""
    if together():
        for tensor in module.state_dict().values():
            tensor.copy_(from_first(tensor))
