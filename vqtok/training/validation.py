"""Validation on held-out crops: losses, quality at several prefixes of the codebooks, usage, sample files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.codec.prefixes import prefix_lengths
from vqtok.config import Config, Modality, TrainConfig
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.media.audio import write_audio
from vqtok.media.degrade import Degrader
from vqtok.media.image import write_image
from vqtok.media.media import Media
from vqtok.metrics.means import common_means
from vqtok.metrics.measure import measure, measures
from vqtok.metrics.texture import TextureDistance
from vqtok.metrics.view import View
from vqtok.models.vqmodel import VQModel
from vqtok.tokens.statistics import perplexity, usage
from vqtok.training.data import is_speech

T = TypeVar("T")

GRID_ITEMS = 6
"""The number of items written to the run folder at each validation."""
MIN_ITEMS = 4
"""The smallest number of items in a validation, even on a slow machine."""
TIME_SHARE = 0.1
"""The largest share of the time since the last validation that one may take in a run with a time budget."""

QUALITY = {"image": "psnr", "audio": "mel_distance"}
"""The metric of validations by modality."""


@dataclass(frozen=True)
class Validation:
    """The result of a validation; lists have one entry per prefix length or codebook."""

    score: float
    """Mean weighted reconstruction loss over the prefixes; lower is better."""
    prefixes: list[int]
    """The numbers of codebooks that are decoded."""
    quality: list[float]
    """PSNR in dB for images, mel distance for audio, for each prefix length."""
    quality_name: str
    usage: list[float]
    perplexity: list[float]
    texture: list[float] = field(default_factory=list)
    """The texture distance for each prefix length, if it was asked for: what discriminators improve."""

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return values if self.texture else {name: value for name, value in values.items() if name != "texture"}


Validations: TypeAlias = Mapping[Modality, Validation]
"""The validation of each modality of a model."""
HeldOut: TypeAlias = Sequence[tuple[str, NDArray[np.float32]]]
"""Validation crops with their names, float32 `(channels, *size)`."""


def one_or_all(values: Mapping[Any, T]) -> T | Mapping[Any, T]:
    """Return the value of the only modality of a model, or those of all modalities by name."""
    return values if len(values) > 1 else next(iter(values.values()))


def is_due(config: TrainConfig, before: float, after: float) -> bool:
    """Return whether a validation is due after a step that took the run's progress from `before` to `after`."""
    return int(after * config.validations + 1e-9) != int(before * config.validations + 1e-9)


def is_affordable(cost: float, since_last: float, until_end: float) -> bool:
    """Return whether a run with a time budget has time for a validation now; it always has for the last one.

    Args:
        cost: Seconds that a validation takes.
        since_last: Seconds since the last validation.
        until_end: Seconds to the end of training.
    """
    return until_end <= 0 or cost <= TIME_SHARE * min(since_last, until_end)


@torch.no_grad()
def validate(
    model: VQModel,
    loss: ReconstructionLoss,
    config: Config,
    held_out: HeldOut,
    folder: Path,
    step: int,
    degrader: Degrader,
    *,
    texture: bool = False,
) -> Validation:
    """Encode and decode the held-out crops in float32, and write some of the reconstructions to `folder`.

    With `texture` the texture distance is measured, too.

    The files show reconstructions from the shortest prefix and from all codebooks. What is encoded is degraded, always
    in the same way, if the configuration says so.
    """
    lengths = prefix_lengths(len(model.codebook_sizes))
    device = next(model.parameters()).device
    scores = np.zeros(len(lengths))
    modality: Modality = "image" if config.model.modality == "image" else "audio"
    sample_rate = config.model.sample_rate or None
    quality_name = QUALITY[modality]
    functions = measures([quality_name])
    qualities: dict[str, list[float]] = {str(length): [] for length in lengths}
    counts = [np.zeros(size, np.int64) for size in model.codebook_sizes]
    textures = [TextureDistance(config.model.sample_rate) for _ in lengths] if texture else []
    ends = sorted({lengths[0], lengths[-1]})
    shown: list[list[NDArray[np.float32]]] = []
    for number, (name, crop) in enumerate(held_out):
        x = torch.from_numpy(crop)[None].to(device)
        speech = torch.tensor([is_speech(config, name)], device=device)
        given = degrader(Media(model.modality, crop, model.sample_rate), np.random.default_rng(number)).data
        codes = model.encode(torch.from_numpy(given)[None].to(device))
        for plane, count in zip(codes[0].cpu().numpy(), counts, strict=True):
            count += np.bincount(plane.ravel(), minlength=count.size)
        results, original = [crop], View(Media(modality, crop, sample_rate))
        if degrader.rules:
            results.append(given)
        for index, length in enumerate(lengths):
            x_hat = model.decode(codes[:, :length])
            scores[index] += sum(
                getattr(config.loss, name) * value.item() for name, value in loss(x, x_hat, speech).items()
            )
            decoded = np.nan_to_num(x_hat[0].float().cpu().numpy())
            figures = measure(functions, original, View(Media(modality, decoded, sample_rate)))
            qualities[str(length)].append(figures[quality_name])
            if textures:
                textures[index].add(crop, decoded)
            if length in ends:
                results.append(decoded)
        if len(shown) < GRID_ITEMS:
            shown.append(results)
    names = ["original", *(["degraded"] if degrader.rules else []), *(f"codebooks-{length}" for length in ends)]
    _show(config, names, shown, folder, step)
    return Validation(
        score=float(scores.mean()) / len(held_out),
        prefixes=lengths,
        quality=list(common_means(qualities)[0].values()),
        quality_name=quality_name,
        usage=[usage(count) for count in counts],
        perplexity=[perplexity(count) for count in counts],
        texture=[distance.distance() for distance in textures],
    )


def _show(config: Config, names: list[str], shown: list[list[NDArray[np.float32]]], folder: Path, step: int) -> None:
    """Write a grid of images with one row per name, or each audio as a WAV file."""
    if config.model.modality == "audio":
        for index, clips in enumerate(shown):
            for name, data in zip(names, clips, strict=True):
                media = Media("audio", data, config.model.sample_rate)
                write_audio(media, folder / f"step-{step:07d}-{index}-{name}.wav")
        return
    height, width = (max(images[0].shape[axis] for images in shown) for axis in (1, 2))
    rows = [
        np.concatenate([_padded(image, height, width) for image in row], axis=2) for row in zip(*shown, strict=True)
    ]
    write_image(Media("image", np.concatenate(rows, axis=1)), folder / f"step-{step:07d}.png")


def _padded(image: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    missing = [(0, 0), (0, height - image.shape[1]), (0, width - image.shape[2])]
    return np.pad(image, missing, constant_values=1.0)
