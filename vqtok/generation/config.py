"""The configuration of a generator and of its training, read from the preset `generator` and settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vqtok.config import apply_setting, from_dict, numbers_out_of_range, read_preset
from vqtok.errors import UsageError

BELOW_ONE = frozenset({"average_decay", "betas", "validation_fraction", "dropout"})
AT_LEAST_ONE = frozenset({
    "width", "layers", "heads", "image_window", "audio_window", "text_length", "steps", "batch_size", "validations",
    "validation_items",
})  # fmt: skip


@dataclass(frozen=True)
class NetworkConfig:
    """The transformer."""

    width: int = 192
    layers: int = 4
    heads: int = 3
    dropout: float = 0.1


@dataclass(frozen=True)
class DataConfig:
    """The tokens and how they are cut."""

    image_window: int = 16
    """Longest side of the part of an image's grid that the network sees at once."""
    audio_window: int = 150
    """Grid steps of audio that the network sees at once."""
    text_length: int = 64
    """Bytes of a caption that the network sees."""
    validation_fraction: float = 0.05
    """Fraction of the items that are held out, selected by a hash of their keys."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimization and its schedule; names as in `vqtok.config.TrainConfig`."""

    steps: int = 5000
    batch_size: int = 64
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    average_decay: float = 0.998
    validations: int = 10
    validation_items: int = 256
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    stored_precision: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True)
class GeneratorConfig:
    """A training configuration of a generator."""

    kind: Literal["generator"] = "generator"
    """Distinguishes the presets of generators from those of tokenizers."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise UsageError(problem)

    def _problems(self) -> Iterator[str]:
        yield from numbers_out_of_range(self, AT_LEAST_ONE, BELOW_ONE)
        if self.network.width % (4 * self.network.heads):
            yield "network.width must be a multiple of 4 network.heads, which the rotary positions need"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_generator_preset(name: str, settings: Iterable[str] = ()) -> GeneratorConfig:
    """Read the preset of a generator by name, or a TOML file by path, and apply settings of the form `path=value`.

    Raises:
        UsageError: The preset, a key or a value is unknown or invalid.
    """
    values = read_preset(name)
    if values.get("kind") != "generator":
        raise UsageError(f'`preset` {name} is for tokenizers; a TOML file of a generator has kind = "generator"')
    for setting in settings:
        apply_setting(values, setting)
    return from_dict(GeneratorConfig, values)


def is_generator_preset(name: str) -> bool:
    """Return whether a preset or TOML file is that of a generator.

    Raises:
        UsageError: It does not exist or is not valid TOML.
    """
    return read_preset(name).get("kind") == "generator"
