"""Files that hold several gray images or frames: NIfTI, and DICOM with several frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.media.dicom import Window, is_dicom, num_frames, open_dicom
from vqtok.media.image import StoredPixels, as_deep, dicom_pixels
from vqtok.media.kinds import is_installed
from vqtok.media.nifti import Volume

NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom")


def is_nifti(path: Path) -> bool:
    """Return whether a file is named like NIfTI, whose packages may be missing."""
    return str(path).lower().endswith(NIFTI_SUFFIXES)


def is_volume(path: Path) -> bool:
    """Return whether a file holds several images. The header of a DICOM file is read."""
    if is_nifti(path):
        return True
    try:
        is_candidate = str(path).lower().endswith(DICOM_SUFFIXES) and is_installed("pydicom")
        return is_candidate and is_dicom(path) and num_frames(path) > 1
    except MediaError:
        return False


def num_slices(path: Path) -> int:
    """Return the number of images in a volume.

    Raises:
        MediaError: It cannot be read, or the package for it is not installed.
    """
    return len(Volume(path)) if is_nifti(path) else num_frames(path)


def slices(path: Path, channels: int) -> Iterator[tuple[StoredPixels, Window | None]]:
    """Yield the images `(channels, height, width)` of a volume, each with its window if it is gray.

    Raises:
        MediaError: As `num_slices` does.
    """
    if is_nifti(path):
        volume = Volume(path)
        for number in range(len(volume)):
            yield as_deep(volume[number])[None].repeat(channels, axis=0), volume.window
        return
    with open_dicom(path) as opened:
        for number in range(opened.num_frames):
            yield dicom_pixels(opened, channels, number)
