"""The network of a generator: one bidirectional transformer over the codes of all streams of an item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.generation.config import NetworkConfig
from vqtok.generation.streams import HIDDEN, Stream, StreamName, in_order

ROTARY_BASE = 1000.0
"""The longest wavelength of the rotary positions, over 2 pi; windows are a few hundred steps long at most."""


class CodeTable(nn.Module):
    """The vectors of the codes of one codebook, for the input and for the output of the network.

    They are a linear map of the codebook's own vectors, plus a correction that starts at zero. Codes that look or
    sound alike thus start with similar vectors, which saves most of the training. Without codebook vectors the
    correction is all there is, and starts at random.

    Args:
        vectors: The vectors of the codebook, `(size, dim)`.
    """

    vectors: Tensor | None

    def __init__(self, size: int, width: int, vectors: Tensor | None) -> None:
        super().__init__()
        if vectors is None:
            self.register_buffer("vectors", None)
            self.correction = nn.Parameter(torch.randn(size, width))
        else:
            centered = vectors.detach().float() - vectors.mean(0)
            self.register_buffer("vectors", centered / centered.std().clamp(min=1e-6))
            self.map = nn.Linear(vectors.shape[1], width, bias=False)
            nn.init.normal_(self.map.weight, std=vectors.shape[1] ** -0.5)
            self.correction = nn.Parameter(torch.zeros(size, width))
        self.hidden = nn.Parameter(torch.zeros(1, width))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self) -> Tensor:
        """Return the vectors of all codes `(size, width)`."""
        if self.vectors is None:
            return self.correction
        mapped: Tensor = self.map(self.vectors)
        return mapped + self.correction


class Attention(nn.Module):
    """Self-attention of all positions to all others, with rotary positions and normalized queries and keys.

    Source: Vaswani et al. 2017, "Attention Is All You Need"; Su et al. 2021, "RoFormer" (rotary positions);
        Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters" (normalized queries and keys).
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))

    def forward(self, x: Tensor, rotation: Sequence[Tensor]) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        shape = query.shape[-1:]
        query = rotate(F.rms_norm(query, shape) * self.query_scale, rotation)
        key = rotate(F.rms_norm(key, shape) * self.key_scale, rotation)
        mixed = attend(query.to(value.dtype), key.to(value.dtype), value)
        output: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return output


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the means of the values `(batch, heads, positions, channels)` by the similarity of queries and keys."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value)
    # On CPUs the backward pass of PyTorch's fused function takes up to ten times as long as these products.
    similarity = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    mixed: Tensor = similarity.softmax(-1) @ value
    return mixed


class Block(nn.Module):
    """Attention and a perceptron, each added to its input and reading it normalized.

    Source: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture".
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.perceptron_norm = nn.RMSNorm(width)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 4 * width, bias=False), nn.GELU("tanh"), nn.Linear(4 * width, width, bias=False)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Sequence[Tensor]) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), rotation))
        return x + self.dropout(self.perceptron(self.perceptron_norm(x)))  # type: ignore[no-any-return]


class StreamLayers(nn.Module):
    """What a generator needs of one stream: the vectors of its codes and positions, and its output layers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, stream: Stream, config: NetworkConfig, vectors: Sequence[Tensor]) -> None:
        super().__init__()
        known: Sequence[Tensor | None] = vectors or [None] * stream.num_codebooks
        pairs = zip(stream.codebook_sizes, known, strict=True)
        self.tables = cast(
            "Sequence[CodeTable]", nn.ModuleList(CodeTable(size, config.width, found) for size, found in pairs)
        )
        self.heads = nn.ModuleList(nn.Linear(config.width, config.width) for _ in stream.codebook_sizes)
        self.places = nn.Parameter(0.02 * torch.randn(*stream.window, config.width))
        cos, sin = rotary_tables(stream.window, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def embed(self, codes: Tensor) -> Tensor:
        """Return the input vectors `(batch, positions, width)` of codes `(batch, num_codebooks, *grid)`."""
        total = corner(self.places, codes)
        for index, table in enumerate(self.tables):
            rows = torch.cat([table.hidden, table().float()])
            total = total + F.embedding(codes[:, index].flatten(1) - HIDDEN, rows)
        return total

    def logits(self, codebook: int, features: Tensor) -> Tensor:
        table = self.tables[codebook]
        vectors: Tensor = table() * features.shape[-1] ** -0.5
        return F.linear(self.heads[codebook](features), vectors, table.bias)


class Generator(nn.Module):
    """Predicts the hidden codes of an item from the known ones.

    A sequence has the positions of some of the streams. The vector of a position is the sum of the vectors of its codes
    over the codebooks, where a hidden code has a vector of its own, and of the vector of the place.

    Args:
        vectors: The vectors of each codebook by the name of the stream; streams without an entry learn them.

    Source: Chang et al. 2022, "MaskGIT", section 3; Borsos et al. 2023, "SoundStorm", section 3 (sums over residual
        codebooks); Mizrahi et al. 2023, "4M" (one network for all modalities).
    """

    def __init__(
        self, config: NetworkConfig, streams: Sequence[Stream], vectors: Mapping[StreamName, Sequence[Tensor]]
    ) -> None:
        super().__init__()
        self.config = config
        self.streams: dict[StreamName, Stream] = {stream.name: stream for stream in streams}
        self.layers = nn.ModuleDict({s.name: StreamLayers(s, config, vectors.get(s.name, ())) for s in streams})
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("attention.output.weight", "perceptron.2.weight")):
                # The blocks together then add as much as one would, at any depth.
                nn.init.normal_(weight, std=(2 * config.layers * weight.shape[1]) ** -0.5)

    def forward(self, codes: Mapping[StreamName, Tensor]) -> dict[StreamName, Tensor]:
        """Return the features of each position, from which `logits` predicts its codes.

        Shapes:
            codes: int64 `(batch, num_codebooks, *grid)` for each stream of the sequence, with `HIDDEN` codes; a grid
                may be smaller than the window.
            features: `(batch, positions, width)` for each stream.
        """
        names = in_order(list(codes))
        layers = [self._layers(name) for name in names]
        parts = [layer.embed(codes[name]) for name, layer in zip(names, layers, strict=True)]
        rotation = [
            torch.cat([corner(table, codes[name]) for name, table in zip(names, tables, strict=True)])
            for tables in ([layer.cos for layer in layers], [layer.sin for layer in layers])
        ]
        x = torch.cat(parts, dim=1)
        for block in self.blocks:
            x = block(x, rotation)
        return dict(zip(names, self.norm(x).split([part.shape[1] for part in parts], dim=1), strict=True))

    def logits(self, name: StreamName, codebook: int, features: Tensor) -> Tensor:
        """Return the logits `(..., codebook_size)` of a codebook's codes at positions with these features."""
        return self._layers(name).logits(codebook, features)

    def _layers(self, name: StreamName) -> StreamLayers:
        layers = self.layers[name]
        assert isinstance(layers, StreamLayers)
        return layers


def corner(table: Tensor, codes: Tensor) -> Tensor:
    """Return the rows `(positions, channels)` of a table of a window `(*window, channels)` that a grid has."""
    return table[tuple(slice(length) for length in codes.shape[2:])].flatten(0, -2)


def rotate(x: Tensor, rotation: Sequence[Tensor]) -> Tensor:
    """Rotate pairs of channels of `(batch, heads, positions, channels)` by the angles of their positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def rotary_tables(window: Sequence[int], channels: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine `(*window, channels / 2)` of the angles of a window's positions.

    The channels of an image are shared out: the first half turn with the row, the others with the column.
    """
    share = channels // 2 // len(window)
    speeds = ROTARY_BASE ** (-torch.arange(share) / share)
    axes = torch.meshgrid(*(torch.arange(length) for length in window), indexing="ij")
    angles = torch.cat([axis[..., None] * speeds for axis in axes], dim=-1)
    return angles.cos(), angles.sin()
