"""`import_checkpoint`: from another project's checkpoint to a model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqtok.config import Config, from_dict, merged
from vqtok.errors import ModelError, UsageError
from vqtok.files.atomic import refuse_existing
from vqtok.files.paths import error_context
from vqtok.models.importers.checkpoint import AVERAGES, Checkpoint, read_checkpoint
from vqtok.models.importers.families import FAMILIES, family_of_class, recognise
from vqtok.models.importers.layouts import weight_names
from vqtok.models.importers.yaml_config import Settings, read_settings
from vqtok.models.model_file import decoding_state, save_model
from vqtok.models.vqmodel import VQModel

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
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise UsageError(f"{checkpoint}: would be overwritten by its own output; give another -o")
    if not force:
        refuse_existing(output)
    settings = read_settings(Path(config)) if config is not None else None
    with error_context(checkpoint):
        weights = read_checkpoint(checkpoint)
        weights.enter_first_stage()
        losses = ("loss.", "discriminator.", f"{AVERAGES}loss", f"{AVERAGES}discriminator")
        weights.drop("discriminator and perceptual loss", lambda name: name.startswith(losses))
        weights.use_averages()
        chosen = family or (family_of_class(settings.target) if settings else recognise(weights.tensors))
        if chosen is None and "encoder.conv_in.weight" not in weights.tensors:
            raise ModelError(f"has no weights of {', '.join(FAMILIES)}")
        if chosen is None:
            raise UsageError("give its --config, or --family: the weights of vqgan and ibq have the same names")
        set_up, model = _translate(weights, chosen, settings)
        weights.refuse_leftovers()
    facts = {
        "file": checkpoint.name,
        "family": chosen,
        "config": settings.facts if settings else None,
        "averaged": weights.averaged,
        "taken": weights.num_taken,
        "dropped": dict(weights.dropped),
    }
    identity = save_model(output, model, set_up, entropy_tables={}, training={"imported": facts}, dtype=torch.float32)
    return Imported(output, identity.hex(), facts)


def _translate(weights: Checkpoint, name: str, settings: Settings | None) -> tuple[Config, VQModel]:
    """Make a model of the weights that a family has, and give the set-up to tune it with."""
    family = FAMILIES[name]
    network = family.layout.network(weights)
    channels, dim = weights.size("encoder.conv_in.weight", 1), weights.size("decoder.conv_in.weight", 1)
    quantizer, state = family.quantizer(weights, dim)
    architecture = {"modality": "image", "channels": channels, "network": network, "quantizer": quantizer}
    config = from_dict(Config, merged(TUNING, {"model": architecture, "loss": dict(family.loss)}))
    if settings:
        settings.check(config.model, name)
    model, layers = VQModel(config.model), config.model.network
    for part, layout in (("encoder", family.layout.encoder(layers)), ("decoder", family.layout.decoder(layers))):
        for here, there in weight_names(model.get_submodule(f"{part}.layers"), f"{part}.layers.", layout):
            state[here] = family.adjust(there, weights.take(there))
    own = decoding_state(model)
    assert state.keys() == own.keys()
    for weight, tensor in state.items():
        if tensor.shape != own[weight].shape:
            raise ModelError(f"its {weight} has shape {tuple(tensor.shape)}, not {tuple(own[weight].shape)}")
        own[weight].copy_(tensor)
    return config, model
