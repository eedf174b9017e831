"""Communication between the processes that train one model together. In a single process nothing is exchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqtok.compute import torchrun


def is_distributed() -> bool:
    """Return whether this process trains with others."""
    return dist.is_available() and dist.is_initialized()


def all_reduce(x: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place, and return it."""
    if is_distributed():
        dist.all_reduce(x)
    return x


def broadcast(x: Tensor) -> Tensor:
    """Return the first process's tensor in all processes."""
    if is_distributed():
        x = x.contiguous()
        dist.broadcast(x, 0)
    return x


T = TypeVar("T")

TIMEOUT = timedelta(hours=12)
"""Long, because the other processes wait while the first one validates."""


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the process group if torchrun started several processes; yield the device of this one."""
    if torchrun.world_size() == 1 or not dist.is_available():
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", torchrun.local_rank())
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield device
        dist.barrier()  # A process that leaves while another still communicates makes that one abort.
    finally:
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes that torchrun started call this.

    When one process exits with an error, torchrun ends the others, even if they still have work to do.
    """
    if torchrun.world_size() > 1 and dist.is_available():
        dist.init_process_group("gloo", timeout=TIMEOUT)
        dist.barrier()
        dist.destroy_process_group()


def rank() -> int:
    """Return the number of this process, from 0. Only the first writes files and reports."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def on_first_process(decide: Callable[[], T]) -> T:
    """Call a function in the first process and return its result in all of them; the others wait."""
    if not is_distributed():
        return decide()
    dist.barrier()  # The function may write a file that another process is still looking for.
    values = [decide()] if rank() == 0 else [None]
    dist.broadcast_object_list(values, 0)
    return values[0]  # type: ignore[return-value]


def all_reduce_max(*values: float) -> list[float]:
    """Return the largest value over the processes, for each of the values."""
    if not is_distributed():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    maxima = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(maxima, dist.ReduceOp.MAX)
    return maxima.tolist()


def gather(x: Tensor) -> Tensor:
    """Concatenate the batches of all processes in the order of their ranks."""
    if not is_distributed():
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_own(x: Tensor) -> Tensor:
    """Concatenate the batches of all processes as `gather` does, but with a gradient to that of this process."""
    if not is_distributed():
        return x
    parts = list(gather(x.detach()).chunk(world_size()))
    parts[rank()] = x
    return torch.cat(parts)


def average(x: Tensor) -> Tensor:
    """Average a tensor over the processes."""
    return all_reduce(x) / world_size()


def average_gradients(module: nn.Module) -> None:
    """Average the gradients of the trained parameters over the processes, in a single message."""
    if not is_distributed():
        return
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(part.view(parameter.shape))


def broadcast_module(module: nn.Module) -> None:
    """Copy the parameters and buffers of the first process to all others."""
    if is_distributed():
        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor))
