"""Quantizers made of quantizers: `Residual`, `Grouped`, `Projected`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.quantizers.base import Losses, Quantizer, QuantizerOutput, straight_through


class _Composition(Quantizer):
    """A quantizer whose codebooks are those of its parts, in order."""

    def __init__(self, parts: Sequence[Quantizer], dim: int) -> None:
        super().__init__()
        self.parts = cast("Sequence[Quantizer]", nn.ModuleList(parts))
        self.dim = dim
        self.codebook_sizes = tuple(size for part in parts for size in part.codebook_sizes)

    @property
    def ready(self) -> bool:
        return all(part.ready for part in self.parts)

    def codebooks(self) -> list[Tensor]:
        return [vectors for part in self.parts for vectors in part.codebooks()]

    def _with_codes(self, codes: Tensor) -> Iterator[tuple[Quantizer, Tensor]]:
        """Yield each part with its codes; if `codes` has only the first codebooks, only the parts they belong to."""
        for part in self.parts:
            own, codes = codes[..., : part.num_codebooks], codes[..., part.num_codebooks :]
            if own.shape[-1]:
                yield part, own


class Residual(_Composition):
    """Quantizes with each part the residual of the parts before it; coarse to fine, so that a prefix can be decoded.

    In training, each item of a batch is decoded from a random prefix of the parts with probability `prefix_dropout`,
    else from all parts. Every codebook learns from every item.

    Args:
        parts: The quantizers, coarse to fine.
        prefix_dropout: The probability above.
        beam: The number of paths through the parts that are followed in training. The best one for an item's prefix is
            taken. `encode` has its own.

    Source: Zeghidour et al. 2021, "SoundStream", section III-C (residual VQ, quantizer dropout); Kumar et al.
        2023, "High-Fidelity Audio Compression with Improved RVQGAN", section 3.3 (dropout probability).
    Unlike: The logarithm of the prefix length is uniform, so that 1, 2-3 and 4-7 of 8 codebooks are equally likely;
        with a uniform length the coarse rates are hardly trained. The commitment loss of a part sees z minus the
        *detached* outputs of the parts before, so that it reaches the encoder, while the gradient of the
        reconstruction is that of a single straight-through at any depth.
    """

    def __init__(self, parts: Sequence[Quantizer], *, prefix_dropout: float = 0.5, beam: int = 1) -> None:
        super().__init__(parts, parts[0].dim)
        self.prefix_dropout, self.beam = prefix_dropout, beam

    def assign(self, z: Tensor) -> Tensor:
        codes: list[Tensor] = []
        for part in self.parts:
            codes.append(part.assign(z))
            z = z - part.lookup(codes[-1])
        return torch.cat(codes, dim=-1)

    def search(self, z: Tensor, num_codebooks: int, beam: int, prices: Sequence[Tensor] = ()) -> Tensor:
        return self._search(z, num_codebooks, beam, prices)

    def _search(
        self,
        z: Tensor,
        num_codebooks: int,
        beam: int,
        prices: Sequence[Tensor] = (),
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Follow the `beam` best paths through the codebooks, and return the one with the smallest error and price.

        Args:
            lengths: The numbers of codebooks `(batch, 1, 1)` after which only the best path of an item goes on.

        Source: Babenko and Lempitsky 2014, "Additive Quantization for Extreme Vector Compression", section 3.1 (beam
            search).
        """
        ends = None if lengths is None else lengths.expand(*z.shape[:2], 1).reshape(-1, 1)
        residuals = z.flatten(0, 1)[:, None]  # (positions, paths, dim)
        paths = torch.zeros(*residuals.shape[:2], 0, dtype=torch.int64, device=z.device)
        paid = residuals.new_zeros(paths.shape[:2])
        for depth, (part, own) in enumerate(zip_longest(self.parts[:num_codebooks], prices[:num_codebooks])):
            if ends is not None and depth:
                paid[:, 1:].masked_fill_(ends == depth, torch.inf)
            count = residuals.shape[1]
            codes, costs = part.nearest_several(residuals.flatten(0, 1), beam, own)
            candidates = codes.shape[1]
            costs = (costs.view(-1, count, candidates) + paid[..., None]).flatten(1)
            kept = costs.topk(min(beam, costs.shape[1]), dim=1, largest=False).indices
            codes = codes.view(-1, count * candidates).gather(1, kept)
            origin = kept // candidates
            residuals = _rows_of(residuals, origin) - part.lookup(codes[..., None])
            paths = torch.cat([_rows_of(paths, origin), codes[..., None]], dim=-1)
            paid = paid.gather(1, origin) + (0 if own is None else own[codes])
        return paths[:, 0].view(*z.shape[:2], -1)

    def lookup(self, codes: Tensor) -> Tensor:
        total = torch.zeros(())
        for part, own in self._with_codes(codes):
            total = part.lookup(own) + total
        return total

    def quantize(self, z: Tensor, source: Tensor) -> QuantizerOutput:
        whole, lengths = z, self._prefix_lengths(z)
        searched = None
        if self.training and self.beam > 1:
            with torch.no_grad():
                searched = self._search(z.detach(), len(self.parts), self.beam, lengths=lengths)
        outputs: list[QuantizerOutput] = []
        total = torch.zeros(())
        for depth, part in enumerate(self.parts):
            if searched is None:
                output = part.quantize(z, source)
            else:
                output = part.quantize_as(searched[..., depth : depth + 1], z, source)
            outputs.append(output)
            total = total + (output.quantized if lengths is None else output.quantized * (lengths > depth))
            # The residual stays in the graph. For kinds that look vectors up its gradient is 1 - 1 = 0, so that only
            # the first part passes the gradient of the reconstruction on.
            source = source - output.quantized
            z = straight_through(source.detach(), whole)
        codes = torch.cat([output.codes for output in outputs], dim=-1)
        return QuantizerOutput(total, codes, _average([output.losses for output in outputs]))

    def relax(self, z: Tensor) -> Tensor:
        total = torch.zeros(())
        for part in self.parts:
            relaxed = part.relax(z)
            z, total = z - relaxed, total + relaxed
        return total

    def _prefix_lengths(self, z: Tensor) -> Tensor | None:
        """Draw the number of parts that each item is decoded from, `(batch, 1, 1)`; None stands for all parts."""
        if not self.training or self.prefix_dropout == 0:
            return None
        batch, full = z.shape[0], len(self.parts)
        short = torch.rand(batch) < self.prefix_dropout
        drawn = (full ** torch.rand(batch)).long().clamp(max=full)
        return torch.where(short, drawn, full).view(-1, 1, 1).to(z.device)

    def prepare(self, z: Tensor) -> None:
        for part in self.parts:
            part.prepare(z)
            z = z - part.lookup(part.assign(z))


class Grouped(_Composition):
    """Quantizes slices of the vector separately, each with a part; slices that a prefix lacks are decoded as zero.

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", section II-B.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__(parts, sum(part.dim for part in parts))
        self._dims = [part.dim for part in parts]

    def assign(self, z: Tensor) -> Tensor:
        slices = z.split(self._dims, dim=-1)
        return torch.cat([part.assign(own) for part, own in zip(self.parts, slices, strict=True)], dim=-1)

    def search(self, z: Tensor, num_codebooks: int, beam: int, prices: Sequence[Tensor] = ()) -> Tensor:
        found = []
        for part, own in zip(self.parts, z.split(self._dims, dim=-1), strict=True):
            if num_codebooks > 0:
                found.append(part.search(own, min(num_codebooks, part.num_codebooks), beam, prices))
            num_codebooks, prices = num_codebooks - part.num_codebooks, prices[part.num_codebooks :]
        return torch.cat(found, dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        known = torch.cat([part.lookup(own) for part, own in self._with_codes(codes)], dim=-1)
        return F.pad(known, (0, self.dim - known.shape[-1]))

    def quantize(self, z: Tensor, source: Tensor) -> QuantizerOutput:
        slices = zip(self.parts, z.split(self._dims, dim=-1), source.split(self._dims, dim=-1), strict=True)
        outputs = [part.quantize(*own) for part, *own in slices]
        quantized = torch.cat([output.quantized for output in outputs], dim=-1)
        codes = torch.cat([output.codes for output in outputs], dim=-1)
        return QuantizerOutput(quantized, codes, _average([output.losses for output in outputs]))

    def relax(self, z: Tensor) -> Tensor:
        slices = zip(self.parts, z.split(self._dims, dim=-1), strict=True)
        return torch.cat([part.relax(own) for part, own in slices], dim=-1)

    def prepare(self, z: Tensor) -> None:
        for part, own in zip(self.parts, z.split(self._dims, dim=-1), strict=True):
            part.prepare(own)


class Projected(Quantizer):
    """Quantizes in a space of another dimension, between two learned linear maps.

    Source: Yu et al. 2021, "Vector-quantized Image Modeling with Improved VQGAN", section 3.2 (factorized
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

    def search(self, z: Tensor, num_codebooks: int, beam: int, prices: Sequence[Tensor] = ()) -> Tensor:
        return self.inner.search(self.project_in(z), num_codebooks, beam, prices)

    def lookup(self, codes: Tensor) -> Tensor:
        return self.project_out(self.inner.lookup(codes))

    def quantize(self, z: Tensor, source: Tensor) -> QuantizerOutput:
        inner = self.inner.quantize(self.project_in(z), self.project_in(source))
        return inner._replace(quantized=self.project_out(inner.quantized))

    def codebooks(self) -> list[Tensor]:
        return self.inner.codebooks()

    def relax(self, z: Tensor) -> Tensor:
        return self.project_out(self.inner.relax(self.project_in(z)))

    @property
    def ready(self) -> bool:
        return self.inner.ready

    def prepare(self, z: Tensor) -> None:
        self.inner.prepare(self.project_in(z))


def _rows_of(x: Tensor, rows: Tensor) -> Tensor:
    """Return `x[i, rows[i]]` for all i, of `(n, count, dim)` and `(n, kept)`."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def _average(losses: Sequence[Losses]) -> Losses:
    """Return the mean of each loss over the parts that have it."""
    names = dict.fromkeys(name for part in losses for name in part)
    return {name: torch.stack([part[name] for part in losses if name in part]).mean() for name in names}
