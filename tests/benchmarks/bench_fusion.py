"""Measure fusion models on held-out pairs: reconstruction, shared codes, and retrieval by the histograms of codes.

python tests/benchmarks/bench_fusion.py PAIRS MODEL...
python tests/benchmarks/bench_fusion.py PAIRS --link FOLDER TRAINING/

The second command links the files of a folder in TRAINING/, without those of the held-out pairs: models of one modality
would hold out others. PAIRS is a folder such as digits-av: images, audio and captions with stems in common. Models of
one modality are measured by their reconstruction alone. An item finds its partner among all held-out items of the other
modality by the negative symmetric cross entropy of the histograms of their codes. Recall at 1 and 10 and the median
rank count the partner itself; the last column the items whose first find has the same caption. Equal scores are in
random order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.config import Config, from_dict
from vqtok.files.sidecars import read_columns
from vqtok.metrics.audio import mel_distance
from vqtok.metrics.image import psnr
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.tokens.statistics import jensen_shannon_bits, shared_fraction
from vqtok.training.data import MediaCache, find_items, items_of, pair_stem, split_items

FLOOR = 1e-3
"""Added to histograms before the logarithm."""


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--link", type=Path, nargs=2, metavar=("FOLDER", "TRAINING"))
    options = parser.parse_args()
    folder, models = options.pairs, options.models
    items = find_items(folder, "image", "audio")
    _, held_out = split_items(items, 0.05, pair_stem)
    if options.link:
        source, target = options.link
        link(source, target, {pair_stem(item) for item in held_out})
        return
    captions = [str(read_columns(item.path).get("caption", "")) for item in items_of(held_out, "image")]
    print(f"{len(captions)} held-out pairs\n")
    columns = (
        "direction",
        "PSNR dB",
        "mel distance",
        "shared codes",
        "divergence",
        "R@1",
        "R@10",
        "median rank",
        "caption",
    )
    print(f"| model | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for path in models:
        config, model = from_dict(Config, read_card(path).config), load_model(path)
        cache = MediaCache(config)
        quality, histograms = {}, {}
        for modality, side in model.sides.items():
            codec, figures, counts = Codec(side), [], []
            for item in items_of(held_out, modality):
                media = cache.read(item)
                assert media
                tokens = codec.encode(media)
                x, x_hat = (torch.from_numpy(data)[None] for data in (media.data, codec.decode(tokens).data))
                is_image = modality == "image"
                figures.append(float(psnr(x, x_hat) if is_image else mel_distance(x, x_hat, media.sample_rate or 0)))
                counts.append(np.bincount(tokens.codes.ravel(), minlength=side.codebook_sizes[0]))
            quality[modality], histograms[modality] = np.mean(figures), np.array(counts)
        figures_shown = " | ".join(f"{quality[name]:.3f}" if name in quality else "-" for name in ("image", "audio"))
        if len(histograms) == 1:
            print(f"| {path.stem} | - | {figures_shown} | - | - | - | - | - | - |")
            continue
        image, audio = histograms["image"], histograms["audio"]
        totals = image.sum(0), audio.sum(0)
        shared = f"{shared_fraction(*totals):.3f} | {jensen_shannon_bits(*totals):.3f}"
        similarity = similarities(image, audio)
        for direction, scores in (("image to audio", similarity), ("audio to image", similarity.T)):
            print(f"| {path.stem} | {direction} | {figures_shown} | {shared} | {retrieval(scores, captions)} |")
    chance = np.mean([captions.count(caption) for caption in captions]) / len(captions)
    count = len(captions)
    print(f"| chance | | | | | | {1 / count:.3f} | {10 / count:.3f} | {(count + 1) / 2:.1f} | {chance:.3f} |")


def link(folder: Path, training: Path, held_out: set[str]) -> None:
    training.mkdir(parents=True)
    for path in folder.resolve().iterdir():
        if path.stem not in held_out:
            (training / path.name).symlink_to(path)


def similarities(image: NDArray[np.int64], audio: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the negative symmetric cross entropy of all pairs of histograms, with noise that orders equal ones."""
    p, q = (counts / counts.sum(1, keepdims=True) for counts in (image, audio))
    found: NDArray[np.float64] = p @ np.log(q + FLOOR).T + np.log(p + FLOOR) @ q.T
    found += np.random.default_rng(0).normal(0, 1e-6, found.shape)
    return found


def retrieval(scores: NDArray[np.float64], captions: list[str]) -> str:
    rank = (scores > np.diag(scores)[:, None]).sum(1) + 1
    first = scores.argmax(1)
    same = np.mean([captions[found] == own for found, own in zip(first, captions, strict=True)])
    return f"{np.mean(rank == 1):.3f} | {np.mean(rank <= 10):.3f} | {np.median(rank):.1f} | {same:.3f}"


if __name__ == "__main__":
    main()
