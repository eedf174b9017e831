"""DICOM images, which are optional (pydicom): gray or color, of one frame or several.

The header of such a file names the patient. Nothing of it leaves this module but sizes and ranges of values, and no
message has text of a library in it, which may quote the header.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.files.paths import error_context
from vqtok.media.kinds import is_installed
from vqtok.media.media import Source, open_source, source_name

if TYPE_CHECKING:
    from pydicom import Dataset

_SIGNATURE, _PREAMBLE_BYTES = b"DICM", 128
Window: TypeAlias = tuple[float, float]
"""The values that become black and white, in the units of a file, such as HU."""

_EXACT, _SIGMOID = "LINEAR_EXACT", "SIGMOID"


def is_dicom(source: Source) -> bool:
    """Return whether a source that can seek is a DICOM file with the usual preamble."""
    if isinstance(source, bytes):
        return source[_PREAMBLE_BYTES:].startswith(_SIGNATURE)
    if isinstance(source, Path):
        with open_source(source) as file:
            return is_dicom(file)
    if not source.seekable():
        return False
    start = source.tell()
    head = source.read(_PREAMBLE_BYTES + len(_SIGNATURE))
    source.seek(start)
    return head.endswith(_SIGNATURE)


def num_frames(source: Source) -> int:
    """Return the number of images in a DICOM file, without decoding them. Raises as `open_dicom` does."""
    with open_dicom(source, pixels=False) as opened:
        return opened.num_frames


def dicom_size(source: Source) -> tuple[int, int]:
    """Return `(width, height)` of the images in a DICOM file, without decoding them. Raises as `open_dicom` does."""
    with open_dicom(source, pixels=False) as opened:
        return opened.size


class Dicom:
    """An opened DICOM file; methods raise anything for damaged ones, which `open_dicom` turns into a MediaError."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    @property
    def num_frames(self) -> int:
        return max(1, int(self._dataset.get("NumberOfFrames") or 1))

    @property
    def size(self) -> tuple[int, int]:
        """The width and height of its images.

        Raises:
            MediaError: It has none.
        """
        if "Rows" not in self._dataset:
            raise MediaError("is a DICOM file without an image")
        return int(self._dataset.Columns), int(self._dataset.Rows)

    def read(self, frame: int = 0) -> tuple[NDArray[np.float32], Window | None]:
        """Decode an image, and return it with its window if it is gray.

        Values of gray images are rescaled to the file's units, and the first window of the file is the range from black
        to white. Without a window that is the range of the image, or, of 8 bits and fewer, the one that these allow.

        Raises:
            MediaError: Its compression needs a package.

        Shapes:
            float32 in [-1, 1], `(height, width)` for gray images, `(height, width, 3)` for color ones.

        Source: the DICOM standard, PS3.3, sections C.7.6.3.1.2 (photometric interpretation), C.11.1 (rescale slope) and
            C.11.2.1 (windows).
        """
        import pydicom.pixels

        dataset = self._dataset
        _check_compression(dataset)
        pixels = pydicom.pixels.pixel_array(dataset, index=frame)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            pixels = pydicom.pixels.apply_color_lut(pixels, dataset)
        if _is_color(dataset):
            return np.asarray(pixels / np.float32(np.iinfo(pixels.dtype).max / 2) - 1, np.float32), None
        if "ModalityLUTSequence" in dataset:
            values = pydicom.pixels.apply_modality_lut(pixels, dataset).astype(np.float64)
        else:
            slope, intercept = _rescale(dataset, frame)
            values = pixels.astype(np.float64) * slope + intercept
        black, white = window = _window(dataset, frame) or _range(dataset, values)
        if _of_frame(dataset, frame, "FrameVOILUTSequence", "VOILUTFunction") == _SIGMOID:
            values = 2 / (1 + np.exp(-4 * (values - (black + white) / 2) / (white - black))) - 1
        else:
            values = (values - black) * (2 / (white - black)) - 1
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values, window = -values, (white, black)
        return np.asarray(values.clip(-1, 1), np.float32), window


@contextmanager
def open_dicom(source: Source, *, pixels: bool = True) -> Iterator[Dicom]:
    """Open a DICOM file. All exceptions while it is used become a MediaError that quotes nothing of it.

    Args:
        pixels: Whether images are going to be read; False reads the header only.

    Raises:
        MediaError: It cannot be read, or pydicom is not installed.
    """
    name = source_name(source)
    with error_context(name):
        _load_pydicom()
    from pydicom import dcmread

    with open_source(source) as file:
        start = file.tell()
        try:
            yield Dicom(dcmread(file, stop_before_pixels=not pixels))
        except MediaError as error:
            raise MediaError(f"{name}: {error}") from None
        except RuntimeError:
            what = "is damaged, or compressed in a way that the installed packages cannot read"
            raise MediaError(f"{name}: {what}; convert it to PNG") from None
        except Exception as error:  # pydicom may raise anything for damaged files.
            raise MediaError(f"{name}: the DICOM file is damaged or unusual ({type(error).__name__})") from None
        finally:
            file.seek(start)  # Sizes and pixels are read one after the other.


@cache
def _load_pydicom() -> None:
    if not is_installed("pydicom"):
        raise MediaError("DICOM requires pydicom: pip install 'vqtok[dicom]', or convert it to PNG")
    from pydicom import config

    config.settings.reading_validation_mode = config.IGNORE  # Its warnings would quote the header.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)


def _check_compression(dataset: Dataset) -> None:
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax.is_deflated:
        return
    decoder = get_decoder(syntax)
    if not decoder.is_available:
        needed = " or ".join(part.partition(" - ")[0] for part in decoder.missing_dependencies)
        raise MediaError(f"is compressed as {syntax.name}, which pydicom reads with {needed}; install one of them")


def _is_color(dataset: Dataset) -> bool:
    return int(dataset.SamplesPerPixel) == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR"


def _of_frame(dataset: Dataset, frame: int, sequence: str, keyword: str) -> Any:
    """Return the first value of an attribute: that of the frame, of all frames, or of the file; None without any."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[frame : frame + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])]
    for holder in [*(item for group in groups for item in group.get(sequence) or []), dataset]:
        value = holder.get(keyword)
        if value is not None and value != "":
            return value if isinstance(value, str) or not hasattr(value, "__len__") else value[0]
    return None


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float]:
    """Return what stored values are multiplied by, and what is added."""
    slope, intercept = (
        _of_frame(dataset, frame, "PixelValueTransformationSequence", keyword)
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    return (1.0 if slope is None else float(slope)), float(intercept or 0)


def _window(dataset: Dataset, frame: int) -> Window | None:
    """Return the window that a file has for a frame."""
    center, width, function = (
        _of_frame(dataset, frame, "FrameVOILUTSequence", keyword)
        for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction")
    )
    if center is None or width is None or not math.isfinite(float(center)) or not float(width) > 1:
        return None
    center, width = float(center), float(width)
    if function in (_EXACT, _SIGMOID):
        return center - width / 2, center + width / 2
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def _range(dataset: Dataset, values: NDArray[np.float64]) -> Window:
    if dataset.BitsStored <= 8 and not dataset.PixelRepresentation and "RescaleSlope" not in dataset:
        return 0.0, float(2**dataset.BitsStored - 1)
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1
