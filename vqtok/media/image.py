"""Read and write image files with Pillow."""

from __future__ import annotations

import logging
import math
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR, BytesIO
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin, UnidentifiedImageError

from vqtok.errors import MediaError, UsageError
from vqtok.media import tiff
from vqtok.media.color import ColorSpace, bits_per_channel, stated_color_space
from vqtok.media.dicom import Dicom, Window, dicom_size, is_dicom, open_dicom
from vqtok.media.media import Media, Source, open_source, save_target, source_name, target_suffix
from vqtok.media.plugins import prepare_for

logger = logging.getLogger(__name__)

StoredPixels: TypeAlias = NDArray[np.uint8] | NDArray[np.uint16]
"""uint8 from 0 to 255, or uint16 from 0 to 65535."""
Pixels: TypeAlias = StoredPixels | NDArray[np.float32]
"""Stored pixels, or float32 in [-1, 1]."""

_MODES = {1: "L", 3: "RGB"}
_UNKNOWN = "is not an image of a known format"
_FULL_SCALE = 65535  # white in the modes with more than 8 bits
_DEEP_ENCODERS = ("PNG", "TIFF", "JPEG2000")
"""Pillow's names of the formats that it writes with 16 bits, gray only."""
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_warnings_lock = threading.RLock()


def read_image(source: Source, channels: int = 3) -> Media:
    """Read an image like `read_pixels`, but always as float32."""
    return Media("image", as_float(read_pixels(source, channels)))


def read_pixels(source: Source, channels: int = 3) -> StoredPixels:
    """Read an image as sRGB (3 channels) or gray (1), upright. A warning is logged for anything that gets lost.

    Transparent parts become white, and only the first frame of an animation is read. Gray images with more than 8 bits
    keep 16; white is 65535.

    Args:
        source: A path, the bytes of a file, or a stream, whose `name` is used in messages.

    Raises:
        MediaError: The source is not an image, empty, truncated, damaged, or larger than Pillow's `MAX_IMAGE_PIXELS`.

    Shapes:
        `(channels, height, width)`; uint16 for gray images with more than 8 bits, else uint8.
    """
    return read_windowed(source, channels)[0]


def _decoded(source: Source, channels: int) -> StoredPixels:
    """Read an image with Pillow."""
    name = source_name(source)
    with _opened(source) as image:
        if getattr(image, "is_animated", False) and image.format not in (
            "MPO",
            "PSD",
        ):  # Their frames are previews or layers.
            logger.warning("%s: only the first frame is used", name)
        has_16_bits = any(";16" in str(tile[3]) for tile in image.tile)
        color, bits = stated_color_space(image), bits_per_channel(image)
        image.load()
        turn = _TURNS.get(_orientation(image, name))
    upright = image if turn is None else image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values, full_scale = np.asarray(upright), _FULL_SCALE
        if image.format == "TIFF":
            values, full_scale = tiff.deep_values(image, values)
        gray = _deep_pixels(upright, values, full_scale, color, name)
        if image.format == "TIFF" and tiff.is_negative(image):
            gray = -gray
        return np.repeat(as_deep(gray)[None], channels, axis=0)
    if has_16_bits or bits > 8:
        logger.warning("%s: %d-bit colors are rounded to 8 bits", name, 16 if has_16_bits else bits)
    pixels: NDArray[np.uint8] = np.asarray(_flattened(upright, color, name).convert(_MODES[channels]))
    return np.atleast_3d(pixels).transpose(2, 0, 1)


def read_windowed(source: Source, channels: int = 3, frame: int | None = None) -> tuple[StoredPixels, Window | None]:
    """Read an image like `read_pixels`; return it with the values of black and white if it is gray DICOM, else None.

    Args:
        frame: Which image of a DICOM file with several is read; by default the first, with a warning.
    """
    if not is_dicom(source):
        return _decoded(source, channels), None
    with open_dicom(source) as opened:
        if frame is None and opened.num_frames > 1:
            name = source_name(source)
            logger.warning(
                "%s: only the first of %d frames is used; give this file alone for all", name, opened.num_frames
            )
        return dicom_pixels(opened, channels, frame or 0)


def dicom_pixels(opened: Dicom, channels: int, frame: int) -> tuple[StoredPixels, Window | None]:
    """Return an image of an opened DICOM file as `read_windowed` does."""
    with _size_limit():
        _check_size(*opened.size)
    data, window = opened.read(frame)
    if window:
        return np.repeat(as_deep(data)[None], channels, axis=0), window
    pixels: NDArray[np.uint8] = np.asarray(Image.fromarray(as_bytes(data)).convert(_MODES[channels]))
    return np.atleast_3d(pixels).transpose(2, 0, 1), None


def as_float(pixels: Pixels) -> NDArray[np.float32]:
    """Convert pixels of 8 or 16 bits to [-1, 1]; float32 pixels are returned as they are."""
    data = pixels.astype(np.float32, order="C")
    if pixels.dtype != np.float32:
        data /= 127.5 if pixels.dtype == np.uint8 else _FULL_SCALE / 2
        data -= 1
    return data


def as_bytes(data: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Convert values in [-1, 1] to 0..255, rounded and clipped."""
    pixels: NDArray[np.uint8] = np.rint((data + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return pixels


def as_deep(data: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Convert values in [-1, 1] to 0..65535, rounded and clipped."""
    pixels: NDArray[np.uint16] = np.rint((data + 1) * (_FULL_SCALE / 2)).clip(0, _FULL_SCALE).astype(np.uint16)
    return pixels


def image_size(source: Source) -> tuple[int, int]:
    """Return `(width, height)` of the upright image without decoding it.

    Raises:
        MediaError: As for `read_image`, if the header shows it.
    """
    if is_dicom(source):
        return dicom_size(source)
    with _opened(source) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow has already rotated the size.
            return width, height
        if image.format == "PNG" and "exif" not in image.info:
            assert image.fp is not None
            image.info["exif"] = _late_exif(image.fp)
        turned = _orientation(image, source_name(source)) in (5, 6, 7, 8)
        return (height, width) if turned else (width, height)


def num_pixels(source: Source) -> int:
    """Return the number of pixels of an image without decoding it.

    Raises:
        MediaError: As for `image_size`.
    """
    if is_dicom(source):
        return math.prod(dicom_size(source))
    with _opened(source) as image:
        return image.width * image.height


def set_max_pixels(count: int) -> None:
    """Set the maximum number of pixels of an image. This is Pillow's limit, for the whole process."""
    Image.MAX_IMAGE_PIXELS = count


def write_image(media: Media, target: Path | BinaryIO, format: str | None = None) -> None:
    """Write a gray or sRGB image with 8 bits per channel. Values beyond [-1, 1] are clipped.

    Args:
        format: A suffix such as "webp"; by default the target's, else "png".

    Raises:
        UsageError: The format is not supported.
        MediaError: The format does not support this image.
        OutputError: The file cannot be written.
    """
    write_pixels(as_bytes(media.data), target, format)


def write_pixels(pixels: StoredPixels, target: Path | BinaryIO, format: str | None = None) -> None:
    """Write pixels `(channels, height, width)` like `write_image`; 16 bits as they are if the format has them.

    Other formats get 8 bits, and a warning is logged.
    """
    name = source_name(target)
    suffix = target_suffix(target, format, default=".png")
    encoder = Image.registered_extensions().get(suffix)
    if encoder not in Image.SAVE:
        raise UsageError(f"{name}: cannot write images as {suffix!r}; use .png, .jpg, .webp, .avif or .tiff")
    if len(pixels) not in _MODES:
        raise MediaError(f"{name}: cannot write an image with {len(pixels)} channels, only with 1 or 3")
    if pixels.dtype == np.uint16 and (encoder not in _DEEP_ENCODERS or len(pixels) > 1):
        logger.warning("%s: %s images are written with 8 bits; .png and .tiff keep 16", name, suffix)
        pixels = as_bytes(as_float(pixels))
    rows = pixels.transpose(1, 2, 0)
    options = {"quality": 95} if encoder in ("JPEG", "WEBP", "AVIF") else {}
    buffer = BytesIO()
    try:
        Image.fromarray(rows.squeeze(2) if rows.shape[2] == 1 else rows).save(buffer, encoder, **options)
    except (OSError, ValueError) as error:
        raise MediaError(f"{name}: cannot be written as {suffix}: {error}") from error
    save_target(buffer.getbuffer(), target)


@contextmanager
def _size_limit() -> Iterator[None]:
    """Turn what Pillow raises for images that are too large into a MediaError."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{(Image.MAX_IMAGE_PIXELS or 0) / 1e6:.4g} megapixels"
        raise MediaError(f"has more than {limit}; `max_megapixels` allows more") from error


@contextmanager
def _opened(source: Source) -> Iterator[ImageFile.ImageFile]:
    """Open an image. All exceptions of Pillow, while opening or using it, become a MediaError."""
    name = source_name(source)
    with open_source(source) as file:
        try:
            with _size_limit():
                image = _open(file)
                _check_size(image.width, image.height)
                yield image
        except UnidentifiedImageError as error:
            what = tiff.describe(file) if _is_tiff(file) else _UNKNOWN
            raise MediaError(f"{name}: {what}") from error
        except MediaError as error:
            raise MediaError(f"{name}: {error}") if not str(error).startswith(f"{name}:") else error from None
        except Exception as error:  # Pillow may raise almost anything for damaged files.
            raise MediaError(f"{name}: the image is damaged: {error}") from error


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Open an image so that Pillow decodes it correctly.

    Raises:
        MediaError: Pillow cannot decode it correctly.
    """
    start, image = file.tell(), None
    jxl = prepare_for(file)
    if jxl:
        _check_size(jxl.width, jxl.height)
    with _no_python_warnings():
        try:
            image = Image.open(file)
        except UnidentifiedImageError:
            if not _is_tiff(file):
                raise
        if image is None or (image.format == "TIFF" and tiff.is_planar(image)):
            file.seek(start)
            TiffImagePlugin.READ_LIBTIFF = True
            try:
                image = Image.open(file)
            finally:
                TiffImagePlugin.READ_LIBTIFF = False
    if image.format == "TIFF":
        tiff.fix_unpacking(image)
    if jxl:
        image.is_animated = jxl.is_animated  # type: ignore[attr-defined]
        image.info["bit_depth"] = jxl.bits if image.mode not in ("F", "I;16") else 8
    return image


def _check_size(width: int, height: int) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Image.DecompressionBombError


def _is_tiff(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@contextmanager
def _no_python_warnings() -> Iterator[None]:
    """Suppress warnings of Pillow. The filters apply to the whole process, therefore the lock."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _orientation(image: Image.Image, name: str) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none, if it does not apply, or if the EXIF data is damaged."""
    if image.format == "JXL" and not getattr(image, "jpeg", False):  # The decoder has applied its own orientation.
        return 1
    try:
        with _no_python_warnings():
            orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
        return orientation
    except Exception as error:  # Pillow may raise almost anything for damaged data.
        logger.warning("%s: EXIF data is ignored: %s", name, error)
        return 1


def _late_exif(file: IO[bytes]) -> bytes:
    """Return the EXIF data that a PNG file has after its pixels. Pillow would have to decode them to get there."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            return file.read(length)
        file.seek(length + 4, SEEK_CUR)
    return b""


def _deep_pixels(
    image: Image.Image, stored: NDArray[Any], full_scale: int, color: ColorSpace | None, name: str
) -> NDArray[np.float32]:
    """Scale gray pixels with more than 8 bits to [-1, 1]."""
    values = stored.astype(np.float32)
    if not np.isfinite(values).all():
        raise MediaError(f"{name}: has pixels that are NaN or infinite")
    if image.mode == "F":
        full_scale = 1 if values.min() >= 0 and values.max() <= 1 else full_scale
        logger.warning("%s: floating-point pixels are read with 0 as black and %d as white", name, full_scale)
    if values.min() < 0 or values.max() > full_scale:
        logger.warning("%s: values outside 0 to %d are clipped", name, full_scale)
    if color.profile if color else "icc_profile" in image.info:
        logger.warning("%s: the color profile is ignored: the image has more than 8 bits", name)
    data = values.clip(0, full_scale)
    data /= full_scale / 2
    data -= 1
    if "transparency" in image.info:
        logger.warning("%s: transparent parts are set on white", name)
        data[values == image.info["transparency"]] = 1
    return data


def _flattened(image: Image.Image, color: ColorSpace | None, name: str) -> Image.Image:
    """Convert an image to opaque gray or sRGB."""
    alpha = None
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("1", "L", "LA") else "RGBA")
        alpha = image.getchannel("A")
    if image.mode in ("1", "LA"):
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK", "LAB"):
        image = image.convert("RGB")
    if color and color.warning:
        logger.warning("%s: %s", name, color.warning)
    if profile := color.profile if color else image.info.get("icc_profile"):
        image = _in_srgb(image, profile, name)
    if image.mode != "L":
        image = image.convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        logger.warning("%s: transparent parts are set on white", name)
        image = Image.composite(image, Image.new(image.mode, image.size, "white"), alpha)
    return image


def _in_srgb(image: Image.Image, profile: bytes, name: str) -> Image.Image:
    """Convert an image from its ICC profile to sRGB. A profile that is damaged or does not fit is ignored."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if image.mode == "L" and source.profile.xcolor_space == "RGB ":
            image = image.convert("RGB")
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, srgb, outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("%s: the color profile is ignored: %s", name, error)
        return image
