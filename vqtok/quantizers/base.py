"""`Quantizer`: the one interface of every kind, and the one straight-through estimator."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

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
    straight-through estimator; a composition routes the same methods to its parts.
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

    def losses(self, z: Tensor, codes: Tensor) -> Losses:
        """Give this kind's unweighted training losses."""
        return {}

    @property
    def ready(self) -> bool:
        """Whether every codebook has had its start, as implicit ones have from the beginning."""
        return True

    def prepare(self, z: Tensor) -> None:
        """Initialise codebooks that were never trained from these vectors, once."""

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Move codebooks that learn by statistics rather than by gradient."""

    # What every kind shares.

    def straight_through(self, z: Tensor, codes: Tensor | None) -> Tensor:
        """Give the vectors of `codes`, with the gradient of `bound(z)`; without codes, `bound(z)` itself.

        Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
        Unlike: written as sg(q) + (b - sg(b)), not b + sg(q - b), so that the value is q to the last bit.
        """
        bounded = self.bound(z)
        if codes is None:
            return bounded
        # Detached: a codebook learns from its own loss or running means, never from the reconstruction.
        return self.lookup(codes).detach() + (bounded - bounded.detach())

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantise latents; in training also learn from them.

        Shapes:
            z: `(batch, dim, *grid)`, any float type; computed in float32.
        """
        with torch.autocast(z.device.type, enabled=False):
            vectors = to_vectors(z.float())
            with torch.no_grad():
                if self.training and not self.ready:
                    self.prepare(vectors)
                codes = self.assign(vectors)
            quantized = self.straight_through(vectors, codes)
            losses = self.losses(vectors, codes) if self.training else {}
            if self.training:
                with torch.no_grad():
                    self.update(vectors.detach(), codes)
        grid = z.shape[2:]
        return QuantizerOutput(to_grid(quantized, grid).to(z.dtype), to_grid(codes, grid), losses)

    def relax(self, z: Tensor) -> Tensor:
        """Pass latents through all but the rounding, as if codebooks were infinitely fine; to warm up with."""
        with torch.autocast(z.device.type, enabled=False):
            return to_grid(self.straight_through(to_vectors(z.float()), None), z.shape[2:]).to(z.dtype)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Give the int64 codes `(batch, num_codebooks, *grid)` of latents `(batch, dim, *grid)`."""
        with torch.autocast(z.device.type, enabled=False):
            return to_grid(self.assign(to_vectors(z.float())), z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Give the float32 latents of codes; fewer codebooks than `num_codebooks` decode as a prefix."""
        with torch.autocast(codes.device.type, enabled=False):
            return to_grid(self.lookup(to_vectors(codes)), codes.shape[2:])


def to_vectors(x: Tensor) -> Tensor:
    """Turn `(batch, dim, *grid)` into `(batch, positions, dim)`, free of charge for channels_last memory."""
    return x.movedim(1, -1).flatten(1, -2)


def to_grid(x: Tensor, grid: torch.Size) -> Tensor:
    """Turn `(batch, positions, dim)` into `(batch, dim, *grid)`."""
    return x.unflatten(1, grid).movedim(-1, 1)
