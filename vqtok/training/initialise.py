"""Fine-tuning: a set-up and a start taken from a trained model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vqtok.compute.device import autocast
from vqtok.compute.distributed import all_reduce_max, broadcast_module, gather, rank, world_size
from vqtok.config import Config, apply_setting, from_dict, merged, read_preset
from vqtok.errors import UsageError
from vqtok.models.vqmodel import VQModel
from vqtok.networks.layers import Block
from vqtok.quantizers import VQ

TRAINING_ONLY = {"quantizer.decay", "quantizer.restart_below", "quantizer.prefix_dropout"}
"""Settings below `model` that the weights do not depend on."""


def tuning_config(model: Mapping[str, Any], preset: str | None, settings: Sequence[str]) -> Config:
    """Give the set-up to tune a model with: its architecture, and the rest of a preset or else of its own training.

    Args:
        model: The `Config` in the model's card.

    Raises:
        UsageError: preset or settings ask for another architecture, or make no sense.
    """
    values = read_preset(preset) if preset else _own_training(model)
    for setting in settings:
        apply_setting(values, setting)
    architecture = from_dict(Config, {"model": model["model"]})
    config = from_dict(Config, merged({"model": model["model"]}, values))
    asked = dict(_leaves(config.to_dict()["model"]))
    for path, value in _leaves(architecture.to_dict()["model"]):
        if asked[path] != value and path not in TRAINING_ONLY:
            raise UsageError(
                f"model.{path} of the model to start from is {value}, not {asked[path]}; "
                "leave it out of --set and preset, or train without --init"
            )
    # There is nothing to warm up: the codebook is kept, or starts from the latents of a trained encoder.
    return replace(config, train=replace(config.train, continuous_steps=0))


def start_from(model: VQModel, trained: VQModel, config: Config) -> None:
    """Take over the weights and codebooks of a trained model, then freeze or restart what the config says.

    Raises:
        UsageError: a codebook is to restart that does not exist.
    """
    model.load_state_dict(trained.state_dict())
    parts = {"encoder": model.encoder, "codebook": model.quantizer, "decoder": model.decoder}
    for name in config.train.freeze:
        parts[name].requires_grad_(False)
    codebooks = [module for module in model.modules() if isinstance(module, VQ)]
    if config.train.restart_codebook and not codebooks:
        raise UsageError(f"train.restart_codebook: {config.model.quantizer.kind} has no codebook to restart")
    for codebook in codebooks:
        codebook.frozen = "codebook" in config.train.freeze
        if config.train.restart_codebook:
            codebook.initialised.fill_(False)


def _own_training(model: Mapping[str, Any]) -> dict[str, Any]:
    """Give how the model was trained itself, but for what held for that run alone."""
    values = {section: dict(model.get(section, {})) for section in ("data", "loss", "train", "adversarial")}
    for section, key in (("data", "note"), ("train", "freeze"), ("train", "restart_codebook")):
        values[section].pop(key, None)
    return values


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


KMEANS_VECTORS = 32_768
"""Latents the k-means start looks at."""
KMEANS_PASSES = 12
"""Times that it looks for the nearest vectors of all latents."""


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
def start_codebooks(
    model: VQModel, batch: Callable[[int], Tensor], precision: torch.dtype, seconds: float = math.inf
) -> None:
    """Run k-means on the latents of enough batches for the codebooks that have not had their start.

    Args:
        batch: Gives media by number, from 0 on, a part of them in each process.
        seconds: About as long as it may take; on a slow machine it looks at fewer latents.
    """
    latents: list[Tensor] = []
    count, wanted = 0, KMEANS_VECTORS
    while count < wanted:
        since = time.monotonic()
        x = batch(len(latents))
        with autocast(x.device, precision):
            z = model.encoder(x).float()
        latents.append(gather(z.movedim(1, -1)).reshape(1, -1, z.shape[1]))
        count += latents[-1].shape[1]
        if len(latents) == 1 and math.isfinite(seconds):
            encoded = time.monotonic()
            model.quantizer.encode(z)
            found = time.monotonic()
            search = KMEANS_PASSES * world_size() * (found - encoded)  # The first process clusters the latents of all.
            (cost,) = all_reduce_max((encoded - since + search) / count)
            wanted = min(wanted, max(int(seconds / max(cost, 1e-9)), *model.codebook_sizes))
    if rank() == 0:
        model.quantizer.prepare(torch.cat(latents, dim=1))
    broadcast_module(model.quantizer)
