"""Fine-tuning: a set-up and a start taken from a trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vqtok.config import Config, apply_setting, from_dict, read_preset
from vqtok.errors import UsageError
from vqtok.models.vqmodel import VQModel
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
    config = from_dict(Config, values | {"model": _merged(model["model"], values.get("model", {}))})
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
    values = {section: dict(model[section]) for section in ("data", "loss", "train")}
    for section, key in (("data", "note"), ("train", "freeze"), ("train", "restart_codebook")):
        values[section].pop(key, None)
    return values


def _merged(below: Mapping[str, Any], above: Any) -> Any:
    if not isinstance(above, Mapping):
        return above
    values = dict(below)
    for key, value in above.items():
        values[key] = _merged(below[key], value) if isinstance(below.get(key), Mapping) else value
    return values


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
