"""`IBQ`: index backpropagation quantization, which selects the codebook vector with the largest product."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.quantizers.base import Losses, Quantizer
from vqtok.quantizers.codebook import nearest

ENTROPY_TEMPERATURE = 0.01


class IBQ(Quantizer):
    """Replaces each vector by the codebook vector with the largest product; the gradient reaches all codebook vectors.

    The gradient passes through a softmax over the codes, to the codebook and to the latent. There are commitment,
    codebook and entropy losses. The entropy loss is the mean entropy of a vector's soft assignment minus the entropy of
    the mean assignment, in nats.

    Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization", section 3.2.
    Unlike: The reconstruction's gradient reaches the codebook through the softmax alone, not also through the selected
        vector, which the codebook loss moves.
    """

    codebook: Tensor

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__()
        self.dim, self.codebook_sizes = dim, (codebook_size,)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def bound(self, z: Tensor) -> Tensor:
        return F.softmax(z @ self.codebook.T, dim=-1) @ self.codebook

    def assign(self, z: Tensor) -> Tensor:
        return nearest(z.flatten(0, 1), self.codebook, "dot").view(*z.shape[:2], 1)

    def lookup(self, codes: Tensor) -> Tensor:
        return F.embedding(codes[..., 0], self.codebook)

    def losses(self, z: Tensor, codes: Tensor, quantized: Tensor) -> Losses:
        soft = F.softmax(z.flatten(0, 1) @ self.codebook.T / ENTROPY_TEMPERATURE, dim=-1)
        return {
            "commitment": F.mse_loss(z, quantized),
            "codebook": F.mse_loss(self.lookup(codes), z.detach()),
            "entropy": _entropy(soft).mean() - _entropy(soft.mean(0)),
        }


def _entropy(shares: Tensor) -> Tensor:
    # Without the clamp the gradient would be infinite for a code of probability 0.
    return -(shares * shares.clamp(min=1e-12).log()).sum(-1)
