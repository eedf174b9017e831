"""`View`: an image or audio in the forms that metrics take, each made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqtok.media.image import as_bytes
from vqtok.media.media import Media
from vqtok.media.resample import resample

Result = TypeVar("Result")


class View:
    """An image or audio in the forms that metrics take. Each form is made when it is first needed, and kept."""

    def __init__(self, media: Media) -> None:
        self.media = media
        self._kept: dict[Any, Any] = {}

    def once(self, key: object, make: Callable[[], Result]) -> Result:
        """Return what `make` returned for this key."""
        if key not in self._kept:
            self._kept[key] = make()
        found: Result = self._kept[key]
        return found

    @cached_property
    def tensor(self) -> Tensor:
        """A batch of one."""
        return torch.from_numpy(self.media.data)[None]

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The 8-bit sRGB pixels `(height, width, 3)`."""
        rows = as_bytes(self.media.data).transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(rows, (*rows.shape[:2], 3)))

    @cached_property
    def unit(self) -> NDArray[np.float32]:
        """The pixels from 0 to 1."""
        return np.divide(self.pixels, 255, dtype=np.float32)

    @cached_property
    def png(self) -> bytes:
        """The pixels as a PNG file, hardly compressed."""
        file = BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG", compress_level=1)
        return file.getvalue()

    def mono(self, sample_rate: int) -> NDArray[np.float64]:
        """Return the mean of all channels at a sample rate."""

        def make() -> NDArray[np.float64]:
            mixed: NDArray[np.float32] = self.media.data.mean(axis=0, keepdims=True)
            resampled = resample(mixed, self.media.sample_rate or 1, sample_rate)
            signal: NDArray[np.float64] = resampled[0].astype(np.float64)
            return signal

        return self.once(("mono", sample_rate), make)
