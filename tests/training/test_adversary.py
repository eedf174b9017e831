"""Discriminators in a training run: both sides learn, their gradients are separate, and runs resume exactly."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing import event_accumulator
from torch import Tensor

from training.conftest import (
    CONTINUOUS_STEPS,
    STEPS,
    TINY,
    TINY_AUDIO,
    Killed,
    distance,
    equal_state,
    kill_at,
    make_trainer,
    metrics,
    quick,  # noqa: F401 (a fixture for all tests here)
    run_train,
    run_two_processes,
    scaled,
    watched,
)
from vqtok.config import load_preset
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.networks.discriminators import DiscriminatorOutput
from vqtok.training import loop
from vqtok.training.adversary import Adversary
from vqtok.training.data import Batch
from vqtok.training.initialise import tuning_config
from vqtok.training.optim import Budget, cosine
from vqtok.training.train import train
from vqtok.training.validation import Validation

GAN = ["adversarial.weight=0.5", "adversarial.width=4", "adversarial.start=0.5", "adversarial.warm_up=0.2"]
PICTURES = [*GAN, "data.crop_pixels=24"]
SOUNDS = [*TINY_AUDIO, *GAN, "adversarial.width=2", "adversarial.feature_matching=1", "train.batch_size=2"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with 40 images of fine stripes, which a small model smooths."""
    rng = np.random.default_rng(0)
    stack = rng.choice([40, 200], (40, 32, 1, 3)).repeat(32, axis=2) + rng.integers(0, 40, (40, 1, 1, 3))
    folder = tmp_path / "pictures"
    folder.mkdir()
    np.save(folder / "stripes.npy", stack.astype(np.uint8))
    return folder


def adversary_of(*settings: str, modality: str = "image", precision: torch.dtype = torch.float32) -> Adversary:
    torch.manual_seed(0)
    config = load_preset("digits", [*TINY, *(SOUNDS if modality == "audio" else PICTURES), *settings])
    return Adversary(config, torch.device("cpu"), precision)


def pair(modality: str = "image") -> tuple[Tensor, Tensor]:
    """Return a batch, and a reconstruction of it that depends on a parameter."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3, 32, 32) if modality == "image" else (4, 1, 400)
    x = torch.randn(shape, generator=generator)
    gain = torch.full(shape[:1] + (1,) * (len(shape) - 1), 0.5, requires_grad=True)
    return x, x * gain


# Without a training loop.


def test_discriminators_learn_from_some_time_before_they_are_heard() -> None:
    adversary, (x, x_hat) = adversary_of(), pair()
    fresh = copy.deepcopy(adversary)
    assert adversary.losses(x, x_hat, 0.29, 1.0) == {}
    assert adversary.step(0.29, 1.0) == {}
    assert equal_state(adversary, fresh)
    assert adversary.losses(x, x_hat, 0.31, 1.0) == {}
    report = adversary.step(0.31, 1.0)
    assert set(report) == {"discriminator", "discriminator_accuracy", "discriminator_gradient_norm"}
    assert not equal_state(adversary, fresh)
    assert set(adversary.losses(x, x_hat, 0.5, 1.0)) == {"adversarial"}


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_neither_side_gets_the_others_gradient(modality: str) -> None:
    adversary, (x, x_hat) = adversary_of(modality=modality), pair(modality)
    x_hat.retain_grad()
    losses = adversary.losses(x, x_hat, 0.6, 1.0)
    assert x_hat.grad is None
    gradients = [parameter.grad for parameter in adversary.discriminators.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    kept = [gradient.clone() for gradient in gradients if gradient is not None]
    sum(losses.values(), torch.zeros(())).backward()
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients, strict=True))
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()
    assert x_hat.grad.abs().sum() > 0
    adversary.step(0.6, 1.0)
    assert all(parameter.grad is None for parameter in adversary.discriminators.parameters())


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "least_squares"])
def test_bfloat16_gives_finite_gradients_to_both(modality: str, kind: str) -> None:
    adversary = adversary_of(f"adversarial.kind={kind}", modality=modality, precision=torch.bfloat16)
    x, x_hat = pair(modality)
    x_hat.retain_grad()
    losses = adversary.losses(x, x_hat, 0.6, 1.0)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    assert math.isfinite(adversary.step(0.6, 1.0)["discriminator_gradient_norm"])
    assert x_hat.grad is not None
    assert x_hat.grad.isfinite().all()


def test_discriminators_learn_to_tell_and_the_model_learns_to_fool() -> None:
    adversary, (x, _) = adversary_of("adversarial.learning_rate=5e-3"), pair()
    gain = torch.full((1,), 0.3, requires_grad=True)
    reports = []
    for _ in range(40):
        adversary.losses(x, x * gain, 0.4, 1.0)
        reports.append(adversary.step(0.0, 1.0))
    assert reports[0]["discriminator_accuracy"] < 0.7
    assert reports[-1]["discriminator_accuracy"] > 0.9
    assert reports[-1]["discriminator"] < 0.5 * reports[0]["discriminator"]
    before = adversary.losses(x, x * gain, 0.6, 1.0)["adversarial"]
    before.backward()
    assert gain.grad is not None
    # A higher gain makes the reconstruction more similar to the original.
    assert gain.grad.item() < 0
    assert adversary.losses(x, x * (gain + 0.2), 0.6, 1.0)["adversarial"] < before


def test_sounds_are_judged_at_full_level_but_silence_is_not_blown_up() -> None:
    adversary, (x, x_hat) = adversary_of(modality="audio"), pair("audio")
    loud, quiet = (adversary.losses(x * gain, x_hat * gain, 0.6, 1.0)["adversarial"] for gain in (1.0, 0.1))
    torch.testing.assert_close(quiet, loud, rtol=1e-3, atol=1e-6)
    hiss = (1e-5 * x).requires_grad_()
    adversary.losses(torch.zeros_like(x), hiss, 0.6, 1.0)["adversarial"].backward()
    level = (0.5 * x).requires_grad_()
    adversary.losses(x, level, 0.6, 1.0)["adversarial"].backward()
    assert hiss.grad is not None
    assert level.grad is not None
    assert hiss.grad.norm() < 1000 * level.grad.norm()


def test_images_are_judged_as_they_are_written() -> None:
    adversary = adversary_of()
    x, _ = pair()
    x_hat = (3 * x).requires_grad_()
    loss = adversary.losses(x, x_hat, 0.6, 1.0)["adversarial"]
    written = adversary.losses(x, x_hat.detach().clamp(-1, 1), 0.6, 1.0)["adversarial"]
    torch.testing.assert_close(loss, written)
    loss.backward()
    assert x_hat.grad is not None
    outside = x_hat.abs() > 1
    assert outside.any()
    assert not x_hat.grad[outside].any()
    assert x_hat.grad[~outside].all()


def test_lecam_weighs_in() -> None:
    steady, free = adversary_of("adversarial.lecam=10"), adversary_of("adversarial.lecam=0")
    x, x_hat = pair()
    gaps = []
    for adversary in (steady, free):
        for _ in range(20):
            adversary.losses(x, x_hat, 0.4, 1.0)
            adversary.step(0.0, 1.0)
        real, fake = (adversary._judge(media)[0].logits.mean().item() for media in (x, x_hat))
        gaps.append(real - fake)
    assert gaps[0] < 0.5 * gaps[1]


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_gradient_penalty_keeps_discriminators_smooth(modality: str) -> None:
    slopes = []
    for weight in (0, 10):
        adversary = adversary_of(
            f"adversarial.gradient_penalty={weight}", "adversarial.learning_rate=5e-3", modality=modality
        )
        x, x_hat = pair(modality)
        reports = []
        for _ in range(20):
            adversary.losses(x, x_hat, 0.4, 1.0)
            reports.append(adversary.step(0.0, 1.0))
        assert ["gradient_penalty" in report for report in reports] == [weight > 0, False, False, False] * 5
        assert not x.requires_grad
        given = x.clone().requires_grad_()
        sum(judged.logits.mean() for judged in adversary._judge(given)).backward()  # type: ignore[union-attr]
        assert given.grad is not None
        slopes.append(given.grad.norm().item())
    assert slopes[1] < 0.5 * slopes[0]


def test_fixed_weights_are_those_of_the_settings() -> None:
    adversary = adversary_of("loss.l1=3", "adversarial.weight=0.2", "adversarial.feature_matching=4")
    x, x_hat = pair()
    losses = {"l1": (x - x_hat).abs().mean()} | adversary.losses(x, x_hat, 0.6, 1.0)
    weights = adversary.weights(losses, x_hat, torch.nn.Linear(1, 1), 1.0)
    assert [weights[name] for name in losses] == [3, 0.2, 4]


def test_the_adaptive_weight_is_found_at_the_last_layer() -> None:
    adversary = adversary_of("adversarial.weighting=adaptive", "loss.l2=2", "adversarial.weight=0.5")
    x, _ = pair()
    decoder = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 3, padding=1))
    x_hat = decoder(x)
    losses = {"l2": (x - x_hat).square().mean()}
    assert adversary.weights(losses, x_hat, decoder, 1.0)["adversarial"] == 0.5  # There is no adversarial loss yet.
    losses |= adversary.losses(x, x_hat, 0.6, 1.0)
    weight = adversary.weights(losses, x_hat, decoder, 1.0)["adversarial"]
    pulls = [
        torch.autograd.grad(factor * losses[name], decoder[1].weight, retain_graph=True)[0].norm().item()
        for name, factor in (("l2", 2.0), ("adversarial", weight))
    ]
    assert pulls[1] == pytest.approx(0.5 * pulls[0], rel=0.02)
    assert adversary.step(0.6, 1.0)["adversarial_weight"] == weight


def test_balanced_weights_are_shares() -> None:
    adversary = adversary_of("adversarial.weighting=balanced", "loss.l2=1", "adversarial.weight=3")
    x, x_hat = pair()
    losses = {"l2": (x - x_hat).square().mean()} | adversary.losses(x, x_hat, 0.6, 1.0)
    weights = adversary.weights(losses, x_hat, torch.nn.Linear(1, 1), 1.0)
    norms = {
        name: torch.autograd.grad(weights[name] * loss, x_hat, retain_graph=True)[0].flatten(1).norm(dim=1).mean()
        for name, loss in losses.items()
    }
    assert norms["adversarial"].item() == pytest.approx(3 * norms["l2"].item())
    # The first loss keeps its scale, so that the losses that are not balanced keep their meaning.
    assert weights["l2"] == 1
    assert weights["commitment"] == adversary.loss_weights["commitment"]
    report = adversary.step(0.6, 1.0)
    assert report["adversarial_share"] == pytest.approx(0.75)
    assert report["gradient.l2"] == pytest.approx(norms["l2"].item())


def test_the_norms_behind_balanced_weights_are_measured_in_some_steps() -> None:
    adversary = adversary_of("adversarial.weighting=balanced", "loss.l2=1")
    x, x_hat = pair()
    weights = []
    for step in range(11):
        losses = {"l2": (1 + step) * (x - x_hat).square().mean()} | adversary.losses(x, x_hat, 0.6, 1.0)
        weights.append(adversary.weights(losses, x_hat, torch.nn.Linear(1, 1), 1.0)["adversarial"])
        adversary.step(0.6, 1.0)
    assert len(set(weights[:10])) == 1
    assert weights[10] > 2 * weights[0]


@pytest.mark.parametrize("weighting", ["fixed", "adaptive"])
def test_the_share_of_the_gradient_is_reported_with_other_weightings(weighting: str) -> None:
    adversary = adversary_of(f"adversarial.weighting={weighting}", "loss.l2=2", "adversarial.weight=0.1")
    x, _ = pair()
    decoder = torch.nn.Conv2d(3, 3, 1)
    x_hat = decoder(x)
    losses = {"l2": (x - x_hat).square().mean()} | adversary.losses(x, x_hat, 0.6, 1.0)
    weights = adversary.weights(losses, x_hat, decoder, 1.0)
    l2, adversarial = (
        torch.autograd.grad(weights[name] * loss, x_hat, retain_graph=True)[0].flatten(1).norm(dim=1).mean().item()
        for name, loss in losses.items()
    )
    assert adversary.step(0.6, 1.0)["adversarial_share"] == pytest.approx(adversarial / (adversarial + l2))


def test_discriminators_learn_in_every_second_step_from_crops_of_the_crops() -> None:
    settings = ("adversarial.every=2", "adversarial.crop=0.75", "adversarial.depth=2", "adversarial.feature_matching=1")
    adversary, (x, x_hat) = adversary_of(*settings), pair()
    seen = watch_judged(adversary)
    reports = []
    for _ in range(4):
        assert set(adversary.losses(x, x_hat, 0.6, 1.0)) == {"adversarial", "feature_matching"}
        reports.append(adversary.step(0.6, 1.0))
    assert ["discriminator" in report for report in reports] == [True, False, True, False]
    assert {shape[2:] for shape in seen} == {(24, 24)}
    # Originals with reconstructions, reconstructions; without learning, reconstructions and then originals.
    assert [shape[0] for shape in seen] == [8, 4, 4, 4] * 2


def watch_judged(adversary: Adversary) -> list[torch.Size]:
    seen: list[torch.Size] = []
    judge = adversary._judge

    def judged(media: Tensor) -> list[DiscriminatorOutput]:
        seen.append(media.shape)
        return judge(media)

    adversary._judge = judged  # type: ignore[method-assign]
    return seen


# In the training loop.


def test_until_they_are_heard_the_run_is_the_one_without(pictures: Path, tmp_path: Path) -> None:
    with_them = make_trainer(pictures, tmp_path / "with", Budget(steps=24), *PICTURES)
    without = make_trainer(pictures, tmp_path / "without", Budget(steps=24), *PICTURES, "adversarial.weight=0")
    assert without.adversary is None
    found, expected = watched(with_them), watched(without)
    with_them.run()
    without.run()
    assert [losses["l2"] for _, losses in found[:13]] == [losses["l2"] for _, losses in expected[:13]]
    assert found[13][1]["l2"] != expected[13][1]["l2"]
    # 0.3 of 24 steps is 7.2, 0.5 is 12.
    assert ["discriminator" in losses for _, losses in found] == [step >= 8 for step in range(24)]
    assert ["adversarial" in losses for _, losses in found] == [step >= 12 for step in range(24)]
    (row,) = [row for row in metrics(tmp_path / "with") if row["step"] == 24]
    assert {"adversarial", "discriminator", "discriminator_accuracy", "discriminator_gradient_norm"} <= set(row)


LEARNING = [*PICTURES, "adversarial.start=0.6", "adversarial.warm_up=0.4", "adversarial.learning_rate=5e-3"]


def test_discriminators_learn_in_a_run(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path / "run", Budget(steps=50), *LEARNING, "adversarial.weight=1e-9")
    found = watched(trainer)
    trainer.run()
    accuracies = [values["discriminator_accuracy"] for _, values in found[10:]]
    assert np.mean(accuracies[:5]) < 0.7
    assert np.mean(accuracies[-10:]) > 0.75


def test_a_model_that_hears_discriminators_fools_them(pictures: Path, tmp_path: Path) -> None:
    losses = {}
    for weight in ("1e-9", "10"):
        settings = [*LEARNING, f"adversarial.weight={weight}", "train.learning_rate=1e-2"]
        trainer = make_trainer(pictures, tmp_path / weight, Budget(steps=50), *settings)
        found = watched(trainer)
        trainer.run()
        losses[weight] = [values["adversarial"] for _, values in found[30:]]
    assert losses["10"][0] == losses["1e-9"][0]
    assert np.mean(losses["10"]) < np.mean(losses["1e-9"]) - 0.2


@pytest.mark.parametrize(
    ("modality", "weighting"), [("image", "fixed"), ("image", "adaptive"), ("image", "balanced"), ("audio", "balanced")]
)
def test_a_killed_run_goes_on_as_if_undisturbed(
    modality: str, weighting: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    media: Path = request.getfixturevalue("pictures" if modality == "image" else "sounds")
    settings = [*(PICTURES if modality == "image" else SOUNDS), f"adversarial.weighting={weighting}"]
    budget = Budget(steps=15)
    whole = make_trainer(media, tmp_path / "whole", budget, *settings)
    expected = watched(whole)
    best = whole.run()
    # Validations and checkpoints are at 10 and 15; discriminators are trained from step 5 on, and used from 8.
    first = make_trainer(media, tmp_path / "run", budget, *settings, on_progress=kill_at(15))
    with pytest.raises(Killed):
        first.run()
    second = make_trainer(media, tmp_path / "run", budget, *settings)
    second.resume()
    assert second.step == 10
    found = watched(second)
    resumed = second.run()
    assert found == expected[10:]
    assert equal_state(resumed, best)
    assert second.adversary is not None
    assert whole.adversary is not None
    assert equal_state(second.adversary, whole.adversary)


def test_the_result_has_the_finest_texture_once_discriminators_are_heard(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At 6 steps (no codebooks yet), 12, 18, 24, 30 and 36; discriminators are used from 18 on.
    scores, textures = iter([0.5, 0.7, 0.9, 0.8, math.nan]), iter([0.1, 0.6, 0.4, 0.5, 0.0])
    averages: list[torch.nn.Module] = []

    def validate(model: torch.nn.Module, *others: Any, texture: bool) -> Validation:
        assert texture
        averages.append(copy.deepcopy(model))
        figures = [0.0, 0.0]
        return Validation(next(scores), [1, 2], figures, "psnr", figures, [1.0, 1.0], [next(textures)] * 2)

    monkeypatch.setattr(loop, "validate", validate)
    settings = [*PICTURES, "train.validations=6"]
    trainer = make_trainer(pictures, tmp_path, Budget(steps=6 * CONTINUOUS_STEPS), *settings)
    best = trainer.run()
    assert [equal_state(best, average) for average in averages] == [False, False, True, False, False]
    assert (trainer.best_score, trainer.best_texture) == (0.5, 0.8)


def test_a_batch_that_is_not_finite_spoils_no_discriminator(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=24), *PICTURES)
    batch = trainer.loader.batch

    def spoilt(step: int) -> Batch:
        return scaled(batch(step), math.nan if step in (10, 20) else 1)

    trainer.loader.batch = spoilt  # type: ignore[method-assign]
    trainer.run()
    assert trainer.adversary is not None
    assert all(tensor.isfinite().all() for tensor in trainer.adversary.state_dict().values())


def test_when_training_goes_back_so_do_the_discriminators(pictures: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pictures, tmp_path, Budget(steps=60), *PICTURES, "adversarial.start=0.2")
    batch = trainer.loader.batch
    # Validations, and with them checkpoints, are at 20 and 40.
    trainer.loader.batch = lambda step: scaled(batch(step), math.nan if 25 <= step < 45 else 1)  # type: ignore[method-assign]
    adversary, step = trainer.adversary, trainer._train_step
    assert adversary is not None
    states: dict[int, Adversary] = {}

    def spied(x: Tensor, fraction: float) -> dict[str, float]:
        states[trainer.step] = copy.deepcopy(adversary)
        return step(x, fraction)

    trainer._train_step = spied  # type: ignore[method-assign]
    trainer.run()
    assert not equal_state(states[25], states[20])
    assert equal_state(states[45], states[20])
    assert trainer.learning_rate_scale == 0.5
    (group,) = adversary.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.5 * adversary.config.learning_rate * cosine(59 / 60))


def test_a_regression_halves_what_they_ask_for_and_the_model_before_is_kept(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At 6 steps there are no codebooks yet; validations are at 12, 18, 24 and 30; discriminators are used from 15 on.
    figures = iter([30.0, 29.9, 29.0, 28.0])
    averages: list[torch.nn.Module] = []

    def validate(model: torch.nn.Module, *others: Any, texture: bool) -> Validation:
        assert texture
        averages.append(copy.deepcopy(model))
        return Validation(0.5, [1, 2], [next(figures)] * 2, "psnr", [0.0, 0.0], [1.0, 1.0], [0.5 - len(averages) / 10])

    monkeypatch.setattr(loop, "validate", validate)
    settings = [*PICTURES, "train.validations=5"]
    trainer = make_trainer(pictures, tmp_path, Budget(steps=5 * CONTINUOUS_STEPS), *settings)
    best = trainer.run()
    assert trainer.alarms.lines() == [
        "step 30: validation got worse: PSNR 28.00 dB, best 30.00 dB; "
        "adversarial.weight is halved to 0.25; the best model is kept"
    ]
    assert [equal_state(best, average) for average in averages] == [False, True, False, False]
    resumed = make_trainer(pictures, tmp_path, Budget(steps=5 * CONTINUOUS_STEPS), *settings)
    resumed.resume()
    assert resumed.adversary is not None
    x, x_hat = pair()
    losses = resumed.adversary.losses(x, x_hat, 1.0, 1.0)
    assert resumed.adversary.weights(losses, x_hat, resumed.model.decoder, 1.0)["adversarial"] == 0.25


EXACT = ["model.quantizer.prefix_dropout=0", "model.quantizer.restart_below=0", "train.precision=float32"]
TOGETHER = [*PICTURES, *EXACT, "adversarial.lecam=1", "adversarial.learning_rate=1e-2", "adversarial.start=0.4"]


# Distances relative to that from a run which saw half of each batch. Each bound is at least twice what rounding came to
# on several instruction sets, and at most half of what unaveraged or unscaled gradients come to.
PARTS = {"model.decoder": 0.03, "adversary.discriminators": 0.08, "adversary.lecam": 0.08}
PROCESSES = {"model.decoder": 0.06, "adversary.discriminators": 0.5, "adversary.lecam": 0.12}
SLOW = "adversarial.learning_rate=1e-3"
"""Training amplifies rounding less with it."""


def assert_alike(whole: Path, found: Path, half: Path, bounds: dict[str, float]) -> None:
    """Assert that two runs differ by rounding alone."""
    for module, bound in bounds.items():
        far = distance(whole, half, module)
        assert far > 0.005, module
        assert distance(whole, found, module) < bound * far, (module, distance(whole, found, module), far)


def run_both(pictures: Path, folder: Path, *settings: str) -> tuple[Path, Path]:
    """Train on batches of 8 and of 4."""
    for name, size in (("whole", 8), ("half", 4)):
        all_settings = [*TOGETHER, *settings, f"train.batch_size={size}"]
        make_trainer(pictures, folder / name, Budget(steps=STEPS), *all_settings).run()
    return folder / "whole", folder / "half"


def test_parts_of_a_batch_equal_the_whole(pictures: Path, tmp_path: Path) -> None:
    whole, half = run_both(pictures, tmp_path, SLOW)
    parts, settings = tmp_path / "parts", [*TOGETHER, SLOW, "train.batch_size=8", "train.accumulate=4"]
    make_trainer(pictures, parts, Budget(steps=STEPS), *settings).run()
    assert_alike(whole, parts, half, PARTS)
    last = [metrics(folder)[-1] for folder in (parts, whole)]
    for name in ("discriminator", "discriminator_accuracy", "adversarial", "adversarial_weight"):
        assert last[0][name] == pytest.approx(last[1][name], rel=0.02)


def test_two_processes_equal_one_with_the_double_batch(pictures: Path, tmp_path: Path) -> None:
    settings = ["adversarial.weighting=balanced"]
    whole, half = run_both(pictures, tmp_path, *settings)
    run_two_processes(pictures, tmp_path / "two.safetensors", [*TINY, *TOGETHER, *settings, "train.batch_size=4"])
    assert_alike(whole, tmp_path / "two.run", half, PROCESSES)


def test_a_decoder_is_tuned_against_discriminators(pictures: Path, tmp_path: Path) -> None:
    parent, output = tmp_path / "parent.safetensors", tmp_path / "child.safetensors"
    run_train(pictures, parent, *PICTURES, "adversarial.weight=0", steps=12)
    settings = [*PICTURES, "train.freeze=encoder,codebook", "adversarial.weighting=adaptive", "train.validations=2"]
    options = {"steps": 8, "device": "cpu", "tensorboard": True}
    train(pictures, output, init=str(parent), settings=settings, **options)  # type: ignore[arg-type]
    x = torch.rand(1, 3, 24, 24)
    child, before = load_model(output), load_model(parent)
    assert torch.equal(child.encode(x), before.encode(x))
    assert not equal_state(child.decoder, before.decoder)
    # Fine-tuning a model that was trained against discriminators uses them, too.
    assert tuning_config(read_card(output).config, None, []).adversarial.weighting == "adaptive"
    events = event_accumulator.EventAccumulator(str(tmp_path / "child.run" / "tensorboard"))
    events.Reload()
    shown = {"adversarial", "adversarial_weight", "discriminator", "discriminator_accuracy"}
    assert {f"training/{name}" for name in shown} <= set(events.Tags()["scalars"])


def test_a_model_trained_against_discriminators_is_a_model_like_others(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.safetensors"
    result = run_train(pictures, output, *PICTURES, steps=20)
    assert load_model(output).identity.hex() == result.identity
