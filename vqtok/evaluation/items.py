"""Evaluate one item: encode, decode and measure every candidate."""

from __future__ import annotations

import hashlib
import math
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.codec.options import CodecOptions
from vqtok.codec.prefixes import Prefixes
from vqtok.errors import MediaError, VqtokError
from vqtok.evaluation.candidates import Candidate, Model, Plan
from vqtok.evaluation.codecs import CODECS, Files
from vqtok.evaluation.packing import pack
from vqtok.evaluation.stability import count_agreeing
from vqtok.media.audio import read_audio
from vqtok.media.degrade import parse_rules
from vqtok.media.image import as_bytes, as_float, read_pixels
from vqtok.media.media import Media
from vqtok.metrics.measure import features, measure, measures
from vqtok.metrics.view import View

Figures = dict[str, float]


@dataclass(frozen=True)
class Item:
    """An image or audio to evaluate."""

    key: str
    path: Path


@dataclass
class Measured:
    """A reconstruction: its bytes, its figures, and the features that metrics of sets compare."""

    num_bytes: int
    figures: Figures
    features: dict[str, NDArray[np.float32]]


class Worker:
    """Evaluates items by one plan, one after another on one core. The models are loaded once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        options = CodecOptions(precision=plan.precision, effort=plan.effort, jobs=1)
        self.codecs: dict[str, Codec] = {
            model.name: Codecs(model.model, plan.device, options).get(plan.modality) for model in plan.models
        }
        self._measures = measures(metric.name for metric in plan.item_metrics)
        self._degrader = parse_rules(plan.degrade, plan.modality, plan.sample_rate or 0)

    def read(self, item: Item) -> Media:
        """Read an item: images as 8-bit sRGB, audio at the rate and with the channels that the plan wants.

        Raises:
            MediaError: It cannot be read.
        """
        if self.plan.modality == "image":
            pixels = read_pixels(item.path, 3)
            return Media("image", as_float(pixels if pixels.dtype == np.uint8 else as_bytes(as_float(pixels))))
        return read_audio(item.path, self.plan.sample_rate, self.plan.mono)

    def degraded(self, item: Item, original: Media) -> Media:
        """Return what is encoded: the original, or what the plan's rules make of it, always in the same way."""
        return self._degrader(original, np.random.default_rng(zlib.crc32(item.key.encode(errors="surrogateescape"))))

    def encode(self, model: Model, given: Media) -> dict[int, Prefixes]:
        """Return the tokens of an item for each number of codebooks, and for all."""
        codec = self.codecs[model.name]
        given, every = for_model(given, codec), len(model.codebook_sizes)
        whole = Prefixes(codec, codec.encode(given))
        # A search is for the codebooks that are asked for; the greedy one finds the same for any number.
        searched = (count for count in model.codebooks if count < every and self.plan.effort > 1)
        return dict.fromkeys((*model.codebooks, every), whole) | {
            count: Prefixes(codec, codec.encode(given, count)) for count in searched
        }

    def evaluate(self, item: Item) -> dict[str, Any]:
        """Return all that is known about an item after evaluation, as JSON; only `error` if it failed."""
        facts: dict[str, Any] = {"key": item.key, "file": str(item.path)}
        try:
            return facts | {"sha256": file_hash(item.path)} | self._evaluate(item)
        except VqtokError as error:
            message = str(error)
        except MemoryError as error:
            message = str(error) or "too large for the memory of this machine"
        except Exception as error:  # A package may raise anything for an odd item; the others go on.
            if os.environ.get("VQTOK_DEBUG"):
                raise
            message = f"unexpected {type(error).__name__}: {error}"
        named = message if item.key in message or str(item.path) in message else f"{item.path}: {message}"
        return facts | {"error": named}

    def _evaluate(self, item: Item) -> dict[str, Any]:
        original = self.read(item)
        view, given = View(original), self.degraded(item, original)
        found: dict[Candidate, Measured] = {}
        settings: dict[str, int] = {}
        models = {}
        for model in self.plan.models:
            models[model.name] = self._evaluate_model(model, view, given, found)
        for name in self.plan.codecs:
            settings |= self._evaluate_codec(name, view, given, found)
        size = media_size(original)
        return {
            "size": size,
            "figures": {
                candidate.id: {"bytes": measured.num_bytes, **rate(measured.num_bytes, size), **measured.figures}
                for candidate, measured in found.items()
            },
            "settings": settings,
            "models": models,
            "features": {
                metric.name: {"": pack(features(metric.name, view))}
                | {c.id: pack(m.features[metric.name]) for c, m in found.items() if m.features}
                for metric in self.plan.set_metrics
            },
        }

    def _evaluate_model(
        self, model: Model, view: View, given: Media, found: dict[Candidate, Measured]
    ) -> dict[str, Any]:
        encoded = self.encode(model, given)
        for count in model.codebooks:
            num_bytes = len(encoded[count].file(count))
            if model.decodes:
                measured = self._measure(view, like(view.media, encoded[count].decode(count)), num_bytes)
            else:
                measured = Measured(num_bytes, {metric.name: math.nan for metric in self.plan.item_metrics}, {})
            found[Candidate(model.name, "model", count)] = measured
        tokens, codec = encoded[len(model.codebook_sizes)].tokens, self.codecs[model.name]
        counts = [
            np.bincount(plane.ravel(), minlength=size)
            for plane, size in zip(tokens.codes, tokens.codebook_sizes, strict=True)
        ]
        agreement = count_agreeing(codec, for_model(given, codec)) if self.plan.stability else {}
        return {
            "num_tokens": tokens.num_tokens,
            "grid": list(tokens.grid),
            "counts": [pack(count.astype(np.uint32)) for count in counts],
            "agreement": {name: {"equal": equal, "of": total} for name, (equal, total) in agreement.items()},
        }

    def _evaluate_codec(self, name: str, view: View, given: Media, found: dict[Candidate, Measured]) -> dict[str, int]:
        """Measure a codec at the bytes of each model's rate and on its curve. Return the settings that were found."""
        codec = CODECS[name]
        files, points, settings = Files(codec, given), dict[int, Measured](), {}

        def point(setting: int) -> Measured:
            if setting not in points:
                points[setting] = self._measure(view, files.decode(setting), len(files.file(setting)))
            return points[setting]

        if self.plan.curves:
            for setting in codec.ladder:
                found[Candidate(name, "curve", setting=setting)] = point(setting)
        for model in self.plan.models:
            for count in model.codebooks:
                num_bytes = found[Candidate(model.name, "model", count)].num_bytes
                setting = files.at_least(num_bytes)
                upper = point(setting)
                candidate = Candidate(name, "matched", count, model.name)
                found[candidate] = interpolated(num_bytes, upper, list(points.values()))
                settings[candidate.id] = setting
        return settings

    def _measure(self, view: View, decoded: Media, num_bytes: int) -> Measured:
        other = View(decoded)
        figures = measure(self._measures, view, other)
        return Measured(num_bytes, figures, {m.name: features(m.name, other) for m in self.plan.set_metrics})


def interpolated(num_bytes: int, upper: Measured, points: list[Measured]) -> Measured:
    """Return the figures of a codec at exactly `num_bytes`, on the line to `upper` from the next smaller file.

    Lines are straight over the logarithm of the bytes. Where no file is smaller, or `upper` itself has fewer bytes
    (the codec's best file), the figures are those of `upper`. Features of sets are those of `upper`.
    """
    smaller = [point for point in points if point.num_bytes < num_bytes]
    if not smaller or upper.num_bytes <= num_bytes:
        return upper
    lower = max(smaller, key=lambda point: point.num_bytes)
    share = math.log(num_bytes / lower.num_bytes) / math.log(upper.num_bytes / lower.num_bytes)
    figures = {
        name: value + (1 - share) * (lower.figures[name] - value) if math.isfinite(value) else value
        for name, value in upper.figures.items()
    }
    return Measured(num_bytes, figures, upper.features)


def for_model(media: Media, codec: Codec) -> Media:
    """Return media as a model takes them: images in gray if it has one channel."""
    if media.modality == "image" and codec.tokenizer.channels == 1:
        # The weights of Pillow's conversion to gray.
        weights = np.array([0.299, 0.587, 0.114], np.float32)
        return Media("image", np.tensordot(weights, media.data, 1)[None].astype(np.float32))
    return media


def like(original: Media, decoded: Media) -> Media:
    """Return a reconstruction with as many channels as the original."""
    if len(decoded.data) == len(original.data):
        return decoded
    return Media(decoded.modality, np.repeat(decoded.data, len(original.data), axis=0), decoded.sample_rate)


def media_size(media: Media) -> dict[str, int]:
    if media.modality == "image":
        return {"width": media.data.shape[2], "height": media.data.shape[1]}
    channels, samples = media.data.shape
    return {"samples": samples, "sample_rate": media.sample_rate or 1, "channels": channels}


def extent(size: Mapping[str, int]) -> float:
    """Return the number of pixels, or of seconds."""
    return size["width"] * size["height"] if "width" in size else size["samples"] / size["sample_rate"]


def rate(num_bytes: float, size: Mapping[str, int]) -> dict[str, float]:
    """Return the bits per pixel, or kilobits per second."""
    bits = 8 * num_bytes / extent(size)
    return {"bpp": bits} if "width" in size else {"kbps": bits / 1000}


def file_hash(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MediaError(f"{path}: cannot be read: {error.strerror}") from error
