"""What is done to media before they are encoded: scaling, cropping, flipping, cutting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqtok.errors import MediaError, UsageError
from vqtok.media.image import Pixels

METADATA_KEY = "transforms"
"""The key of what was done in the metadata of tokens."""


class LeftOutError(MediaError):
    """An item is left out because the user asked for it."""


@dataclass(frozen=True)
class Transforms:
    """What is done to every item, in this order; the default is nothing.

    Raises:
        UsageError: A value is not possible.
    """

    min_pixels: int | None = None
    """Images with fewer pixels are left out."""
    max_pixels: int | None = None
    """Images with more pixels are scaled down."""
    resize: int | None = None
    """The length of the shorter side of images."""
    crop: int | None = None
    """The side of the square at the center of images that is kept."""
    flip: Literal["none", "horizontal", "both"] = "none"
    """Whether images are flipped left to right; `both` makes a second item."""
    max_seconds: float | None = None
    """Audio is cut off after this time."""
    segment_seconds: float | None = None
    """Audio is cut into items of this length; the last one may be shorter."""

    def __post_init__(self) -> None:
        for name, value in self.facts().items():
            if not isinstance(value, str) and not 0 < value < math.inf:
                raise UsageError(f"`{name}` {value}: must be above 0")

    def facts(self) -> dict[str, Any]:
        """Return what is set."""
        return {name: value for name, value in vars(self).items() if value not in (None, "none")}

    def parts(self, modality: str, seconds: float | None) -> list[Part]:
        """Return the items that one file or row becomes.

        Args:
            seconds: The duration of audio.
        """
        if modality == "image":
            flipped = {"none": [False], "horizontal": [True], "both": [False, True]}[self.flip]
            return [Part(self, flipped=is_flipped) for is_flipped in flipped]
        if self.segment_seconds is None or seconds is None:
            return [Part(self)]
        end = min(seconds, self.max_seconds or math.inf)
        count = max(1, math.ceil(end / self.segment_seconds - 1e-6))
        return [Part(self, segment=number) for number in range(count)]


@dataclass(frozen=True)
class Part:
    """How one item is made of a file or row."""

    transforms: Transforms = Transforms()
    flipped: bool = False
    segment: int | None = None

    @property
    def label(self) -> str:
        """What tells the item apart from the others of its file in its name; empty if there are no others."""
        if self.segment is not None:
            return f"-{self.segment:05}"
        return "-flipped" if self.flipped and self.transforms.flip == "both" else ""

    def facts(self, modality: str) -> dict[str, Any]:
        """Return the metadata that record what was done to an item; empty if nothing was."""
        own = ("max_seconds", "segment_seconds") if modality == "audio" else ("max_pixels", "resize", "crop")
        facts = {name: value for name, value in self.transforms.facts().items() if name in own}
        if self.flipped and modality == "image":
            facts["flipped"] = True
        if self.segment is not None:
            facts["segment"] = self.segment
        return {METADATA_KEY: facts} if facts else {}

    def image(self, pixels: Pixels) -> Pixels:
        """Return an image `(channels, height, width)` as it is encoded.

        Raises:
            LeftOutError: It has too few pixels.
            MediaError: It is smaller than the crop.
        """
        wanted = self.transforms
        height, width = pixels.shape[1:]
        if wanted.min_pixels is not None and width * height < wanted.min_pixels:
            raise LeftOutError(f"has {width * height} pixels, fewer than {wanted.min_pixels}")
        if wanted.max_pixels is not None and width * height > wanted.max_pixels:
            scale = math.sqrt(wanted.max_pixels / (width * height))
            pixels = resized(pixels, max(1, int(height * scale)), max(1, int(width * scale)))
        if wanted.resize is not None:
            height, width = pixels.shape[1:]
            scale = wanted.resize / min(height, width)
            sides = [wanted.resize if side == min(height, width) else round(side * scale) for side in (height, width)]
            pixels = resized(pixels, *sides)
        if wanted.crop is not None:
            height, width = pixels.shape[1:]
            if min(height, width) < wanted.crop:
                raise MediaError(f"{width}x{height} is smaller than `crop` {wanted.crop}; `resize` enlarges it")
            top, left = (height - wanted.crop) // 2, (width - wanted.crop) // 2
            pixels = pixels[:, top : top + wanted.crop, left : left + wanted.crop]
        found: Pixels = np.ascontiguousarray(pixels[:, :, ::-1] if self.flipped else pixels)  # type: ignore[assignment]
        return found

    def audio(self, blocks: Iterable[NDArray[np.float32]], sample_rate: int) -> Iterator[NDArray[np.float32]]:
        """Yield blocks `(channels, samples)` of the audio that is encoded."""
        wanted = self.transforms
        end = math.inf if wanted.max_seconds is None else max(1, round(wanted.max_seconds * sample_rate))
        begin = 0
        if self.segment is not None and wanted.segment_seconds is not None:
            begin = round(self.segment * wanted.segment_seconds * sample_rate)
            end = min(end, max(begin + 1, round((self.segment + 1) * wanted.segment_seconds * sample_rate)))
        place = 0
        for block in blocks:
            last = end if end == math.inf else int(end) - place
            kept = block[:, max(0, begin - place) : None if last == math.inf else max(0, int(last))]
            place += block.shape[1]
            if kept.shape[1]:
                yield kept
            if place >= end:
                return


WHOLE = Part()
"""A file as it is."""


def with_label(name: str, label: str) -> str:
    """Return the name of a file or key with a label before its suffix: `a/1-flipped.png`."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return f"{folder}{slash}{stem}{label}{dot}{suffix}" if stem else f"{name}{label}"


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """Scale an image `(channels, height, width)`, bicubic and without aliasing."""
    if pixels.shape[1:] == (height, width):
        return pixels
    planes = [Image.fromarray(plane) for plane in pixels]  # Each by itself: Pillow has no mode of three floats.
    scaled = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return np.stack(scaled)
