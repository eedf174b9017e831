"""Measure restoration: degraded held-out media, encoded by a restoring model and by the model it was made from.

python tests/benchmarks/bench_restore.py MEDIA RESTORED.safetensors --degrade noise:25 [--figure FIGURE.png]

MEDIA is a folder of images or audio, of which the files that training holds out are used (at most --items), or a file.
Both models encode the same degraded media with all codebooks; the reconstructions are compared with the clean media.
With opencv-python-headless installed, non-local means is measured beside them for noise: windows of 7 and 21 pixels, h
of 0.8 sigma, the best of 0.4 to 1.2 sigma on eight of the images. The figure has a column for the clean media and for
each row of the table.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from vqtok.codec.codec import Codec
from vqtok.config import Config, from_dict
from vqtok.media.degrade import parse_rules
from vqtok.media.image import as_bytes, as_float, write_image
from vqtok.media.media import Media
from vqtok.metrics.audio import mel_distance, si_sdr, stoi
from vqtok.metrics.image import psnr, ssim
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.registry import find_model
from vqtok.training.data import MediaCache, TrainingItem, find_items, split_items

SHOWN = 5
"""Images in the figure."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--degrade", required=True)
    parser.add_argument("--items", type=int, default=142)
    parser.add_argument("--only", default="", help="Use only files whose names begin with this.")
    parser.add_argument("--seconds", type=float, default=10.0, help="Use the beginning of longer audio.")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = from_dict(Config, read_card(options.model).config)
    modality, rate = config.model.modalities[0], config.model.sample_rate
    degrader = parse_rules([options.degrade], modality, rate)
    codecs = {
        "parent": Codec(load_model(find_model(modality))),
        "restoring model": Codec(load_model(options.model)),
    }
    if options.media.is_file():
        held_out = [TrainingItem(options.media, options.media.name)]
    else:
        _, held_out = split_items(find_items(options.media, modality), config.data.validation_fraction)
    held_out = [item for item in held_out if item.name.startswith(options.only)][: options.items]
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    rows: list[list[np.ndarray]] = []
    for number, item in enumerate(held_out):
        media = MediaCache(config).read(item)
        assert media
        if rate:
            media = Media(modality, media.data[:1, : round(options.seconds * rate)], rate)
        given = degrader(media, np.random.default_rng(number))
        versions = {"degraded": given}
        versions |= {name: codec.decode(codec.encode(given)) for name, codec in codecs.items()}
        versions["clean, parent"] = codecs["parent"].decode(codecs["parent"].encode(media))
        if modality == "image" and options.degrade.startswith("noise:"):
            versions |= non_local_means(given, float(options.degrade.removeprefix("noise:")))
        for name, version in versions.items():
            found[name].append(quality(media, version))
        if len(rows) < SHOWN:
            rows.append([media.data, *(version.data for version in versions.values())])
    columns = ("PSNR dB", "SSIM") if modality == "image" else ("SI-SDR dB", "STOI", "mel distance")
    print(f"{len(held_out)} held-out files, {options.degrade}\n")
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for name, figures in found.items():
        print(f"| {name} | {' | '.join(f'{mean:.3f}' for mean in np.nanmean(figures, axis=0))} |")
    if options.figure:
        side = 256
        sheet = [np.concatenate([middle(image, side) for image in row], axis=2) for row in rows]
        write_image(Media("image", np.concatenate(sheet, axis=1)), options.figure)


def non_local_means(given: Media, sigma: float) -> dict[str, Media]:
    try:
        import cv2
    except ImportError:
        return {}
    pixels = np.ascontiguousarray(as_bytes(given.data).transpose(1, 2, 0))
    found = cv2.fastNlMeansDenoisingColored(pixels, None, 0.8 * sigma, 0.8 * sigma, 7, 21)
    return {"non-local means": Media("image", as_float(np.ascontiguousarray(found.transpose(2, 0, 1))))}


def quality(media: Media, version: Media) -> tuple[float, ...]:
    x, x_hat = (torch.from_numpy(data)[None] for data in (media.data, version.data))
    if media.modality == "image":
        return psnr(x, x_hat).item(), ssim(x, x_hat).item()
    assert media.sample_rate
    rate = media.sample_rate
    return si_sdr(x, x_hat).item(), stoi(x, x_hat, rate).item(), mel_distance(x, x_hat, rate).item()


def middle(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, max(0, top) :, max(0, left) :][:, :side, :side]


if __name__ == "__main__":
    main()
