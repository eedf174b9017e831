"""The training loop: warm up without codebooks, start them by k-means, train, validate, keep the best."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.config import Config, from_dict
from vqtok.errors import TrainingError, UsageError
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.vqmodel import VQModel
from vqtok.networks import scale_to_data
from vqtok.training.adversary import Adversary
from vqtok.training.data import BatchLoader
from vqtok.training.interrupt import HeldBackInterrupt
from vqtok.training.monitor import CodebookWindow, RunningMeans, append_metrics
from vqtok.training.optim import Budget, learning_rate, make_optimizer, update_average
from vqtok.training.state import read_checkpoint, restore, save_checkpoint
from vqtok.training.validation import Validation, validate

logger = logging.getLogger(__name__)

LOG_STEPS = 20
CHECKPOINT_SECONDS = 300
MAX_BAD_STEPS = 20
VALIDATION_SHARE = 0.1
"""Of the time, in runs by the clock: on a slow machine validations would leave none to train."""
KMEANS_VECTORS = 32_768
"""Latents the k-means start looks at."""


@dataclass(frozen=True)
class Progress:
    """What a progress display shows of one step."""

    step: int
    fraction: float
    seconds: float
    items_per_second: float
    waiting: float
    """Share of the time spent waiting for data."""
    losses: dict[str, float]
    codebooks: dict[str, list[float]]
    validation: Validation | None = None


@dataclass
class Trainer:
    """Train a `VQModel` on batches, with everything needed to go on after an interruption in `folder`.

    Args:
        config: The set-up.
        loader: Gives the batch of each step.
        held_out: Validation crops by name, float32 `(channels, *size)`.
        folder: The run folder: checkpoints, `metrics.jsonl`, pictures or sounds of each validation.
        device: Where to train.
        budget: When to end.
        seed: Of the initial weights, the batches and the random prefixes.
        on_progress: Called every few steps and after each validation.
    """

    config: Config
    loader: BatchLoader
    held_out: list[tuple[str, NDArray[np.float32]]]
    folder: Path
    device: torch.device
    budget: Budget
    seed: int = 0
    on_progress: Callable[[Progress], None] = lambda progress: None
    step: int = 0
    seconds: float = 0.0
    best_score: float = float("inf")
    bad_steps: int = 0
    alarms: list[str] = field(default_factory=list)
    _means: RunningMeans = field(default_factory=RunningMeans)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model: VQModel = VQModel(self.config.model).to(self.device)
        self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.reconstruction = ReconstructionLoss(self.config.loss, self.config.model.sample_rate).to(self.device)
        self.optimizer = make_optimizer(self.model, self.config.train)
        self.window = CodebookWindow(self.model.codebook_sizes)
        self.precision = autocast_dtype(self.config.train.precision, self.device)
        self.adversary: Adversary | None = None
        if self.config.adversarial.weight > 0:
            self.adversary = Adversary(self.config, self.device, self.precision)

    @property
    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"model": self.model, "average": self.average, "best": self.best}
        return modules | {"adversary": self.adversary} if self.adversary else modules

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = {"optimizer": self.optimizer}
        return optimizers | {"adversary_optimizer": self.adversary.optimizer} if self.adversary else optimizers

    def resume(self) -> None:
        """Go on from the newest checkpoint of the run folder.

        Raises:
            TrainingError: there is none. UsageError: the run was started with other settings.
        """
        tensors, facts = read_checkpoint(self.folder)
        if (from_dict(Config, facts["config"]), facts["seed"]) != (self.config, self.seed):
            raise UsageError(f"{self.folder}: the run has other settings; resume with those it was started with")
        restore(tensors, self._modules, self._optimizers)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.best_score, self.alarms = facts["best_score"], facts["alarms"]

    def checkpoint(self) -> None:
        facts = {
            "config": self.config.to_dict(),
            "seed": self.seed,
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "alarms": self.alarms,
        }
        save_checkpoint(self.folder, self._modules, self._optimizers, facts)

    def run(self) -> VQModel:
        """Train until the budget is spent and return the best averaged model.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once the step is whole and a checkpoint written.
            TrainingError: the loss diverged, or the budget ended before the codebooks had learnt.
        """
        with contextlib.closing(self.loader.batches(self.step)) as batches, HeldBackInterrupt() as interrupt:
            self._run(batches, interrupt)
        if math.isinf(self.best_score):
            raise TrainingError(
                f"step {self.step}: ended before a quantised model was validated; give more than "
                f"{self.config.train.continuous_steps} steps, or lower train.continuous_steps"
            )
        return self.best

    def _run(self, batches: Iterator[NDArray[np.float32]], interrupt: HeldBackInterrupt) -> None:
        last_checkpoint = started = time.monotonic()
        if self.step == 0:
            x = torch.from_numpy(self.loader.batch(0)).to(self.device)
            scale_to_data(self.model.encoder, self.model.decoder, x)
            self.average.load_state_dict(self.model.state_dict())
        before, waited, validating, first_step = self.seconds, 0.0, 0.0, self.step
        while (fraction := self.budget.progress(self.step, self.seconds)) < 1:
            ready = time.monotonic()
            x = torch.from_numpy(next(batches)).to(self.device)
            waited += time.monotonic() - ready
            losses = self._train_step(x, fraction)
            self.step += 1
            self.seconds = before + time.monotonic() - started
            self._means.add(losses)
            fraction_before, fraction = fraction, self.budget.progress(self.step, self.seconds)
            validation = None
            if self._is_validation_due(fraction_before, fraction, validating / (time.monotonic() - started)):
                since = time.monotonic()
                validation = self._validate(fraction)
                validating += time.monotonic() - since
            if validation or self.step % LOG_STEPS == 0:
                elapsed = time.monotonic() - started
                self._report(
                    fraction,
                    (self.step - first_step) * len(x) / elapsed,
                    waited / elapsed,
                    validation,
                )
            if validation or interrupt.asked or time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS:
                self.checkpoint()
                last_checkpoint = time.monotonic()
            if interrupt.asked:
                raise KeyboardInterrupt

    def _train_step(self, x: Tensor, fraction: float) -> dict[str, float]:
        config = self.config.train
        # Every random choice of a step follows from its number, so that a resumed run makes the same ones.
        torch.manual_seed(self.seed * 1_000_003 + self.step)
        warm = self.step < config.continuous_steps
        if self.step == config.continuous_steps:
            self._start_codebooks()
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * learning_rate(config, self.step, fraction)
        self.model.train()
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            x_hat, output = self.model(_channels_last(x), quantize=not warm)
        x_hat = x_hat.float()
        losses, weights = self.reconstruction(x, x_hat), self.config.loss_weights
        if self.adversary:
            losses |= self.adversary.losses(x, x_hat, fraction)
            weights = self.adversary.weights(losses, x_hat, self.model.decoder)
        if output is not None:
            losses |= output.losses
            self.window.add(output.codes)
        total = sum((weights[name] * loss for name, loss in losses.items()), x.new_zeros(()))
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.bad_steps = 0
            self.optimizer.step()
            update_average(self.average, self.model, config.average_decay, self.step)
        else:
            self._skip_step()
        values = {name: loss.item() for name, loss in losses.items()} | {"gradient_norm": norm.item()}
        return values | self.adversary.step(fraction) if self.adversary else values

    def _skip_step(self) -> None:
        self.bad_steps += 1
        self._alarm(f"step {self.step}: the gradient is not finite; the step is skipped")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise TrainingError(
                f"{MAX_BAD_STEPS} steps in a row gave no finite gradient; lower train.learning_rate, "
                "or set train.precision=float32"
            )

    def _alarm(self, message: str) -> None:
        """Say it now, in the log and in `metrics.jsonl`, and again in the model card."""
        logger.warning(message)
        self.alarms.append(message)
        append_metrics(self.folder, {"alarm": message})

    @torch.no_grad()
    def _start_codebooks(self) -> None:
        """Run k-means on the latents of enough batches, those of the steps to come."""
        latents: list[Tensor] = []
        count = 0
        while count < KMEANS_VECTORS:
            x = torch.from_numpy(self.loader.batch(self.step + len(latents))).to(self.device)
            with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
                z = self.model.encoder(_channels_last(x)).float()
            latents.append(z.movedim(1, -1).reshape(1, -1, z.shape[1]))
            count += latents[-1].shape[1]
        self.model.quantizer.prepare(torch.cat(latents, dim=1))
        # The average of codebooks starts with them, not with the random ones before.
        self.average.quantizer.load_state_dict(self.model.quantizer.state_dict())

    def _is_validation_due(self, before: float, after: float, share: float) -> bool:
        """Tell whether a step that took the run's progress from `before` to `after` completes a part of it.

        Args:
            share: Of the time spent on validation so far; in a run by the clock, a large one puts the next one off.
        """
        if self.step <= self.config.train.continuous_steps:
            return False  # There are no codebooks yet.
        count = self.config.train.validations
        if int(after * count + 1e-9) == int(before * count + 1e-9):
            return False
        return after >= 1 or not self.budget.minutes or share < VALIDATION_SHARE

    def _validate(self, fraction: float) -> Validation:
        validation = validate(self.average, self.reconstruction, self.config, self.held_out, self.folder, self.step)
        is_best = validation.score < self.best_score
        if is_best:
            self.best_score = validation.score
        # The score cannot see what discriminators ask for: once they are heard, the latest model is the one.
        is_heard = self.adversary is not None and fraction >= self.config.adversarial.start
        if is_best or (is_heard and math.isfinite(validation.score)):
            self.best.load_state_dict(self.average.state_dict())
        return validation

    def _report(self, fraction: float, items_per_second: float, waiting: float, validation: Validation | None) -> None:
        progress = Progress(
            step=self.step,
            fraction=fraction,
            seconds=self.seconds,
            items_per_second=items_per_second,
            waiting=waiting,
            losses=self._means.take(),
            codebooks=self.window.summary(),
            validation=validation,
        )
        values: dict[str, Any] = {
            "step": self.step,
            "fraction": round(fraction, 5),
            "seconds": round(self.seconds, 1),
            "items_per_second": round(items_per_second, 2),
            "waiting": round(waiting, 4),
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            **progress.losses,
            **progress.codebooks,
        }
        if validation:
            values["validation"] = validation.to_dict()
        append_metrics(self.folder, values)
        self.on_progress(progress)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Choose bfloat16 where the processor computes it in hardware, else float32."""
    if precision == "auto":
        hardware = {
            "cpu": torch.cpu._is_avx512_bf16_supported,
            "cuda": torch.cuda.is_bf16_supported,
        }.get(device.type, lambda: False)
        precision = "bfloat16" if hardware() else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
