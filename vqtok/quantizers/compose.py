"""Quantisers made of quantisers: `Residual`, `Grouped`, `Projected`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.quantizers.base import Losses, Quantizer


class _Composition(Quantizer):
    """A quantiser whose codebooks are those of its parts, one after the other."""

    def __init__(self, parts: Sequence[Quantizer], dim: int) -> None:
        super().__init__()
        self.parts = cast("Sequence[Quantizer]", nn.ModuleList(parts))
        self.dim = dim
        self.codebook_sizes = tuple(size for part in parts for size in part.codebook_sizes)

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self.parts)

    @overload
    def _with_codes(self, codes: Tensor) -> Iterator[tuple[Quantizer, Tensor]]: ...

    @overload
    def _with_codes(self, codes: Tensor | None) -> Iterator[tuple[Quantizer, Tensor | None]]: ...

    def _with_codes(self, codes: Tensor | None) -> Iterator[tuple[Quantizer, Tensor | None]]:
        """Yield each part with its codes; where `codes` is a prefix, only the parts that it reaches."""
        for part in self.parts:
            if codes is None:
                yield part, None
                continue
            own, codes = codes[..., : part.num_codebooks], codes[..., part.num_codebooks :]
            if own.shape[-1]:
                yield part, own


class Residual(_Composition):
    """Quantise with each part what the parts before it left over; coarse first, so that a prefix decodes.

    In training each item of the batch decodes from a random prefix of the parts with probability
    `prefix_dropout`, else from all. Every codebook learns from every item, since codes do not depend on it.

    Source: Zeghidour et al. 2021, "SoundStream", section III-C (residual VQ, quantizer dropout); Kumar et al.
        2023, "High-Fidelity Audio Compression with Improved RVQGAN", section 3.3 (dropout probability).
    Unlike: the logarithm of the prefix length is uniform, so that 1, 2-3 and 4-7 of 8 codebooks get equal
        shares (with a uniform length the coarse rates are hardly trained); commitment losses see z less the
        *detached* parts before, so that each reaches the encoder, while the reconstruction has the gradient
        of one straight-through, whatever the depth.
    """

    def __init__(self, parts: Sequence[Quantizer], *, prefix_dropout: float = 0.5) -> None:
        super().__init__(parts, parts[0].dim)
        self.prefix_dropout = prefix_dropout

    def assign(self, z: Tensor) -> Tensor:
        codes: list[Tensor] = []
        for part in self.parts:
            codes.append(part.assign(z))
            z = z - part.lookup(codes[-1])
        return torch.cat(codes, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        total = torch.zeros(())
        for part, own in self._with_codes(codes):
            total = part.lookup(own) + total
        return total

    def straight_through(self, z: Tensor, codes: Tensor | None) -> Tensor:
        lengths = self._prefix_lengths(z)
        total = torch.zeros(())
        for depth, (part, own) in enumerate(self._with_codes(codes)):
            quantized = part.straight_through(z, own)
            # The residual keeps its graph: for lookup kinds its gradient is 1 - 1 = 0; only the first counts.
            z = z - quantized
            total = (quantized if lengths is None else quantized * (lengths > depth)) + total
        return total

    def _prefix_lengths(self, z: Tensor) -> Tensor | None:
        """Draw how many parts each item decodes from: `(batch, 1, 1)`, or None for all."""
        if not self.training or self.prefix_dropout == 0:
            return None
        batch, full = z.shape[0], len(self.parts)
        short = torch.rand(batch) < self.prefix_dropout
        drawn = (full ** torch.rand(batch)).long().clamp(max=full)
        return torch.where(short, drawn, full).view(-1, 1, 1).to(z.device)

    def losses(self, z: Tensor, codes: Tensor) -> Losses:
        losses = []
        for part, own in self._with_codes(codes):
            losses.append(part.losses(z, own))
            z = z - part.lookup(own).detach()
        return _average(losses)

    def prepare(self, z: Tensor) -> None:
        for part in self.parts:
            part.prepare(z)
            z = z - part.lookup(part.assign(z))

    def update(self, z: Tensor, codes: Tensor) -> None:
        for part, own in self._with_codes(codes):
            quantized = part.lookup(own)
            part.update(z, own)
            z = z - quantized


class Grouped(_Composition):
    """Quantise slices of the vector side by side, each with its own part; groups a prefix lacks are zero.

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", section II-B.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__(parts, sum(part.dim for part in parts))
        self._dims = [part.dim for part in parts]

    def assign(self, z: Tensor) -> Tensor:
        slices = z.split(self._dims, dim=-1)
        return torch.cat([part.assign(own) for part, own in zip(self.parts, slices, strict=True)], dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        known = torch.cat([part.lookup(own) for part, own in self._with_codes(codes)], dim=-1)
        return F.pad(known, (0, self.dim - known.shape[-1]))

    def straight_through(self, z: Tensor, codes: Tensor | None) -> Tensor:
        slices = zip(self._with_codes(codes), z.split(self._dims, dim=-1), strict=False)
        known = torch.cat([part.straight_through(own, c) for (part, c), own in slices], dim=-1)
        return F.pad(known, (0, self.dim - known.shape[-1]))

    def losses(self, z: Tensor, codes: Tensor) -> Losses:
        return _average([part.losses(own, c) for part, own, c in self._slices(z, codes)])

    def prepare(self, z: Tensor) -> None:
        for part, own in zip(self.parts, z.split(self._dims, dim=-1), strict=True):
            part.prepare(own)

    def update(self, z: Tensor, codes: Tensor) -> None:
        for part, own, c in self._slices(z, codes):
            part.update(own, c)

    def _slices(self, z: Tensor, codes: Tensor) -> Iterator[tuple[Quantizer, Tensor, Tensor]]:
        for (part, c), own in zip(self._with_codes(codes), z.split(self._dims, dim=-1), strict=True):
            yield part, own, c


class Projected(Quantizer):
    """Quantise in a space of another size, reached and left by learned linear maps.

    Source: Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN", section 3.2 (factorised
        codes).
    """

    def __init__(self, inner: Quantizer, dim: int) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = dim, inner.codebook_sizes
        self.inner = inner
        self.project_in = nn.Linear(dim, inner.dim)
        self.project_out = nn.Linear(inner.dim, dim)

    def assign(self, z: Tensor) -> Tensor:
        return self.inner.assign(self.project_in(z))

    def lookup(self, codes: Tensor) -> Tensor:
        return self.project_out(self.inner.lookup(codes))

    def straight_through(self, z: Tensor, codes: Tensor | None) -> Tensor:
        return self.project_out(self.inner.straight_through(self.project_in(z), codes))

    def losses(self, z: Tensor, codes: Tensor) -> Losses:
        return self.inner.losses(self.project_in(z), codes)

    @property
    def ready(self) -> bool:
        return self.inner.ready

    def prepare(self, z: Tensor) -> None:
        self.inner.prepare(self.project_in(z))

    def update(self, z: Tensor, codes: Tensor) -> None:
        self.inner.update(self.project_in(z), codes)


def _average(losses: Sequence[Losses]) -> Losses:
    """Average the losses of the same name over the parts that have them."""
    names = dict.fromkeys(name for part in losses for name in part)
    return {name: torch.stack([part[name] for part in losses if name in part]).mean() for name in names}
