"""`LFQ`, lookup-free quantization, and its spherical form `BSQ`: a code is the signs of the dimensions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.quantizers.base import Losses, Quantizer

JOINT_BITS = 8
"""Number of bits in a group whose joint distribution is computed for the entropy loss."""


class LFQ(Quantizer):
    """Quantizes each dimension to +1 or -1; a code is the signs as a binary number, most significant bit first.

    There is a commitment loss and an entropy loss: the mean entropy of a vector's soft assignment (low if decisive)
    minus the entropy of the mean assignment (high if all codes are used), in nats.

    Source: Yu et al. 2023, "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", section
        3.1.
    Unlike: The entropy of the mean assignment is summed over groups of eight bits, an upper bound (Zhao et al.
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
        # The squared distances to +scale and -scale differ by 4 * scale * z. The softmax over all codes is therefore a
        # product of one logistic function per bit.
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
    """Projects on the unit sphere, then takes the sign of each dimension, scaled to unit length.

    Source: Zhao et al. 2024, "Image and Video Tokenization with Binary Spherical Quantization", section
        4.1.
    """

    def __init__(self, dim: int, *, inverse_temperature: float = 1.0) -> None:
        super().__init__(dim, inverse_temperature=inverse_temperature)
        self.scale = 1 / math.sqrt(dim)

    def bound(self, z: Tensor) -> Tensor:
        return F.normalize(z, dim=-1)


def _joint_entropy(ones: Tensor) -> Tensor:
    """Return the entropy in nats of the mean joint distribution of independent bits `(n, bits)`."""
    joint = torch.ones_like(ones[:, :1])
    for bit in ones.unbind(-1):
        joint = torch.cat([joint * (1 - bit)[:, None], joint * bit[:, None]], dim=-1)
    mean = joint.mean(0)
    # Without the clamp the gradient would be infinite for codes of probability 0, which are most in a small batch.
    return -(mean * mean.clamp(min=1e-12).log()).sum()
