"""Optimizer, schedule, budget and weight averaging."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vqtok.config import TrainConfig
from vqtok.networks import Decoder, Encoder
from vqtok.networks.layers import Block

RATE_WARM_UP_SHARE, CONTINUOUS_SHARE = 0.1, 0.2
"""The largest shares of a run: of the warm-up of the learning rate, and of the steps without quantization."""


@dataclass(frozen=True)
class Budget:
    """When training ends: after `steps` or `minutes`, whichever comes first.

    The minutes are those of the whole command: `begin` seconds pass before the first step, and `reserve` seconds are
    kept for the work after the last step.
    """

    steps: int | None = None
    minutes: float | None = None
    begin: float = 0.0
    reserve: float = 0.0

    def progress(self, step: int, seconds: float) -> float:
        """Return the fraction of training that is done, from 0 to 1; schedules depend on it."""
        by_steps = step / self.steps if self.steps else 0.0
        if not self.minutes:
            return min(1.0, by_steps)
        length = 60 * self.minutes - self.reserve - self.begin
        by_time = (seconds - self.begin) / length if length > 0 else 1.0
        return min(1.0, max(by_steps, by_time))


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Create AdamW with weight decay on matrices and kernels only, not on norms, biases and codebooks.

    Each group has a `scale` for its learning rate. In an `Encoder` or `Decoder` the convolutions between blocks are
    initialized to a transform that is already good, which the large steps that blocks need would destroy.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    networks = [module for module in model.modules() if isinstance(module, Encoder | Decoder)]
    between = {parameter for network in networks for parameter in network.parameters()} - {
        parameter for module in model.modules() if isinstance(module, Block) for parameter in module.parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith("codebook") else config.weight_decay
        scale = config.resampling_scale if parameter in between else 1.0
        groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "scale": scale, "weight_decay": decay} for (scale, decay), group in groups.items()],
        lr=config.learning_rate,
        betas=config.betas,
        fused=True,
    )


class Schedule(Protocol):
    """The settings that `learning_rate` needs."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...


def learning_rate(config: Schedule, step: int, progress: float) -> float:
    """Return the learning rate: a linear warm-up, shorter in a short run, then a cosine to zero.

    Source: Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts" (without restarts).
    """
    warmup = min(1.0, max((step + 1) / max(1, config.warmup_steps), progress / RATE_WARM_UP_SHARE))
    return config.learning_rate * warmup * cosine(progress)


def cosine(progress: float) -> float:
    """Return half a cosine period from 1 to 0 as progress goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def keep_weights(model: nn.Module, initial: nn.Module, share: float) -> None:
    """Move weights back toward those that training began with, by a share of the way.

    Source: Wortsman et al. 2022, "Robust Fine-Tuning of Zero-Shot Models", section 3 (weight-space ensembles).
    """
    weights = initial.state_dict()
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            weight.lerp_(weights[name].to(weight), share)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move averaged weights and codebooks toward the model's, faster in the first steps.

    Source: Polyak and Juditsky 1992; the warm-up of the decay is (1 + step) / (10 + step).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    targets, moved = dict(model.state_dict()), []
    for name, averaged in average.state_dict().items():
        if averaged.is_floating_point():
            moved.append((averaged, targets[name]))
        else:
            averaged.copy_(targets[name])
    average_all = get_ema_multi_avg_fn(1 - weight)  # In a few kernels on a GPU, not in one for each tensor.
    average_all(*map(list, zip(*moved, strict=True)), step)
