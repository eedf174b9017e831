"""`import_checkpoint`: convert a checkpoint of another project to a model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vqtok.config import Config, from_dict, merged
from vqtok.errors import ModelError, UsageError
from vqtok.files.atomic import refuse_existing
from vqtok.files.paths import error_context
from vqtok.models.hub import download
from vqtok.models.importers.checkpoint import AVERAGES, Checkpoint, read_checkpoint
from vqtok.models.importers.families import FAMILIES, family_of_class, recognize
from vqtok.models.importers.folders import FOLDERS, folder_family_of, write_folder
from vqtok.models.importers.layouts import weight_names
from vqtok.models.importers.yaml_config import Settings, read_settings, read_yaml
from vqtok.models.model_file import decoding_state, save_model
from vqtok.models.vqmodel import VQModel

TUNING: dict[str, dict[str, Any]] = {
    "data": {"crop_pixels": 256},
    "loss": {"l1": 1.0},
    "train": {"learning_rate": 3e-5, "batch_size": 4, "warmup_steps": 100, "stored_precision": "float32"},
}
"""The default configuration for fine-tuning imported models."""


@dataclass(frozen=True)
class Imported:
    """The path and identity of an imported model, and the facts on its origin in its card."""

    model: Path
    identity: str
    facts: dict[str, Any]


def import_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    family: str | None = None,
    base: str | Path | None = None,
    force: bool = False,
) -> Imported:
    """Convert a checkpoint of another project to a model file.

    The families are taming-transformers and latent-diffusion (`vqgan` and `gumbel`, also inside a latent diffusion
    model), LlamaGen (`llamagen`), Open-MAGVIT2 (`magvit2`) and IBQ (`ibq`). Descript's DAC (`dac`), WavTokenizer
    (`wavtokenizer`), SpeechTokenizer (`speechtokenizer`), BigCodec (`bigcodec`), NeuCodec (`neucodec`),
    Cosmos-Tokenizer for images (`cosmos`), TiTok (`titok`) and the tokenizer of VAR (`var`) become folders, which
    adapters open.

    The model computes the same codes as the original. Every weight is either taken or dropped by a rule that the model
    card names. Averaged weights are preferred. The model has no code statistics, so that its token files are
    bit-packed; `train_prior` adds entropy tables and a prior.

    Args:
        checkpoint: A PyTorch, TorchScript or safetensors file.
        output: The model file, or the folder for the families that become one.
        config: The YAML of the checkpoint.
        family: The family; by default that of the class in `config`, or detected from the names of the weights.
        base: The model that the checkpoint builds on, for NeuCodec that of speech: a folder of transformers, or
            hf:ORG/NAME.
        force: Overwrite the output.

    Raises:
        ModelError: The checkpoint cannot be read safely, or its weights do not fit the family.
        UsageError: The YAML is not a tokenizer's, the family cannot be detected, or `base` is missing or of no use.
        OutputError: The output exists.
    """
    checkpoint, output = Path(checkpoint), Path(output)
    if family is not None and family not in (*FAMILIES, *FOLDERS):
        raise UsageError(f"`family` {family!r} is unknown; known are {', '.join((*FAMILIES, *FOLDERS))}")
    if output.exists() and checkpoint.exists() and output.samefile(checkpoint):
        raise UsageError(f"{checkpoint}: would be overwritten by its own output; give another `output`")
    if not force:
        refuse_existing(output)
    content = read_yaml(Path(config)) if config is not None else None
    with error_context(checkpoint):
        weights = read_checkpoint(checkpoint)
        folder_family = family or folder_family_of(weights.tensors)
        if base is not None:
            if folder_family != "neucodec":
                raise UsageError("`base` is only for checkpoints of neucodec; leave it out")
            weights.add_base(download(str(base)[3:]) if str(base).startswith("hf:") else Path(base))
        if folder_family in FOLDERS:
            converted = FOLDERS[folder_family].convert(weights, content if isinstance(content, Mapping) else None)
            weights.refuse_leftovers()
            facts = _facts(checkpoint, folder_family, weights, {"file": Path(config).name} if config else None)
            return Imported(output, write_folder(output, *converted, facts, force=force), facts)
        settings = read_settings(Path(config)) if config is not None else None
        weights.enter_first_stage()
        losses = ("loss.", "discriminator.", f"{AVERAGES}loss", f"{AVERAGES}discriminator")
        weights.drop("discriminator and perceptual loss", lambda name: name.startswith(losses))
        weights.use_averages()
        chosen = family or (family_of_class(settings.target) if settings else recognize(weights.tensors))
        if chosen is None and "encoder.conv_in.weight" not in weights.tensors:
            raise ModelError(f"its weights are of no known family ({', '.join(FAMILIES)})")
        if chosen is None:
            raise UsageError("give `config` or `family`, since the weights of vqgan and ibq have the same names")
        tuning, model = _convert(weights, chosen, settings)
        weights.refuse_leftovers()
    facts = _facts(checkpoint, chosen, weights, settings.facts if settings else None)
    identity = save_model(output, model, tuning, entropy_tables={}, training={"imported": facts}, dtype=torch.float32)
    return Imported(output, identity.hex(), facts)


def _facts(checkpoint: Path, family: str, weights: Checkpoint, config: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "file": checkpoint.name,
        "family": family,
        "config": config,
        "averaged": weights.averaged,
        "taken": weights.num_taken,
        "dropped": dict(weights.dropped),
    }


def _convert(weights: Checkpoint, name: str, settings: Settings | None) -> tuple[Config, VQModel]:
    """Create a model from the weights of a family, and the configuration for fine-tuning it."""
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
            raise ModelError(f"{weight} has shape {tuple(tensor.shape)}, not {tuple(own[weight].shape)}")
        own[weight].copy_(tensor)
    return config, model
