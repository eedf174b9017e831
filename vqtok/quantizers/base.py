"""`Quantizer`: the one interface of every kind, and the one straight-through estimator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqtok.compute.device import tf32

Losses = dict[str, Tensor]


class QuantizerOutput(NamedTuple):
    """What `Quantizer.forward` returns; `losses` are unweighted named scalars."""

    quantized: Tensor
    codes: Tensor
    losses: Losses


class Quantizer(nn.Module):
    """Map latents `(batch, dim, *grid)` to codes `(batch, num_codebooks, *grid)` and back.

    A kind works on vectors `(batch, positions, dim)` in float32 and supplies `bound`, `assign`, `lookup` and,
    where it learns, `losses`, `prepare` and `update`. This base owns the grid, the precision and the
    straight-through estimator; a composition supplies `quantize` and `relax` from those of its parts.
    """

    dim: int
    codebook_sizes: tuple[int, ...]

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    # What a kind supplies, on vectors.

    def bound(self, z: Tensor) -> Tensor:
        """Limit latents to the range that the codebook covers, differentiably."""
        return z

    def assign(self, z: Tensor) -> Tensor:
        """Choose codes `(batch, positions, num_codebooks)` of unbounded vectors `(batch, positions, dim)`."""
        raise NotImplementedError

    def lookup(self, codes: Tensor) -> Tensor:
        """Give the vectors `(batch, positions, dim)` of codes, or of a prefix of their codebooks."""
        raise NotImplementedError

    def losses(self, z: Tensor, codes: Tensor, quantized: Tensor) -> Losses:
        """Give this kind's unweighted training losses; `quantized` are the looked-up vectors, without gradient."""
        return {}

    @property
    def ready(self) -> bool:
        """Whether every codebook has had its start, as implicit ones have from the beginning."""
        return True

    def prepare(self, z: Tensor) -> None:
        """Initialise codebooks that were never trained from these vectors, once."""

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move codebooks that learn by statistics rather than by gradient."""

    def codebooks(self) -> list[Tensor]:
        """Give the vectors `(size, dim)` of each codebook, in the space that it quantises."""
        (size,) = self.codebook_sizes
        return [self.lookup(torch.arange(size)[None, :, None])[0]]

    # What every kind shares.

    def quantize(self, z: Tensor, source: Tensor) -> QuantizerOutput:
        """Quantise vectors and, in training, learn from them.

        Args:
            source: The same vectors; they get the gradient of what comes out, `z` that of the losses.
        """
        with torch.no_grad():
            codes = self.assign(z)
            quantized = self.lookup(codes)
        losses: Losses = {}
        if self.training:
            losses = self.losses(z, codes, quantized)
            with torch.no_grad():
                self.update(z.detach(), codes)
        return QuantizerOutput(straight_through(quantized, self.bound(source)), codes, losses)

    def relax(self, z: Tensor) -> Tensor:
        """Pass vectors through all but the rounding, as if codebooks were infinitely fine."""
        return self.bound(z)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantise latents; in training also learn from them.

        Shapes:
            z: `(batch, dim, *grid)`, any float type; computed in float32.
        """
        with exact(z.device):
            vectors = to_vectors(z.float())
            if self.training and not self.ready:
                with torch.no_grad():
                    self.prepare(vectors)
            quantized, codes, losses = self.quantize(vectors, vectors)
        grid = z.shape[2:]
        return QuantizerOutput(to_grid(quantized, grid).to(z.dtype), to_grid(codes, grid), losses)

    def bypass(self, z: Tensor) -> Tensor:
        """Give latents `(batch, dim, *grid)` as `forward` would without codebooks; to warm up with."""
        with exact(z.device):
            return to_grid(self.relax(to_vectors(z.float())), z.shape[2:]).to(z.dtype)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Give the int64 codes `(batch, num_codebooks, *grid)` of latents `(batch, dim, *grid)`."""
        with exact(z.device):
            return to_grid(self.assign(to_vectors(z.float())), z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Give the float32 latents of codes; fewer codebooks than `num_codebooks` decode as a prefix."""
        with exact(codes.device):
            return to_grid(self.lookup(to_vectors(codes)), codes.shape[2:])


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in float32, whatever networks compute in."""
    with torch.autocast(device.type, enabled=False), tf32(False) if device.type == "cuda" else nullcontext():
        yield


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, source: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0]


def straight_through(values: Tensor, source: Tensor) -> Tensor:
    """Give `values`, to the last bit, whose gradient goes to `source` of the same shape instead.

    Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    result: Tensor = _StraightThrough.apply(values, source)
    return result


def to_vectors(x: Tensor) -> Tensor:
    """Turn `(batch, dim, *grid)` into `(batch, positions, dim)`, free of charge for channels_last memory."""
    return x.movedim(1, -1).flatten(1, -2)


def to_grid(x: Tensor, grid: torch.Size) -> Tensor:
    """Turn `(batch, positions, dim)` into `(batch, dim, *grid)`."""
    return x.unflatten(1, grid).movedim(-1, 1)
