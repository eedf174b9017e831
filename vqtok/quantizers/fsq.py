"""`FSQ`: finite scalar quantization, which rounds each dimension to a few fixed levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqtok.quantizers.base import Quantizer


class FSQ(Quantizer):
    """Rounds each bounded dimension to one of its `levels`; the codebook is their product and is not learned.

    Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple", section 3.1.
    """

    levels: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = len(levels), (math.prod(levels),)
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        places = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        # Without the margin of 0.1 % (as in the paper's code) no finite latent would reach the outermost levels.
        half = (self.levels - 1) * 1.001 / 2
        offset = (self.levels % 2 == 0) * 0.5
        return (torch.tanh(z + torch.atanh(offset / half)) * half - offset) / (self.levels // 2)

    def assign(self, z: Tensor) -> Tensor:
        half_width = self.levels // 2
        digits = torch.round(self.bound(z) * half_width).long() + half_width
        return (digits * self.places).sum(-1, keepdim=True)

    def lookup(self, codes: Tensor) -> Tensor:
        half_width = self.levels // 2
        return (codes // self.places % self.levels - half_width) / half_width
