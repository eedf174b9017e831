"""The final evaluation: whole held-out files are encoded and decoded as a user would do it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vqtok.codec.codec import Codec
from vqtok.media.degrade import UNCHANGED, Degrader
from vqtok.media.media import Media
from vqtok.metrics import mel_distance, psnr, si_sdr, ssim, stoi
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.clock import Pace
from vqtok.training.data import TrainingItem
from vqtok.training.validation import PSNR_LIMIT, prefixes

PROTOCOL = {
    "image": "whole held-out images in float32, not rounded to 8 bits; PSNR and SSIM on sRGB, mean over images",
    "audio": "whole held-out files in float32 at the model's rate; mean over files; STOI for files of at least 0.4 s",
}


def evaluate(
    codec: Codec,
    items: Sequence[TrainingItem],
    read: Callable[[TrainingItem], Media | None],
    on_item: Callable[[int, int], None] = lambda done, total: None,
    pace: Pace | None = None,
    degrader: Degrader = UNCHANGED,
) -> tuple[dict[str, Any], CodeStatistics]:
    """Encode and decode every item, and measure the reconstructions from several prefixes of the codebooks.

    Args:
        codec: The codec of the trained model.
        items: The held-out items.
        read: Decodes an item; returns None if it cannot be read.
        on_item: Called with the number of items done and their total.
        pace: Ends the evaluation when no more items fit.
        degrader: Degrades what is encoded. The reconstructions are compared with the original.

    Returns:
        The metrics as plain values for the model card (lists have one entry per prefix length in `prefixes`), and the
        counted codes. If the data is in several folders, `by_folder` has the metrics of each.
    """
    lengths = prefixes(len(codec.tokenizer.codebook_sizes))
    statistics = CodeStatistics()
    found: dict[str, list[dict[str, list[float]]]] = defaultdict(list)
    for done, item in enumerate(items):
        on_item(done, len(items))
        media = read(item)
        if media is None:
            continue
        if pace and not pace.begins(media.data.size):
            break
        tokens = codec.encode(degrader(media, np.random.default_rng(done)))
        statistics.add(tokens)
        decoded = [codec.decode(tokens, length) for length in lengths]
        found[item.name.partition("/")[0] if "/" in item.name else ""].append(_measure(media, decoded))
        if pace:
            pace.done()
    everything = [entry for entries in found.values() for entry in entries]
    values: dict[str, Any] = {
        "protocol": PROTOCOL[codec.tokenizer.modality] + (f"; inputs degraded: {degrader}" if degrader.rules else ""),
        "files": len(everything),
        "prefixes": lengths,
        **_means(everything),
        "usage": statistics.usage,
        "perplexity": statistics.perplexity,
        "entropy_bits": statistics.entropy_bits,
        "dead_codes": statistics.dead_codes,
    }
    if len(found) > 1:
        values["by_folder"] = {
            folder: {"files": len(entries), **_means(entries)} for folder, entries in sorted(found.items())
        }
    return values, statistics


def _measure(original: Media, decoded: Sequence[Media]) -> dict[str, list[float]]:
    x = torch.from_numpy(original.data)[None]
    versions = [torch.from_numpy(media.data)[None] for media in decoded]
    if original.modality == "image":
        return {
            "psnr": [min(float(psnr(x, x_hat)), PSNR_LIMIT) for x_hat in versions],
            "ssim": [float(ssim(x, x_hat)) for x_hat in versions],
        }
    rate = original.sample_rate
    assert rate
    return {
        "mel_distance": [float(mel_distance(x, x_hat, rate)) for x_hat in versions],
        "si_sdr": [float(si_sdr(x, x_hat)) for x_hat in versions],
        "stoi": [float(stoi(x, x_hat, rate)) for x_hat in versions],
    }


def _means(entries: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    means = {}
    for name in entries[0] if entries else ():
        values = np.array([entry[name] for entry in entries])
        known = values[~np.isnan(values).any(axis=1)]
        if len(known):
            means[name] = [round(float(value), 4) for value in known.mean(axis=0)]
    return means
