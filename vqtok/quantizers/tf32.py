"""TF32, the quicker and coarser float32 of NVIDIA's GPUs: on and off for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
