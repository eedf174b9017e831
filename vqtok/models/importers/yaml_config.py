"""The YAML beside a checkpoint: which model it is of, and settings that its weights do not show."""

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
"""Settings that must have these values, if they are given at all."""


@dataclass(frozen=True)
class Settings:
    """What a config says of a tokenizer."""

    file: str
    target: str
    """The class of the model."""
    values: Mapping[str, Any]
    """Its arguments."""

    @property
    def networks(self) -> Mapping[str, Any]:
        return self.values["ddconfig"]

    @property
    def facts(self) -> dict[str, Any]:
        """Give what a model card keeps."""
        names = ("n_embed", "embed_dim", "ddconfig")
        return {"file": self.file, "target": self.target} | {x: self.values[x] for x in names if x in self.values}

    def check(self, model: ModelConfig, family: str) -> None:
        """Refuse settings that vqtok has no like of, and those of another checkpoint.

        Args:
            model: What the weights look like.
            family: Of the checkpoint.

        Raises:
            ModelError: error_context the setting.
        """
        given = {**self.networks, **self.values}
        for name, allowed in UNSUPPORTED.items():
            if name in given and given[name] not in (allowed if isinstance(allowed, tuple) else (allowed,)):
                raise ModelError(f"{self.file}: {name}: {given[name]} is not supported")
        # The argument exists where it has no effect, too.
        if given.get("l2_normalize") and family == "vqgan":
            raise ModelError(f"{self.file}: l2_normalize is not supported: it looks up other vectors than it compares")
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
                    f"{self.file}: says {name} {given[name]}, the checkpoint has {value}; is it another's config?"
                )


def read_settings(path: Path) -> Settings:
    """Read the config of a tokenizer, or of a model of its latents, which has it as its first stage.

    Raises:
        UsageError: there is none, it is no YAML, or says nothing of a tokenizer.
    """
    try:
        import yaml
    except ImportError:
        raise UsageError("--config needs PyYAML: pip install 'vqtok[import]'") from None
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        values = model.get("params") or model["init_args"]
        if "first_stage_config" in values:
            model = values["first_stage_config"]
            values = model.get("params") or model["init_args"]
        target = model.get("target") or model["class_path"]
        settings = Settings(path.name, str(target), dict(values))
        dict(settings.networks)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise UsageError(f"{path}: not valid YAML") from None
    except (LookupError, TypeError, AttributeError, ValueError):
        raise UsageError(f"{path}: is no config of a tokenizer: needs model.params with a ddconfig") from None
    return settings
