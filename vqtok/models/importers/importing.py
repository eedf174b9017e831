"""`import_checkpoint`: from another project's checkpoint to a model file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtok.config import Config, from_dict
from vqtok.errors import ModelError, OutputError, UsageError
from vqtok.files import naming
from vqtok.models.importers.checkpoint import Checkpoint, read_checkpoint
from vqtok.models.importers.families import FAMILIES, Family, family_of_class, recognise
from vqtok.models.importers.layouts import weight_names
from vqtok.models.importers.settings import Settings, read_settings
from vqtok.models.vqmodel import VQModel
from vqtok.models.weights import decoding_state, save_model

logger = logging.getLogger(__name__)

TUNING: dict[str, dict[str, Any]] = {
    "data": {"crop_pixels": 256},
    "loss": {"l1": 1.0},
    "train": {"learning_rate": 3e-5, "batch_size": 4, "warmup_steps": 100, "stored_precision": "float32"},
}
"""How imported models are tuned unless one says otherwise."""


@dataclass(frozen=True)
class Imported:
    """Where the model is, what it is called, and what its card says of where it came from."""

    model: Path
    identity: str
    facts: dict[str, Any]


def import_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    family: str | None = None,
    force: bool = False,
) -> Imported:
    """Turn a checkpoint of another project into a model file: of taming-transformers and latent-diffusion (`vqgan` and
    `gumbel`, also inside a model of their latents), LlamaGen (`llamagen`), Open-MAGVIT2 (`magvit2`) or IBQ (`ibq`).

    The model gives the codes that the original gives. Every weight is taken or dropped by a rule that the card names.
    Averaged weights are preferred. Without statistics of its codes it makes token files that are bit-packed;
    `train_prior` adds them.

    Args:
        checkpoint: A PyTorch or safetensors file.
        config: The YAML that belongs to it.
        family: By default that of the class which the config names, or what the names of the weights tell.
        force: Overwrite the output.

    Raises:
        ModelError: a checkpoint that cannot be read safely, or has weights that are missing or unknown.
        UsageError: a config that is none, or no way to tell the family. OutputError: the output exists.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if family is not None and family not in FAMILIES:
        raise UsageError(f"--family {family}: there are {', '.join(FAMILIES)}")
    if not force and output.exists():
        raise OutputError(f"{output}: exists; give --force to overwrite it")
    settings = read_settings(Path(config)) if config is not None else None
    with naming(checkpoint):
        weights = read_checkpoint(checkpoint)
        weights.enter_first_stage()
        weights.use_averages()
        weights.drop("discriminator and perceptual loss", lambda name: name.startswith(("loss.", "model_ema.loss")))
        chosen = family or (family_of_class(settings.target) if settings else recognise(weights.tensors))
        if chosen is None:
            raise UsageError("give its --config, or --family: the weights of vqgan and ibq have the same names")
        model_config, state = _translate(weights, FAMILIES[chosen], chosen, settings)
        weights.refuse_leftovers()
        model = _build(model_config, state)
    facts = {
        "file": checkpoint.name,
        "family": chosen,
        "config": settings.facts if settings else None,
        "averaged": weights.averaged,
        "taken": weights.num_taken,
        "dropped": dict(weights.dropped),
    }
    identity = save_model(
        output, model, model_config, entropy_tables={}, training={"imported": facts}, dtype=torch.float32
    )
    return Imported(output, identity.hex(), facts)


def _translate(
    weights: Checkpoint, family: Family, name: str, settings: Settings | None
) -> tuple[Config, dict[str, Tensor]]:
    """Take a model's weights, by their names here, and give the set-up that they are of."""
    tensors = weights.tensors
    network = family.layout.network(tensors)
    for needed in ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight"):
        if needed not in tensors:
            raise ModelError(f"lacks {needed}; is it of another family?")
    channels, dim = tensors["encoder.conv_in.weight"].shape[1], tensors["decoder.conv_in.weight"].shape[1]
    quantizer, state = family.quantizer(weights, dim)
    stride = 2 ** (len(network["strides"]) - 1)
    tuning = {
        "data": {"crop_pixels": max(stride, TUNING["data"]["crop_pixels"])},
        "loss": TUNING["loss"] | dict(family.loss),
        "train": TUNING["train"],
    }
    model = {"modality": "image", "channels": channels, "network": network, "quantizer": quantizer}
    config = from_dict(Config, {"model": model, **tuning})
    if settings:
        settings.check(config.model, name)
    with torch.device("meta"):
        empty = VQModel(config.model)
    layout, layers = family.layout, config.model.network
    for part, module, sources in (
        ("encoder", empty.encoder, layout.encoder(layers)),
        ("decoder", empty.decoder, layout.decoder(layers)),
    ):
        assert isinstance(module.layers, torch.nn.Module)
        for here, there in weight_names(module.layers, f"{part}.layers.", sources):
            state[here] = family.adjust(there, weights.take(there))
    return config, state


def _build(config: Config, state: dict[str, Tensor]) -> VQModel:
    """Make the model of these weights, which must be all of its own and no others."""
    model = VQModel(config.model)
    own = decoding_state(model)
    assert state.keys() == own.keys()
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ModelError(f"its {name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
        own[name].copy_(tensor)
    return model
