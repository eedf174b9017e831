"""The discriminators in a training run: their own learning, and what they ask of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vqtok.compute.device import autocast
from vqtok.compute.distributed import average, average_gradients, world_size
from vqtok.config import Config
from vqtok.losses.adversarial import (
    Balancer,
    LeCam,
    accuracy,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    mean_logits,
)
from vqtok.networks.discriminators import DiscriminatorOutput, build_discriminators
from vqtok.training.optim import cosine

LOWEST_PEAK = 0.01
"""Sounds are judged at full level, as in DAC, but not the noise of silence: no peak below this is raised to 1."""


class Adversary(nn.Module):
    """Discriminators that learn beside a model, with their optimiser; all that a run has to keep is in its state.

    For each part of a batch: `losses`, then `weights`, then the model's backward pass; at the end of the step, `step`.
    """

    weight_scale: Tensor

    def __init__(self, config: Config, device: torch.device, precision: torch.dtype) -> None:
        super().__init__()
        self.config, self.loss_weights = config.adversarial, config.loss_weights
        self.is_sound = config.model.modality == "audio"
        self.precision = precision
        self.discriminators = build_discriminators(config)
        self.lecam = LeCam(len(self.discriminators))
        self.balancer = Balancer(self.loss_weights, average)
        self.register_buffer("weight_scale", torch.ones(()))
        self.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(
            self.discriminators.parameters(), lr=self.config.learning_rate, betas=self.config.betas, fused=True
        )
        self._report: dict[str, float] = defaultdict(float)
        self._mean_logits: Tensor | float = 0.0

    def is_active(self, fraction: float) -> bool:
        return fraction >= self.config.start

    def losses(self, x: Tensor, x_hat: Tensor, fraction: float, part: float) -> dict[str, Tensor]:
        """Let the discriminators learn from media, and give what they ask of the model: nothing before `start`.

        Args:
            x_hat: The reconstruction of `x`, part of the model's graph.
            fraction: Progress of the run.
            part: How much of the step's batch this is.
        """
        config = self.config
        if fraction < config.start - config.warm_up:
            return {}
        if self.is_sound:
            # Both at the level of the original, so that an error of level is seen as well.
            level = x.abs().amax((1, 2), keepdim=True).clamp(min=LOWEST_PEAK)
            x, x_hat = x / level, x_hat / level
        # One pass for both, of which nothing reaches the model.
        judged = self._judge(torch.cat([x, x_hat.detach()]))
        halves = [judgement.logits.float().chunk(2) for judgement in judged]
        real, fake = [half[0] for half in halves], [half[1] for half in halves]
        loss = discriminator_loss(config.kind, real, fake)
        (part * (loss + config.lecam * self.lecam(real, fake))).backward()
        self._mean_logits += part * mean_logits(real, fake)
        self._report["discriminator"] += part * loss.item()
        self._report["discriminator_accuracy"] += part * accuracy(config.kind, real, fake).item()
        return self.generator_losses(judged, x_hat) if self.is_active(fraction) else {}

    def generator_losses(self, judged: list[DiscriminatorOutput], x_hat: Tensor) -> dict[str, Tensor]:
        """Give the losses of the model, whose gradients pass through the discriminators but do not stay there."""
        self.discriminators.requires_grad_(False)
        found = self._judge(x_hat)
        self.discriminators.requires_grad_(True)
        losses = {"adversarial": generator_loss(self.config.kind, [judgement.logits.float() for judgement in found])}
        if self.config.feature_matching:
            losses["feature_matching"] = feature_matching_loss(
                [feature[: len(x_hat)] for judgement in judged for feature in judgement.features],
                [feature for judgement in found for feature in judgement.features],
            )
        return losses

    def _judge(self, media: Tensor) -> list[DiscriminatorOutput]:
        with autocast(media.device, self.precision):
            return [discriminator(media) for discriminator in self.discriminators]

    def weights(self, losses: Mapping[str, Tensor], x_hat: Tensor, decoder: nn.Module, part: float) -> dict[str, float]:
        """Give the weights of all losses by name.

        Args:
            losses: Those that depend on the reconstruction, and no others.
            part: How much of the step's batch this is.
        """
        weights = dict(self.loss_weights)
        if self.config.weighting == "balanced":
            # The gradient of an item is that many times smaller in the mean over all processes.
            weights |= {name: weight * world_size() for name, weight in self.balancer(losses, x_hat).items()}
        elif self.config.weighting == "adaptive" and "adversarial" in losses:
            others = [weights[name] * loss for name, loss in losses.items() if name != "adversarial"]
            last_layer = [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]
            found = adaptive_weight(torch.stack(others).sum(), losses["adversarial"], last_layer, average)
            weights["adversarial"] *= found
        if "adversarial" in losses:
            weights["adversarial"] *= self.weight_scale.item()
            self._report["adversarial_weight"] += part * weights["adversarial"]
        return weights

    def soften(self) -> str:
        """Halve the weight of the adversarial loss, and say so."""
        self.weight_scale /= 2
        return f"adversarial.weight is halved to {self.weight_scale.item() * self.config.weight:.3g}"

    def step(self, fraction: float, learning_rate_scale: float) -> dict[str, float]:
        """Let the discriminators take their step, and give what there is to report of it."""
        if not self._report:
            return {}
        assert isinstance(self._mean_logits, Tensor)
        self.lecam.update(average(self._mean_logits))
        average_gradients(self.discriminators)
        norm = nn.utils.clip_grad_norm_(self.discriminators.parameters(), self.config.clip_norm)
        if torch.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate_scale * self.config.learning_rate * cosine(fraction)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        report = dict(self._report)
        self._report.clear()
        self._mean_logits = 0.0
        return report | {"discriminator_gradient_norm": norm.item()}
