"""`LFQ` and its spherical form `BSQ`: the sign of each dimension."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.quantizers.base import Losses, Quantizer

JOINT_BITS = 8
"""Bits whose joint distribution the batch entropy counts at once."""


class LFQ(Quantizer):
    """Quantise each dimension to +1 or -1; a code is its signs in binary, the first the most significant bit.

    The losses hold a commitment and an entropy term: mean entropy of a vector's soft assignment (low:
    decisive) less the entropy of the mean assignment (high: all codes used), in nats.

    Source: Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", section
        3.1.
    Unlike: the mean assignment's entropy is summed over groups of eight bits, an upper bound (Zhao et al.
        2024, "Image and Video Tokenization with Binary Spherical Quantization", section 4.1), so that memory
        does not grow with 2 ** dim.
    """

    places: Tensor

    def __init__(self, dim: int, *, inverse_temperature: float = 100.0) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = dim, (2**dim,)
        self.scale = 1.0
        self.inverse_temperature = inverse_temperature
        self.register_buffer("places", 2 ** torch.arange(dim - 1, -1, -1), persistent=False)

    def assign(self, z: Tensor) -> Tensor:
        return ((z > 0) * self.places).sum(-1, keepdim=True)

    def lookup(self, codes: Tensor) -> Tensor:
        return ((codes // self.places % 2) * 2 - 1) * self.scale

    def losses(self, z: Tensor, codes: Tensor, quantized: Tensor) -> Losses:
        bounded = self.bound(z)
        # Squared distances to +scale and -scale differ by 4 * scale * z: a logistic per bit.
        logits = (4 * self.scale * self.inverse_temperature * bounded).flatten(0, 1)
        ones = torch.sigmoid(logits)
        decisiveness = F.binary_cross_entropy_with_logits(logits, ones, reduction="none").sum(-1).mean()
        groups = torch.split(ones, JOINT_BITS, dim=-1)
        diversity = torch.stack([_joint_entropy(group) for group in groups]).sum()
        return {
            "commitment": F.mse_loss(bounded, quantized),
            "entropy": decisiveness - diversity,
        }


class BSQ(LFQ):
    """Project on the unit sphere, then take the sign of each dimension (scaled to length 1).

    Source: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization", section
        4.1.
    """

    def __init__(self, dim: int, *, inverse_temperature: float = 1.0) -> None:
        super().__init__(dim, inverse_temperature=inverse_temperature)
        self.scale = 1 / math.sqrt(dim)

    def bound(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)


def _joint_entropy(ones: Tensor) -> Tensor:
    """Give the entropy (nats) of the mean joint distribution of independent bits `(n, bits)`."""
    joint = torch.ones_like(ones[:, :1])
    for bit in ones.unbind(-1):
        joint = torch.cat([joint * (1 - bit)[:, None], joint * bit[:, None]], dim=-1)
    mean = joint.mean(0)
    # The clamp keeps the gradient finite where a code has no mass at all, as most have in a small batch.
    return -(mean * mean.clamp(min=1e-12).log()).sum()
