"""Rows of volumes: the slices of NIfTI files, and the frames of DICOM files."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.media.image import write_pixels
from vqtok.media.volume import num_slices, slices
from vqtok.rows.row import Row
from vqtok.tokens.tokens import WINDOW


def volume_rows(path: Path) -> Iterator[Row]:
    """Yield the images of a volume in order. Damage becomes the fault of a last row."""
    number = 0
    try:
        for pixels, window in slices(path, 3):
            buffer = BytesIO()
            write_pixels(pixels if window is None else pixels[:1], buffer, "tiff")
            yield Row(f"{number:05}.tiff", buffer.getvalue(), {} if window is None else {WINDOW: list(window)})
            number += 1
    except MediaError as error:
        yield Row("", fault=str(error).removeprefix(f"{path}: "))


def volume_count(path: Path) -> int:
    """Return the number of rows; 1 for a volume that cannot be read, whose turn reports it."""
    try:
        return num_slices(path)
    except MediaError:
        return 1
