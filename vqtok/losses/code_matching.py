"""Cross-modal code matching: images and audio that belong together are drawn to the same codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHARPNESS = 1.0
"""How fast the probability of a code falls with its squared distance, in units of that of neighboring codes."""
SAMPLE = 256
"""Codebook vectors whose distance to their neighbors is measured."""
FLOOR = 1e-6
"""Added to probabilities before the logarithm."""


def code_distributions(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the mean over the positions of the probabilities of the codes, which fall with the distance to a latent.

    Args:
        z: Latents `(batch, dim, *grid)`.
        codebook: The vectors `(codebook_size, dim)`, which get no gradient.

    Returns:
        `(batch, codebook_size)`, with gradients to the latents.

    Source: Liu et al. 2022, "Cross-Modal Discrete Representation Learning", section 3.2.
    Unlike: Distances are divided by the mean distance of a codebook vector to its neighbor, so that the scale of
        latents and codebook does not matter.
    """
    with torch.autocast(z.device.type, enabled=False):
        codebook = codebook.detach().float()
        distances = _squared_distances(z.float().movedim(1, -1).flatten(1, -2), codebook)
        # A vector is the nearest to itself. A part of a large codebook is enough for the mean.
        among = _squared_distances(codebook[None, :SAMPLE], codebook)
        spacing = among.topk(2, largest=False).values[..., 1].mean().clamp(min=1e-12)
        return (-SHARPNESS * distances / spacing).softmax(-1).mean(1)


def code_matching_loss(image: Tensor, audio: Tensor, pairs: Tensor) -> Tensor:
    """Return how hard it is to find the partner of an item in the batch by the similarity of their code distributions.

    The similarity of two items is the negative symmetric cross entropy of their distributions. The loss is the cross
    entropy of the softmax of an item's similarities to all items of the other modality, at its partners.

    Shapes:
        image, audio: `(pairs, codebook_size)`; rows at the same place belong together.
        pairs: `(pairs,)`; pairs with the same number are partners of each other, too.

    Source: Liu et al. 2022, "Cross-Modal Discrete Representation Learning", section 3.3; several partners as in Khosla
        et al. 2020, "Supervised Contrastive Learning", section 3.2 (the sum outside of the logarithm).
    Unlike: Averaged over both directions, from images to audio and from audio to images.
    """
    similarity = image @ (audio + FLOOR).log().T + (image + FLOOR).log() @ audio.T
    partners = (pairs[:, None] == pairs).float()
    partners /= partners.sum(1, keepdim=True)
    return (F.cross_entropy(similarity, partners) + F.cross_entropy(similarity.T, partners)) / 2


def _squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Return the squared distances `(batch, positions, size)` of vectors `(batch, positions, dim)` to a codebook."""
    products = vectors @ codebook.T
    return (vectors.square().sum(-1, keepdim=True) - 2 * products + codebook.square().sum(-1)).clamp(min=0)
