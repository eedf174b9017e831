"""The names of layers in other projects, and the network settings that follow from their weights."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import count, takewhile
from typing import Any, Literal

from torch import nn

from vqtok.config import NetworkConfig
from vqtok.errors import ModelError
from vqtok.models.importers.checkpoint import Checkpoint

NAMES = {"shortcut": "nin_shortcut", "out": "proj_out", "scale": "gamma", "shift": "beta"}
"""The names of parts of layers in other projects, where they differ from those in vqtok."""


@dataclass(frozen=True)
class Layout:
    """The names of layers. `level` counts from the full resolution down, `reverse` from the lowest resolution up."""

    kind: Literal["vqgan", "magvit2"] = "vqgan"
    down: str = "encoder.down.{level}"
    up: str = "decoder.up.{level}"
    block: str = "block"
    attention: str = "attn"
    middle: tuple[str, ...] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    downsample: str = "downsample.conv"
    upsample: str = "upsample.conv"

    def network(self, weights: Checkpoint) -> dict[str, Any]:
        """Return the settings of the network that has these weights.

        Raises:
            ModelError: The weights have another layout.
        """
        tensors = weights.tensors
        levels = _count(f"{self.down}.{self.block}.0.conv1.weight", "level", tensors)
        if not levels or f"encoder.{self.middle[0]}.conv1.weight" not in tensors:
            raise ModelError(f"has no {self.down.format(level=0)}; it may be of another family")
        downs, ups = ([names for names, _ in self._levels(which, levels)] for which in (self.down, self.up))
        widths = [weights.size(f"{name}.{self.block}.0.conv1.weight", 0) for name in downs]
        if weights.size("encoder.conv_in.weight", 0) != widths[0]:
            raise ModelError(
                "its first level is wider than its first layer (ch_mult starts above 1), which is not supported"
            )
        settings = {
            "kind": self.kind,
            "strides": [1] + [2] * (levels - 1),
            "widths": widths,
            "encoder_blocks": [
                _count(f"{name}.{self.block}.{{index}}.conv1.weight", "index", tensors) for name in downs
            ],
            "decoder_blocks": [_count(f"{name}.{self.block}.{{index}}.conv1.weight", "index", tensors) for name in ups],
        }
        if self.kind == "magvit2":
            return settings
        attention = [f"{name}.{self.attention}.0.q.weight" in tensors for name in downs]
        middle = f"encoder.{self.middle[1]}.q.weight" in tensors
        return settings | {"attention": attention, "middle_attention": middle}

    def encoder(self, config: NetworkConfig) -> Iterator[str]:
        """Yield the names of the encoder's layers that have weights, in the order in which they run."""
        yield "encoder.conv_in"
        for (name, level), blocks in zip(
            self._levels(self.down, len(config.widths)), config.encoder_blocks, strict=True
        ):
            yield from self._blocks(name, blocks, attends=bool(config.attention) and config.attention[level])
            if 2 in config.strides[level + 1 : level + 2]:
                yield f"{name}.{self.downsample}"
        yield from self._ends("encoder", config, config.encoder_blocks[-1])
        yield from ("encoder.norm_out", "encoder.conv_out")

    def decoder(self, config: NetworkConfig) -> Iterator[str]:
        """Yield the names of the decoder's layers that have weights, in the order in which they run."""
        yield "decoder.conv_in"
        yield from self._ends("decoder", config, config.decoder_blocks[-1])
        for name, level in reversed(list(self._levels(self.up, len(config.widths)))):
            if self.kind == "magvit2":
                yield f"decoder.adaptive.{level}"
            blocks = config.decoder_blocks[level]
            yield from self._blocks(name, blocks, attends=bool(config.attention) and config.attention[level])
            if config.strides[level] == 2:
                yield f"{name}.{self.upsample}"
        yield from ("decoder.norm_out", "decoder.conv_out")

    def _levels(self, template: str, levels: int) -> Iterator[tuple[str, int]]:
        for level in range(levels):
            yield template.format(level=level, reverse=levels - 1 - level), level

    def _blocks(self, name: str, blocks: int, *, attends: bool) -> Iterator[str]:
        for index in range(blocks):
            yield f"{name}.{self.block}.{index}"
            if attends:
                yield f"{name}.{self.attention}.{index}"

    def _ends(self, network: str, config: NetworkConfig, blocks: int) -> Iterator[str]:
        """Yield the names of the layers at the lowest resolution, next to the latents."""
        if self.kind == "magvit2":
            yield from (f"{network}.mid_block.{index}" for index in range(blocks))
            return
        first, attention, last = self.middle
        yield from (f"{network}.{name}" for name in (first, *([attention] * config.middle_attention), last))


TAMING = Layout()
LLAMAGEN = Layout(
    down="encoder.conv_blocks.{level}",
    up="decoder.conv_blocks.{reverse}",
    block="res",
    middle=("mid.0", "mid.1", "mid.2"),
)
MAGVIT2 = Layout("magvit2", middle=("mid_block.0",), downsample="downsample", upsample="upsample.conv1")


def weight_names(network: nn.Module, prefix: str, sources: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight of a network, and its name in the other project.

    Args:
        network: The layers of an encoder or decoder.
        prefix: The prefix of the names in vqtok.
        sources: The names of the layers in the other project, in the order in which they run.
    """
    layers = [(name, layer) for name, layer in network.named_children() if layer.state_dict()]
    for (name, layer), source in zip(layers, sources, strict=True):
        for weight in layer.state_dict():
            part, _, rest = weight.partition(".")
            yield f"{prefix}{name}.{weight}", f"{source}.{NAMES.get(part, part)}" + (f".{rest}" if rest else "")


def _count(template: str, field: str, names: Container[str]) -> int:
    """Return how many successive numbers, from 0 on, result in an existing name."""
    return len(list(takewhile(lambda number: template.format(**{field: number}) in names, count())))
