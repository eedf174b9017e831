"""The training objective: losses of the reconstruction, of the codebooks and of discriminators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.compute.device import autocast, channels_last
from vqtok.config import Config
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.vqmodel import VQModel
from vqtok.training.adversary import Adversary


@dataclass(frozen=True)
class Objective:
    """All losses of a model, and their gradients.

    Args:
        config: Has the weights of the losses and the number of parts that a batch is split into.
        reconstruction: The reconstruction loss.
        adversary: The discriminators, if any.
        precision: The type that the model computes in.
    """

    config: Config
    reconstruction: ReconstructionLoss
    adversary: Adversary | None
    precision: torch.dtype

    def backward(
        self, model: VQModel, x: Tensor, *, quantize: bool, fraction: float
    ) -> tuple[dict[str, float], Tensor | None]:
        """Add the gradients of a batch to those of the model and of the discriminators.

        Args:
            model: The model in training.
            x: The batch.
            quantize: Whether to quantize the latents.
            fraction: The progress of the run, from 0 to 1.

        Returns:
            The losses by name, and the codes; None without quantization.
        """
        parts = x.chunk(self.config.train.accumulate)
        found = [self._backward(model, media, quantize, fraction, 1 / len(parts)) for media in parts]
        losses = {name: sum(figures[name] for figures, _ in found) for name in found[0][0]}
        codes = [codes for _, codes in found if codes is not None]
        return losses, torch.cat(codes) if codes else None

    def _backward(
        self, model: VQModel, x: Tensor, quantize: bool, fraction: float, part: float
    ) -> tuple[dict[str, float], Tensor | None]:
        """Add the gradients of a part of a batch; return its share of the losses, and its codes."""
        with autocast(x.device, self.precision):
            x_hat, output = model(channels_last(x), quantize=quantize)
        x_hat = x_hat.float()
        losses, weights = self.reconstruction(x, x_hat), self.config.loss_weights
        if self.adversary:
            losses |= self.adversary.losses(x, x_hat, fraction, part)
            weights = self.adversary.weights(losses, x_hat, model.decoder, part)
        if output is not None:
            losses |= output.losses
        total = sum((weights[name] * loss for name, loss in losses.items()), x.new_zeros(()))
        (part * total).backward()
        values = torch.stack([loss.detach() for loss in losses.values()]).tolist()
        figures = {name: part * value for name, value in zip(losses, values, strict=True)}
        return figures, None if output is None else output.codes
