"""The final evaluation: whole held-out files are encoded and decoded as a user would do it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vqtok.codec.codec import Codec
from vqtok.codec.prefixes import prefix_lengths
from vqtok.media.degrade import UNCHANGED, Degrader
from vqtok.media.media import Media
from vqtok.metrics.means import common_means
from vqtok.metrics.measure import Measure, measure, measures
from vqtok.metrics.view import View
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.clock import Pace
from vqtok.training.data import TrainingItem

METRICS = {"image": ("psnr", "ssim"), "audio": ("mel_distance", "si_sdr", "stoi")}
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
        The metrics as plain values for the model card (lists have one entry per number of codebooks in `prefixes`), and
        the counted codes. If the data is in several folders, `by_folder` has the metrics of each.
    """
    lengths = prefix_lengths(len(codec.tokenizer.codebook_sizes))
    functions = measures(METRICS[codec.tokenizer.modality])
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
        found[item.name.partition("/")[0] if "/" in item.name else ""].append(_measure(functions, media, decoded))
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


def _measure(functions: dict[str, Measure], original: Media, decoded: Sequence[Media]) -> dict[str, list[float]]:
    view = View(original)
    found = [measure(functions, view, View(media)) for media in decoded]
    return {name: [figures[name] for figures in found] for name in functions}


def _means(entries: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    means = {}
    for name in entries[0] if entries else ():
        columns = zip(*(entry[name] for entry in entries), strict=True)
        found, count = common_means({str(index): column for index, column in enumerate(columns)})
        if count:
            means[name] = [round(value, 4) for value in found.values()]
    return means
