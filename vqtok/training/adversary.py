"""Discriminators in a training run: their own training, and their losses for the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqtok.compute.device import autocast
from vqtok.compute.distributed import average, average_gradients
from vqtok.config import Config
from vqtok.losses.adversarial import (
    Balancer,
    LeCam,
    accuracy,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    gradient_penalty,
    mean_logits,
)
from vqtok.networks.discriminators import DiscriminatorOutput, build_discriminators
from vqtok.training.optim import cosine

NORM_STEPS = 10
"""How often the norms of the gradients are measured. Each takes a backward pass through the discriminators."""
PENALTY_STEPS = 4
"""How often the gradient penalty is used. Its weight is multiplied by this ("lazy regularization", Karras et al. 2020,
"Analyzing and Improving the Image Quality of StyleGAN", section 2.1)."""
LOWEST_PEAK = 0.01
"""Audio is normalized to a peak of 1, as in DAC. Lower peaks count as this one, so that noise is not amplified."""


class Adversary(nn.Module):
    """Discriminators that are trained along with a model, and their optimizer.

    Call `losses`, `weights` and the model's backward pass for each part of a batch, and `step` at the end of the
    training step. A checkpoint needs only the state of this module and of `optimizer`.
    """

    weight_scale: Tensor
    steps: Tensor

    def __init__(self, config: Config, device: torch.device, precision: torch.dtype) -> None:
        super().__init__()
        self.config, self.loss_weights = config.adversarial, config.loss_weights
        self.is_audio = config.model.modality == "audio"
        self.precision = precision
        self.discriminators = build_discriminators(config)
        self.lecam = LeCam(len(self.discriminators))
        self.balancer = Balancer(self.loss_weights, average)
        self.register_buffer("weight_scale", torch.ones(()))
        # Steps since the discriminators began to learn.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=self.config.learning_rate, betas=self.config.betas, fused=True
        )
        self._report: dict[str, float] = defaultdict(float)
        self._mean_logits: Tensor | float = 0.0
        self._has_seen = False
        """Whether the discriminators were used in this step."""

    def is_active(self, fraction: float) -> bool:
        return fraction >= self.config.start

    def losses(self, x: Tensor, x_hat: Tensor, fraction: float, part: float) -> dict[str, Tensor]:
        """Add the gradients of the discriminators, and return their losses for the model: none before `start`.

        Args:
            x: A part of a batch.
            x_hat: The reconstruction of `x`, with the model's graph.
            fraction: The progress of the run, from 0 to 1.
            part: The size of the part as a fraction of the batch.
        """
        config = self.config
        if fraction < config.start - config.warm_up:
            return {}
        self._has_seen = True
        if config.crop < 1:
            x, x_hat = self._crop(x, x_hat)
        if self.is_audio:
            # Both are divided by the peak of the original, so that the discriminators also see an error of the level.
            level = x.abs().amax((1, 2), keepdim=True).clamp(min=LOWEST_PEAK)
            x, x_hat = x / level, x_hat / level
        else:
            # As an image file would have them. Black and white are then exact as soon as the model overshoots a little;
            # otherwise the faint noise around them would always give it away.
            x_hat = x_hat.clamp(-1, 1)
        judged = self._learn(x, x_hat.detach(), part) if self._learns else None
        return self._generator_losses(judged, x, x_hat) if self.is_active(fraction) else {}

    @property
    def _learns(self) -> bool:
        """Whether the discriminators learn in this step."""
        return self.steps.item() % self.config.every == 0

    def _crop(self, *media: Tensor) -> list[Tensor]:
        """Cut the part that the discriminators see, at the same place of all media."""
        sides = [round(self.config.crop * side) for side in media[0].shape[2:]]
        for axis, side in enumerate(sides, start=2):
            start = int(torch.randint(media[0].shape[axis] - side + 1, ()))
            media = tuple(x.narrow(axis, start, side) for x in media)
        return list(media)

    def _learn(self, x: Tensor, x_hat: Tensor, part: float) -> list[DiscriminatorOutput]:
        """Add the gradients of the discriminators, and return their outputs for originals, then reconstructions."""
        config = self.config
        is_penalized = config.gradient_penalty > 0 and self.steps.item() // config.every % PENALTY_STEPS == 0
        x = x.detach().requires_grad_(is_penalized)
        judged = self._judge(torch.cat([x, x_hat]))
        halves = [judgement.logits.float().chunk(2) for judgement in judged]
        real, fake = [half[0] for half in halves], [half[1] for half in halves]
        loss = discriminator_loss(config.kind, real, fake)
        total = loss + config.lecam * self.lecam(real, fake)
        if is_penalized:
            penalty = gradient_penalty(real, x)
            total = total + PENALTY_STEPS * config.gradient_penalty * penalty
            self._report["gradient_penalty"] += part * penalty.item()
        (part * total).backward()
        self._mean_logits += part * mean_logits(real, fake)
        self._report["discriminator"] += part * loss.item()
        self._report["discriminator_accuracy"] += part * accuracy(config.kind, real, fake).item()
        return judged

    def _generator_losses(
        self, judged: list[DiscriminatorOutput] | None, x: Tensor, x_hat: Tensor
    ) -> dict[str, Tensor]:
        """Compute the losses of the model; their gradients do not add to those of the discriminators' weights.

        Args:
            judged: The outputs for the originals, if the discriminators learned from them in this step.
            x: The originals.
            x_hat: The reconstructions.
        """
        self.discriminators.requires_grad_(False)
        found = self._judge(x_hat)
        losses = {"adversarial": generator_loss(self.config.kind, [judgement.logits.float() for judgement in found])}
        if self.config.feature_matching:
            if judged is None:
                with torch.no_grad():
                    judged = self._judge(x)
            losses["feature_matching"] = feature_matching_loss(
                [feature[: len(x)] for judgement in judged for feature in judgement.features],
                [feature for judgement in found for feature in judgement.features],
            )
        self.discriminators.requires_grad_(True)
        return losses

    def _judge(self, media: Tensor) -> list[DiscriminatorOutput]:
        with autocast(media.device, self.precision):
            return [discriminator(media) for discriminator in self.discriminators]

    def weights(self, losses: Mapping[str, Tensor], x_hat: Tensor, decoder: nn.Module, part: float) -> dict[str, float]:
        """Return the weights of all losses by name.

        Args:
            losses: The losses that depend on the reconstruction, and no others.
            x_hat: The reconstruction, with the model's graph.
            decoder: The decoder, whose last layer the adaptive weight uses.
            part: The size of the part as a fraction of the batch.
        """
        weights = dict(self.loss_weights)
        is_balanced = self.config.weighting == "balanced"
        norms = self.balancer.norms(losses) if is_balanced else {}
        is_due = self.steps.item() % NORM_STEPS == 0 and (is_balanced or "adversarial" in losses)
        if is_due or (is_balanced and not norms.keys() >= self.balancer.shares.keys() & losses.keys()):
            self.balancer.measure(losses, x_hat)
            norms = self.balancer.norms(losses)
        if is_balanced:
            weights |= self.balancer.weights(norms)
        elif self.config.weighting == "adaptive" and "adversarial" in losses:
            others = [weights[name] * loss for name, loss in losses.items() if name != "adversarial"]
            last_layer = [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]
            found = adaptive_weight(torch.stack(others).sum(), losses["adversarial"], last_layer, average)
            weights["adversarial"] *= found
        if "adversarial" in losses:
            weights["adversarial"] *= self.weight_scale.item()
            self._report["adversarial_weight"] += part * weights["adversarial"]
        pulls = {name: weights[name] * norm for name, norm in norms.items()}
        for name, norm in norms.items():
            self._report[f"gradient.{name}"] += part * norm
        if "adversarial" in pulls:
            self._report["adversarial_share"] += part * pulls["adversarial"] / max(sum(pulls.values()), 1e-12)
        return weights

    def soften(self) -> str:
        """Halve the weight of the adversarial loss, and return a description of this."""
        self.weight_scale /= 2
        return f"adversarial.weight is halved to {self.weight_scale.item() * self.config.weight:.3g}"

    def step(self, fraction: float, learning_rate_scale: float) -> dict[str, float]:
        """Update the discriminators, and return the figures to report, if any."""
        report = dict(self._report)
        self._report.clear()
        if not self._has_seen:
            return report
        if isinstance(self._mean_logits, Tensor):  # They learned in this step.
            self.lecam.update(average(self._mean_logits))
            average_gradients(self.discriminators)
            norm = nn.utils.clip_grad_norm_(self.discriminators.parameters(), self.config.clip_norm)
            if torch.isfinite(norm):
                for group in self.optimizer.param_groups:
                    group["lr"] = learning_rate_scale * self.config.learning_rate * cosine(fraction)
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self._mean_logits = 0.0
            report["discriminator_gradient_norm"] = norm.item()
        self.steps += 1
        self._has_seen = False
        return report
