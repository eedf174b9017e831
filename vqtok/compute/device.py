"""Choice of device, precision and memory layout."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from vqtok.errors import UsageError

Precision = Literal["float32", "tf32", "bfloat16"]


def choose_device(name: str) -> torch.device:
    """Resolve "auto" to the best device there is; each process of torchrun takes a GPU of its own.

    Raises:
        UsageError: the device named is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available.get(name, False):
        raise UsageError(f"--device {name}: not available; there is {', '.join(k for k, v in available.items() if v)}")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


def check_precision(precision: Precision, device: torch.device | str) -> None:
    """Refuse a precision that the device does not compute in.

    Raises:
        UsageError: naming the device to use.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise UsageError("--precision tf32: only NVIDIA's GPUs compute in it; give --device cuda, too")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and convolutions, or forbid it, whatever the process has set; it is set for all of
    its threads."""
    matmul = torch.backends.cuda.matmul
    try:
        name, before = "allow_tf32", matmul.allow_tf32
    except RuntimeError:  # It was set by `fp32_precision`, and can then not be read by its older name.
        name, before = "fp32_precision", matmul.fp32_precision
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
        matmul.allow_tf32 = allowed
        try:
            yield
        finally:
            setattr(matmul, name, before)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the processor computes it in hardware, else float32."""
    if precision == "auto":
        hardware = {
            "cpu": torch.cpu._is_avx512_bf16_supported,
            "cuda": torch.cuda.is_bf16_supported,
        }.get(device.type, lambda: False)
        precision = "bfloat16" if hardware() else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
