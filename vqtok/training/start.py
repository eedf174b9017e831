"""How training starts: the model and its numbers' form in memory, codebooks by k-means on the latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqtok.config import Config
from vqtok.models.vqmodel import VQModel
from vqtok.networks.layers import Block
from vqtok.training.distributed import gather, rank, synchronise
from vqtok.training.finetune import start_from

KMEANS_VECTORS = 32_768
"""Latents the k-means start looks at."""


def make_model(config: Config, device: torch.device, initial: VQModel | None) -> VQModel:
    """Make the model to train, with random weights or those of a trained one."""
    model: VQModel = VQModel(config.model).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if initial is not None:
        start_from(model, initial, config)
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = config.train.gradient_checkpointing
    return model


@torch.no_grad()
def start_codebooks(model: VQModel, batch: Callable[[int], Tensor], precision: torch.dtype) -> None:
    """Run k-means on the latents of enough batches for the codebooks that have not had their start.

    Args:
        batch: Gives media by number, from 0 on, a part of them in each process.
    """
    latents: list[Tensor] = []
    count = 0
    while count < KMEANS_VECTORS:
        x = batch(len(latents))
        with autocast(x.device, precision):
            z = model.encoder(x).float()
        latents.append(gather(z.movedim(1, -1)).reshape(1, -1, z.shape[1]))
        count += latents[-1].shape[1]
    if rank() == 0:
        model.quantizer.prepare(torch.cat(latents, dim=1))
    synchronise(model.quantizer)


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
