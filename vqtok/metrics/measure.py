"""Compute metrics by name: vqtok's own, and those of reference packages."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from functools import cache, partial
from io import BytesIO, StringIO
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.losses.perceptual import EfficientNetLoss, LPIPSLoss
from vqtok.metrics.audio import mel_distance, si_sdr, stft_distance, stoi
from vqtok.metrics.image import ms_ssim, psnr, ssim
from vqtok.metrics.view import View

logger = logging.getLogger(__name__)

Measure: TypeAlias = Callable[[View, View], float]
PESQ_RATE = VISQOL_SPEECH_RATE = 16_000
VISQOL_AUDIO_RATE = 48_000


def measures(names: Iterable[str]) -> dict[str, Measure]:
    """Return the function of each metric of single items. It takes the original and the reconstruction.

    A function returns NaN for an item that the metric is not defined for, such as the PESQ of silence.

    Raises:
        UsageError: The package of a metric is not installed.
        TrainingError: Weights cannot be downloaded.
    """
    return {name: MEASURES[name]() for name in names if name in MEASURES}


def measure(functions: dict[str, Measure], original: View, decoded: View) -> dict[str, float]:
    """Return the figure of each metric by name."""
    # Not in inference mode, whose tensors could not be used by losses, which share their filters.
    with torch.no_grad():
        return {name: function(original, decoded) for name, function in functions.items()}


def features(name: str, view: View) -> NDArray[np.float32]:
    """Return the features of an image that a metric of sets compares; `name` is that of the metric."""
    with torch.no_grad():
        if name == "frechet_efficientnet":
            found = _efficientnet_features(view)[-1].mean((2, 3))[0]
        else:
            pixels = torch.from_numpy(view.pixels).permute(2, 0, 1)[None]
            found = _inception()(pixels)[0]
    return found.float().cpu().numpy()


def _tensors(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Measure]:
    return lambda: lambda x, x_hat: float(function(x.tensor, x_hat.tensor))


def _sounds(function: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[], Measure]:
    return lambda: lambda x, x_hat: float(function(x.tensor, x_hat.tensor, x.media.sample_rate or 1))


def _ssimulacra2() -> Measure:
    from ssimulacra2 import compute_ssimulacra2

    return lambda x, x_hat: float(compute_ssimulacra2(BytesIO(x.png), BytesIO(x_hat.png)))


def _flip() -> Measure:
    import flip_evaluator

    return lambda x, x_hat: float(flip_evaluator.evaluate(x.unit, x_hat.unit, "LDR", applyMagma=False)[1])


def _lpips() -> Measure:
    network = LPIPSLoss()
    return lambda x, x_hat: float(network(x.tensor, x_hat.tensor))


def _efficientnet() -> Measure:
    def distance(x: View, x_hat: View) -> float:
        pairs = zip(_efficientnet_features(x), _efficientnet_features(x_hat), strict=True)
        return float(torch.stack([(a - b).square().sum(1).mean() for a, b in pairs]).mean())

    return distance


def _efficientnet_features(view: View) -> list[Tensor]:
    colors = view.tensor.expand(1, 3, *view.tensor.shape[2:])
    return view.once("efficientnet", lambda: _efficientnet_network().features(colors))


@cache
def _efficientnet_network() -> EfficientNetLoss:
    return EfficientNetLoss()


@cache
def _inception() -> Any:
    from torchmetrics.image.fid import FrechetInceptionDistance

    with warnings.catch_warnings(action="ignore"):
        return FrechetInceptionDistance(feature=2048).inception.eval()


def _pesq() -> Measure:
    import pesq

    def quality(x: View, x_hat: View) -> float:
        pair = x.mono(PESQ_RATE), x_hat.mono(PESQ_RATE)
        if not (pair[0].any() and pair[1].any()):
            return math.nan
        try:
            return float(pesq.pesq(PESQ_RATE, *pair, "wb"))
        except (pesq.PesqError, ValueError, ZeroDivisionError):  # No speech in it, or too short.
            return math.nan

    return quality


def _visqol(mode: str, sample_rate: int) -> Measure:
    from visqol import VisqolApi

    judge = VisqolApi()
    judge.create(mode=mode, use_lattice_model=False)

    def quality(x: View, x_hat: View) -> float:
        pair = x.mono(sample_rate), x_hat.mono(sample_rate)
        if not pair[0].any():
            return math.nan
        try:
            with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()):
                return float(judge.measure_from_arrays(*pair, sample_rate=sample_rate).moslqo)
        except Exception as error:  # The package raises many kinds for audio that is too short for its patches.
            logger.info("no ViSQOL of an item: %s", error)
            return math.nan

    return quality


MEASURES: dict[str, Callable[[], Measure]] = {
    "psnr": _tensors(psnr),
    "ssim": _tensors(ssim),
    "ms_ssim": _tensors(ms_ssim),
    "ssimulacra2": _ssimulacra2,
    "flip": _flip,
    "lpips": _lpips,
    "efficientnet": _efficientnet,
    "mel_distance": _sounds(mel_distance),
    "stft_distance": _tensors(stft_distance),
    "si_sdr": _tensors(si_sdr),
    "stoi": _sounds(stoi),
    "pesq": _pesq,
    "visqol_speech": partial(_visqol, "speech", VISQOL_SPEECH_RATE),
    "visqol_audio": partial(_visqol, "audio", VISQOL_AUDIO_RATE),
}
"""Functions that prepare the metrics of single items, by name."""
