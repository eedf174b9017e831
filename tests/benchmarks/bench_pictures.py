"""Compare the quality of images at the sizes of their token files with JPEG, WebP and AVIF of as many bytes.

python tests/benchmarks/bench_pictures.py IMAGES [--model MODEL] [--formats FORMAT,...] [--figure OUT.png]

IMAGES are files or folders. JPEG, WebP and AVIF get the smallest file that is at least as large as the token file, so
that they never have fewer bytes. The table shows means over the images. The packages `ssimulacra2` and
`flip-evaluator` compute SSIMULACRA2 and FLIP (0: no visible difference). The figure shows the center of the first
image.
"""

from __future__ import annotations

import argparse
import io
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path

import flip_evaluator
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from ssimulacra2 import compute_ssimulacra2

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.jobs.mapping import plan_items
from vqtok.media.image import as_float, read_pixels
from vqtok.media.kinds import modality_of
from vqtok.metrics import ms_ssim, psnr
from vqtok.tokens.vqt.file import dump

CODEBOOKS = 1, 2, 4, 8
CLASSICAL: dict[str, dict[str, int]] = {"JPEG": {"optimize": True}, "WebP": {"method": 6}, "AVIF": {"speed": 4}}
"""Formats of Pillow, and settings for its smallest files."""
SIDE, CAPTION = 256, 14
"""Size of the images in the figure and height of the lines above them."""
Pixels = NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--formats", default=",".join(CLASSICAL), help="a comma-separated part of the default")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec = Codecs(options.model).get("image")
    files = plan_items(options.images, accepts=lambda path: modality_of(path) == "image", what="images")
    sums: dict[tuple[int, str], NDArray[np.float64]] = defaultdict(lambda: np.zeros(6))
    for index, (_, path) in enumerate(files):
        original = read_pixels(path, codec.tokenizer.channels)
        shown = {}
        for num_codebooks, name, decoded, num_bytes in coded(original, codec, options.formats.split(",")):
            bpp = num_bytes * 8 / original[0].size
            sums[num_codebooks, name] += (num_bytes, bpp, *quality(original, decoded))
            shown[num_codebooks, name] = decoded, num_bytes
        if options.figure and index == 0:
            draw(original, shown).save(options.figure, quality=95)
    print(f"{len(files)} images\n\n| codebooks | | bytes | bpp | PSNR dB | MS-SSIM | SSIMULACRA2 | FLIP |")
    print("|---|---|---|---|---|---|---|---|")
    for (num_codebooks, name), total in sums.items():
        num_bytes, bpp, *qualities = total / len(files)
        print(
            "| {} | {} | {:.0f} | {:.3f} | {:.2f} | {:.4f} | {:.1f} | {:.4f} |".format(
                num_codebooks, name, num_bytes, bpp, *qualities
            )
        )


def coded(original: Pixels, codec: Codec, formats: Sequence[str]) -> Iterator[tuple[int, str, Pixels, int]]:
    """Yield the reconstruction of each codec at each rate, and its bytes."""
    tokens = codec.encode_image(original)
    encoders = {kind: cache(partial(classical, original, kind)) for kind in formats}
    for num_codebooks in CODEBOOKS:
        prefix = tokens.prefix(num_codebooks)
        num_bytes = len(dump(prefix, codec.tokenizer.entropy_model))
        yield num_codebooks, "vqtok", codec.decode_pixels(prefix), num_bytes
        for kind, encode in encoders.items():
            quality = bisect_left(range(100), num_bytes, key=lambda quality: len(encode(quality)))
            file = encode(quality)
            decoded = np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).transpose(2, 0, 1)
            yield num_codebooks, kind, decoded, len(file)


def classical(original: Pixels, kind: str, quality: int) -> bytes:
    file = io.BytesIO()
    as_image(original).save(file, kind, quality=quality, **CLASSICAL[kind])
    return file.getvalue()


def quality(original: Pixels, decoded: Pixels) -> tuple[float, float, float, float]:
    x, x_hat = (torch.from_numpy(as_float(pixels))[None] for pixels in (original, decoded))
    images = [as_image(pixels) for pixels in (original, decoded)]
    files = [io.BytesIO(), io.BytesIO()]
    for image, file in zip(images, files, strict=True):
        image.save(file, "PNG")
    arrays = [np.asarray(image, np.float32) / 255 for image in images]
    flip = flip_evaluator.evaluate(*arrays, "LDR", applyMagma=False)[1]
    return psnr(x, x_hat).item(), ms_ssim(x, x_hat).item(), compute_ssimulacra2(*files), flip


def draw(original: Pixels, shown: dict[tuple[int, str], tuple[Pixels, int]]) -> Image.Image:
    """Draw the centers of the reconstructions: one row per codec, one column per rate."""
    names = list(dict.fromkeys(name for _, name in shown))
    sheet = Image.new("RGB", (SIDE * (1 + len(CODEBOOKS)), (SIDE + CAPTION) * len(names)), "white")
    pen = ImageDraw.Draw(sheet)

    def put(pixels: Pixels, text: str, column: int, row: int) -> None:
        top, left = ((length - SIDE) // 2 for length in pixels.shape[1:])
        middle = pixels[:, max(top, 0) :, max(left, 0) :][:, :SIDE, :SIDE]
        pen.text((column * SIDE + 2, row * (SIDE + CAPTION) + 1), text, fill="black")
        sheet.paste(as_image(middle), (column * SIDE, row * (SIDE + CAPTION) + CAPTION))

    put(original, "original", 0, 0)
    for (num_codebooks, name), (pixels, num_bytes) in shown.items():
        text = f"{name}, {num_codebooks} of {CODEBOOKS[-1]} codebooks" if name == "vqtok" else name
        put(pixels, f"{text}: {num_bytes:,} bytes", 1 + CODEBOOKS.index(num_codebooks), names.index(name))
    return sheet


def as_image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


if __name__ == "__main__":
    main()
