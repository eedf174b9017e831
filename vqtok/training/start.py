"""How training starts: the model and its numbers' form in memory, codebooks by k-means on the latents."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqtok.compute.device import autocast
from vqtok.compute.distributed import gather, rank, synchronise
from vqtok.config import Config
from vqtok.models.vqmodel import VQModel
from vqtok.networks.layers import Block
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
