"""Render photographs as engravings: sepia lines on paper, as thick as the image is dark. Data for a decoder of a style.

python tests/benchmarks/bench_style.py PHOTOS OUT [COUNT]
vqtok train OUT -o engraving.safetensors --init image --set train.freeze=encoder,codebook
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from vqtok.files.walk import files_below
from vqtok.media.image import read_pixels
from vqtok.media.kinds import modality_of

PERIOD = 5.0
"""Pixels from line to line."""
INK, PAPER = np.array([62.0, 38.0, 24.0]), np.array([243.0, 231.0, 205.0])


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    out.mkdir(exist_ok=True)
    names = list(files_below(folder, lambda path: modality_of(path) == "image"))
    for number, name in enumerate(names[: int(sys.argv[3]) if len(sys.argv) > 3 else None]):
        Image.fromarray(engraved(read_pixels(folder / name))).save(out / f"{number:04}.png")


def engraved(pixels: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the engraving `(height, width, 3)` of an image `(3, height, width)`."""
    luma = np.tensordot((0.299, 0.587, 0.114), pixels.astype(float), axes=1).round().astype(np.uint8)
    gray = np.asarray(Image.fromarray(luma).filter(ImageFilter.GaussianBlur(1.5))).astype(float)
    y, x = np.mgrid[: gray.shape[0], : gray.shape[1]]
    phase = (y + 0.4 * x + gray / 80) / PERIOD  # Lines bend where the image changes.
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * phase)
    ink = 1 / (1 + np.exp(-10 * (1 - gray / 255 - wave)))
    return (PAPER + ink[..., None] * (INK - PAPER)).round().astype(np.uint8)


if __name__ == "__main__":
    main()
