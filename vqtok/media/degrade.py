"""Degrade media on purpose: noise, compression and loss, for training to restore them and for measuring how it went.

A rule is text such as `noise:5-50`, `jpeg:30`, `blur`, or `noise:0-20:hum/` for recorded noise: the kind, the range of
its strength, which is drawn at random, and for noise of audio a folder.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vqtok.errors import MediaError, UsageError
from vqtok.files.walk import files_below
from vqtok.media.audio import read_audio
from vqtok.media.image import as_bytes, as_float
from vqtok.media.kinds import modality_of
from vqtok.media.media import Media

Array = NDArray[np.float32]
Effect = Callable[[Media, float, np.random.Generator], Array]

QUIET = 1e-3
"""The level (root mean square) that quieter audio counts as, so that noise is added to silence, too."""


@dataclass(frozen=True)
class Degradation:
    """One kind of degradation, with the range of its strength."""

    kind: str
    lowest: float
    highest: float
    noises: Sequence[Array] = field(default=(), repr=False)
    """Recorded noise at the rate of the media, mono; empty for synthetic noise."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.lowest:g}-{self.highest:g}"

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        """Return degraded media of the same size."""
        strength = float(rng.uniform(self.lowest, self.highest))
        if self.noises:
            data = _with_noise(media, strength, _recorded(self.noises, media.data.shape[1], rng))
        else:
            data = EFFECTS[media.modality][self.kind].apply(media, strength, rng)
        return replace(media, data=np.clip(data, -1, 1).astype(np.float32))


@dataclass(frozen=True)
class Degrader:
    """Degrades each medium by one of several rules, drawn at random.

    Args:
        rules: The parsed rules; none for media that stay as they are.
    """

    rules: Sequence[Degradation]

    def __call__(self, media: Media, rng: np.random.Generator) -> Media:
        return self.rules[int(rng.integers(len(self.rules)))](media, rng) if self.rules else media

    def __str__(self) -> str:
        return ", ".join(map(str, self.rules))


UNCHANGED = Degrader(())
"""Leaves media as they are."""


def parse_rules(texts: Sequence[str], modality: str, sample_rate: int = 0) -> Degrader:
    """Parse rules, and read the noise that they name.

    Args:
        texts: The rules, such as `noise:5-50`.
        modality: "image" or "audio".
        sample_rate: The rate of the audio to be degraded, in Hz.

    Raises:
        UsageError: A rule is not valid.
        MediaError: The folder of a rule has no audio that can be read.
    """
    return Degrader([_parse(text, modality, sample_rate) for text in texts])


def _parse(text: str, modality: str, sample_rate: int) -> Degradation:
    kind, _, rest = text.partition(":")
    limits, _, folder = rest.partition(":")
    effect = EFFECTS[modality].get(kind)
    if effect is None:
        raise UsageError(
            f"degradation {text!r}: there is no {kind!r} for {modality}; use {', '.join(EFFECTS[modality])}"
        )
    first, dash, last = limits.partition("-")
    try:
        lowest, highest = (float(first), float(last if dash else first)) if limits else effect.usual
    except ValueError:
        raise UsageError(
            f"degradation {text!r}: must be {kind}:LOWEST-HIGHEST, for example {effect.example(kind)}"
        ) from None
    if not effect.least <= lowest <= highest <= effect.most:
        raise UsageError(
            f"degradation {text!r}: {effect.what} must be from {effect.least:g} to {effect.most:g}, lowest first"
        )
    if folder and (modality, kind) != ("audio", "noise"):
        raise UsageError(f"degradation {text!r}: only noise of audio takes a folder")
    return Degradation(kind, lowest, highest, _read_noises(Path(folder), sample_rate) if folder else ())


def _read_noises(folder: Path, sample_rate: int) -> list[Array]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: not a folder of noise")
    names = files_below(folder, lambda path: modality_of(path) == "audio")
    noises = [read_audio(folder / name, sample_rate=sample_rate).data[0] for name in names]
    noises = [noise for noise in noises if noise.std() > 0]
    if not noises:
        raise MediaError(f"{folder}: no audio files in this folder, or only silent ones")
    return noises


# Images.


def _add_gaussian(image: Media, deviation: float, rng: np.random.Generator) -> Array:
    return image.data + rng.normal(0, deviation / 127.5, image.data.shape).astype(np.float32)


def _compress(image: Media, quality: float, rng: np.random.Generator) -> Array:
    file = io.BytesIO()
    _to_pillow(image).save(file, "JPEG", quality=round(quality))
    with Image.open(file) as compressed:
        return _from_pillow(compressed)


def _blur(image: Media, deviation: float, rng: np.random.Generator) -> Array:
    return _from_pillow(_to_pillow(image).filter(ImageFilter.GaussianBlur(deviation)))


def _downscale(image: Media, factor: float, rng: np.random.Generator) -> Array:
    whole = _to_pillow(image)
    small = whole.resize([max(1, round(side / factor)) for side in whole.size], Image.Resampling.BOX)
    return _from_pillow(small.resize(whole.size, Image.Resampling.BICUBIC))


def _to_pillow(image: Media) -> Image.Image:
    pixels = as_bytes(image.data).transpose(1, 2, 0)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _from_pillow(image: Image.Image) -> Array:
    return as_float(np.ascontiguousarray(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)))


# Audio.


def _add_noise(audio: Media, snr: float, rng: np.random.Generator) -> Array:
    return _with_noise(audio, snr, _synthetic(audio.data.shape[1], rng))


def _with_noise(audio: Media, snr: float, noise: Array) -> Array:
    """Add noise of level 1 at a ratio of signal to noise in dB."""
    level = max(float(audio.data.std()), QUIET)
    return audio.data + np.float32(level * 10 ** (-snr / 20)) * noise


def _synthetic(samples: int, rng: np.random.Generator) -> Array:
    """Return Gaussian noise of level 1 with a random slope of its spectrum, from white to brown."""
    spectrum = np.fft.rfft(rng.standard_normal(max(2, samples)))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -rng.uniform(0, 1)
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, max(2, samples))[:samples]
    return (noise / max(float(noise.std()), 1e-12)).astype(np.float32)


def _recorded(noises: Sequence[Array], samples: int, rng: np.random.Generator) -> Array:
    """Return a random part of a recording, repeated if it is too short, at level 1."""
    noise = noises[int(rng.integers(len(noises)))]
    start = int(rng.integers(max(1, len(noise) - samples + 1)))
    part = np.resize(noise[start : start + samples], samples)
    return part / np.float32(max(float(part.std()), 1e-6))


def _clip(audio: Media, part: float, rng: np.random.Generator) -> Array:
    peak = float(np.abs(audio.data).max(initial=0.0))
    return np.clip(audio.data, -part * peak, part * peak)


def _lowpass(audio: Media, cutoff: float, rng: np.random.Generator) -> Array:
    assert audio.sample_rate
    samples = audio.data.shape[1]
    frequencies = np.fft.rfftfreq(samples, 1 / audio.sample_rate)
    response = np.clip((1.1 * cutoff - frequencies) / (0.1 * cutoff), 0, 1)  # A ramp of a tenth of the cutoff.
    return np.fft.irfft(np.fft.rfft(audio.data, axis=1) * response, samples, axis=1).astype(np.float32)


def _drop(audio: Media, milliseconds: float, rng: np.random.Generator) -> Array:
    """Silence gaps of this length, about one in ten times their length."""
    assert audio.sample_rate
    data, samples = audio.data.copy(), audio.data.shape[1]
    length = max(1, round(milliseconds / 1000 * audio.sample_rate))
    for _ in range(max(1, round(samples / (10 * length)))):
        start = int(rng.integers(max(1, samples - length + 1)))
        data[:, start : start + length] = 0
    return data


@dataclass(frozen=True)
class _Kind:
    """A kind of degradation: what it does, its usual range, what its number means, and the limits of that."""

    apply: Effect
    usual: tuple[float, float]
    what: str
    least: float
    most: float

    def example(self, kind: str) -> str:
        return f"{kind}:{self.usual[0]:g}-{self.usual[1]:g}"


EFFECTS: dict[str, dict[str, _Kind]] = {
    "image": {
        "noise": _Kind(_add_gaussian, (5, 50), "the standard deviation, of 255,", 0, 255),
        "jpeg": _Kind(_compress, (5, 40), "the quality", 1, 95),
        "blur": _Kind(_blur, (0.5, 2), "the standard deviation in pixels", 0, 50),
        "downscale": _Kind(_downscale, (1.5, 4), "the factor", 1, 64),
    },
    "audio": {
        "noise": _Kind(_add_noise, (0, 20), "the signal-to-noise ratio in dB", -40, 100),
        "clip": _Kind(_clip, (0.1, 0.5), "the limit, as a fraction of the peak,", 0.01, 1),
        "lowpass": _Kind(_lowpass, (2000, 6000), "the cutoff in Hz", 50, 100_000),
        "gaps": _Kind(_drop, (20, 100), "the length in ms", 1, 10_000),
    },
}
