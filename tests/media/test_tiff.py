"""TIFF files in layouts that Pillow decodes wrongly: decoded correctly or refused."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image

from vqtok.errors import MediaError
from vqtok.media.image import image_size, read_image

HEIGHT, WIDTH = 16, 24
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
BLACK_IS_ZERO, WHITE_IS_ZERO, RGB, CMYK = 1, 0, 2, 5
FORMATS = {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}


def ramps(channels: int) -> NDArray[np.float64]:
    """Return different ramps from 0 to 1, `(height, width, channels)`."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    found = [x / (WIDTH - 1), y / (HEIGHT - 1), (x + y) / (HEIGHT + WIDTH - 2), 1 - x / (WIDTH - 1), 0.5 + 0 * x]
    return np.stack(found[:channels], axis=2)


def tiff(
    values: NDArray[np.generic],
    photometric: int = BLACK_IS_ZERO,
    planes: bool = False,
    compressed: bool = False,
    order: str = "<",
    extra: tuple[int, ...] = (),
    bits: int | None = None,
) -> bytes:
    """Write a TIFF file of values `(height, width, channels)`."""
    channels = values.shape[2]
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [stored[..., channel].tobytes() for channel in range(channels)] if planes else [stored.tobytes()]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    tags: dict[int, tuple[str, tuple[int, ...]]] = {
        256: ("H", (WIDTH,)),
        257: ("H", (HEIGHT,)),
        258: ("H", (bits or 8 * values.dtype.itemsize,) * channels),
        259: ("H", (8 if compressed else 1,)),
        262: ("H", (photometric,)),
        273: ("I", tuple(8 + sum(map(len, strips[:index])) for index in range(len(strips)))),
        277: ("H", (channels,)),
        278: ("H", (HEIGHT,)),
        279: ("I", tuple(map(len, strips))),
        284: ("H", (2 if planes else 1,)),
        339: ("H", (FORMATS[values.dtype.kind],) * channels),
    }
    if extra:
        tags[338] = ("H", extra)
    start = 8 + sum(map(len, strips))
    start += start % 2
    entries, more = b"", b""
    for tag, (form, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        if len(data) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(more)
            more += data + b"\0" * (len(data) % 2)
            data = struct.pack(f"{order}I", place)
        entries += struct.pack(f"{order}HHI", tag, 3 if form == "H" else 4, len(numbers)) + data.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    body = b"".join(strips).ljust(start - 8, b"\0")
    return head + body + struct.pack(f"{order}H", len(tags)) + entries + b"\0" * 4 + more


def levels(data: bytes) -> NDArray[np.float32]:
    """Read an image as values from 0 to 1, `(height, width, channels)`."""
    assert image_size(data) == (WIDTH, HEIGHT)
    return (read_image(data).data.transpose(1, 2, 0) + 1) / 2


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("type", ["u1", "u2"])
def test_color_is_read_in_planes_and_pixels(type: str, planes: bool, compressed: bool, order: str) -> None:
    how = {"planes": planes, "compressed": compressed, "order": order}
    full = np.iinfo(type).max
    rgb = ramps(3)
    stored = np.rint(rgb * full).astype(type)
    np.testing.assert_allclose(levels(tiff(stored, RGB, **how)), rgb, atol=0.005)
    alpha = 0.5 + 0 * rgb[..., :1]
    rgba = np.rint(np.concatenate([rgb, alpha], axis=2) * full).astype(type)
    np.testing.assert_allclose(levels(tiff(rgba, RGB, extra=(2,), **how)), rgb / 2 + 0.5, atol=0.01)
    np.testing.assert_allclose(levels(tiff(rgba, RGB, extra=(0,), **how)), rgb, atol=0.005)
    associated = np.rint(np.concatenate([rgb * alpha, alpha], axis=2) * full).astype(type)
    np.testing.assert_allclose(levels(tiff(associated, RGB, extra=(1,), **how)), rgb / 2 + 0.5, atol=0.02)
    inks = np.rint(np.concatenate([rgb, 0 * alpha], axis=2) * full).astype(type)
    np.testing.assert_allclose(levels(tiff(inks, CMYK, **how)), 1 - rgb, atol=0.005)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [False, True])
def test_deep_grey_keeps_its_byte_order(compressed: bool, order: str) -> None:
    grey = ramps(1)
    for type in ("u2", "i4"):
        stored = np.rint(grey * 65535).astype(type)
        got = levels(tiff(stored, compressed=compressed, order=order))
        np.testing.assert_allclose(got[..., :1], stored / 65535, atol=1e-5)
    stored = np.rint(grey * 32767).astype("i2")
    np.testing.assert_allclose(
        levels(tiff(stored, compressed=compressed, order=order))[..., :1], stored / 65535, atol=1e-5
    )
    got = levels(tiff(grey.astype("f4"), compressed=compressed, order=order))
    np.testing.assert_allclose(got[..., :1], grey, atol=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("type", ["u1", "u2", "f4"])
def test_where_white_is_zero_no_negative_is_read(type: str, compressed: bool) -> None:
    full = 1 if type == "f4" else np.iinfo(type).max
    grey = ramps(1)
    stored = (grey * full if type == "f4" else np.rint(grey * full)).astype(type)
    np.testing.assert_allclose(
        levels(tiff(stored, WHITE_IS_ZERO, compressed=compressed))[..., :1], 1 - stored / full, atol=1e-5
    )


def test_twelve_bits_reach_white() -> None:
    values = np.rint(ramps(1)[..., 0] * 4095).astype(np.uint16)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = pairs[:, 0] << 12 | pairs[:, 1]
    data = np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.uint8).reshape(HEIGHT, -1, 1)
    np.testing.assert_allclose(levels(tiff(data, bits=12))[..., 0], values / 4095, atol=1e-5)


def test_unsigned_values_of_32_bits_do_not_turn_negative() -> None:
    values = np.full((HEIGHT, WIDTH, 1), 0xFFFFFFFF, np.uint32)
    assert levels(tiff(values)).min() == 1


@pytest.mark.parametrize(
    ("values", "extra", "planes"),
    [
        (np.zeros((HEIGHT, WIDTH, 1), np.int8), (), False),
        (np.zeros((HEIGHT, WIDTH, 2), np.uint8), (2,), True),
        (np.zeros((HEIGHT, WIDTH, 5), np.uint16), (0,) * 4, False),
        (np.zeros((HEIGHT, WIDTH, 1), np.float64), (), False),
        (np.zeros((HEIGHT, WIDTH, 3), np.float32), (), False),
    ],
)
def test_what_pillow_cannot_read_is_refused_as_such(
    values: NDArray[np.generic], extra: tuple[int, ...], planes: bool, tmp_path: Path
) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(tiff(values, RGB if values.shape[2] == 3 else BLACK_IS_ZERO, planes=planes, extra=extra))
    for reader in (read_image, image_size):
        with pytest.raises(MediaError, match=r"odd\.tif: is a TIFF with .*which Pillow cannot read; save it as PNG"):
            reader(path)


def test_grey_with_premultiplied_alpha_is_read() -> None:
    values = np.dstack([ramps(1) * 127, np.full((HEIGHT, WIDTH), 127)]).astype(np.uint8)
    if int(PIL.__version__.split(".")[0]) < 13:
        with pytest.raises(MediaError, match="is a TIFF with 2 x 8 bits per pixel, which Pillow cannot read"):
            levels(tiff(values, extra=(1,)))
    else:
        np.testing.assert_allclose(levels(tiff(values, extra=(1,)))[..., :1], ramps(1) / 2 + 0.5, atol=0.02)


def test_pillow_itself_is_left_as_it_was() -> None:
    from PIL import TiffImagePlugin

    levels(tiff(np.zeros((HEIGHT, WIDTH, 3), np.uint16), RGB, planes=True))
    assert TiffImagePlugin.READ_LIBTIFF is False
    buffer = BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT)).save(buffer, "TIFF")
    assert levels(buffer.getvalue()).max() == 0
