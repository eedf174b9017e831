"""The training loop: warm-up without codebooks, their k-means start, training, validation, the best model."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vqtok.compute.device import autocast_dtype
from vqtok.compute.distributed import (
    all_reduce_max,
    average_gradients,
    broadcast_module,
    gather,
    on_first_process,
    rank,
    world_size,
)
from vqtok.config import Config, Modality, from_dict
from vqtok.errors import TrainingError, UsageError
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.vqmodel import VQModel
from vqtok.networks import Decoder, Encoder, scale_to_data
from vqtok.quantizers import one_update
from vqtok.training.adversary import Adversary
from vqtok.training.alarms import (
    Alarms,
    RegressionWatch,
    collapsed_codebooks,
    describe_collapse,
    discriminator_problems,
    mark_for_restart,
)
from vqtok.training.clock import KMEANS_SHARE, VALIDATION_SHARE, Clock
from vqtok.training.data import Batch, Loader
from vqtok.training.initialise import make_model, start_codebooks
from vqtok.training.interrupt import DeferredInterrupt
from vqtok.training.monitor import CodebookWindow, Progress, RunningMeans, append_metrics, cut_metrics
from vqtok.training.objective import Objective, TensorBatch
from vqtok.training.optim import (
    CONTINUOUS_SHARE,
    Budget,
    keep_weights,
    learning_rate,
    make_optimizer,
    update_average,
)
from vqtok.training.state import read_checkpoint, restore, save_checkpoint
from vqtok.training.tensorboard import TensorBoard
from vqtok.training.validation import MIN_ITEMS, HeldOut, Validations, is_affordable, is_due, one_or_all, validate

logger = logging.getLogger(__name__)

LOG_STEPS = 20
SHOWN_SECONDS = 0.5
"""The shortest time between two calls of `on_step`."""
FEW_STEPS, LEAST_STEPS = 100, 4
"""A budget for fewer than the first number of steps causes a warning, for fewer than the second an error."""
CHECKPOINT_SECONDS = 300
CHECKPOINT_SHARE = 0.05
"""The largest share of the time since the last checkpoint that a checkpoint may take in a run with a time budget."""
MAX_BAD_STEPS, MAX_ROLLBACKS = 20, 3
"""Successive steps without a finite gradient that cause a rollback to the last checkpoint; the most rollbacks."""


@dataclass
class Trainer:
    """Trains a `VQModel`, and stores in `folder` everything that is needed to resume the run.

    Args:
        config: The training configuration.
        loader: Provides the batch of each step.
        held_out: The validation crops of each modality, with their names.
        folder: The run folder: checkpoints, `metrics.jsonl`, and images or audio files of each validation.
        device: The device to train on.
        budget: When training ends.
        seed: The seed of the initial weights and the random prefixes; that of the batches is in `loader`.
        on_progress: Called every few steps and after each validation.
        on_step: Called after a step, at most twice per second.
        on_stage: Called with a description of work other than steps, before it begins.
        tensorboard: Also gets the lines of `metrics.jsonl`.
        initial: A trained model of the same architecture to start from.
        clock: The time of the command.
    """

    config: Config
    loader: Loader
    held_out: dict[Modality, HeldOut]
    folder: Path
    device: torch.device
    budget: Budget
    seed: int = 0
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_stage: Callable[[str], None] = lambda stage: None
    tensorboard: TensorBoard | None = None
    initial: VQModel | None = None
    clock: Clock = field(default_factory=Clock)
    step: int = 0
    seconds: float = 0.0
    """Seconds used so far, including those before an interruption."""
    quantized_from: int | None = None
    """The first step with quantization; None before that step."""
    rate: float = 0.0
    """Seconds per sample (one number of the media's data) of a validation; measured in a run with a time budget."""
    best_score: float = float("inf")
    best_texture: float = float("inf")
    """The smallest texture distance of a validation since discriminators are used."""
    bad_steps: int = 0
    learning_rate_scale: float = 1.0
    _started: bool = False
    _validation_items: int | None = None
    _validation_seconds: float = 0.0
    _checkpoint_seconds: float = 0.0
    _means: RunningMeans = field(default_factory=RunningMeans)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = make_model(self.config, self.device, self.initial)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        sides = [(modality, self.config.of(modality)) for modality in self.config.model.modalities]
        self.reconstruction = {
            modality: ReconstructionLoss(side.loss, side.model.sample_rate).to(self.device) for modality, side in sides
        }
        self.optimizer = make_optimizer(self.model, self.config.train)
        self.window = CodebookWindow(self.model.codebook_sizes)
        self.alarms = Alarms(self.folder)
        self.regression = {modality: self._watch({}) for modality, _ in sides}
        self.precision = precision = autocast_dtype(self.config.train.precision, self.device)
        gan = self.config.adversarial.weight > 0
        self.adversary = Adversary(self.config, self.device, precision) if gan else None
        self.objective = Objective(self.config, self.reconstruction, self.adversary, precision)

    def _watch(self, state: Mapping[str, Any]) -> RegressionWatch:
        """Return a watch over validations that goes on from a state, and allows what the discriminators may cost."""
        adversarial = self.config.adversarial
        if not adversarial.weight:
            return RegressionWatch(**state)
        return RegressionWatch(**state, psnr=adversarial.allowed_psnr_loss, mel_distance=adversarial.allowed_mel_loss)

    @property
    def parent(self) -> str | None:
        """The identity of the model that training started from."""
        return self.initial.identity.hex() if self.initial is not None else None

    @property
    def _modules(self) -> dict[str, torch.nn.Module]:
        modules: dict[str, torch.nn.Module] = {"model": self.model, "average": self.average, "best": self.best}
        return modules | ({"adversary": self.adversary} if self.adversary else {})

    @property
    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizers: dict[str, torch.optim.Optimizer] = {"optimizer": self.optimizer}
        return optimizers | ({"adversary_optimizer": self.adversary.optimizer} if self.adversary else {})

    def resume(self) -> None:
        """Continue from the newest checkpoint of the run folder.

        Raises:
            TrainingError: There is no checkpoint.
            UsageError: The run has other settings, or another number of processes, which would change its batches.
        """
        tensors, facts = read_checkpoint(self.folder)
        processes = facts.get("processes", 1)
        if processes != world_size():
            raise UsageError(
                f"{self.folder}: the run has {processes} processes, not {world_size()}; resume it with {processes}"
            )
        found = from_dict(Config, facts["config"]), facts["seed"], facts["parent"]
        if found != (self.config, self.seed, self.parent):
            raise UsageError(f"{self.folder}: the run has other settings; resume it with the same ones")
        restore(tensors, self._modules, self._optimizers)
        self.window.load(tensors["window"].to(self.device))
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.clock.began -= self.seconds
        # Checkpoints of earlier versions lack this entry.
        continuous = self.config.train.continuous_steps
        self.quantized_from = facts.get("quantized_from", continuous if self.step > continuous else None)
        self._validation_items = facts.get("validation_items")
        self.budget = replace(self.budget, begin=facts.get("begin", 0.0))
        self.best_score, self.bad_steps = facts["best_score"], facts["bad_steps"]
        self.best_texture = facts.get("best_texture", math.inf)
        self.learning_rate_scale = facts["learning_rate_scale"]
        self.alarms = Alarms(self.folder, facts["alarms"])
        watched = (
            facts["regression"] if len(self.regression) > 1 else dict.fromkeys(self.regression, facts["regression"])
        )
        self.regression = {modality: self._watch(state) for modality, state in watched.items()}
        cut_metrics(self.folder, self.step)
        self._started = True

    def checkpoint(self) -> None:
        """Write a checkpoint to the run folder; only the first process does so."""
        if rank() != 0:
            return
        facts = {
            "config": self.config.to_dict(),
            "seed": self.seed,
            "parent": self.parent,
            "processes": world_size(),
            "step": self.step,
            "seconds": self.seconds,
            "quantized_from": self.quantized_from,
            "validation_items": self._validation_items,
            "begin": self.budget.begin,
            "best_score": self.best_score,
            "best_texture": self.best_texture,
            "bad_steps": self.bad_steps,
            "learning_rate_scale": self.learning_rate_scale,
            "alarms": self.alarms.kinds,
            "regression": one_or_all({modality: watch.state for modality, watch in self.regression.items()}),
        }
        save_checkpoint(self.folder, self._modules, self._optimizers, self.window.state(), facts)

    def run(self) -> VQModel:
        """Train until the budget is used up and return the best averaged model.

        Raises:
            KeyboardInterrupt: On Ctrl-C or SIGTERM, after the step is complete and a checkpoint is written.
            TrainingError: The loss diverged, or the budget is too short for training.
        """
        with contextlib.closing(self.loader.batches(self.step)) as batches, DeferredInterrupt() as interrupt:
            try:
                self._run(batches, interrupt)
            finally:
                if self.tensorboard:
                    self.tensorboard.close()
        if math.isinf(self.best_score):
            raise TrainingError(f"step {self.step}: no validation gave a finite score; lower train.learning_rate")
        if self.initial is not None and self.config.train.keep_initial:
            keep_weights(self.best, self.initial, self.config.train.keep_initial)
        return self.best

    def _run(self, batches: Iterator[Batch], interrupt: DeferredInterrupt) -> None:
        first_step = self.step
        self._plan()
        last_checkpoint = shown = self.clock.elapsed
        started = last_validation = self.seconds if self.budget.minutes else self.clock.elapsed
        waited = 0.0
        while (fraction := self.budget.progress(self.step, self.seconds)) < 1:
            ready = time.monotonic()
            batch = TensorBatch.of(next(batches), self.device)
            waited += time.monotonic() - ready
            losses = self._train_step(batch, fraction)
            self.step += 1
            now = self.clock.elapsed
            self.seconds, interrupted = all_reduce_max(now, interrupt.requested)
            self._means.add(losses)
            if self.step - first_step <= 2:
                self._foresee(self.seconds - started, self.step - first_step)
            if self.step % LOG_STEPS == 0:
                self._restart_collapsed()
            before_step, fraction = fraction, self.budget.progress(self.step, self.seconds)
            validation = None
            if self._validates(before_step, fraction, last_validation):
                self.on_stage("validating")
                since = self.clock.elapsed
                validation = self._validate(fraction)
                self._validation_seconds, last_validation = all_reduce_max(
                    self.clock.elapsed - since, self.clock.elapsed
                )
            trained = self.clock.elapsed - started
            speed = (self.step - first_step) * len(batch) * world_size() / trained, waited / trained
            if validation or self.step % LOG_STEPS == 0:
                self._report(fraction, *speed, validation)
            elif self.clock.elapsed - shown > SHOWN_SECONDS:
                shown = self.clock.elapsed
                self.on_step(self._progress(fraction, *speed, losses))
            # While steps fail, the last checkpoint may be a better state to return to than the current one.
            if (self._checkpoints(validation, self.clock.elapsed - last_checkpoint) and not self.bad_steps) or (
                interrupted or fraction >= 1
            ):
                self.checkpoint()
                last_checkpoint = self.clock.elapsed
            if interrupted:
                raise KeyboardInterrupt

    def _plan(self) -> None:
        """Start a new run. With a time budget, reserve the time for validations and for the end of the run.

        Raises:
            TrainingError: The budget leaves no time for training.
        """
        minutes = self.budget.minutes
        if minutes:
            self.on_stage("measuring the speed of this machine")
            self._size_validations(60 * minutes * VALIDATION_SHARE)
        if not self._started:
            since = time.monotonic()
            self._start()
            self._checkpoint_seconds = time.monotonic() - since
        if not minutes:
            return
        self.seconds, saving = all_reduce_max(self.clock.elapsed, self._checkpoint_seconds)
        reserve = self.budget.reserve + self._validation_seconds + saving
        self.budget = replace(self.budget, begin=self.budget.begin or self.seconds, reserve=reserve)
        if self.seconds + reserve >= 60 * minutes and not self.step:
            enough = _minutes(2 * self.seconds + 2 * reserve)
            raise TrainingError(
                f"`minutes` {minutes:g} leaves no time to train: the start took {self.seconds:.0f} s, and the end of "
                f"the run takes {reserve:.0f} s; raise `minutes` to {enough} or more"
            )

    def _size_validations(self, seconds: float) -> None:
        """Select as many held-out crops as can be validated in about this many seconds."""
        crops = {modality: items[:1] for modality, items in self.held_out.items()}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):  # The first pass is slower, so the second one counts.
                since = time.monotonic()
                self._validate_on(crops, Path(folder))
                cost = time.monotonic() - since
        (cost,) = all_reduce_max(cost)
        self.rate = cost / sum(crop.size for ((_, crop),) in crops.values())
        count = self._validation_items or max(MIN_ITEMS, int(seconds / max(cost, 1e-9)))
        self._validation_items = count = min(count, *map(len, self.held_out.values()), count)
        self.held_out = {modality: items[:: len(items) // count][:count] for modality, items in self.held_out.items()}
        self._validation_seconds = count * cost

    def _foresee(self, seconds: float, steps: int) -> None:
        """Warn or fail early if the budget is too short, judging by the time of the first steps.

        Raises:
            TrainingError: Too few steps fit to train a model.
        """
        minutes = self.budget.minutes
        if not minutes or self.step > 2:
            return
        step_seconds = seconds / steps
        left = 60 * minutes * (1 - KMEANS_SHARE) - self.budget.reserve - self.seconds
        expected = self.step + int(left / max(step_seconds, 1e-9))
        # The first step is slower than later ones.
        if (expected if steps > 1 else 2 * expected) < LEAST_STEPS:
            enough = _minutes(60 * minutes - left + 4 * LEAST_STEPS * step_seconds)
            raise TrainingError(
                f"a training step takes {step_seconds:.1f} s on this machine, too long for `minutes` {minutes:g}; "
                f"raise `minutes` to {enough} or more, or lower train.batch_size"
            )
        if steps == 2 and expected < FEW_STEPS and self.initial is None:
            logger.warning(
                "`minutes` %g allows only about %d training steps on this machine: expect a poor model",
                minutes,
                expected,
            )

    def _validates(self, before: float, after: float, last_validation: float) -> bool:
        if self.quantized_from is None or self.step <= self.quantized_from:
            return False  # The codebooks are not in use yet.
        if not is_due(self.config.train, before, after):
            return False
        left = 60 * self.budget.minutes - self.budget.reserve - self.seconds if self.budget.minutes else 0.0
        done = after >= 1 or not self.budget.minutes
        return done or is_affordable(self._validation_seconds, self.seconds - last_validation, left)

    def _checkpoints(self, validation: Validations | None, since_last: float) -> bool:
        """Return whether a checkpoint is due, and with a time budget also whether it takes little of that."""
        cheap = not self.budget.minutes or self._checkpoint_seconds <= CHECKPOINT_SHARE * since_last
        return since_last > CHECKPOINT_SECONDS or (validation is not None and cheap)

    def _start(self) -> None:
        self._started = True
        if self.adversary:
            broadcast_module(self.adversary)
        if self.initial is None:
            batch = TensorBatch.of(self.loader.batch(0), self.device)
            for modality, side in self.model.sides.items():
                if isinstance(side.encoder, Encoder) and isinstance(side.decoder, Decoder):
                    scale_to_data(side.encoder, side.decoder, gather(batch.media[modality]))
            broadcast_module(self.model)
            self.average.load_state_dict(self.model.state_dict())
        elif self.model.quantizer.ready:
            # The quality before fine-tuning. It is not kept as the best, so that every run results in a new model.
            self.on_stage("validating")
            validation = self._run_validation()
            for modality, found in validation.items():
                self.regression[modality].check(found)
            self._report(0.0, 0.0, 0.0, validation)
        self.checkpoint()  # A rollback needs one.

    def _train_step(self, batch: TensorBatch, fraction: float) -> dict[str, float]:
        config = self.config.train
        # Every random choice of a step depends only on its number, so that a resumed run makes the same ones.
        torch.manual_seed(self.seed * 1_000_003 + self.step + (rank() << 53))
        if self.quantized_from is None and (
            self.step >= config.continuous_steps or self.budget.progress(self.step + 1, self.seconds) > CONTINUOUS_SHARE
        ):
            self.quantized_from = self.step
        warm = self.quantized_from is None
        if not warm and not self.model.quantizer.ready:
            self._start_codebooks()
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self.learning_rate_scale * learning_rate(config, self.step, fraction)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with one_update(self.model.quantizer, equal=len(self.model.sides) > 1):
            losses, codes = self.objective.backward(self.model, batch, quantize=not warm, fraction=fraction)
        if codes is not None:
            self.window.add(codes)
        average_gradients(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.bad_steps = 0
            self.optimizer.step()
            update_average(self.average, self.model, config.average_decay, self.step)
        figures = losses | {"gradient_norm": norm.item()}
        if self.adversary:
            figures |= self.adversary.step(fraction, self.learning_rate_scale)
        if not math.isfinite(figures["gradient_norm"]):
            self._skip_step(losses)
        return figures

    def _skip_step(self, losses: dict[str, float]) -> None:
        self.bad_steps += 1
        bad = [name for name, loss in losses.items() if not math.isfinite(loss)]
        what = f"the loss {', '.join(bad)}" if bad else "the gradient"
        self.alarms.add("not finite", self.step, f"{what} is not finite; the step is skipped")
        if self.bad_steps == MAX_BAD_STEPS:
            self._roll_back()

    def _roll_back(self) -> None:
        """Return to the state of the last checkpoint, and continue with the next batches and half the learning rate."""
        failed = f"{MAX_BAD_STEPS} successive steps had no finite gradient"
        if self.alarms.count("rollback") == MAX_ROLLBACKS:
            raise TrainingError(f"{failed}; lower train.learning_rate, or set train.precision=float32")
        tensors, facts = read_checkpoint(self.folder)
        modules = {name: module for name, module in self._modules.items() if name != "best"}
        restore(tensors, modules, self._optimizers)
        self.window.load(tensors["window"].to(self.device))
        self.learning_rate_scale /= 2
        self.bad_steps = 0
        self.alarms.add(
            "rollback",
            self.step,
            f"{failed}; rolled back to the state of step {facts['step']} with half the learning rate",
        )

    def _start_codebooks(self) -> None:
        """Initialize those codebooks that are not initialized, from the batches of the next steps."""

        def batch(index: int) -> TensorBatch:
            return TensorBatch.of(self.loader.batch(self.step + index), self.device)

        self.on_stage("initializing the codebooks by k-means")
        seconds = 60 * self.budget.minutes * KMEANS_SHARE if self.budget.minutes else math.inf
        start_codebooks(self.model, batch, self.precision, seconds)
        # The average starts with the new codebooks, not with the random ones before.
        self.average.quantizer.load_state_dict(self.model.quantizer.state_dict())

    def _restart_collapsed(self) -> None:
        found = on_first_process(lambda: collapsed_codebooks(self.window))
        if not found:
            return
        done = mark_for_restart(self.model.quantizer, found)
        self.alarms.add("collapse", self.step, f"{describe_collapse(self.window, found)}; {done}")
        self.window.clear()

    def _run_validation(self) -> Validations:
        return on_first_process(lambda: self._validate_on(self.held_out, self.folder))

    def _validate_on(self, held_out: Mapping[Modality, HeldOut], folder: Path) -> Validations:
        return {
            modality: validate(
                self.average.of(modality),
                self.reconstruction[modality],
                self.config.of(modality),
                crops,
                folder,
                self.step,
                self.loader.degraders[modality],
                texture=self.adversary is not None,
            )
            for modality, crops in held_out.items()
        }

    def _validate(self, fraction: float) -> Validations:
        validation = self._run_validation()
        worse = "; ".join(filter(None, (self.regression[name].check(found) for name, found in validation.items())))
        is_worse = any(watch.is_worse for watch in self.regression.values())
        adversary = self.adversary if self.adversary and self.adversary.is_active(fraction) else None
        score = sum(found.score for found in validation.values())
        # The score does not measure what the discriminators improve. While their losses are used, the best model is
        # therefore the one with the best texture among those that are not clearly worse otherwise.
        texture = sum(sum(found.texture) for found in validation.values())
        is_finer = adversary is not None and math.isfinite(score) and not is_worse and texture < self.best_texture
        if is_finer:
            self.best_texture = texture
        if is_finer or (score < self.best_score and math.isinf(self.best_texture)):
            self.best.load_state_dict(self.average.state_dict())
        if score < self.best_score:
            self.best_score = score
        if worse:
            done = [adversary.soften()] if adversary else []
            self.alarms.add("regression", self.step, "; ".join([worse, *done, "the best model is kept"]))
        return validation

    def _progress(
        self, fraction: float, items_per_second: float, waiting: float, losses: dict[str, float], **more: Any
    ) -> Progress:
        left = self.seconds * (1 / max(fraction, 1e-9) - 1)
        if self.budget.minutes:
            by_clock = 60 * self.budget.minutes - self.seconds
            left = min(left, by_clock) if self.budget.steps else by_clock
        return Progress(
            step=self.step,
            fraction=fraction,
            seconds=self.seconds,
            items_per_second=items_per_second,
            waiting=waiting,
            learning_rate=max(group["lr"] for group in self.optimizer.param_groups),
            losses=losses,
            left=max(0.0, left),
            **more,
        )

    def _report(self, fraction: float, items_per_second: float, waiting: float, validation: Validations | None) -> None:
        found = {"codebooks": self.window.summary(), "validation": validation or {}}
        means = self._means.take()
        for kind, problem in discriminator_problems(means).items():
            self.alarms.add(kind, self.step, problem)
        progress = self._progress(fraction, items_per_second, waiting, means, **found)
        row = progress.to_dict()
        append_metrics(self.folder, row)
        if self.tensorboard:
            self.tensorboard.write(row, self.window)
        self.on_progress(progress)


def _minutes(seconds: float) -> int:
    return max(1, math.ceil(seconds / 60))
