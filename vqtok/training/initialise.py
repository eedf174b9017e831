"""The start of a run: the configuration and weights of a model to fine-tune, and the k-means start of codebooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vqtok.compute.device import autocast, channels_last
from vqtok.compute.distributed import all_reduce_max, broadcast_module, gather, rank
from vqtok.config import Config, apply_setting, from_dict, merged, read_preset, take_init
from vqtok.errors import UsageError
from vqtok.models.vqmodel import VQModel, build_model
from vqtok.networks.layers import Block
from vqtok.quantizers import VQ
from vqtok.quantizers.codebook import repeated
from vqtok.training.objective import TensorBatch

TRAINING_ONLY = {"quantizer.decay", "quantizer.restart_below", "quantizer.prefix_dropout", "quantizer.beam"}
"""Settings in `model` that the weights do not depend on."""

OF_ONE_RUN = (
    ("data", "cache_codes"),
    ("data", "note"),
    ("data", "speech"),
    ("train", "freeze"),
    ("train", "keep_initial"),
    ("train", "restart_codebook"),
)
"""Settings that a fine-tuned model does not pass on; some are of its folder."""


def tuning_config(model: Mapping[str, Any], preset: str | None, settings: Sequence[str]) -> Config:
    """Return the configuration to fine-tune a model with: its architecture, and the rest from a preset.

    Args:
        model: The `Config` in the model's card.
        preset: A preset; None for the configuration that the model was trained with.
        settings: Changes, as `path=value`.

    Raises:
        UsageError: The preset or a setting is invalid or implies another architecture.
    """
    values = read_preset(preset) if preset else _own_training(model)
    take_init(values)
    for setting in settings:
        apply_setting(values, setting)
    architecture = from_dict(Config, {"model": model["model"]})
    config = from_dict(Config, merged({"model": model["model"]}, values))
    requested = dict(_leaves(config.to_dict()["model"]))
    for path, value in _leaves(architecture.to_dict()["model"]):
        if requested[path] != value and path not in TRAINING_ONLY:
            raise UsageError(
                f"model.{path} of the model to start from is {value}, not {requested[path]}; "
                "leave it out of `settings` and `preset`, or train without `init`"
            )
    # No warm-up without quantization: the codebook is kept, or starts from the latents of a trained encoder.
    return replace(config, train=replace(config.train, continuous_steps=0))


def start_from(model: VQModel, trained: VQModel, config: Config) -> None:
    """Copy the weights and codebooks of a trained model, then freeze or restart parts as the configuration says.

    Raises:
        UsageError: The codebook is to be restarted, but the quantizer has none.
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
    """Return the configuration that the model was trained with, without what was specific to that run."""
    values = {section: dict(model.get(section, {})) for section in ("data", "loss", "train", "adversarial")}
    for section, key in OF_ONE_RUN:
        values[section].pop(key, None)
    return values


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


KMEANS_VECTORS = 32_768
"""The number of latents that k-means uses."""
KMEANS_PASSES = 12
"""How often k-means searches the nearest vectors of all latents."""


def make_model(config: Config, device: torch.device, initial: VQModel | None) -> VQModel:
    """Create the model to train, with random weights or those of a trained model."""
    model: VQModel = build_model(config.model).to(device)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if initial is not None:
        start_from(model, initial, config)
    for module in model.modules():
        if isinstance(module, Block):
            module.recompute = config.train.gradient_checkpointing
    return model


@torch.no_grad()
def start_codebooks(
    model: VQModel, batch: Callable[[int], TensorBatch], precision: torch.dtype, seconds: float = math.inf
) -> None:
    """Initialize those codebooks that are not initialized, by k-means on the latents of several batches.

    Args:
        model: The model in training.
        batch: Returns a batch by its number, from 0 on; this process's part of it if there are several processes.
        precision: The type that the encoder computes in.
        seconds: The approximate time it may take; a slow machine uses fewer latents.
    """
    latents: list[Tensor] = []
    count, wanted = 0, KMEANS_VECTORS
    while count < wanted:
        since = time.monotonic()
        z = _latents(model, batch(len(latents)), precision)
        latents.append(z)
        count += latents[-1].shape[1]
        if len(latents) == 1 and math.isfinite(seconds):
            encoded = time.monotonic()
            model.quantizer.encode(z.movedim(-1, 1))
            found = time.monotonic()
            search = KMEANS_PASSES * (found - encoded)
            (cost,) = all_reduce_max((encoded - since + search) / count)
            wanted = min(wanted, max(int(seconds / max(cost, 1e-9)), *model.codebook_sizes))
    if rank() == 0:
        model.quantizer.prepare(torch.cat(latents, dim=1))
    broadcast_module(model.quantizer)


def _latents(model: VQModel, batch: TensorBatch, precision: torch.dtype) -> Tensor:
    """Return the latents `(1, positions, dim)` of the batches of all processes, as many of each modality."""
    found = []
    for modality, side in model.sides.items():
        x = channels_last(batch.inputs[modality])
        with autocast(x.device, precision):
            found.append(gather(side.encoder(x).float().movedim(1, -1)).flatten(0, -2))
    return torch.cat(repeated([vectors[None] for vectors in found]), dim=1)
