"""Images in all modes of Pillow, valid and damaged."""

from __future__ import annotations

import logging
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms

from vqtok.errors import MediaError, OutputError, UsageError
from vqtok.media.image import image_size, read_image, write_image
from vqtok.media.media import Media

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
ORIENTATION = 274


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def as_bytes(media: Media) -> NDArray[np.uint8]:
    """Return the pixels of media as 0..255 with the channels last."""
    assert media.modality == "image"
    assert media.data.dtype == np.float32
    assert media.data.flags.c_contiguous
    assert np.abs(media.data).max() <= 1
    return np.rint((media.data + 1) * 127.5).astype(np.uint8).transpose(1, 2, 0)


def repeated(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


def profile_bytes(**changes: bytes) -> bytes:
    """Return an sRGB profile with some of its signatures exchanged."""
    profile = bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for old, new in changes.items():
        profile = profile.replace(old.encode(), new)
    return profile


# ---- modes


def test_colour_and_grey_are_read_exactly() -> None:
    colour, grey = encoded(Image.fromarray(COLOUR)), encoded(Image.fromarray(GREY))
    assert np.array_equal(as_bytes(read_image(colour)), COLOUR)
    assert np.array_equal(as_bytes(read_image(grey)), repeated(GREY))
    assert np.array_equal(as_bytes(read_image(grey, channels=1))[..., 0], GREY)
    luma = COLOUR @ [0.299, 0.587, 0.114]
    assert np.abs(as_bytes(read_image(colour, channels=1))[..., 0] - luma).max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_gives_its_white_and_black(mode: str, channels: int) -> None:
    white = Image.fromarray(np.repeat(np.uint8([[255, 255, 255, 0, 0]]), 4, axis=0))
    if mode in ("I;16", "I", "F"):
        deep = np.asarray(white).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 257
        picture = Image.fromarray(deep)
    else:
        picture = (white.convert("RGB") if mode in ("LAB", "CMYK") else white).convert(mode)
    assert picture.mode == mode
    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow below 13 cannot read what it writes")
    media = read_image(encoded(picture, "TIFF" if mode != "P" else "PNG"), channels)
    assert media.data.shape == (channels, 4, 5)
    expected = np.broadcast_to(np.float32([1, 1, 1, -1, -1]), media.data.shape)
    np.testing.assert_allclose(media.data, expected, atol=2 / 127)


def test_palette_and_one_bit_are_exact() -> None:
    palette = Image.fromarray(COLOUR).quantize(8)
    assert np.array_equal(as_bytes(read_image(encoded(palette))), np.asarray(palette.convert("RGB")))
    bits = GREY > 127
    media = read_image(encoded(Image.fromarray(bits)), channels=1)
    assert np.array_equal(media.data[0], np.where(bits, 1, -1))


@pytest.mark.parametrize(
    ("format", "type"), [("PNG", "uint16"), ("TIFF", "uint16"), ("TIFF", "int32"), ("PPM", "int32")]
)
def test_16_bit_grey_keeps_its_precision(format: str, type: str, caplog: pytest.LogCaptureFixture) -> None:
    gradient = np.arange(0, 65536, 16).astype(type).reshape(64, 64)
    gradient[-1, -1] = 65535
    media = read_image(encoded(Image.fromarray(gradient), format), channels=1)
    assert len(np.unique(media.data)) == 4096
    np.testing.assert_allclose(media.data[0], gradient / 32767.5 - 1, atol=1e-6)
    assert not caplog.records


def test_float_pixels_warn_of_the_scale_and_clip(caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(Image.fromarray(np.float32([[-5, 0, 32767.5, 65535, 1e6]])), "TIFF")
    np.testing.assert_allclose(read_image(data, channels=1).data[0, 0], [-1, -1, 0, 1, 1], atol=2e-5)
    assert "floating-point pixels" in caplog.text
    assert "values outside 0 to 65535 are clipped" in caplog.text
    with pytest.raises(MediaError, match="NaN or infinite"):
        read_image(encoded(Image.fromarray(np.float32([[np.nan]])), "TIFF"))


def test_16_bit_colour_warns(caplog: pytest.LogCaptureFixture) -> None:
    row = b"\0" + struct.pack(">6H", 0, 256 * 7, 65535, 1, 2, 3)
    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    assert as_bytes(read_image(data))[0, 0].tolist() == [0, 7, 255]
    assert "16-bit colors are rounded to 8 bits" in caplog.text


# ---- transparency and animation


def transparent(mode: str) -> bytes:
    """Return an image whose left half is transparent black and whose right half is opaque black."""
    if mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 2))
        image.paste((0, 0, 0, 255) if mode == "RGBA" else (0, 255), (2, 0, 4, 2))
        return encoded(image)
    image = Image.new(mode, (4, 2), 1)
    image.paste(0, (2, 0, 4, 2))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    key = (1, 0, 0) if mode == "RGB" else 1
    return encoded(image, transparency=key)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "RGB", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_transparent_parts_turn_white(mode: str, channels: int, caplog: pytest.LogCaptureFixture) -> None:
    media = read_image(transparent(mode), channels)
    assert np.array_equal(media.data, np.broadcast_to(np.float32([1, 1, -1, -1]), (channels, 2, 4)))
    assert caplog.messages == ["input: transparent parts are set on white"]


def test_half_transparent_is_mixed_with_white_and_opaque_alpha_is_no_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert as_bytes(read_image(encoded(Image.new("RGBA", (1, 1), (0, 100, 255, 255))))).tolist() == [[[0, 100, 255]]]
    assert not caplog.records
    assert as_bytes(read_image(encoded(Image.new("RGBA", (1, 1), (0, 100, 255, 51))))).tolist() == [[[204, 224, 255]]]
    assert caplog.records


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(as_bytes(read_image(data))[0, 0], [255, 0, 0], atol=2)
    assert caplog.messages == ["input: only the first frame is used"]
    assert caplog.records[0].levelno == logging.WARNING


# ---- EXIF and color profiles


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str) -> None:
    stored = {  # the numpy operation for each orientation
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.swapaxes(0, 1),
        6: np.rot90(COLOUR, -1),
        7: np.rot90(COLOUR, 2).swapaxes(0, 1),
        8: np.rot90(COLOUR),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(COLOUR), format, exif=exif, **options)
    expected = stored[orientation]
    assert np.array_equal(as_bytes(read_image(data)), expected)
    assert image_size(data) == (expected.shape[1], expected.shape[0])


def test_16_bit_grey_is_turned_too() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = encoded(Image.fromarray(np.arange(6, dtype=np.uint16).reshape(2, 3) * 1000), exif=exif)
    expected = np.rot90(np.arange(6).reshape(2, 3) * 1000, -1) / 32767.5 - 1
    np.testing.assert_allclose(read_image(data, channels=1).data[0], expected, atol=1e-6)


def test_exif_behind_the_pixels_of_a_png_counts_for_the_size_without_decoding() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    plain, tagged = encoded(Image.fromarray(COLOUR)), encoded(Image.fromarray(COLOUR), exif=exif)
    start = tagged.index(b"eXIf") - 4
    chunk = tagged[start : start + 12 + int.from_bytes(tagged[start : start + 4], "big")]
    end = plain.index(b"IEND") - 4
    late = plain[:end] + chunk + plain[end:]
    assert image_size(plain) == (7, 5)
    assert image_size(late) == (5, 7)
    assert read_image(late).data.shape == (3, 7, 5)
    broken_pixels = late.replace(plain[plain.index(b"IDAT") + 6 :][:8], b"\xff" * 8)
    assert image_size(broken_pixels) == (5, 7)


def test_broken_exif_warns(caplog: pytest.LogCaptureFixture) -> None:
    data = encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0no TIFF header")
    assert np.array_equal(as_bytes(read_image(data)), COLOUR)
    assert "input: EXIF data is ignored" in caplog.text


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_an_icc_profile_is_converted_to_srgb(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    swapped = profile_bytes(rXYZ=b"tmpX", bXYZ=b"rXYZ", tmpX=b"bXYZ")  # Its red is blue.
    image = Image.new("RGB", (2, 2), (255, 0, 0)).convert(mode)
    pixels = as_bytes(read_image(encoded(image, icc_profile=swapped)))
    np.testing.assert_allclose(pixels, np.broadcast_to([0, 0, 255], (2, 2, 3)), atol=2)
    assert not caplog.records


def test_an_srgb_profile_changes_nothing_and_fits_grey(caplog: pytest.LogCaptureFixture) -> None:
    same = encoded(Image.fromarray(COLOUR), icc_profile=profile_bytes())
    assert np.array_equal(as_bytes(read_image(same)), COLOUR)
    grey = encoded(Image.fromarray(GREY), icc_profile=profile_bytes())
    assert np.array_equal(as_bytes(read_image(grey, channels=1))[..., 0], GREY)
    assert not caplog.records


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_a_grey_profile_is_converted(mode: str, caplog: pytest.LogCaptureFixture) -> None:
    profile = bytearray(profile_bytes(rTRC=b"kTRC"))
    profile[16:20] = b"GRAY"
    data = encoded(Image.fromarray(GREY).convert(mode), icc_profile=bytes(profile))
    assert np.abs(as_bytes(read_image(data)).astype(int) - repeated(GREY)).max() <= 1
    assert not caplog.records


def test_a_lab_picture_is_converted() -> None:
    lab = ImageCms.profileToProfile(
        Image.new("RGB", (2, 2), (200, 30, 60)),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert lab is not None
    pixels = as_bytes(read_image(encoded(lab, "TIFF")))
    np.testing.assert_allclose(pixels[0, 0], [200, 30, 60], atol=3)


@pytest.mark.parametrize("profile", [b"not a profile", profile_bytes()[:200], profile_bytes(rTRC=b"none")])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_profile_that_is_broken_or_does_not_fit_warns(
    profile: bytes, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new(mode, (2, 2))
    data = encoded(image, "TIFF", icc_profile=profile)
    assert np.array_equal(as_bytes(read_image(data)), np.asarray(image.convert("RGB")))
    assert "input: the color profile is ignored" in caplog.text


# ---- files that are not images, or are too large


@pytest.mark.parametrize("factor", [0.6, 0.4])  # Pillow warns above its limit and raises above twice that
def test_a_decompression_bomb_is_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(35 * factor))
    data = encoded(Image.fromarray(COLOUR))
    for reader in (read_image, image_size):
        with pytest.raises(MediaError, match="input: has more than"):
            reader(data)


def test_a_picture_at_the_limit_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 35)
    assert read_image(encoded(Image.fromarray(COLOUR))).data.shape == (3, 5, 7)


@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA", "QOI"]
)
def test_a_truncated_picture_is_refused(format: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), format)
    assert read_image(data).data.shape == (3, 40, 50)
    path = tmp_path / "cut.png"
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        with pytest.raises(MediaError, match=r"cut\.png: ") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"words, not pixels", "is not an image of a known format")]
)
def test_what_is_no_picture_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    for reader in (read_image, image_size):
        with pytest.raises(MediaError, match=rf"odd\.png: {message}"):
            reader(path)


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_a_missing_file_is_a_media_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read"):
        read_image(tmp_path / name)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_damage_is_a_media_error_or_harmless(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]))
    content = bytearray(encoded(Image.fromarray(COLOUR), format))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(MediaError):
        image_size(bytes(content))
        assert np.abs(read_image(bytes(content)).data).max() <= 1


def test_sources_are_paths_bytes_and_streams(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(encoded(Image.fromarray(COLOUR)))
    with path.open("rb") as stream:
        for source in (path, path.read_bytes(), stream):
            assert np.array_equal(as_bytes(read_image(source)), COLOUR)
    assert image_size(path) == (7, 5)


# ---- writing


@pytest.mark.parametrize("name", ["x.png", "x", "x.BMP", "x.tiff", "x.ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_round_trip(name: str, channels: int, tmp_path: Path) -> None:
    media = read_image(encoded(Image.fromarray(COLOUR)), channels)
    write_image(media, tmp_path / name)
    assert np.array_equal(read_image(tmp_path / name, channels).data, media.data)


@pytest.mark.parametrize(("suffix", "format"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("avif", "AVIF")])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_formats_stay_close(suffix: str, format: str, channels: int) -> None:
    smooth = np.linspace(-1, 1, 64 * 64, dtype=np.float32).reshape(1, 64, 64).repeat(channels, axis=0)
    stream = BytesIO()
    write_image(Media("image", smooth), stream, format=suffix)
    assert Image.open(stream).format == format
    assert np.abs(read_image(stream.getvalue(), channels).data - smooth).max() < 0.1


def test_values_are_rounded_and_clipped() -> None:
    stream = BytesIO()
    write_image(Media("image", np.float32([[[-9, -1, -0.999, 0.003, 1, 9]]])), stream)
    assert as_bytes(read_image(stream.getvalue(), 1))[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]


def test_writing_refuses_what_cannot_be(tmp_path: Path) -> None:
    media = Media("image", np.zeros((3, 2, 2), np.float32))
    with pytest.raises(UsageError, match=r"x\.xyz: cannot write images as '\.xyz'; use \.png"):
        write_image(media, tmp_path / "x.xyz")
    with pytest.raises(UsageError, match=r"\.psd"):
        write_image(media, tmp_path / "x.png", format="psd")
    with pytest.raises(MediaError, match="2 channels"):
        write_image(Media("image", np.zeros((2, 2, 2), np.float32)), tmp_path / "x.png")
    with pytest.raises(MediaError, match=r"x\.jpg: cannot be written as \.jpg"):
        write_image(Media("image", np.zeros((1, 1, 70000), np.float32)), tmp_path / "x.jpg")
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_image(media, tmp_path / "missing" / "x.png")
    assert not list(tmp_path.iterdir())
