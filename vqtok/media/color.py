"""Color spaces that are not stated by an ICC profile: cICP, gAMA and cHRM in PNG, NCLX in AVIF and HEIC.

Source:
    PNG Specification, third edition, 11.3.2 (the chunks and their precedence); ITU-T H.273 (code points);
    ICC.1:2010 (the profile); B. Lindbloom, "RGB/XYZ Matrices" and "Chromatic Adaptation" (Bradford).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import SEEK_CUR
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile

_D65 = (0.3127, 0.3290)
SRGB = (*_D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_PRIMARIES = {  # by code point of H.273, table 2: x and y of white, red, green and blue
    1: SRGB,
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (0.310, 0.316, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*_D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
# Exponents by code point of table 3; None stands for the curve of sRGB. The curves of video count as sRGB, because
# images are not displayed with the former, and so does an unknown curve.
_TRANSFERS: dict[int, float | None] = {1: None, 2: None, 6: None, 13: None, 14: None, 15: None, 4: 2.2, 5: 2.8, 8: 1.0}
_OTHER_TRANSFERS = {16: "HDR colors (PQ)", 18: "HDR colors (HLG)"}
_SRGB_GAMMA, _SRGB_CURVE = 1 / 2.2, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_GAMMA_TOLERANCE, _PRIMARIES_TOLERANCE = 0.05, 0.005
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])  # the white point of ICC profiles


class ColorSpace(NamedTuple):
    """The color space that a file states."""

    profile: bytes | None = None
    """An equivalent ICC profile; None for sRGB."""
    warning: str = ""


def stated_color_space(image: ImageFile.ImageFile) -> ColorSpace | None:
    """Return the color space that an opened image states by other means; None if its ICC profile takes precedence."""
    if image.format == "PNG":
        if (cicp := _png_chunk(image, b"cICP")) and len(cicp) == 4:
            return _by_code_points(cicp[0], cicp[1])
        if "icc_profile" in image.info or "srgb" in image.info:
            return None
        if "gamma" in image.info or "chromaticity" in image.info:
            return _by_numbers(image.info.get("chromaticity", SRGB), image.info.get("gamma", _SRGB_GAMMA))
    elif "icc_profile" in image.info:
        return None
    elif image.format == "AVIF":
        box = _color_box(image)
        return _by_code_points(*struct.unpack_from(">HH", box, 4)) if box else None
    elif nclx := image.info.get("nclx_profile"):
        return _by_code_points(int(nclx["color_primaries"]), int(nclx["transfer_characteristics"]))
    return None


def bits_per_channel(image: ImageFile.ImageFile) -> int:
    """Return the bits per channel of formats for which Pillow may return fewer; 8 for other formats."""
    if image.format == "AVIF":
        box = next(_boxes(image, b"pixi"), b"")
        return max(box[5:], default=8)
    return int(image.info.get("bit_depth", 8))


def _by_code_points(primaries: int, transfer: int) -> ColorSpace:
    if transfer not in _TRANSFERS or (primaries != 2 and primaries not in _PRIMARIES):
        what = _OTHER_TRANSFERS.get(transfer, f"colors of code points {primaries}, {transfer}")
        return ColorSpace(warning=f"{what} are treated as sRGB")
    chromaticities = _PRIMARIES.get(primaries, SRGB)
    exponent = _TRANSFERS[transfer]
    is_srgb = exponent is None and np.allclose(chromaticities, SRGB)
    return ColorSpace(None if is_srgb else icc_profile(chromaticities, exponent))


def _by_numbers(chromaticities: tuple[float, ...], gamma: float) -> ColorSpace:
    """Return the color space of gAMA and cHRM. The usual gamma of 1 / 2.2 stands for the curve of sRGB."""
    is_srgb_curve = abs(gamma / _SRGB_GAMMA - 1) < _GAMMA_TOLERANCE
    if is_srgb_curve and np.allclose(chromaticities, SRGB, atol=_PRIMARIES_TOLERANCE):
        return ColorSpace()
    try:
        return ColorSpace(icc_profile(chromaticities, None if is_srgb_curve else 1 / gamma))
    except (ArithmeticError, np.linalg.LinAlgError, struct.error):
        return ColorSpace(warning="gAMA or cHRM are invalid, the colors are treated as sRGB")


def icc_profile(chromaticities: tuple[float, ...], exponent: float | None) -> bytes:
    """Return an ICC profile of a color space.

    Args:
        chromaticities: x and y of white, red, green and blue.
        exponent: Exponent from values to light; None stands for the curve of sRGB.

    Raises:
        ArithmeticError, LinAlgError, struct.error: There is no such color space.
    """
    parameters = _SRGB_CURVE if exponent is None else (exponent,)
    curve = struct.pack(f">4sIHH{len(parameters)}i", b"para", 0, 0 if exponent else 3, 0, *map(_fixed, parameters))
    text = "".join(map(chr, b"vqtok")).encode("utf-16-be")
    text = struct.pack(">4sIII4sII", b"mluc", 0, 1, 12, b"enUS", len(text), 28) + text
    tags = {b"desc": text, b"cprt": text, b"wtpt": _xyz(_D50)}
    for name, column in zip("rgb", _to_d50(chromaticities).T, strict=True):
        tags |= {f"{name}XYZ".encode(): _xyz(column), f"{name}TRC".encode(): curve}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        table += struct.pack(">4sII", tag, 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data.ljust(-(-len(data) // 4) * 4, b"\0")
    kind = struct.pack(">4sI4s4s4s", b"\0" * 4, 0x04300000, b"mntr", b"RGB ", b"XYZ ")
    header = kind + b"\0" * 12 + b"acsp" + b"\0" * 28 + _xyz(_D50)[8:]
    return struct.pack(">I", 128 + len(table) + len(body)) + header.ljust(124, b"\0") + table + body


def _to_d50(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the matrix from linear RGB to XYZ relative to D50."""
    if min(chromaticities[1::2]) <= 0:
        raise ArithmeticError
    white, *primaries = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in np.reshape(chromaticities, (4, 2)))
    columns = np.stack(primaries, axis=1)
    to_xyz = columns * np.linalg.solve(columns, white)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD
    matrix: NDArray[np.float64] = adapted @ to_xyz
    return matrix


def _xyz(values: NDArray[np.float64]) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *map(_fixed, values))


def _fixed(value: float) -> int:
    return round(float(value) * 65536)


def _png_chunk(image: ImageFile.ImageFile, wanted: bytes) -> bytes | None:
    """Return a chunk from before the pixels of a PNG file."""
    file = _rewound(image)
    position = file.tell()
    file.seek(8)
    try:
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == wanted:
                return file.read(length)
            if kind == b"IDAT":
                return None
            file.seek(length + 4, SEEK_CUR)
        return None
    finally:
        file.seek(position)


def _color_box(image: ImageFile.ImageFile) -> bytes | None:
    return next((box for box in _boxes(image, b"colr") if box[:4] == b"nclx" and len(box) >= 8), None)


def _boxes(image: ImageFile.ImageFile, wanted: bytes) -> Iterator[bytes]:
    """Yield the properties of one kind in a HEIF file (ISO 14496-12 and 23008-12)."""
    file = _rewound(image)
    position = file.tell()
    file.seek(0)
    data = file.read(1 << 16)  # The properties are at the start of the file.
    file.seek(position)
    yield from _inside(data, [b"meta", b"iprp", b"ipco"], wanted)


def _inside(data: bytes, path: list[bytes], wanted: bytes) -> Iterator[bytes]:
    start = 0
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        body = data[start + 8 : start + size]
        if size < 8:
            return
        if path and kind == path[0]:
            yield from _inside(body[4:] if kind == b"meta" else body, path[1:], wanted)
        elif not path and kind == wanted:
            yield body
        start += size


def _rewound(image: ImageFile.ImageFile) -> IO[bytes]:
    assert image.fp is not None
    return image.fp
