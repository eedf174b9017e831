"""TIFF files: what Pillow reads wrongly is put right, or refused."""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, TiffImagePlugin

from vqtok.errors import MediaError

_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _SAMPLE_FORMAT = 258, 262, 277, 284, 339  # tags
_WHITE_IS_ZERO, _IN_PLANES, _UNSIGNED, _SIGNED = 0, 2, 1, 2


def is_in_planes(image: ImageFile.ImageFile) -> bool:
    """Return whether an opened image has each of its channels by itself: Pillow reads those rightly through libtiff."""
    return _tag(image, _PLANAR, 1) == _IN_PLANES


def put_right(image: ImageFile.ImageFile) -> None:
    """Mend how Pillow is going to unpack an opened image.

    Raises:
        MediaError: it would unpack another picture.
    """
    if is_in_planes(image) and image.mode in ("LA", "La", "PA"):
        raise MediaError("a TIFF of grey with alpha in planes, which Pillow cannot read; save it as PNG")
    if _tag(image, _SAMPLE_FORMAT, 1) == _SIGNED and _tag(image, _BITS, 1) == 8:
        raise MediaError("a TIFF of signed bytes, which Pillow cannot read; save it as PNG")
    if image.tile and image.tile[0][0] == "libtiff":  # Unpacked in this machine's order, not in the file's.
        image.tile = [tile._replace(args=_in_native_order(tile.args)) for tile in image.tile]


def _in_native_order(args: Any) -> Any:
    mode = {"I;16BS": "I;16NS", "I;32B": "I;32N", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}
    return (mode.get(args[0], args[0]), *args[1:])


def is_negative(image: ImageFile.ImageFile) -> bool:
    """Return whether white is 0 and Pillow leaves it so, as it does above 8 bits."""
    return _tag(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO


def deep_values(image: ImageFile.ImageFile, values: NDArray[Any]) -> tuple[NDArray[Any], int]:
    """Return the true values of an image with more than 8 bits, and which of them is full scale."""
    bits = _tag(image, _BITS, 1)
    if bits == 32 and _tag(image, _SAMPLE_FORMAT, 1) == _UNSIGNED and values.dtype == np.int32:
        values = values.view(np.uint32)
    return values, 4095 if bits == 12 else 65535


def describe(file: BinaryIO) -> str:
    """Say of a file that Pillow does not know what it is."""
    try:
        file.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(directory.next)
        directory.load(file)
        kind = f"{directory.get(_SAMPLES, 1)} channels of {directory[_BITS][0]} bits"
    except Exception:  # It is damaged, which makes Pillow raise nearly anything.
        return "damaged picture"
    return f"a TIFF of {kind} in a form which Pillow cannot read; save it as PNG"


def _tag(image: ImageFile.ImageFile, tag: int, default: int) -> int:
    """Return a number, or the first of several, from the directory."""
    value = image.tag_v2.get(tag, default)  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)
