"""The YAML of a checkpoint: the class of its model, and settings that the weights do not show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok.config import ModelConfig
from vqtok.errors import ModelError, UsageError

UNSUPPORTED = {
    "double_z": False,
    "tanh_out": False,
    "give_pre_end": False,
    "use_linear_attn": False,
    "resamp_with_conv": True,
    "attn_type": ("vanilla", "none"),
    "token_factorization": False,
}
"""Settings that must have these values, if present."""


@dataclass(frozen=True)
class Settings:
    """The settings of a tokenizer in a YAML."""

    file: str
    target: str
    """The path of the model's class."""
    values: Mapping[str, Any]
    """The arguments of the class."""

    @property
    def networks(self) -> Mapping[str, Any]:
        return self.values["ddconfig"]

    @property
    def facts(self) -> dict[str, Any]:
        """The settings for the model card."""
        names = ("n_embed", "embed_dim", "ddconfig")
        return {"file": self.file, "target": self.target} | {x: self.values[x] for x in names if x in self.values}

    def check(self, model: ModelConfig, family: str) -> None:
        """Raise if a setting is not supported or does not fit the weights.

        Args:
            model: The settings that follow from the weights.
            family: The family of the checkpoint.

        Raises:
            ModelError: Naming the setting.
        """
        given = {**self.networks, **self.values}
        for name, allowed in UNSUPPORTED.items():
            if name in given and given[name] not in (allowed if isinstance(allowed, tuple) else (allowed,)):
                raise ModelError(f"{self.file}: {name}: {given[name]} is not supported")
        # Only vqgan uses this argument; elsewhere it has no effect.
        if given.get("l2_normalize") and family == "vqgan":
            raise ModelError(
                f"{self.file}: l2_normalize is not supported, since it decodes codes to other vectors than it compares"
            )
        quantizer, network = model.quantizer, model.network
        found: dict[str, Any] = {
            "z_channels": quantizer.dim,
            "in_channels": model.channels,
            "out_ch": model.channels,
            "num_res_blocks": network.encoder_blocks[0],
        }
        if not given.get("remap"):
            found["n_embed"] = 2**quantizer.dim if quantizer.kind == "lfq" else quantizer.codebook_size
        if {"ch", "ch_mult"} <= set(given):
            found["ch_mult"] = [width // given["ch"] for width in network.widths]
        for name, value in found.items():
            if name in given and given[name] != value:
                raise ModelError(
                    f"{self.file}: {name} is {given[name]}, but the checkpoint has {value}; "
                    "is this the config of another checkpoint?"
                )


def read_settings(path: Path) -> Settings:
    """Read the YAML of a tokenizer, or of a latent diffusion model, whose first stage it is.

    Raises:
        UsageError: The file cannot be read, is not valid YAML, or does not describe a tokenizer.
    """
    content = read_yaml(path)
    try:
        model = content["model"]
        values = model.get("params") or model["init_args"]
        if "first_stage_config" in values:
            model = values["first_stage_config"]
            values = model.get("params") or model["init_args"]
        target = model.get("target") or model["class_path"]
        settings = Settings(path.name, str(target), dict(values))
        dict(settings.networks)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UsageError(f"{path}: not the config of a tokenizer: needs model.params with a ddconfig") from None
    return settings


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        UsageError: It cannot be read or is not valid, or PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise UsageError("`config` needs PyYAML: pip install 'vqtok[import]'") from None
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{path}: not valid YAML") from None
