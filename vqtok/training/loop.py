"""The training loop: warm up without codebooks, start them by k-means, train, validate, keep the best."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.compute.device import autocast_dtype, channels_last
from vqtok.compute.distributed import (
    all_reduce_max,
    average_gradients,
    broadcast_module,
    gather,
    on_first_process,
    rank,
    world_size,
)
from vqtok.config import Config, from_dict
from vqtok.errors import TrainingError, UsageError
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.vqmodel import VQModel
from vqtok.networks import Decoder, Encoder, scale_to_data
from vqtok.quantizers import one_update
from vqtok.training.adversary import Adversary
from vqtok.training.alarms import Alarms, RegressionWatch, collapsed_codebooks, describe_collapse, mark_for_restart
from vqtok.training.data import BatchLoader
from vqtok.training.initialise import make_model, start_codebooks
from vqtok.training.interrupt import HeldBackInterrupt
from vqtok.training.monitor import CodebookWindow, Progress, RunningMeans, append_metrics, cut_metrics
from vqtok.training.objective import Objective
from vqtok.training.optim import Budget, learning_rate, make_optimizer, update_average
from vqtok.training.state import read_checkpoint, restore, save_checkpoint
from vqtok.training.tensorboard import TensorBoard
from vqtok.training.validation import Validation, is_due, validate

LOG_STEPS = 20
CHECKPOINT_SECONDS = 300
MAX_BAD_STEPS, MAX_ROLLBACKS = 20, 3
"""Steps in a row without a finite gradient before the run goes back to its last checkpoint; how often it may."""


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
        tensorboard: Where to write what `metrics.jsonl` gets, too.
        initial: A trained model to start from, of the same architecture.
    """

    config: Config
    loader: BatchLoader
    held_out: list[tuple[str, NDArray[np.float32]]]
    folder: Path
    device: torch.device
    budget: Budget
    seed: int = 0
    on_progress: Callable[[Progress], None] = lambda progress: None
    tensorboard: TensorBoard | None = None
    initial: VQModel | None = None
    step: int = 0
    seconds: float = 0.0
    best_score: float = float("inf")
    bad_steps: int = 0
    learning_rate_scale: float = 1.0
    _started: bool = False
    _means: RunningMeans = field(default_factory=RunningMeans)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.model = make_model(self.config, self.device, self.initial)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.reconstruction = ReconstructionLoss(self.config.loss, self.config.model.sample_rate).to(self.device)
        self.optimizer = make_optimizer(self.model, self.config.train)
        self.window = CodebookWindow(self.model.codebook_sizes)
        self.alarms = Alarms(self.folder)
        self.regression = RegressionWatch()
        self.precision = precision = autocast_dtype(self.config.train.precision, self.device)
        gan = self.config.adversarial.weight > 0
        self.adversary = Adversary(self.config, self.device, precision) if gan else None
        self.objective = Objective(self.config, self.reconstruction, self.adversary, precision)

    @property
    def parent(self) -> str | None:
        """Identity of the model that training started from."""
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
        """Go on from the newest checkpoint of the run folder.

        Raises:
            TrainingError: there is none. UsageError: the run was started with other settings, or had another number
                of processes, which changes its batches.
        """
        tensors, facts = read_checkpoint(self.folder)
        processes = facts.get("processes", 1)
        if processes != world_size():
            raise UsageError(
                f"{self.folder}: the run has {processes} processes, not {world_size()}; resume with as many"
            )
        found = from_dict(Config, facts["config"]), facts["seed"], facts["parent"]
        if found != (self.config, self.seed, self.parent):
            raise UsageError(f"{self.folder}: the run has other settings; resume with those it was started with")
        restore(tensors, self._modules, self._optimizers)
        self.window.load(tensors["window"].to(self.device))
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.best_score, self.bad_steps = facts["best_score"], facts["bad_steps"]
        self.learning_rate_scale = facts["learning_rate_scale"]
        self.alarms = Alarms(self.folder, facts["alarms"])
        self.regression = RegressionWatch(**facts["regression"])
        cut_metrics(self.folder, self.step)
        self._started = True

    def checkpoint(self) -> None:
        if rank() != 0:
            return
        facts = {
            "config": self.config.to_dict(),
            "seed": self.seed,
            "parent": self.parent,
            "processes": world_size(),
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "bad_steps": self.bad_steps,
            "learning_rate_scale": self.learning_rate_scale,
            "alarms": self.alarms.kinds,
            "regression": self.regression.state,
        }
        save_checkpoint(self.folder, self._modules, self._optimizers, self.window.state(), facts)

    def run(self) -> VQModel:
        """Train until the budget is spent and return the best averaged model.

        Raises:
            KeyboardInterrupt: on Ctrl-C or SIGTERM, once the step is whole and a checkpoint written.
            TrainingError: the loss diverged, or the budget ended before the codebooks had learnt.
        """
        with contextlib.closing(self.loader.batches(self.step)) as batches, HeldBackInterrupt() as interrupt:
            try:
                self._run(batches, interrupt)
            finally:
                if self.tensorboard:
                    self.tensorboard.close()
        if math.isinf(self.best_score):
            raise TrainingError(
                f"step {self.step}: ended before a quantised model was validated; give more than "
                f"{self.config.train.continuous_steps} steps, or lower train.continuous_steps"
            )
        return self.best

    def _run(self, batches: Iterator[NDArray[np.float32]], interrupt: HeldBackInterrupt) -> None:
        last_checkpoint = started = time.monotonic()
        if not self._started:
            self._start()
        before, waited, validating, first_step = self.seconds, 0.0, 0.0, self.step
        while (fraction := self.budget.progress(self.step, self.seconds)) < 1:
            ready = time.monotonic()
            x = torch.from_numpy(next(batches)).to(self.device)
            waited += time.monotonic() - ready
            losses = self._train_step(x, fraction)
            self.step += 1
            now = time.monotonic()
            self.seconds, share, asked = all_reduce_max(
                before + now - started, validating / (now - started), interrupt.asked
            )
            self._means.add(losses)
            if self.step % LOG_STEPS == 0:
                self._restart_collapsed()
            before_step, fraction = fraction, self.budget.progress(self.step, self.seconds)
            validation = None
            if is_due(self.config.train, self.step, before_step, fraction, share if self.budget.minutes else 0.0):
                since = time.monotonic()
                validation = self._validate(fraction)
                validating += time.monotonic() - since
            if validation or self.step % LOG_STEPS == 0:
                elapsed = time.monotonic() - started
                self._report(
                    fraction,
                    (self.step - first_step) * len(x) * world_size() / elapsed,
                    waited / elapsed,
                    validation,
                )
            due = validation or time.monotonic() - last_checkpoint > CHECKPOINT_SECONDS
            # While no step succeeds, the checkpoint before may be the better state to go back to.
            if (due and not self.bad_steps) or asked or fraction >= 1:
                self.checkpoint()
                last_checkpoint = time.monotonic()
            if asked:
                raise KeyboardInterrupt

    def _start(self) -> None:
        self._started = True
        if self.adversary:
            broadcast_module(self.adversary)
        encoder, decoder = self.model.encoder, self.model.decoder
        if self.initial is None:
            if isinstance(encoder, Encoder) and isinstance(decoder, Decoder):
                x = gather(torch.from_numpy(self.loader.batch(0)).to(self.device))
                scale_to_data(encoder, decoder, x)
            broadcast_module(self.model)
            self.average.load_state_dict(self.model.state_dict())
        elif self.model.quantizer.ready:
            # What tuning is to improve; not kept as the best, so that a run always gives a model of its own.
            validation = self._run_validation()
            self.regression.check(validation)
            self._report(0.0, 0.0, 0.0, validation)
        self.checkpoint()  # From now on there is one to go back to.

    def _train_step(self, x: Tensor, fraction: float) -> dict[str, float]:
        config = self.config.train
        # Every random choice of a step follows from its number, so that a resumed run makes the same ones.
        torch.manual_seed(self.seed * 1_000_003 + self.step + (rank() << 53))
        warm = self.step < config.continuous_steps
        if not warm and not self.model.quantizer.ready:
            self._start_codebooks()
        for group in self.optimizer.param_groups:
            group["lr"] = group["scale"] * self.learning_rate_scale * learning_rate(config, self.step, fraction)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with one_update(self.model.quantizer):
            losses, codes = self.objective.backward(self.model, x, quantize=not warm, fraction=fraction)
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
        """Go on from the state of the last checkpoint, on other data and with half the learning rate."""
        failed = f"{MAX_BAD_STEPS} steps in a row gave no finite gradient"
        if self.alarms.count("rollback") == MAX_ROLLBACKS:
            raise TrainingError(f"{failed}; lower train.learning_rate, or set train.precision=float32")
        tensors, facts = read_checkpoint(self.folder)
        modules = {name: module for name, module in self._modules.items() if name != "best"}
        restore(tensors, modules, self._optimizers)
        self.window.load(tensors["window"].to(self.device))
        self.learning_rate_scale /= 2
        self.bad_steps = 0
        self.alarms.add("rollback", self.step, f"{failed}; back to step {facts['step']} with half the learning rate")

    def _start_codebooks(self) -> None:
        """Start those codebooks that have had no start, from the batches of the steps to come."""

        def batch(index: int) -> Tensor:
            return channels_last(torch.from_numpy(self.loader.batch(self.step + index)).to(self.device))

        start_codebooks(self.model, batch, self.precision)
        # The average of codebooks starts with them, not with the random ones before.
        self.average.quantizer.load_state_dict(self.model.quantizer.state_dict())

    def _restart_collapsed(self) -> None:
        found = on_first_process(lambda: collapsed_codebooks(self.window))
        if not found:
            return
        done = mark_for_restart(self.model.quantizer, found)
        self.alarms.add("collapse", self.step, f"{describe_collapse(self.window, found)}; {done}")
        self.window.clear()

    def _run_validation(self) -> Validation:
        return on_first_process(
            lambda: validate(self.average, self.reconstruction, self.config, self.held_out, self.folder, self.step)
        )

    def _validate(self, fraction: float) -> Validation:
        validation = self._run_validation()
        worse = self.regression.check(validation)
        heard = self.adversary if self.adversary and self.adversary.is_active(fraction) else None
        # The score cannot see what discriminators ask for: while they are heard, the latest model that is not clearly
        # worse is the one.
        is_latest = heard is not None and math.isfinite(validation.score) and not self.regression.is_worse
        if validation.score < self.best_score or is_latest:
            self.best_score = min(validation.score, self.best_score)
            self.best.load_state_dict(self.average.state_dict())
        if worse:
            done = [heard.soften()] if heard else []
            self.alarms.add("regression", self.step, "; ".join([worse, *done, "the best model is kept"]))
        return validation

    def _report(self, fraction: float, items_per_second: float, waiting: float, validation: Validation | None) -> None:
        progress = Progress(
            step=self.step,
            fraction=fraction,
            seconds=self.seconds,
            items_per_second=items_per_second,
            waiting=waiting,
            learning_rate=max(group["lr"] for group in self.optimizer.param_groups),
            losses=self._means.take(),
            codebooks=self.window.summary(),
            validation=validation,
        )
        row = progress.to_dict()
        append_metrics(self.folder, row)
        if self.tensorboard:
            self.tensorboard.write(row, self.window)
        self.on_progress(progress)
