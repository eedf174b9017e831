"""Discriminators: shapes, receptive fields and half precision."""

from __future__ import annotations

import pytest
import torch
from rounding import bfloat16_bound
from torch import Tensor, nn

from vqtok.config import load_preset
from vqtok.losses.reconstruction import magnitudes
from vqtok.networks.discriminators import (
    BandDiscriminator,
    PatchDiscriminator,
    PeriodDiscriminator,
    build_discriminators,
)

KINDS = {
    "patch": (lambda: PatchDiscriminator(3, 8, 4), (3, 48, 40)),
    "period": (lambda: PeriodDiscriminator(3, 4), (1, 1000)),
    "band": (lambda: BandDiscriminator(128, 4), (1, 1000)),
}


def made(kind: str, batch: int = 2) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = KINDS[kind]
    return make(), torch.randn(batch, *shape)


@pytest.mark.parametrize(("size", "patches"), [((96, 96), (10, 10)), ((24, 64), (1, 6)), ((70, 70), (6, 6))])
def test_images_are_classified_patch_by_patch(size: tuple[int, int], patches: tuple[int, int]) -> None:
    logits, features = PatchDiscriminator(1, 6, 4)(torch.randn(2, 1, *size))
    assert logits.shape == (2, 1, *patches)
    assert [feature.shape[1] for feature in features] == [6, 12, 24, 48]


def test_a_patch_is_70_pixels_wide() -> None:
    discriminator = PatchDiscriminator(1, 4, 4)
    x = torch.randn(1, 1, 128, 128, requires_grad=True)
    discriminator(x).logits[0, 0, 7, 6].backward()
    assert x.grad is not None
    reached = x.grad[0, 0].nonzero()
    assert (reached.amax(0) - reached.amin(0) + 1).tolist() == [70, 70]


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_judged_by_itself(kind: str) -> None:
    discriminator, x = made(kind, 3)
    together, alone = discriminator(x), discriminator(x[1:2])
    torch.testing.assert_close(alone.logits, together.logits[1:2], rtol=1e-3, atol=1e-4)
    for one, all_of_them in zip(alone.features, together.features, strict=True):
        torch.testing.assert_close(one, all_of_them[1:2], rtol=1e-3, atol=1e-4)


def test_each_phase_of_a_period_is_judged_by_itself() -> None:
    discriminator, x = made("period", 1)
    before = discriminator(x).logits
    assert before.shape[-1] == 3
    x[..., 1::3] = 0.0
    assert (discriminator(x).logits != before).any(-2).flatten().tolist() == [False, True, False]


def test_each_band_has_layers_of_its_own() -> None:
    discriminator = BandDiscriminator(2048, 4)
    # 0.1 and 0.25 of 1025 bins are 102.5 and 256.25.
    assert discriminator.bins == [(0, 102), (102, 256), (256, 512), (512, 768), (768, 1025)]
    spectrum = discriminator._spectrum(torch.randn(1, 1, 8192))
    found = [
        layers(spectrum[..., low:high])[-1]
        for layers, (low, high) in zip(discriminator.bands, discriminator.bins, strict=True)
    ]
    assert [band.shape[-1] for band in found] == [13, 20, 32, 32, 33]


def test_the_spectrogram_has_the_magnitudes_of_the_losses() -> None:
    x = torch.randn(2, 1, 700)
    spectrum = BandDiscriminator(256, 4)._spectrum(x)
    found = spectrum.square().sum(1).sqrt() * 256**0.5
    torch.testing.assert_close(found, magnitudes(x[:, 0], 256).transpose(1, 2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("samples", [20, 100, 4000])
def test_short_sounds_are_judged_too(samples: int) -> None:
    x = torch.randn(1, 1, samples)
    for discriminator in (PeriodDiscriminator(11, 2), BandDiscriminator(2048, 2)):
        assert discriminator(x).logits.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_comes_close_and_has_finite_gradients(kind: str) -> None:
    discriminator, x = made(kind)
    x.requires_grad_()
    exact = discriminator(x).logits
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(x).logits
    assert logits.dtype == torch.bfloat16
    layers = nn.ModuleList([discriminator.bands[0], discriminator.head]) if kind == "band" else discriminator
    assert (logits.float() - exact).norm() < bfloat16_bound(layers) * exact.norm()
    logits.float().square().mean().backward()
    for tensor in (x, *discriminator.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_set_up_gets_the_discriminators_of_its_modality() -> None:
    (patch,) = build_discriminators(load_preset("digits", ["adversarial.width=4", "adversarial.weight=1"]))
    assert isinstance(patch, PatchDiscriminator)
    assert patch(torch.zeros(1, 1, 28, 28)).logits.shape == (1, 1, 1, 1)
    audio = build_discriminators(load_preset("audio", ["adversarial.width=2"]))
    kinds = [type(part) for part in audio]
    assert kinds == [PeriodDiscriminator] * 5 + [BandDiscriminator] * 3
    assert [part.period for part in audio[:5]] == [2, 3, 5, 7, 11]
    assert [part.window_size for part in audio[5:]] == [2048, 1024, 512]


def test_periods_and_windows_choose_the_discriminators_of_audio() -> None:
    few = ["adversarial.periods=[]", "adversarial.windows=256", "adversarial.width=4"]
    (only,) = build_discriminators(load_preset("audio-gan", few))
    assert isinstance(only, BandDiscriminator)
    assert only(torch.randn(2, 1, 2000)).logits.shape[0] == 2
    assert len(build_discriminators(load_preset("audio-gan", ["adversarial.width=4"]))) == 8


def test_a_shallower_discriminator_sees_smaller_patches() -> None:
    for depth, patch in ((4, 70), (3, 34), (2, 16)):
        discriminator = PatchDiscriminator(1, 4, depth)
        x = torch.zeros(1, 1, 96, 96, requires_grad=True)
        logits = discriminator(x).logits
        logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2].backward()
        assert x.grad is not None
        assert int((x.grad[0, 0].abs().sum(0) > 0).sum()) == patch
