"""The training loop of a generator."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vqtok.compute.device import autocast, autocast_dtype
from vqtok.compute.distributed import (
    all_reduce_max,
    average_gradients,
    broadcast_module,
    on_first_process,
    rank,
    world_size,
)
from vqtok.config import from_dict
from vqtok.errors import TrainingError, UsageError
from vqtok.generation.batches import BatchMaker
from vqtok.generation.config import GeneratorConfig
from vqtok.generation.network import Generator
from vqtok.generation.objective import BITS, losses
from vqtok.generation.validation import GeneratorProgress, Validation, Validator
from vqtok.training.alarms import Alarms
from vqtok.training.clock import Clock
from vqtok.training.interrupt import DeferredInterrupt
from vqtok.training.monitor import Progress, RunningMeans, append_metrics, cut_metrics
from vqtok.training.optim import Budget, learning_rate, update_average
from vqtok.training.state import read_checkpoint, restore, save_checkpoint

logger = logging.getLogger(__name__)

LOG_STEPS = 20
SHOWN_SECONDS = 0.5
CHECKPOINT_SECONDS = 300
VALIDATION_SHARE = 0.1
"""The largest share of the time since the last validation that one may take in a run with a time budget."""
PATIENCE = 3
"""The number of successive validations worse than the best one that cause an alarm."""


@dataclass
class GeneratorTrainer:
    """Trains a `Generator`, and stores in `folder` everything that is needed to resume the run.

    Args:
        generator: The generator to train, on its device.
        batches: Draws the batch of each step.
        validator: Validates on held-out items.
        folder: The run folder: checkpoints, `metrics.jsonl`, and samples of each validation.
        budget: When training ends.
        seed: The seed of dropout.
        on_progress, on_step, on_stage: Callbacks for a progress display, as for `vqtok.training.loop.Trainer`.
        clock: The time of the command.
    """

    config: GeneratorConfig
    generator: Generator
    batches: BatchMaker
    validator: Validator
    folder: Path
    budget: Budget
    seed: int = 0
    on_progress: Callable[[GeneratorProgress], None] = lambda progress: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_stage: Callable[[str], None] = lambda stage: None
    clock: Clock = field(default_factory=Clock)
    step: int = 0
    seconds: float = 0.0
    best_score: float = math.inf
    _worse: int = 0
    _resumed: bool = False
    _means: RunningMeans = field(default_factory=RunningMeans)

    def __post_init__(self) -> None:
        self.device = next(self.generator.parameters()).device
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.optimizer = make_optimizer(self.generator, self.config)
        self.precision = autocast_dtype(self.config.train.precision, self.device)
        self.alarms = Alarms(self.folder)

    @property
    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.generator, "average": self.average, "best": self.best}

    @property
    def _streams(self) -> list[dict[str, Any]]:
        return [stream.to_dict() for stream in self.generator.streams.values()]

    def resume(self) -> None:
        """Continue from the newest checkpoint of the run folder.

        Raises:
            TrainingError: There is no checkpoint.
            UsageError: The run has other settings, other tokens, or another number of processes.
        """
        tensors, facts = read_checkpoint(self.folder)
        if "streams" not in facts:
            raise UsageError(f"{self.folder}: is the run of a tokenizer, not of a generator; choose another output")
        if facts["processes"] != world_size():
            raise UsageError(f"{self.folder}: the run has {facts['processes']} processes; resume it with as many")
        found = from_dict(GeneratorConfig, facts["config"]), facts["seed"], _plain(facts["streams"])
        if found != (self.config, self.seed, _plain(self._streams)):
            raise UsageError(f"{self.folder}: the run has other settings or tokens; resume it with the same ones")
        restore(tensors, self._modules, {"optimizer": self.optimizer})
        self.step, self.seconds, self.best_score = facts["step"], facts["seconds"], facts["best_score"]
        self._worse = facts["worse"]
        self.clock.began -= self.seconds
        self.budget = replace(self.budget, begin=facts["begin"], reserve=facts["reserve"])
        self.alarms = Alarms(self.folder, facts["alarms"])
        cut_metrics(self.folder, self.step)
        self._resumed = True

    def checkpoint(self) -> None:
        """Write a checkpoint to the run folder; only the first process does so."""
        if rank() != 0:
            return
        facts = {
            "config": self.config.to_dict(),
            "streams": self._streams,
            "seed": self.seed,
            "processes": world_size(),
            "step": self.step,
            "seconds": self.seconds,
            "begin": self.budget.begin,
            "reserve": self.budget.reserve,
            "best_score": self.best_score,
            "worse": self._worse,
            "alarms": self.alarms.kinds,
        }
        save_checkpoint(self.folder, self._modules, {"optimizer": self.optimizer}, torch.zeros(0), facts)

    def run(self) -> Generator:
        """Train until the budget is used up and return the best averaged generator.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, after the step is complete and a checkpoint is written.
            TrainingError: The loss diverged, or the budget is too short for training.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="vqtok-data") as pool, DeferredInterrupt() as interrupt:
            self._run(pool, interrupt)
        if math.isinf(self.best_score):
            raise TrainingError(f"step {self.step}: no validation gave a finite score; lower train.learning_rate")
        return self.best

    def _run(self, pool: ThreadPoolExecutor, interrupt: DeferredInterrupt) -> None:
        if not self._resumed:
            broadcast_module(self.generator)
            self.average.load_state_dict(self.generator.state_dict())
            self._begin()
        first_step, started = self.step, self.clock.elapsed
        last_checkpoint = last_validation = shown = started
        ready = pool.submit(self.batches.batch, self.step)
        while (fraction := self.budget.progress(self.step, self.seconds)) < 1:
            batch = ready.result()
            ready = pool.submit(self.batches.batch, self.step + 1)
            found = self._train_step({name: masked.to(self.device) for name, masked in batch.items()}, fraction)
            self.step += 1
            self.seconds, interrupted = all_reduce_max(self.clock.elapsed, interrupt.requested)
            self._means.add(found)
            before, fraction = fraction, self.budget.progress(self.step, self.seconds)
            items = (self.step - first_step) * self.config.train.batch_size * world_size()
            speed = items / (self.clock.elapsed - started)
            validation = None
            if self._validates(before, fraction, self.seconds - last_validation):
                validation = self._validate()
                last_validation = self.clock.elapsed
            if validation or self.step % LOG_STEPS == 0:
                self._report(fraction, speed, validation)
            elif self.clock.elapsed - shown > SHOWN_SECONDS:
                shown = self.clock.elapsed
                self.on_step(self._progress(fraction, speed, found))
            if validation or interrupted or fraction >= 1 or self.clock.elapsed - last_checkpoint > CHECKPOINT_SECONDS:
                self.checkpoint()
                last_checkpoint = self.clock.elapsed
            if interrupted:
                raise KeyboardInterrupt

    def _begin(self) -> None:
        """Measure a validation, and with a time budget reserve the time of the last one.

        Raises:
            TrainingError: The budget leaves no time for training.
        """
        self.on_stage("measuring the speed of this machine")
        since = time.monotonic()
        on_first_process(lambda: self.validator.score(self.average))
        self.seconds, cost = all_reduce_max(self.clock.elapsed, time.monotonic() - since)
        minutes = self.budget.minutes
        if minutes:
            reserve = self.budget.reserve + 2 * cost
            self.budget = replace(self.budget, begin=self.seconds, reserve=reserve)
            if self.seconds + reserve >= 60 * minutes:
                raise TrainingError(
                    f"`minutes` {minutes:g} leaves no time to train: the start took {self.seconds:.0f} s, and the end "
                    f"of the run takes {reserve:.0f} s; raise `minutes`"
                )
        self._validation_seconds = cost
        self.checkpoint()

    _validation_seconds: float = 0.0

    def _validates(self, before: float, after: float, since_last: float) -> bool:
        count = self.config.train.validations
        if int(after * count + 1e-9) == int(before * count + 1e-9):
            return False
        affordable = self._validation_seconds <= VALIDATION_SHARE * since_last
        return after >= 1 or not self.budget.minutes or affordable

    def _train_step(self, batch: Any, fraction: float) -> dict[str, float]:
        config = self.config.train
        # Every random choice of a step depends only on its number, so that a resumed run makes the same ones.
        torch.manual_seed(self.seed * 1_000_003 + self.step + (rank() << 53))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.step, fraction)
        self.generator.train()
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, self.precision):
            found = losses(self.generator, batch)
        torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
        average_gradients(self.generator)
        norm = nn.utils.clip_grad_norm_(self.generator.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            update_average(self.average, self.generator, config.average_decay, self.step)
        else:
            self.alarms.add("not finite", self.step, "the gradient is not finite; the step is skipped")
        return {name: BITS * loss.item() for name, loss in found.items()} | {"gradient_norm": norm.item()}

    def _validate(self) -> Validation:
        self.on_stage("validating")
        since = time.monotonic()
        validation = on_first_process(lambda: self.validator.validate(self.average, self.folder, self.step))
        (self._validation_seconds,) = all_reduce_max(time.monotonic() - since)
        if validation.score < self.best_score:
            self.best_score, self._worse = validation.score, 0
            self.best.load_state_dict(self.average.state_dict())
        else:
            self._worse += 1
            if self._worse == PATIENCE:
                self.alarms.add(
                    "overfitting",
                    self.step,
                    f"{PATIENCE} validations in a row are worse than the best one, {self.best_score:.3f} bits a token; "
                    "the best generator is kept; more items or a higher network.dropout would help",
                )
        return validation

    def _progress(
        self, fraction: float, items_per_second: float, found: dict[str, float], **more: Any
    ) -> GeneratorProgress:
        left = self.seconds * (1 / max(fraction, 1e-9) - 1)
        if self.budget.minutes:
            by_clock = 60 * self.budget.minutes - self.seconds
            left = min(left, by_clock) if self.budget.steps else by_clock
        return GeneratorProgress(
            step=self.step,
            fraction=fraction,
            seconds=self.seconds,
            items_per_second=items_per_second,
            waiting=0.0,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            losses=found,
            left=max(0.0, left),
            **more,
        )

    def _report(self, fraction: float, items_per_second: float, validation: Validation | None) -> None:
        progress = self._progress(fraction, items_per_second, self._means.take(), held_out=validation)
        append_metrics(self.folder, progress.to_dict())
        self.on_progress(progress)


def make_optimizer(generator: Generator, config: GeneratorConfig) -> torch.optim.AdamW:
    """Create AdamW with weight decay on matrices only, not on norms and biases.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    parameters = list(generator.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.train.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.train.learning_rate, betas=config.train.betas, fused=True)


def _plain(streams: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return streams as JSON stores them."""
    return [{k: list(v) if isinstance(v, tuple) else v for k, v in stream.items()} for stream in streams]
