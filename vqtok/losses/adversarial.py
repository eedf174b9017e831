"""Adversarial losses, the regularization of discriminators, and the choice of loss weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.config import AdversarialKind

Average = Callable[[Tensor], Tensor]
"""Returns the mean of a tensor over the processes that train together."""


def discriminator_loss(kind: AdversarialKind, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Compute the loss of the discriminators, averaged over them and over originals and reconstructions.

    The loss of a discriminator that cannot distinguish them is 1 (`hinge`), log 2 (`non_saturating`) or 1/4
    (`least_squares`).

    Source: Lim and Ye 2017, "Geometric GAN" (hinge); Goodfellow et al. 2014, section 3 (non-saturating); Mao et al.
        2017, "Least Squares Generative Adversarial Networks", with 1 for originals and 0 for reconstructions.
    """
    return _mean(
        (_cost(kind, original, is_real=True) + _cost(kind, copy, is_real=False)) / 2
        for original, copy in zip(real, fake, strict=True)
    )


def generator_loss(kind: AdversarialKind, fake: Sequence[Tensor]) -> Tensor:
    """Compute the loss of the model, low if its reconstructions are classified as originals; sources as above."""
    if kind == "hinge":  # Without the margin, so that the gradient never vanishes.
        return _mean(-logits.mean() for logits in fake)
    return _mean(_cost(kind, logits, is_real=True) for logits in fake)


def _cost(kind: AdversarialKind, logits: Tensor, *, is_real: bool) -> Tensor:
    if kind == "least_squares":
        return (logits - float(is_real)).square().mean()
    logits = -logits if is_real else logits
    return (F.relu(1 + logits) if kind == "hinge" else F.softplus(logits)).mean()


def accuracy(kind: AdversarialKind, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Compute the fraction of patches that are classified correctly; 0.5 is chance level."""
    border = 0.5 if kind == "least_squares" else 0.0
    originals = _mean((logits > border).float().mean() for logits in real)
    copies = _mean((logits < border).float().mean() for logits in fake)
    return (originals + copies) / 2


def feature_matching_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Compute the mean absolute difference of features relative to the originals' magnitude, averaged over layers.

    Source: Défossez et al. 2022, "High Fidelity Neural Audio Compression", section 3.4.
    """
    return _mean(
        (copy.float() - original).abs().mean() / original.abs().mean().clamp(min=1e-5)
        for original, copy in zip([feature.detach().float() for feature in real], fake, strict=True)
    )


def gradient_penalty(logits: Sequence[Tensor], x: Tensor) -> Tensor:
    """Compute half the squared norm of the gradient of the mean logit of an original, averaged over originals (R1).

    Args:
        logits: Those of each discriminator for `x`.
        x: The originals, which need a gradient.

    Source: Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", section 4.1.
    Unlike: The mean over patches and discriminators takes the place of a single logit.
    """
    mean = _mean(own.float().flatten(1).mean(1).sum() for own in logits)
    (gradient,) = torch.autograd.grad(mean, x, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean() / 2


class LeCam(nn.Module):
    """Regularizes discriminators: pulls their logits of originals towards the running mean of those of reconstructions,
    and the other way round.

    Source: Tseng et al. 2021, "Regularizing Generative Adversarial Networks under Limited Data", section 3.2; the
        decay of 0.99 from its code.
    Unlike: The paper's equation penalizes both directions; this is one-sided, like its code. The running means are
        those before the step, so that a batch can be processed in parts; in the first step the loss is 0.
    """

    decay = 0.99
    anchors: Tensor
    updates: Tensor

    def __init__(self, discriminators: int) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.zeros(2, discriminators))
        self.register_buffer("updates", torch.zeros(()))

    def forward(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Compute the loss from logits."""
        real_anchors, fake_anchors = self.anchors
        loss = _mean(
            F.relu(original - fake_anchor).square().mean() + F.relu(real_anchor - copy).square().mean()
            for original, copy, real_anchor, fake_anchor in zip(real, fake, real_anchors, fake_anchors, strict=True)
        )
        return loss * self.updates.clamp(max=1)

    def update(self, means: Tensor) -> None:
        """Update the running means with the mean logits of a step: `(2, discriminators)`, first those of originals."""
        if means.isfinite().all():
            # At first a plain mean, so that the initial zeros have no influence.
            self.updates += 1
            self.anchors.lerp_(means, max(1 - self.decay, 1 / self.updates.item()))


def mean_logits(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Compute the mean logits for `LeCam.update`."""
    return torch.stack([torch.stack([logits.detach().mean() for logits in side]) for side in (real, fake)])


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, layer: Tensor, average: Average) -> float:
    """Compute the weight that gives the adversarial loss the same gradient norm at a layer as the reconstruction loss.

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", section 3.1; the limits from
        its code.
    """
    gradients = [torch.autograd.grad(loss, layer, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
    norms = [average(gradient).norm() for gradient in gradients]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4).item()


class Balancer(nn.Module):
    """Computes loss weights that give each loss a fixed share of the gradient at the reconstruction.

    Its state is the running means of the norms of the gradients.

    Args:
        shares: The share of each loss by name, relative to those of the other losses that are active in a step.
        average: Returns the mean over processes.

    Source: Défossez et al. 2022, "High Fidelity Neural Audio Compression", section 3.4; norms averaged over the items
        of a batch as in its code.
    Unlike: The decay is 0.99 instead of 0.999, for norms that are measured in every tenth step. The sum of the
        gradients is not scaled to a fixed norm; the first loss keeps its own scale. Otherwise the losses of the
        codebooks, which are not balanced, would weigh more or less according to the number of pixels: with 28 x 28
        pixels the commitment loss lost nearly all its effect, and the latents grew without limit.
    """

    decay = 0.99

    def __init__(self, shares: Mapping[str, float], average: Average) -> None:
        super().__init__()
        self.average = average
        self.shares = {name: share for name, share in shares.items() if share > 0}
        for name in self.shares:
            # The running sum of the gradient's norms, and its total weight.
            self.register_buffer(name, torch.zeros(2))

    def weights(self, norms: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of the losses with these norms. The weight of the first one is its share."""
        first = next(iter(norms.values()), 1.0)
        return {name: self.shares[name] * first / norm for name, norm in norms.items()}

    def measure(self, losses: Mapping[str, Tensor], x_hat: Tensor) -> None:
        """Add the norms of the losses' gradients at the reconstruction to the running means."""
        for name, loss in losses.items():
            if name not in self.shares:
                continue
            (gradient,) = torch.autograd.grad(loss, x_hat, retain_graph=True)
            norm = self.average(gradient.flatten(1).norm(dim=1).mean())
            if norm.isfinite():
                self.get_buffer(name).mul_(self.decay).add_(torch.stack([norm, torch.ones_like(norm)]))

    def norms(self, losses: Iterable[str]) -> dict[str, float]:
        """Return the running means of the norms of the losses' gradients; none for a loss that was never measured."""
        running = {name: self.get_buffer(name).tolist() for name in losses if name in self.shares}
        return {name: max(summed / count, 1e-12) for name, (summed, count) in running.items() if count}


def _mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()
