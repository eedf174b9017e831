"""Images and audio of other libraries as `Media`: bytes of a file, PIL images, numpy arrays and tensors."""

from __future__ import annotations

import logging
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vqtok.errors import UsageError
from vqtok.media.audio import read_audio
from vqtok.media.image import as_float, read_image
from vqtok.media.kinds import sniff
from vqtok.media.media import Media

logger = logging.getLogger(__name__)


def as_media(source: object, sample_rate: int | None = None, *, channels: int = 3, mono: bool = False) -> Media:
    """Return `Media` of what other libraries have in memory.

    Args:
        source: The bytes of a file; a PIL image; or an array or tensor. Arrays of images are uint8 from 0 to 255, or
            floating-point in [-1, 1], as `(height, width)`, `(height, width, channels)` or `(channels, height, width)`.
            Those of audio are floating-point in [-1, 1], or int16, as `(samples,)` or `(channels, samples)`.
        sample_rate: The sample rate of an array of audio in Hz. Without it, an array is an image.
        channels: The number of channels of images.
        mono: Mix audio down to one channel.

    Raises:
        UsageError: It is nothing of these.
        MediaError: The bytes are not those of an image or audio.
    """
    if isinstance(source, Media):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        return read_audio(data, mono=mono) if sniff(data[:64]) == "audio" else read_image(data, channels)
    if isinstance(source, Image.Image):
        return _of_pil(source, channels)
    array = _as_array(source)
    if array is None or array.dtype.kind not in "fiub" or not array.size:
        raise UsageError(
            f"`source` is a {type(source).__name__}; give a path, bytes, Media, a PIL image, an array or a tensor"
        )
    if sample_rate is not None:
        return _of_samples(array, sample_rate, mono)
    return Media("image", _of_pixels(array, channels))


def _as_array(source: Any) -> NDArray[Any] | None:
    """Return an array or tensor, on any device, as an array of numpy; None for other objects."""
    if hasattr(source, "detach"):
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source
        source = source.numpy()
    return source if isinstance(source, np.ndarray) else None


def _of_pil(image: Image.Image, channels: int) -> Media:
    """Read an image as if it came from a file, with its transparency, color profile and orientation."""
    upright = ImageOps.exif_transpose(image) or image
    buffer = BytesIO()
    is_png = upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
    upright.save(buffer, "PNG" if is_png else "TIFF", icc_profile=image.info.get("icc_profile"))
    return read_image(buffer.getvalue(), channels)


def _of_pixels(array: NDArray[Any], channels: int) -> NDArray[np.float32]:
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and array.shape[0] not in (1, 3) and array.shape[2] in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] not in (1, 3):
        raise UsageError(
            f"`source` has the shape {array.shape}; give an image as (height, width), (height, width, channels) or "
            "(channels, height, width), or audio with its `sample_rate`"
        )
    if array.dtype.kind == "f":
        data = array.astype(np.float32)
        if not np.isfinite(data).all() or np.abs(data).max() > 2:
            raise UsageError("`source` has values beyond [-1, 1]; scale floating-point images, or give uint8")
        if data.min() >= 0:
            logger.warning("all values of the image lie in [0, 1]: they are taken as gray to white, of [-1, 1]")
    elif array.dtype == np.uint8:
        data = as_float(np.ascontiguousarray(array))
    else:
        raise UsageError(f"`source` is an image of {array.dtype}; give uint8, or floating-point in [-1, 1]")
    if len(data) != channels:
        weights = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]
        data = np.repeat(data, 3, axis=0) if channels == 3 else (data * weights).sum(axis=0, keepdims=True)
    return np.ascontiguousarray(data)


def _of_samples(array: NDArray[Any], sample_rate: int, mono: bool) -> Media:
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not 0 < sample_rate < 2**31 or array.shape[0] > array.shape[1]:
        raise UsageError(
            f"`source` has the shape {array.shape} and a `sample_rate` of {sample_rate}; give audio as (samples,) or "
            "(channels, samples)"
        )
    if array.dtype == np.int16:
        data = array.astype(np.float32) / 32768
    elif array.dtype.kind == "f":
        data = array.astype(np.float32)
    else:
        raise UsageError(f"`source` is audio of {array.dtype}; give floating-point in [-1, 1], or int16")
    if not np.isfinite(data).all():
        raise UsageError("`source` has samples that are NaN or infinite")
    return Media("audio", data.mean(axis=0, keepdims=True) if mono else np.ascontiguousarray(data), int(sample_rate))
