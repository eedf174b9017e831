"""`Quantizer`, the interface that all kinds share, and the straight-through estimator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqtok.compute.device import tf32
from vqtok.errors import UsageError

Losses = dict[str, Tensor]


class QuantizerOutput(NamedTuple):
    """The result of `Quantizer.forward`; `losses` are unweighted named scalars."""

    quantized: Tensor
    codes: Tensor
    losses: Losses


class Quantizer(nn.Module):
    """Map latents `(batch, dim, *grid)` to codes `(batch, num_codebooks, *grid)` and back.

    A kind works on float32 vectors `(batch, positions, dim)` and implements `bound`, `assign`, `lookup` and, if it
    learns, `losses`, `prepare` and `update`. This base class handles the grid, the precision and the straight-through
    estimator. A composition implements `quantize` and `relax` with those of its parts.
    """

    dim: int
    codebook_sizes: tuple[int, ...]

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    # The methods that a kind implements; they work on vectors.

    def bound(self, z: Tensor) -> Tensor:
        """Limit latents to the range that the codebook covers; differentiable."""
        return z

    def assign(self, z: Tensor) -> Tensor:
        """Return the codes `(batch, positions, num_codebooks)` of unbounded vectors `(batch, positions, dim)`."""
        raise NotImplementedError

    def nearest_several(self, z: Tensor, count: int, prices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the codes `(n, count)` with the smallest squared distances to vectors `(n, dim)`, and the distances.

        Args:
            z: The vectors.
            count: The number of codes.
            prices: What is added to the distance to each code, `(codebook_size,)`.

        Raises:
            UsageError: This kind has no codebook to search.
        """
        raise UsageError("`effort` above 1 needs residual codebooks of the kind vq with the metric l2; leave it out")

    def search(self, z: Tensor, num_codebooks: int, beam: int, prices: Sequence[Tensor] = ()) -> Tensor:
        """Return codes of the first codebooks with a smaller error than those of `assign`, as `assign` does.

        Args:
            z: The vectors.
            num_codebooks: The number of codebooks whose sum is to come close.
            beam: The number of best paths through residual codebooks that are followed.
            prices: What is added to the squared error for each code of each codebook, such as for its bits.

        Raises:
            UsageError: This kind has no residual codebooks to search.
        """
        codes, _ = self.nearest_several(z.flatten(0, 1), 1)
        return codes.view(*z.shape[:2], 1)

    def lookup(self, codes: Tensor) -> Tensor:
        """Return the vectors `(batch, positions, dim)` of codes, or of codes of only the first codebooks."""
        raise NotImplementedError

    def losses(self, z: Tensor, codes: Tensor, quantized: Tensor) -> Losses:
        """Return the unweighted training losses; `quantized` are the looked-up vectors, without gradient."""
        return {}

    @property
    def ready(self) -> bool:
        """Whether all codebooks are initialized; implicit ones always are."""
        return True

    def prepare(self, z: Tensor) -> None:
        """Initialize from these vectors the codebooks that are not initialized yet."""

    def update(self, z: Tensor, codes: Tensor) -> None:
        """Update codebooks that learn from statistics instead of gradients."""

    def codebooks(self) -> list[Tensor]:
        """Return the vectors `(size, dim)` of each codebook, in the space that it quantizes."""
        (size,) = self.codebook_sizes
        device = next(chain(self.parameters(), self.buffers())).device
        return [self.lookup(torch.arange(size, device=device)[None, :, None])[0]]

    # The methods that all kinds share.

    def quantize(self, z: Tensor, source: Tensor) -> QuantizerOutput:
        """Quantize vectors and, in training, learn from them.

        Args:
            z: The vectors; the gradient of the losses flows into them.
            source: The same vectors; the gradient of the quantized vectors flows into them.
        """
        with torch.no_grad():
            codes = self.assign(z)
        return self.quantize_as(codes, z, source)

    def quantize_as(self, codes: Tensor, z: Tensor, source: Tensor) -> QuantizerOutput:
        """Quantize vectors to given codes `(batch, positions, num_codebooks)`, else as `quantize` does."""
        with torch.no_grad():
            quantized = self.lookup(codes)
        losses: Losses = {}
        if self.training:
            losses = self.losses(z, codes, quantized)
            with torch.no_grad():
                self.update(z.detach(), codes)
        return QuantizerOutput(straight_through(quantized, self.bound(source)), codes, losses)

    def relax(self, z: Tensor) -> Tensor:
        """Return what vectors would be quantized to if the codebooks were infinitely fine."""
        return self.bound(z)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize latents and, in training, learn from them.

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
        """Return latents `(batch, dim, *grid)` as `forward` would without codebooks, for the start of training."""
        with exact(z.device):
            return to_grid(self.relax(to_vectors(z.float())), z.shape[2:]).to(z.dtype)

    @torch.no_grad()
    def encode(
        self, z: Tensor, num_codebooks: int | None = None, beam: int = 1, prices: Sequence[Tensor] = ()
    ) -> Tensor:
        """Return the int64 codes `(batch, num_codebooks, *grid)` of latents `(batch, dim, *grid)`.

        Args:
            z: The latents.
            num_codebooks, beam, prices: As for `search`, which is used with a beam above 1; by default all codebooks.
        """
        with exact(z.device):
            vectors = to_vectors(z.float())
            if beam > 1:
                codes = self.search(vectors, num_codebooks or self.num_codebooks, beam, prices)
            else:
                codes = self.assign(vectors)
            return to_grid(codes, z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the float32 latents of codes, or of codes of only the first codebooks."""
        with exact(codes.device):
            return to_grid(self.lookup(to_vectors(codes)), codes.shape[2:])


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Compute in full float32 precision, even if the networks around use autocast or TF32."""
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
    """Return exactly `values`, but let their gradient flow into `source`, which has the same shape.

    Source: Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons".
    """
    result: Tensor = _StraightThrough.apply(values, source)
    return result


def to_vectors(x: Tensor) -> Tensor:
    """Reshape `(batch, dim, *grid)` to `(batch, positions, dim)`, without a copy if the memory is channels_last."""
    return x.movedim(1, -1).flatten(1, -2)


def to_grid(x: Tensor, grid: torch.Size) -> Tensor:
    """Reshape `(batch, positions, dim)` to `(batch, dim, *grid)`."""
    return x.unflatten(1, grid).movedim(-1, 1)
