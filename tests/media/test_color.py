"""Color spaces stated by PNG chunks and by code points, and the formats of Pillow's plugins."""

from __future__ import annotations

import struct
import sys
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from numpy.typing import NDArray
from PIL import Image

from vqtok.errors import MediaError
from vqtok.media import kinds, plugins
from vqtok.media.image import image_size, read_image, set_max_pixels
from vqtok.media.kinds import modality_of, sniff, stem
from vqtok.media.plugins import JxlHeader, read_jxl_header

SRGB = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
COLORS = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(pixels: NDArray[np.uint8], **chunks: bytes) -> bytes:
    """Return a PNG file with additional chunks before its pixels."""
    data = encoded(Image.fromarray(pixels))
    more = b""
    for name, body in chunks.items():
        kind = name.encode()
        more += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return data[:33] + more + data[33:]


def gama(gamma: float) -> bytes:
    return struct.pack(">I", round(gamma * 100000))


def chrm(chromaticities: tuple[float, ...]) -> bytes:
    return struct.pack(">8I", *(round(value * 100000) for value in chromaticities))


def pixels_of(data: bytes) -> NDArray[np.float64]:
    return (read_image(data).data.transpose(1, 2, 0).astype(np.float64) + 1) * 127.5


def srgb_of(light: NDArray[np.float64]) -> NDArray[np.float64]:
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def light_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def to_xyz(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    white, *primaries = ([x / y, 1, (1 - x - y) / y] for x, y in np.reshape(chromaticities, (4, 2)))
    columns = np.transpose(primaries)
    return columns * np.linalg.solve(columns, white)


P3_TO_SRGB = np.linalg.inv(to_xyz(SRGB)) @ to_xyz(P3)


@pytest.mark.parametrize("gamma", [1.0, 0.5556, 0.35])
def test_gamma_is_applied(gamma: float, caplog: pytest.LogCaptureFixture) -> None:
    expected = srgb_of((COLORS / 255) ** (1 / gamma))
    np.testing.assert_allclose(pixels_of(png(COLORS, gAMA=gama(gamma))), expected, atol=1.6)
    grey = np.repeat(COLORS[..., :1], 3, axis=2)
    np.testing.assert_allclose(
        pixels_of(png(COLORS[..., 0], gAMA=gama(gamma))), srgb_of((grey / 255) ** (1 / gamma)), atol=1.6
    )
    assert not caplog.records


@pytest.mark.parametrize(
    "chunks",
    [
        {"gAMA": gama(0.45455)},
        {"gAMA": gama(0.45455), "cHRM": chrm(SRGB)},
        {"cHRM": chrm(SRGB)},
        {"sRGB": b"\0", "gAMA": gama(1.0)},
        {"cICP": bytes([1, 13, 0, 1]), "gAMA": gama(1.0)},
        {"cICP": bytes([1, 1, 0, 1])},
        {"cICP": bytes([2, 2, 0, 1])},
    ],
)
def test_what_says_srgb_changes_nothing(chunks: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_allclose(pixels_of(png(COLORS, **chunks)), COLORS, atol=1e-3)
    assert not caplog.records


@pytest.mark.parametrize(
    "chunks",
    [
        {"cHRM": chrm(P3)},
        {"cHRM": chrm(P3), "gAMA": gama(0.45455)},
        {"cICP": bytes([12, 13, 0, 1])},
        {"cICP": bytes([12, 13, 0, 1]), "sRGB": b"\0"},
    ],
)
def test_primaries_are_converted(chunks: dict[str, bytes], caplog: pytest.LogCaptureFixture) -> None:
    expected = srgb_of(light_of(COLORS / 255) @ P3_TO_SRGB.T)
    np.testing.assert_allclose(pixels_of(png(COLORS, **chunks)), expected, atol=2.1)
    assert not caplog.records


def test_a_linear_picture_with_other_primaries_is_converted_by_both() -> None:
    expected = srgb_of((COLORS / 255) @ P3_TO_SRGB.T)
    np.testing.assert_allclose(pixels_of(png(COLORS, gAMA=gama(1), cHRM=chrm(P3))), expected, atol=2.1)


@pytest.mark.parametrize(
    ("chunks", "warning"),
    [
        ({"cICP": bytes([9, 16, 0, 1])}, "HDR colors (PQ) are treated as sRGB"),
        ({"cICP": bytes([9, 18, 0, 1])}, "HDR colors (HLG) are treated as sRGB"),
        ({"cICP": bytes([10, 17, 0, 1])}, "colors of code points 10, 17 are treated as sRGB"),
        ({"cHRM": chrm((0,) * 8)}, "gAMA or cHRM are invalid, the colors are treated as sRGB"),
        ({"cHRM": chrm((0.3, 0.3) * 4)}, "gAMA or cHRM are invalid, the colors are treated as sRGB"),
        ({"gAMA": gama(0)}, "gAMA or cHRM are invalid, the colors are treated as sRGB"),
        ({"gAMA": gama(0.00001)}, "gAMA or cHRM are invalid, the colors are treated as sRGB"),
    ],
)
def test_what_cannot_be_converted_is_said(
    chunks: dict[str, bytes], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert np.array_equal(pixels_of(png(COLORS, **chunks)).round(), COLORS)
    assert caplog.messages == [f"input: {warning}"]


def test_deep_grey_says_that_its_gamma_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    read_image(png(np.zeros((2, 2), np.uint16), gAMA=gama(1)))  # type: ignore[arg-type]
    assert caplog.messages == ["input: the color profile is ignored: the image has more than 8 bits"]


def avif(primaries: int, transfer: int) -> bytes:
    data = encoded(Image.fromarray(COLORS), "AVIF", quality=100, subsampling="4:4:4")
    place = data.index(b"nclx") + 4
    return data[:place] + struct.pack(">HH", primaries, transfer) + data[place + 4 :]


def test_code_points_of_avif_count(caplog: pytest.LogCaptureFixture) -> None:
    plain = pixels_of(avif(1, 13))
    np.testing.assert_allclose(plain, COLORS, atol=12)
    assert not caplog.records
    expected = srgb_of(light_of(plain / 255) @ P3_TO_SRGB.T)
    np.testing.assert_allclose(pixels_of(avif(12, 13)), expected, atol=2.1)
    assert not caplog.records


def test_hdr_of_10_bits_in_avif_is_said(caplog: pytest.LogCaptureFixture) -> None:
    sample = Path(__file__).parents[1] / "samples" / "pq.avif"
    assert read_image(sample).data.shape == (3, 64, 96)
    assert [message.removeprefix(f"{sample}: ") for message in caplog.messages] == [
        "10-bit colors are rounded to 8 bits",
        "HDR colors (PQ) are treated as sRGB",
    ]


# ---- HEIC and JPEG XL


def heic(**how: Any) -> bytes:
    buffer = BytesIO()
    pillow_heif.from_pillow(Image.fromarray(COLORS)).save(buffer, quality=-1, chroma=444, **how)
    return buffer.getvalue()


def jxl(pixels: NDArray[Any] = COLORS, **how: Any) -> bytes:
    import pillow_jxl  # noqa: F401

    return encoded(Image.fromarray(pixels), "JXL", lossless=True, **how)


def test_heic_and_jpeg_xl_are_read(caplog: pytest.LogCaptureFixture) -> None:
    for data, tolerance in ((heic(), 3), (jxl(), 0.01), (jxl(use_container=True), 0.01)):
        assert sniff(data[:64]) == "image"
        assert image_size(data) == (24, 16)
        np.testing.assert_allclose(pixels_of(data), COLORS, atol=tolerance)
    deep = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24) * 170
    np.testing.assert_allclose(read_image(jxl(deep)).data[0], deep / 32767.5 - 1, atol=1e-6)
    assert all("color profile is ignored" in message for message in caplog.messages)


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_heic_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    expected = np.rot90(COLORS, {1: 0, 3: 2, 6: -1}[orientation])
    data = heic(exif=exif.tobytes())
    assert image_size(data) == expected.shape[1::-1]
    np.testing.assert_allclose(pixels_of(data), expected, atol=3)


@pytest.mark.parametrize("make", [heic, jxl])
def test_truncated_files_of_plugins_are_refused(make: Any) -> None:
    data = make()
    for tenth in range(1, 10):
        with pytest.raises(MediaError, match="^input: "):
            read_image(data[: len(data) * tenth // 10])


@pytest.mark.parametrize(("make", "package", "extra"), [(heic, "pillow-heif", "heif"), (jxl, "pillow-jxl", "jxl")])
def test_without_its_plugin_the_error_says_how_to_get_it(
    make: Any, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make()
    monkeypatch.setattr(plugins, "is_installed", lambda module: False)
    for load in (plugins._load_heif, plugins._load_jxl):
        load.cache_clear()
    for reader in (read_image, image_size):
        with pytest.raises(MediaError, match=rf"input: .* requires {package}.* pip install 'vqtok\[{extra}\]'"):
            reader(data)


@pytest.mark.parametrize(
    ("name", "modality"), [("a.heic", "image"), ("a.JXL", "image"), ("a.m4a", "audio"), ("a.webm", "audio")]
)
def test_folders_are_searched_for_what_can_be_read(name: str, modality: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert modality_of(Path(name)) == modality
    monkeypatch.setattr(kinds, "is_installed", lambda module: False)
    assert modality_of(Path(name)) is None
    assert stem(name) == "a"  # The plugins of another machine may have made it.


@pytest.mark.parametrize("module", ["av", "pillow_heif", "pillow_jxl"])
def test_suffixes_ask_for_packages_without_importing_them(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds.is_installed.cache_clear()
    monkeypatch.setattr(sys, "modules", {name: loaded for name, loaded in sys.modules.items() if name != module})
    for suffix in kinds.PLUGIN_SUFFIXES[module][0]:
        assert modality_of(Path(f"x{suffix}")) is not None
    assert module not in sys.modules


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (256, 256), (640, 480), (513, 7), (20000, 1), (300, 300)])
def test_sizes_of_jpeg_xl_are_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    data = jxl(np.zeros((size[1], size[0]), np.uint8))
    assert read_jxl_header(data)[:2] == size
    assert read_jxl_header(jxl(np.zeros((8, 8), np.uint16))).bits == 16
    with pytest.raises(MediaError, match="header is truncated"):
        read_jxl_header(data[:3])


def test_the_header_of_a_jpeg_xl_animation_is_read() -> None:
    """Return the header of an 8 x 8 image with all fields, animated at 10 ticks per second without end."""
    fields = [(1, 1), (0, 5), (1, 3), (0, 1), (1, 1), (0, 3), (0, 1), (0, 1), (1, 1)]
    fields += [(2, 2), (9, 10), (0, 2), (0, 2), (0, 1), (0, 1), (1, 2)]
    value = place = 0
    for number, count in fields:
        value |= number << place
        place += count
    assert read_jxl_header(b"\xff\x0a" + value.to_bytes(16, "little")) == JxlHeader(8, 8, 10, True)


def test_a_jpeg_xl_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("decoded")

    data = jxl(np.zeros((100, 100), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9999)
    monkeypatch.setattr("pillow_jxl.JpegXLImagePlugin.Decoder", decode)
    with pytest.raises(MediaError, match=r"has more than 0\.009999 megapixels"):
        image_size(data)


# ---- limits


def test_the_limit_of_pixels_can_be_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(Image.fromarray(COLORS))
    with pytest.raises(MediaError, match="`max_megapixels` allows more"):
        read_image(data)
    set_max_pixels(16 * 24)
    assert np.array_equal(pixels_of(data).round(), COLORS)


@pytest.mark.parametrize(("high", "scale"), [(1.0, 1), (0.5, 1), (1.5, 65535), (255.0, 65535)])
def test_floats_within_zero_and_one_are_black_to_white(
    high: float, scale: int, caplog: pytest.LogCaptureFixture
) -> None:
    values = np.linspace(0, high, 50, dtype=np.float32).reshape(5, 10)
    got = read_image(encoded(Image.fromarray(values), "TIFF"), channels=1).data[0]
    np.testing.assert_allclose(got, values / scale * 2 - 1, atol=2e-5)
    assert caplog.messages == [f"input: floating-point pixels are read with 0 as black and {scale} as white"]
