"""Rate control: the number of codebooks of an item that reaches a quality or keeps a limit of bytes."""

from __future__ import annotations

import logging
import math
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from vqtok.codec.codec import Codec
from vqtok.codec.files import encode_image_file, with_columns
from vqtok.codec.prefixes import Prefixes
from vqtok.errors import MediaError, UsageError
from vqtok.media.audio import read_audio
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.metrics.catalogue import METRICS, why_missing
from vqtok.metrics.measure import measure, measures
from vqtok.metrics.view import View
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.tokens import Tokens

logger = logging.getLogger(__name__)

RATES = {"bpp": "image", "kbps": "audio"}
"""Limits of the rate, and the modality that each is for."""
NO_COLUMNS: Mapping[str, Any] = MappingProxyType({})
QUALITIES = {"psnr": "image", "ssimulacra2": "image", "stoi": "audio"}
"""Metrics that can be targets; all are better if higher."""


@dataclass(frozen=True)
class Target:
    """What every item should reach with as few codebooks as possible, and what it must not exceed."""

    quality: Mapping[str, float] = field(default_factory=dict)
    """The figure to reach, by metric."""
    max_bytes: int | None = None
    """The most bytes of a token file."""
    rate: Mapping[str, float] = field(default_factory=dict)
    """The highest `bpp` of images and `kbps` of audio."""

    def check(self) -> None:
        """Raise if the target cannot be measured here.

        Raises:
            UsageError: Two qualities for one modality, or a metric whose package is not installed.
        """
        for name, value in {**self.quality, **self.rate}.items():
            if not math.isfinite(value) or (name in RATES and value <= 0):
                raise UsageError(f"`target_{name}` {value}: is not possible")
        for name in self.quality:
            why = why_missing(METRICS[name])
            if why:
                raise UsageError(f"`target_{name}` {why}")
        for modality in ("image", "audio"):
            names = [name for name in self.quality if QUALITIES[name] == modality]
            if len(names) > 1:
                raise UsageError(f"`target_{names[0]}` and `target_{names[1]}`: give one target for each modality")

    def for_modality(self, modality: str) -> Target:
        """Return the part for a modality.

        Raises:
            MediaError: There is none.
        """
        quality = {name: value for name, value in self.quality.items() if QUALITIES[name] == modality}
        rate = {name: value for name, value in self.rate.items() if RATES[name] == modality}
        if not quality and not rate and self.max_bytes is None:
            given = " and ".join(f"`target_{name}`" for name in (*self.quality, *self.rate))
            what, other = ("an image", "audio") if modality == "image" else ("audio", "images")
            raise MediaError(f"is {what}, but only {given} was given, which is for {other}")
        return Target(quality, self.max_bytes, rate)


@dataclass(frozen=True)
class Reached:
    """The token file that rate control chose."""

    file: bytes
    facts: dict[str, Any]
    """For `--json`: `target_reached`, and the figure of the metric."""
    shortfall: str = ""
    """What was not reached; empty if all was."""


def encode_to_target(
    source: Path | BinaryIO,
    modality: str,
    codec: Codec,
    target: Target,
    *,
    mono: bool = False,
    num_codebooks: int | None = None,
    coder: ChosenCoder = "auto",
    columns: Mapping[str, Any] = NO_COLUMNS,
) -> Reached:
    """Encode an item with the fewest codebooks that reach the target's quality, among those that keep its limits.

    Without a quality, it gets as many codebooks as the limits allow. If nothing reaches the quality, it gets all that
    the limits allow, and if one codebook exceeds a limit, this one. The whole item is held in memory.

    Args:
        num_codebooks: The most codebooks; by default all of the model.
        columns: What belongs to the item, for the metadata of its tokens.

    Raises:
        MediaError: The item cannot be read, or the target is not for its modality.
    """
    own = target.for_modality(modality)
    if modality == "image":
        pixels, tokens = encode_image_file(source, codec, num_codebooks)
        original = Media("image", as_float(pixels))
    else:
        original = read_audio(source, mono=mono)
        tokens = codec.encode(original, num_codebooks)
    prefixes = Prefixes(codec, with_columns(tokens, columns, source), coder)
    limit = _limit(own, tokens)
    count, shortfall = most_codebooks(prefixes, limit), ""
    if limit is not None and len(prefixes.file(count)) > limit:
        books = f"{count} codebook{'s take' if count > 1 else ' takes'}"
        shortfall = f"{books} {len(prefixes.file(count))} bytes, more than {limit}"
    facts: dict[str, Any] = {}
    for name, wanted in own.quality.items():
        count, figure = fewest_codebooks(prefixes, original, name, wanted, count)
        facts[name] = None if math.isnan(figure) else figure if math.isfinite(figure) else str(figure)
        if not figure >= wanted:
            shortfall = "; ".join(filter(None, [shortfall, _missed(name, figure, wanted, count)]))
    return Reached(prefixes.file(count), facts | {"target_reached": not shortfall}, shortfall)


def _missed(name: str, figure: float, wanted: float, count: int) -> str:
    metric, books = METRICS[name], f"{count} codebook{'s' * (count > 1)}"
    if math.isnan(figure):
        return f"{metric.heading} cannot be measured, so that all {books} are kept"
    return f"{figure:.{metric.decimals}f} of {wanted:g} ({metric.heading}) with {books}"


def most_codebooks(prefixes: Prefixes, limit: int | None) -> int:
    """Return the most codebooks whose token file has at most `limit` bytes, or the fewest. Files grow with each."""
    *counts, available = prefixes.counts
    if limit is None or len(prefixes.file(available)) <= limit:
        return available
    place = bisect_right(counts, limit, key=lambda count: len(prefixes.file(count)))
    return prefixes.counts[max(0, place - 1)]


def fewest_codebooks(prefixes: Prefixes, original: Media, metric: str, wanted: float, most: int) -> tuple[int, float]:
    """Return the fewest of the first `most` codebooks that reach a figure, or `most` if none do, and their figure.

    Each number is decoded once, from 1 upward: nothing guarantees that every codebook improves a metric, so that a
    binary search could miss the first that is good enough.
    """
    view, functions, figure = View(original), measures([metric]), math.nan
    for count in prefixes.counts[: prefixes.counts.index(most) + 1]:
        figure = measure(functions, view, View(prefixes.decode(count)))[metric]
        if figure >= wanted:
            return count, figure
    return most, figure


def _limit(target: Target, tokens: Tokens) -> int | None:
    """Return the most bytes of a token file; None for any number."""
    limits = [] if target.max_bytes is None else [target.max_bytes]
    for name, value in target.rate.items():
        bits = value * math.prod(tokens.size) if name == "bpp" else 1000 * value * tokens.size[0] / tokens.size[1]
        limits.append(math.floor(bits / 8 + 1e-9))
    return min(limits, default=None)


def parse_bytes(text: str) -> int:
    """Parse a number of bytes such as `4096`, `4k`, `1.5M` (thousands and millions) or `4Ki` (4,096).

    Raises:
        UsageError: It is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kKmM]?)(i?)[bB]?", text.strip())
    if not found or (found[3] and not found[2]):
        raise UsageError(f"`max_bytes` {text}: give a number of bytes such as 4096 or 4k")
    scale = (1024 if found[3] else 1000) ** " km".index(found[2].lower() or " ")
    size = int(float(found[1]) * scale)
    if size < 1:
        raise UsageError(f"`max_bytes` {text}: give a number of bytes such as 4096 or 4k")
    return size
