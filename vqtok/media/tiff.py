"""TIFF files that Pillow decodes wrongly: correct the result, or refuse them."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, TiffImagePlugin

from vqtok.errors import MediaError

_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 258, 262, 277, 284, 339  # tags
_WHITE_IS_ZERO, _SEPARATE, _UNSIGNED, _SIGNED = 0, 2, 1, 2


def is_planar(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image stores its channels separately. Pillow only decodes such files with libtiff."""
    return _tag(image, _PLANAR, 1) == _SEPARATE


def fix_unpacking(image: ImageFile.ImageFile) -> None:
    """Correct the way in which Pillow is going to unpack an opened image.

    Raises:
        MediaError: Pillow would unpack it wrongly.
    """
    if is_planar(image) and image.mode in ("LA", "La", "PA"):
        raise MediaError("is a TIFF with gray and alpha in planes, which Pillow cannot read; save it as PNG")
    if _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED and _tag(image, _BITS, 1) == 8:
        raise MediaError("is a TIFF with signed bytes, which Pillow cannot read; save it as PNG")
    if image.tile and image.tile[0][0] == "libtiff":  # libtiff unpacks in this machine's byte order, not the file's.
        image.tile = [tile._replace(args=_in_native_order(tile.args)) for tile in image.tile]


def _in_native_order(args: Any) -> Any:
    mode = {"I;16BS": "I;16NS", "I;32B": "I;32N", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
    return (mode.get(args[0], args[0]), *args[1:])


def is_negative(image: ImageFile.ImageFile) -> bool:
    """Return whether white is 0. For more than 8 bits Pillow does not correct this."""
    return _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def deep_values(image: ImageFile.ImageFile, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the correct values of an image with more than 8 bits, and the value of white."""
    bits = _tag(image, _BITS, 1)
    if bits == 32 and _tag(image, _SAMPLE_FORMAT, 1) == _UNSIGNED and values.dtype == np.int32:
        values = values.view(np.uint32)
    return values, 4095 if bits == 12 else 65535


def describe(file: BinaryIO) -> str:
    """Return a description of a TIFF file that Pillow cannot identify."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        kind = f"{directory.get(_SAMPLES, 1)} x {directory[_BITS][0]} bits per pixel"
    except Exception:  # Pillow may raise almost anything for damaged files.
        return "the image is damaged"
    return f"is a TIFF with {kind}, which Pillow cannot read; save it as PNG"


def _tag(image: ImageFile.ImageFile, tag: int, default: int) -> int:
    """Return the value of a tag, or the first of several values."""
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)
