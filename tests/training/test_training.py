"""The training loop and `train`: learning, the best model, interruption and resumption, and the files written."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import nn

from training.conftest import (
    CONTINUOUS_STEPS,
    TINY,
    TINY_AUDIO,
    Killed,
    equal_state,
    kill_at,
    make_trainer,
    media_of,
    metrics,
    run_train,
    scaled,
    ticking,
    watched,
)
from vqtok.codec.codec import Codec
from vqtok.codec.prefixes import prefix_lengths
from vqtok.config import TrainConfig
from vqtok.errors import OutputError, TrainingError, UsageError
from vqtok.media.media import Media
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.token_reader import read_entropy_model
from vqtok.quantizers import VQ
from vqtok.tokens.vqt.file import dump, load
from vqtok.training import loop
from vqtok.training.data import Batch
from vqtok.training.initialise import start_codebooks
from vqtok.training.loop import Trainer
from vqtok.training.monitor import CodebookWindow, RunningMeans
from vqtok.training.objective import TensorBatch
from vqtok.training.optim import Budget, learning_rate, make_optimizer, update_average
from vqtok.training.state import CHECKPOINT_NAME, PREVIOUS_NAME, read_checkpoint
from vqtok.training.train import train, train_prior
from vqtok.training.validation import Validation


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with 40 images of bright discs of several colors on a dark background."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:24, :24]
    discs = [np.hypot(y - cy, x - cx) < 7 for cy, cx in rng.uniform(4, 20, (40, 2))]
    colors = rng.choice([60, 150, 240], (40, 3))
    stack = 20 + np.stack(discs)[..., None] * (colors[:, None, None] - 20)
    folder = tmp_path / "pictures"
    folder.mkdir()
    np.save(folder / "discs.npy", stack.astype(np.uint8))
    return folder


# Schedule, budget, averages, figures.


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    config = TrainConfig(learning_rate=0.1, warmup_steps=4)
    found = [learning_rate(config, step, progress) for step, progress in ((0, 0), (1, 0), (3, 0), (9, 0))]
    assert found == pytest.approx([0.025, 0.05, 0.1, 0.1])
    found = [learning_rate(config, 9, progress) for progress in (1 / 3, 0.5, 2 / 3, 1)]
    assert found == pytest.approx([0.075, 0.05, 0.025, 0])
    # A tenth of a short run is enough.
    config = TrainConfig(learning_rate=0.1, warmup_steps=1000)
    assert learning_rate(config, 0, 0) == pytest.approx(1e-4)
    assert learning_rate(config, 1, 0.05) == pytest.approx(0.05, rel=0.01)
    assert learning_rate(config, 1, 0.5) == pytest.approx(0.05)
    assert learning_rate(TrainConfig(learning_rate=0.1, warmup_steps=0), 0, 0) == pytest.approx(0.1)


def test_the_budget_that_ends_first_counts() -> None:
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(minutes=2).progress(10**9, 30) == 0.25
    assert Budget(steps=10, minutes=2).progress(2, 60) == 0.5
    assert Budget(steps=10, minutes=2).progress(8, 60) == 0.8
    assert Budget(steps=10).progress(11, 0) == 1
    assert Budget(minutes=1, begin=10, reserve=10).progress(0, 30) == 0.5
    assert Budget(minutes=1, begin=50, reserve=10).progress(0, 50) == 1


def test_averaged_weights_by_hand() -> None:
    average, model = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    model.weight.data.fill_(5.0)
    model.num_batches_tracked.fill_(7)
    update_average(average, model, decay=0.9, step=0)
    # 1 / 10 of the old 1 and 9 / 10 of the new 5
    assert average.weight.item() == pytest.approx(4.6)
    assert average.num_batches_tracked.item() == 7
    update_average(average, model, decay=0.9, step=5)
    assert average.weight.item() == pytest.approx(4.6 * 6 / 15 + 5 * 9 / 15)
    update_average(average, model, decay=0.5, step=10**6)
    assert average.weight.item() == pytest.approx((4.84 + 5) / 2)


def test_only_matrices_and_kernels_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm(2))
    decayed, plain = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert decayed["params"] == [model[0].weight]
    assert decayed["weight_decay"] == 0.3
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0


def test_the_window_counts_codes_of_many_steps() -> None:
    window = CodebookWindow((4, 8))
    assert window.summary() == {}
    window.add(torch.zeros(1, 2, 2, dtype=torch.int64))
    assert window.summary() == {"usage": [0.25, 0.125], "perplexity": [1, 1]}
    for code in range(99):
        window.add(torch.full((1, 2, 1, 2), code % 4))
    found = window.summary()
    assert found["usage"] == [1, 0.5]
    assert found["perplexity"] == pytest.approx([4, 4], rel=1e-3)
    for _ in range(100):
        window.add(torch.full((1, 2, 2), 1))
    assert window.summary()["perplexity"] == [1, 1]


def test_means_leave_out_what_is_not_finite() -> None:
    means = RunningMeans()
    for value in (1.0, math.nan, 2.0, math.inf):
        means.add({"a": value, "b": math.nan})
    assert means.take() == {"a": 1.5}
    assert means.take() == {}


@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_prefixes_that_are_reported(count: int, expected: list[int]) -> None:
    assert prefix_lengths(count) == expected


# The loop.


def test_training_learns_and_writes_what_it_did(pictures: Path, tmp_path: Path) -> None:
    shown: list[loop.Progress] = []
    settings = ["train.learning_rate=1e-2", "model.quantizer.prefix_dropout=0"]
    trainer = make_trainer(pictures, tmp_path / "run", Budget(steps=120), *settings, on_progress=shown.append)
    losses = watched(trainer)
    best = trainer.run()
    # From the k-means start on; before it nothing is quantized.
    parts = losses[CONTINUOUS_STEPS : CONTINUOUS_STEPS + 5], losses[-5:]
    first, last = (np.mean([loss["l2"] for _, loss in part]) for part in parts)
    assert last < 0.75 * first
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [20, 40, 60, 80, 100, 120] == [progress.step for progress in shown]
    assert {"l2", "commitment", "gradient_norm", "learning_rate", "items_per_second", "fraction"} <= set(rows[-1])
    assert [len(rows[-1][name]) for name in ("usage", "perplexity")] == [2, 2]
    found = [row["validation"] for row in rows if "validation" in row]
    assert [row["step"] for row in rows if "validation" in row] == [40, 80, 120]
    assert found[-1]["quality_name"] == "psnr"
    assert found[-1]["prefixes"] == [1, 2]
    assert found[0]["quality"][1] < found[-1]["quality"][1]
    assert found[-1]["quality"][0] < found[-1]["quality"][1]
    assert trainer.best_score == min(validation["score"] for validation in found)
    assert not best.training
    # Six originals above their reconstructions from one codebook and from both, 24 x 24 each.
    with Image.open(tmp_path / "run" / "step-0000120.png") as grid:
        assert grid.size == (6 * 24, 3 * 24)
        original, first, both = np.asarray(grid).astype(float).reshape(3, 24, 6 * 24, 3)
    spread = np.abs(original - original.mean()).mean()
    assert np.abs(original - both).mean() < np.abs(original - first).mean() < 0.6 * spread


def test_the_loss_curve_is_as_it_was(pictures: Path, tmp_path: Path) -> None:
    """Use FSQ, since k-means turns a difference in the last bit into 10 % of the loss, and FSQ into 0.3 %."""
    settings = ["model.quantizer.kind=fsq", "model.quantizer.levels=5,5,5,5", "model.quantizer.depth=1"]
    make_trainer(pictures, tmp_path, Budget(steps=80), "train.learning_rate=5e-3", *settings, seed=7).run()
    found = {row["step"]: row["l2"] for row in metrics(tmp_path) if row["step"] % loop.LOG_STEPS == 0}
    assert found == pytest.approx({20: 0.2342, 40: 0.1307, 60: 0.1076, 80: 0.1013}, rel=0.02)


def test_sounds_are_written(sounds: Path, tmp_path: Path) -> None:
    trainer = make_trainer(sounds, tmp_path / "run", Budget(steps=9), *TINY_AUDIO)
    trainer.run()
    (original,) = (tmp_path / "run").glob("step-0000009-0-original.wav")
    (decoded,) = (tmp_path / "run").glob("step-0000009-0-codebooks-2.wav")
    data, rate = soundfile.read(original)
    assert rate == 2000
    np.testing.assert_allclose(data, trainer.held_out["audio"][0][1][0], atol=1e-4)
    assert soundfile.info(decoded).frames == len(data)
    assert metrics(tmp_path / "run")[-1]["validation"]["quality_name"] == "mel_distance"


def test_codebooks_start_from_latents_after_the_continuous_steps(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=30), on_progress=kill_at(CONTINUOUS_STEPS + 1))
    trainer.config.train.__dict__["validations"] = 30
    losses = watched(trainer)
    with pytest.raises(Killed):
        trainer.run()
    assert ["commitment" in loss for _, loss in losses] == [False] * CONTINUOUS_STEPS + [True]
    assert trainer.model.quantizer.ready
    assert trainer.average.quantizer.ready
    z = trainer.model.encoder(torch.from_numpy(media_of(trainer.loader.batch(0))))
    codes = trainer.model.quantizer.encode(z)
    assert len(codes[:, 0].unique()) > 8
    error = (trainer.model.quantizer.decode(codes) - z).square().mean()
    assert error < 0.2 * z.var()


@pytest.mark.parametrize(("steps", "continuous"), [(1, 0), (2, 0), (5, 1), (20, 4), (100, CONTINUOUS_STEPS)])
def test_a_short_run_warms_up_for_a_fifth_of_it(steps: int, continuous: int, pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=steps))
    losses = watched(trainer)
    trainer.run()
    assert ["commitment" in loss for _, loss in losses] == [False] * continuous + [True] * (steps - continuous)


def test_the_result_is_the_best_by_validation(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One for each fifth of the run except the first, which ends before the codebooks are used.
    scores = iter([0.9, 0.5, 0.7, math.nan])
    averages: list[nn.Module] = []

    def validate(model: nn.Module, *others: Any, **options: Any) -> Validation:
        averages.append(copy.deepcopy(model))
        return Validation(next(scores), [1, 2], [0.0, 0.0], "psnr", [0.0, 0.0], [1.0, 1.0])

    monkeypatch.setattr(loop, "validate", validate)
    trainer = make_trainer(pictures, tmp_path, Budget(steps=5 * CONTINUOUS_STEPS), "train.validations=5")
    best = trainer.run()
    assert trainer.best_score == 0.5
    assert [equal_state(best, average) for average in averages] == [False, True, False, False]


class SlowMachine:
    """A simulated clock on which training steps and validations take a given time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float, item: float = 0.0) -> None:
        self.now, self.step, self.item = 0.0, step, item
        self.validated: list[tuple[float, float]] = []
        """The start and duration of each validation."""
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(loop, "validate", self._validate)

    def _validate(
        self, model: Any, loss: Any, config: Any, crops: list[Any], *others: Any, **options: Any
    ) -> Validation:
        self.validated.append((self.now, self.item * len(crops)))
        self.now += self.item * len(crops)
        return Validation(1.0, [1, 2], [0.0, 0.0], "psnr", [0.0, 0.0], [1.0, 1.0])

    def run(self, trainer: Trainer) -> None:
        step = trainer._train_step

        def slow(x: torch.Tensor, fraction: float) -> dict[str, float]:
            self.now += self.step
            return step(x, fraction)

        trainer._train_step = slow  # type: ignore[method-assign]
        trainer.run()


def test_a_run_by_the_clock_ends_on_time(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = SlowMachine(monkeypatch, step=1.0)
    trainer = make_trainer(pictures, tmp_path, Budget(minutes=2, reserve=20), "train.validations=50")
    machine.run(trainer)
    assert 100 <= machine.now <= 101
    assert trainer.step == pytest.approx(100, abs=2)
    assert trainer.optimizer.param_groups[0]["lr"] < 0.02 * trainer.config.train.learning_rate


@pytest.mark.parametrize("step", [1.0, 5.0])
def test_a_minute_on_a_slow_machine_gives_a_model(
    step: float, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = SlowMachine(monkeypatch, step, item=0.2)
    settings = ["train.continuous_steps=250", "train.warmup_steps=500"]
    trainer = make_trainer(pictures, tmp_path, Budget(minutes=1, reserve=12), *settings)
    losses = watched(trainer)
    machine.run(trainer)
    assert machine.now <= 48 + step
    assert "commitment" in losses[-1][1]
    quantized = sum("commitment" in loss for _, loss in losses)
    assert quantized >= 0.75 * len(losses)
    assert trainer.best.quantizer.ready
    assert "training steps on this machine: expect a poor model" in caplog.text


def test_what_does_not_fit_into_the_minutes_is_said_at_once(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowMachine(monkeypatch, step=30.0)
    trainer = make_trainer(pictures, tmp_path, Budget(minutes=1))
    with pytest.raises(TrainingError, match=r"step takes 30\.0 s on .* for `minutes` 1; raise `minutes` to 9"):
        machine.run(trainer)
    assert trainer.step <= 2
    trainer = make_trainer(pictures, tmp_path, Budget(minutes=1, reserve=61))
    with pytest.raises(TrainingError, match="`minutes` 1 leaves no time to train"):
        machine.run(trainer)
    assert trainer.step == 0


def test_a_validation_takes_a_tenth_of_the_time_since_the_last(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SlowMachine(monkeypatch, step=2.0, item=1.0)
    trainer = make_trainer(pictures, tmp_path, Budget(minutes=5), "train.validations=60")
    machine.run(trainer)
    assert len(trainer.held_out["image"]) == trainer._validation_items == 7  # of 8: 7.5 s, a fortieth of the run
    measured, found = machine.validated[:2], machine.validated[2:]
    assert [cost for _, cost in measured] == [1, 1]
    before = [sum(part) for part in [measured[-1], *found[:-1]]]
    shares = [cost / (began - last) for (began, cost), last in zip(found, before, strict=True)]
    assert len(found) == 3
    assert max(shares) <= 0.1
    assert machine.now <= 302


# Interruption and resumption.


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_killed_run_goes_on_as_if_undisturbed(modality: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    media: Path = request.getfixturevalue("pictures" if modality == "image" else "sounds")
    settings = TINY_AUDIO if modality == "audio" else []
    budget = Budget(steps=30)
    whole = make_trainer(media, tmp_path / "whole", budget, *settings, seed=3)
    expected = watched(whole)
    best = whole.run()
    # Validations, and with them checkpoints, are at 10, 20 and 30.
    first = make_trainer(media, tmp_path / "run", budget, *settings, seed=3, on_progress=kill_at(20))
    with pytest.raises(Killed):
        first.run()
    second = make_trainer(media, tmp_path / "run", budget, *settings, seed=3)
    second.resume()
    assert second.step == 10
    found = watched(second)
    resumed = second.run()
    assert found == expected[10:]
    assert equal_state(resumed, best)
    assert equal_state(second.model, whole.model)
    assert second.best_score == whole.best_score


def test_a_run_ended_by_sigkill_goes_on_as_if_undisturbed(pictures: Path, tmp_path: Path) -> None:
    """Kill a separate process between two checkpoints with a real SIGKILL."""
    script = """
import json, os, signal, sys, torch
from vqtok.training import initialise as start
from vqtok.training.train import train, train_prior
from vqtok.training.initialise import start_codebooks
torch.set_num_threads(1)
start.KMEANS_VECTORS = 256
def kill(progress):
    if progress.step == 60:
        os.kill(os.getpid(), signal.SIGKILL)
train(*sys.argv[1:3], preset="digits", settings=json.loads(sys.argv[3]), steps=100, device="cpu", on_progress=kill)
"""
    whole = run_train(pictures, tmp_path / "whole.safetensors", steps=100)
    command = [sys.executable, "-c", script, pictures, tmp_path / "cut.safetensors", json.dumps(TINY)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with (tmp_path / "cut.run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3')  # An incomplete line, as a kill while writing leaves it.
    leftover = tmp_path / "cut.run" / f".{CHECKPOINT_NAME}.abc.tmp"
    leftover.write_bytes(b"half")
    resumed = run_train(pictures, tmp_path / "cut.safetensors", steps=100, resume=True)
    assert not leftover.exists()
    assert resumed.identity == whole.identity
    expected, found = (
        [{name: row.get(name) for name in ("step", "l2", "commitment", "usage", "perplexity")} for row in metrics(run)]
        for run in (tmp_path / "whole.run", tmp_path / "cut.run")
    )
    # The last validation before the kill was at 34: the means of line 40 lack the steps before it.
    assert [row["step"] for row in found] == [row["step"] for row in expected] == [20, 34, 40, 60, 67, 80, 100]
    assert [row for row in found if row["step"] != 40] == [row for row in expected if row["step"] != 40]


def test_checkpoints_name_the_state_of_each_parameter(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=3))
    trainer.run()
    tensors, _ = read_checkpoint(tmp_path)
    name = "model.encoder.layers.0.conv.weight"
    assert tensors[f"optimizer.exp_avg.{name}"].shape == tensors[name].shape
    other = make_trainer(pictures, tmp_path, Budget(steps=3))
    other.optimizer.param_groups.reverse()  # Each gets its own state, in any order.
    other.resume()
    for expected, found in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        for entry, value in trainer.optimizer.state[expected].items():
            assert torch.equal(other.optimizer.state[found][entry], value)


def test_a_finished_run_can_be_extended(pictures: Path, tmp_path: Path) -> None:
    make_trainer(pictures, tmp_path, Budget(steps=12)).run()
    longer = make_trainer(pictures, tmp_path, Budget(steps=30))
    longer.resume()
    longer.run()
    assert [row["step"] for row in metrics(tmp_path) if "validation" in row] == [4, 8, 12, 20, 30]


@pytest.mark.parametrize("kept", [0, 5, 1000])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(
    pictures: Path, tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(pictures, tmp_path, Budget(steps=12)).run()
    newest = tmp_path / CHECKPOINT_NAME
    newest.write_bytes(newest.read_bytes()[:kept])
    trainer = make_trainer(pictures, tmp_path, Budget(steps=12))
    trainer.resume()
    assert trainer.step == 8
    assert CHECKPOINT_NAME in caplog.text
    (tmp_path / PREVIOUS_NAME).write_bytes(b"")
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        make_trainer(pictures, tmp_path, Budget(steps=12)).resume()


def test_resuming_with_other_settings_is_refused(pictures: Path, tmp_path: Path) -> None:
    budget = Budget(steps=8)
    make_trainer(pictures, tmp_path, budget).run()
    for settings, seed in ((["train.batch_size=4"], 0), (["model.quantizer.depth=1"], 0), ([], 1)):
        with pytest.raises(UsageError, match="other settings"):
            make_trainer(pictures, tmp_path, budget, *settings, seed=seed).resume()
    make_trainer(pictures, tmp_path, budget).resume()
    with pytest.raises(TrainingError, match="no checkpoint"):
        make_trainer(pictures, tmp_path / "other", budget).resume()


# Divergence.


def test_a_step_that_is_not_finite_is_skipped(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=30))
    batch = trainer.loader.batch

    def spoilt(step: int) -> Batch:
        return scaled(batch(step), math.nan if step in (3, 15) else 1)

    trainer.loader.batch = spoilt  # type: ignore[method-assign]
    losses = watched(trainer)
    trainer.run()
    assert [math.isfinite(loss["l2"]) for _, loss in losses] == [step not in (3, 15) for step in range(30)]
    for module in (trainer.model, trainer.average, trainer.best):
        assert all(tensor.isfinite().all() for tensor in module.state_dict().values())
    assert trainer.alarms.lines() == [
        "step 3: the loss l2 is not finite; the step is skipped (2 times, last at step 15)"
    ]
    assert [(row["step"], row["alarm"], row["count"]) for row in metrics(tmp_path) if "alarm" in row] == [
        (3, "not finite", 1),
        (15, "not finite", 2),
    ]


def test_steps_that_stay_without_a_gradient_roll_back(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=60))
    batch = trainer.loader.batch
    # The second validation, and with it a checkpoint, is at 40.
    trainer.loader.batch = lambda step: scaled(batch(step), math.nan if 25 <= step < 45 else 1)  # type: ignore[method-assign]
    states: dict[int, dict[str, torch.Tensor]] = {}
    step = trainer._train_step

    def spied(x: torch.Tensor, fraction: float) -> dict[str, float]:
        states[trainer.step] = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        return step(x, fraction)

    trainer._train_step = spied  # type: ignore[method-assign]
    trainer.run()
    assert trainer.step == 60
    # Step 45 starts from the state of step 20, to which the run was rolled back.
    assert all(torch.equal(tensor, states[20][name]) for name, tensor in states[45].items())
    assert not torch.equal(states[25]["encoder.layers.0.conv.weight"], states[20]["encoder.layers.0.conv.weight"])
    assert trainer.learning_rate_scale == 0.5
    not_finite, rollback = trainer.alarms.lines()
    assert not_finite.startswith("step 25: ")
    assert "(20 times, last at step 44)" in not_finite
    assert rollback.startswith("step 44: 20 successive steps")
    assert "rolled back to the state of step 20 with half the learning rate" in rollback


def test_a_run_that_does_not_recover_ends(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=100))
    batch = trainer.loader.batch
    trainer.loader.batch = lambda step: scaled(batch(step), 1 if step < 9 else math.nan)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"20 successive steps .* lower train.learning_rate"):
        trainer.run()
    assert trainer.step == 9 + 4 * 20 - 1
    assert all(tensor.isfinite().all() for tensor in trainer.model.state_dict().values())


def test_a_collapsed_codebook_starts_anew(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(VQ, "update", lambda *others: None)  # Neither running means nor restarts repair the codebook.
    trainer = make_trainer(pictures, tmp_path, Budget(steps=140), "train.validations=1")
    step = trainer._train_step

    def spoiling(x: torch.Tensor, fraction: float) -> dict[str, float]:
        if trainer.step == 20:
            codebook = trainer.model.quantizer.parts[0].codebook
            codebook += 1000 * torch.arange(16)[:, None]
        return step(x, fraction)

    trainer._train_step = spoiling  # type: ignore[method-assign]
    trainer.run()
    (line,) = trainer.alarms.lines()
    assert re.match(
        r"step 120: collapsed over the last 100 steps: codebook 1 \(.* of 16\).*; restarted by k-means", line
    )
    assert line in caplog.text
    perplexity = {row["step"]: row["perplexity"][0] for row in metrics(tmp_path) if "perplexity" in row}
    assert perplexity[100] < 4 < perplexity[140]
    assert trainer.average.quantizer.parts[0].codebook.abs().max() < 100


def test_a_regression_is_said(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([20.0, 30.0, 10.0, 10.0])

    def validate(*others: Any, **options: Any) -> Validation:
        return Validation(1.0, [1, 2], [next(figures)] * 2, "psnr", [0.0, 0.0], [1.0, 1.0])

    monkeypatch.setattr(loop, "validate", validate)
    settings = ["train.validations=4", "train.continuous_steps=2"]
    trainer = make_trainer(pictures, tmp_path, Budget(steps=20), *settings)
    trainer.run()
    message = "validation got worse: PSNR 10.00 dB, best 30.00 dB; the best model is kept"
    assert trainer.alarms.lines() == [f"step 20: {message}"]


def test_k_means_looks_at_fewer_latents_where_it_takes_long(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtok.training.initialise.KMEANS_VECTORS", 5 * 128)
    trainer = make_trainer(pictures, tmp_path, Budget(steps=9))
    for seconds, expected in ((math.inf, 5), (1e6, 5), (0.0, 1)):
        trainer.model.quantizer.parts[0].initialised.fill_(False)
        requested: list[int] = []

        def batch(index: int, requested: list[int] = requested) -> TensorBatch:
            requested.append(index)
            return TensorBatch.of(trainer.loader.batch(index), torch.device("cpu"))

        start_codebooks(trainer.model, batch, torch.float32, seconds)
        assert requested == list(range(expected))
        assert trainer.model.quantizer.ready


# From a folder to a model file.


def test_train_writes_a_model_that_codes(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    result = run_train(pictures, output, "data.note=discs", steps=20, seed=5, tensorboard=True)
    assert len(list((tmp_path / "model.run" / "tensorboard").iterdir())) == 1
    model = load_model(output)
    assert model.identity.hex() == result.identity
    assert [int(table.sum(dtype=np.int64)) for table in model.entropy_model.tables if table is not None] == [2**14] * 2
    training = result.training
    assert {name: training[name] for name in ("preset", "steps", "items_seen", "seed", "files", "held_out_files")} == {
        "preset": "digits",
        "steps": 20,
        "items_seen": 160,
        "seed": 5,
        "files": 32,
        "held_out_files": 8,
    }
    evaluation = training["evaluation"]
    assert evaluation["files"] == 8
    assert evaluation["prefixes"] == [1, 2]
    assert evaluation["psnr"][0] < evaluation["psnr"][1]
    assert set(evaluation) >= {"protocol", "ssim", "usage", "perplexity", "entropy_bits", "dead_codes"}
    with pytest.raises(OutputError, match="contains a run; `resume` continues it"):
        run_train(pictures, output, steps=20)


def test_the_model_file_does_not_depend_on_an_interruption(pictures: Path, tmp_path: Path) -> None:
    whole = run_train(pictures, tmp_path / "whole.safetensors", steps=15)
    with pytest.raises(Killed):
        run_train(pictures, tmp_path / "cut.safetensors", steps=15, on_progress=kill_at(15))
    assert not (tmp_path / "cut.safetensors").exists()
    assert run_train(pictures, tmp_path / "cut.safetensors", steps=15, resume=True).identity == whole.identity


def test_force_starts_anew_but_leaves_what_is_not_its_own(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    run_train(pictures, output, steps=8)
    (tmp_path / "model.run" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="needs at least 2 readable image files, has 0"):
        run_train(tmp_path / "empty", output, steps=8, force=True)
    assert (tmp_path / "model.run" / CHECKPOINT_NAME).exists()
    run_train(pictures, output, steps=10, force=True)
    assert [row["step"] for row in metrics(tmp_path / "model.run")] == [4, 7, 10]
    assert (tmp_path / "model.run" / "notes.txt").exists()
    assert not (tmp_path / "model.run" / "step-0000008.png").exists()


def test_what_cannot_start_says_so_at_once(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    with pytest.raises(UsageError, match="not a folder of media"):
        run_train(tmp_path / "nowhere", output)
    with pytest.raises(OutputError, match="no such folder"):
        run_train(pictures, tmp_path / "nowhere" / "model.safetensors")
    with pytest.raises(UsageError, match=r"name the model \.safetensors"):
        run_train(pictures, tmp_path / "model.run")
    with pytest.raises(UsageError, match="`seed` must be"):
        run_train(pictures, output, seed=-1)
    with pytest.raises(UsageError, match="`device` tpu: not available"):
        train(pictures, output, preset="digits", device="tpu")
    with pytest.raises(UsageError, match="loss: no reconstruction term"):
        run_train(pictures, output, "loss.l2=0")
    with pytest.raises(TrainingError, match="no checkpoint to resume from"):
        run_train(pictures, output, resume=True)
    output.write_bytes(b"a model")
    with pytest.raises(OutputError, match="output exists; `overwrite`"):
        run_train(pictures, output)
    assert not (tmp_path / "model.run").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_saves_and_says_how_to_resume(
    pictures: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output, run_folder = tmp_path / "model.safetensors", tmp_path / "model.run"
    options = [option for setting in TINY for option in ("--set", setting)]
    command = [sys.executable, "-m", "vqtok", "train", pictures, "-o", output, "--preset", "digits", "--steps", "99999"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, *options, "--device", "cpu"], stderr=subprocess.PIPE, env=environment) as process:
        deadline = time.monotonic() + 900
        while not (run_folder / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate()
    assert process.returncode == 130, errors.decode()
    assert b"--resume" in errors
    trained = metrics(run_folder)[-1]["step"]
    assert trained >= 20
    assert not output.exists()
    result = run_train(pictures, output, steps=trained + 30, resume=True)
    assert result.training["steps"] == trained + 30
    assert load_model(output).identity.hex() == result.identity


def test_a_prior_is_fitted_to_a_model_that_exists(pictures: Path, tmp_path: Path, run: Any) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    run_train(pictures, first, steps=8)
    assert not read_card(first).has_prior
    done = run("train", pictures, "-o", second, "--init", first, "--prior-only", "--set", "prior.fit_steps=3")
    assert done.exit_code == 0, done.stderr
    before, after = (load_model(path) for path in (first, second))
    x = torch.rand(1, 3, 16, 24)
    assert torch.equal(before.encode(x), after.encode(x))
    assert torch.equal(before.decode(before.encode(x)), after.decode(before.encode(x)))
    assert after.entropy_model.prior
    assert before.identity != after.identity
    assert read_card(second).training["parent"] == before.identity.hex()
    tokens = Codec(after).encode(Media("image", x[0].numpy()))
    data = dump(tokens, read_entropy_model(second), "prior")
    assert np.array_equal(load(data, after.entropy_model).codes, tokens.codes)
    for wrong in (["--prior-only"], ["--init", first, "--prior-only", "--steps", 3]):
        assert run("train", pictures, "-o", tmp_path / "x.safetensors", *wrong).exit_code == 2
    with pytest.raises(UsageError, match=r"only prior\.\* and data\.\* can be set"):
        train_prior(pictures, tmp_path / "x.safetensors", str(first), settings=["train.seed=1"])


def test_the_minutes_are_those_of_the_whole_command(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqtok.training.prior._is_useful", lambda *others: True)
    now, stages = ticking(monkeypatch), []
    result = run_train(pictures, tmp_path / "model.safetensors", "prior.fit_steps=5", minutes=1, on_stage=stages.append)
    assert 50 <= now() <= 63
    assert read_card(result.model).has_prior
    assert 1 <= result.training["evaluation"]["files"] <= 8
    assert stages[0] == "looking for files"
    assert "initializing the codebooks by k-means" in stages


def test_minutes_too_few_for_a_prior_leave_it_out_and_say_so(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vqtok.training.prior.step_seconds", lambda *others: 0.5)
    ticking(monkeypatch)
    result = run_train(pictures, tmp_path / "model.safetensors", minutes=1)
    assert not read_card(result.model).has_prior
    # 50 steps of 0.5 s in 0.6 of 0.12 of the time
    assert "the model gets no prior, " in caplog.text
    assert "on this machine that needs `minutes` 6 or more; " in caplog.text


def test_a_long_enough_run_ends_with_a_prior(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.training.prior.MIN_PRIOR_STEPS", 1)
    model = run_train(pictures, tmp_path / "model.safetensors", steps=8).model
    assert read_card(model).has_prior
