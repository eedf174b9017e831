"""Choice of device, precision and memory layout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from vqtok.compute import torchrun
from vqtok.errors import UsageError

Precision = Literal["float32", "tf32", "bfloat16"]


def choose_device(name: str) -> torch.device:
    """Return the device of this name; "auto" stands for the best available. Each process of torchrun gets its own GPU.

    Raises:
        UsageError: The device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, is_available in available.items() if is_available)
    if not available.get(name, False):
        choices = ", ".join(kind for kind, is_available in available.items() if is_available)
        raise UsageError(f"`device` {name}: not available; use {choices}")
    return torch.device(name, torchrun.local_rank()) if name == "cuda" else torch.device(name)


def check_precision(precision: Precision, device: torch.device | str) -> None:
    """Raise if the device does not support the precision.

    Raises:
        UsageError: TF32 on anything but a GPU from NVIDIA.
    """
    if precision == "tf32" and torch.device(device).type != "cuda":
        raise UsageError("`precision` tf32: only GPUs from NVIDIA support it; add `device` cuda")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 in matrix products and convolutions. Affects all threads of the process."""
    matmul = torch.backends.cuda.matmul
    try:
        name, before = "allow_tf32", matmul.allow_tf32
    except RuntimeError:  # Once `fp32_precision` was set, the older name can no longer be read.
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
    """Return the data type for autocast; "auto" is bfloat16 if the hardware supports it, else float32."""
    if precision == "auto":
        hardware = {
            "cpu": torch.cpu._is_avx512_bf16_supported,
            "cuda": torch.cuda.is_bf16_supported,
        }.get(device.type, lambda: False)
        precision = "bfloat16" if hardware() else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
