"""`VQ`: vector quantization with one learned codebook."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.compute.distributed import all_reduce, broadcast
from vqtok.quantizers.base import Losses, Quantizer
from vqtok.quantizers.codebook import cluster_sums, kmeans, nearest, nearest_several, pick, repeated


class VQ(Quantizer):
    """Replaces each vector by the nearest vector of a learned codebook.

    Args:
        dim: Dimension of the vectors.
        codebook_size: Number of codebook vectors.
        metric: "l2", or "cosine" (latents and codebook are normalized; decoded vectors have length 1).
        learning: "ema" (codebook vectors follow the running mean of their latents) or "gradient" (codebook loss).
        decay: Decay of the running means and of the usage counts.
        restart_below: A code whose usage is below this fraction of uniform usage restarts from a current latent.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", sections 3.1-3.2 and
        appendix A.1 (EMA); Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN", section 3.2
        (cosine); Dhariwal et al. 2020, "Jukebox", section 3.1 (restarts); Zeghidour et al. 2021,
        "SoundStream", section III-C (k-means start over the first latents).
    Unlike: The threshold of restarts is a fraction of uniform usage, which does not depend on the batch size.
    """

    statistics = ("initialised", "counts", "sums")
    """Names of the buffers that only training needs."""
    frozen = False
    """Whether training leaves the codebook unchanged."""
    waiting: list[tuple[Tensor, Tensor]] | None = None
    """Vectors and codes to learn from at the end of `one_update`; None outside of it."""

    codebook: Tensor
    initialised: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        metric: Literal["l2", "cosine"] = "l2",
        learning: Literal["ema", "gradient"] = "ema",
        decay: float = 0.99,
        restart_below: float = 0.03,
    ) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = dim, (codebook_size,)
        self.metric, self.learning = metric, learning
        self.decay, self.restart_below = decay, restart_below
        codebook = self._normalize(torch.randn(codebook_size, dim))
        if learning == "gradient":
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        self.register_buffer("initialised", torch.tensor(False))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codebook.clone())

    def _normalize(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, dim=-1) if self.metric == "cosine" else vectors

    def assign(self, z: Tensor) -> Tensor:
        vectors = self._normalize(z.flatten(0, 1))
        return nearest(vectors, self._normalize(self.codebook)).view(*z.shape[:2], 1)

    def nearest_several(self, z: Tensor, count: int, prices: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.metric == "cosine":
            return super().nearest_several(z, count, prices)
        return nearest_several(z, self.codebook, min(count, len(self.codebook)), prices)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self._normalize(self.codebook))

    def losses(self, z: Tensor, codes: Tensor, quantized: Tensor) -> Losses:
        vectors = self._normalize(z)
        losses = {"commitment": F.mse_loss(vectors, quantized)}
        if self.learning == "gradient":
            losses["codebook"] = F.mse_loss(self.lookup(codes), vectors.detach())
        return losses

    @property
    def ready(self) -> bool:
        return bool(self.initialised)

    def prepare(self, z: Tensor) -> None:
        vectors = self._normalize(z.flatten(0, 1))
        if self.ready or not vectors.isfinite().all():
            return  # Wait for a batch of finite vectors.
        centers, counts = kmeans(vectors, *self.codebook_sizes)
        # Scaled to one vector per code on average. With the counts of all vectors the first updates would have hardly
        # any effect.
        self._set(slice(None), centers, (counts + 1) / (counts + 1).mean())
        self.initialised.fill_(True)

    def update(self, z: Tensor, codes: Tensor) -> None:
        if self.waiting is not None:
            # As one item each, since the items of several modalities have grids of several sizes.
            self.waiting.append((z.flatten(0, 1)[None], codes.flatten(0, 1)[None]))
        elif not self.frozen:
            self._learn(self._normalize(z.flatten(0, 1)), codes.flatten())

    @torch.no_grad()
    def _learn(self, vectors: Tensor, codes: Tensor) -> None:
        counts, sums = map(all_reduce, cluster_sums(vectors, codes, *self.codebook_sizes))
        if not sums.sum().isfinite():
            return  # A single NaN would stay in the running means forever.
        # Counts are in units of uniform usage, so that restarts do not depend on the size of the batch.
        scale = counts.shape[0] / counts.sum()
        self.counts.lerp_(counts * scale, 1 - self.decay)
        self.sums.lerp_(sums * scale, 1 - self.decay)
        if self.learning == "ema":
            self.codebook.copy_(self._normalize(self.sums / self.counts.clamp(min=1e-6)[:, None]))
        dead = self.counts < self.restart_below
        if dead.any():
            self._set(dead, broadcast(pick(vectors, int(dead.sum()))), torch.ones(()))

    def reset_statistics(self) -> None:
        """Mark the codebook as initialized, with all codes equally used."""
        self.initialised.fill_(True)
        self._set(slice(None), self.codebook.detach().clone(), torch.ones(()))

    def _set(self, rows: Tensor | slice, vectors: Tensor, counts: Tensor) -> None:
        vectors = self._normalize(vectors)
        self.codebook.data[rows] = vectors
        self.counts[rows] = counts.to(self.counts)
        self.sums[rows] = vectors * self.counts[rows, None]


@contextmanager
def one_update(module: nn.Module, *, equal: bool = False) -> Iterator[None]:
    """Update codebooks only once, at the end, from all vectors quantized in between, such as the parts of a batch.

    Args:
        module: Contains the codebooks.
        equal: Whether each call of a quantizer in between has the same weight, however many vectors it quantizes.
    """
    codebooks = [part for part in module.modules() if isinstance(part, VQ)]
    for codebook in codebooks:
        codebook.waiting = []
    try:
        yield
    finally:
        gathered = [codebook.waiting or [] for codebook in codebooks]
        for codebook in codebooks:
            codebook.waiting = None
    for codebook, batches in zip(codebooks, gathered, strict=True):
        if batches:
            sets = [repeated(tensors) if equal else tensors for tensors in zip(*batches, strict=True)]
            codebook.update(*(torch.cat(tensors, dim=1) for tensors in sets))
