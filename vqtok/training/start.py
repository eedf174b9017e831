"""How training starts: networks scaled to the data, codebooks by k-means on the latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqtok.models.vqmodel import VQModel

KMEANS_VECTORS = 32_768
"""Latents the k-means start looks at."""


@torch.no_grad()
def start_codebooks(model: VQModel, batch: Callable[[int], Tensor], precision: torch.dtype) -> None:
    """Run k-means on the latents of enough batches for the codebooks that have not had their start.

    Args:
        batch: Gives media by number, from 0 on.
    """
    latents: list[Tensor] = []
    count = 0
    while count < KMEANS_VECTORS:
        x = batch(len(latents))
        with autocast(x.device, precision):
            z = model.encoder(x).float()
        latents.append(z.movedim(1, -1).reshape(1, -1, z.shape[1]))
        count += latents[-1].shape[1]
    model.quantizer.prepare(torch.cat(latents, dim=1))


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
