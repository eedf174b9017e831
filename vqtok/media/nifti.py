"""Slices of NIfTI volumes, which are optional (nibabel)."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError
from vqtok.media.kinds import is_installed


class Volume:
    """The slices of a NIfTI file, across its third axis; a file with more axes is a series of volumes.

    They are shown as in radiology: anterior above, the right side of the patient on the left.

    Raises:
        MediaError: The file cannot be read, or nibabel is not installed.
    """

    def __init__(self, path: Path) -> None:
        if not is_installed("nibabel"):
            raise MediaError(f"{path}: NIfTI requires nibabel: pip install 'vqtok[nifti]'")
        import nibabel

        self.path = path
        try:
            image = nibabel.load(path)
            self._data, header = image.dataobj, image.header
            # Axes that run to the right, to the front and up; the data are not read for it.
            self._turn = nibabel.io_orientation(image.affine)
            shape = list(self._data.shape)
            for axis, place in enumerate(self._turn[: len(shape), 0].astype(int)):
                shape[place] = self._data.shape[axis]
        except FileNotFoundError:
            raise MediaError(f"{path}: no such file") from None
        except Exception as error:  # nibabel may raise anything for damaged files, with parts of the header.
            raise MediaError(f"{path}: is no NIfTI volume, or damaged ({type(error).__name__})") from None
        if header.get_data_dtype().kind not in "iuf" or len(shape) < 2 or 0 in shape:
            raise MediaError(
                f"{path}: has values of {header.get_data_dtype()} in the shape {tuple(shape)}, no gray slices"
            )
        self.shape: tuple[int, ...] = (*shape, 1) if len(shape) == 2 else tuple(shape)
        shown = float(header["cal_min"]), float(header["cal_max"])
        self._shown = shown if all(map(math.isfinite, shown)) and shown[0] < shown[1] else None

    def __len__(self) -> int:
        return math.prod(self.shape[2:])

    @functools.cached_property
    def window(self) -> tuple[float, float]:
        """The values of black and white: the range that the header wants to be shown, or that of all values."""
        if self._shown:
            return self._shown
        values = self._values
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
        return low, high if high > low else low + 1

    @functools.cached_property
    def _values(self) -> NDArray[np.float32]:
        """All values `(right, front, slices)`. A compressed file would be read from the start for each slice."""
        from nibabel import apply_orientation

        try:
            values = self._data.__array__(np.float32)
            turned = apply_orientation(values, self._turn[: values.ndim])
        except Exception as error:
            raise MediaError(f"{self.path}: is cut off or damaged ({type(error).__name__})") from None
        return np.reshape(turned, (*self.shape[:2], -1), order="F")

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """Return a slice `(height, width)` in [-1, 1]. Values that are no numbers become black."""
        low, high = self.window
        values = self._values[::-1, ::-1, index].T.astype(np.float64)
        scaled = np.nan_to_num((values - low) * (2 / (high - low)) - 1, nan=-1.0)
        return scaled.clip(-1, 1).astype(np.float32)
