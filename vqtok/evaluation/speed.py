"""Throughput of a tokenizer on one core, beside the bare forward pass of its network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from vqtok.codec.codec import Codec
from vqtok.evaluation.items import Item, Worker, extent, for_model, media_size
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.media.resample import resample
from vqtok.media.tiling import padded

MAX_ITEMS = 4
MAX_PIXELS, MAX_SAMPLES = 1024 * 1024, 240_000
"""Larger items are not timed, because the bare pass would take them in one piece and the codec in several."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread: the arrays of metrics are too small for more, which would mostly spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def measure_speed(worker: Worker, items: Sequence[Item]) -> dict[str, dict[str, Any]]:
    """Return the throughput of each model, by name, on the first few items that are not large.

    Times are processor time on one core, so that other work on the machine hardly changes them.
    """
    chosen: list[Media] = []
    for item in items:
        if len(chosen) == MAX_ITEMS:
            break
        media = worker.read(item)
        if media.data[0].size <= (MAX_PIXELS if media.modality == "image" else MAX_SAMPLES):
            chosen.append(media)
    if not chosen:
        return {}
    with one_thread():
        return {name: _speed(codec, chosen) for name, codec in worker.codecs.items()}


def _speed(codec: Codec, originals: Sequence[Media]) -> dict[str, Any]:
    seconds = dict.fromkeys(("encode", "bare_encode", "decode", "bare_decode"), 0.0)
    for index, original in enumerate([originals[0], *originals]):  # The first time is a warm-up.
        media = for_model(original, codec)
        x = _input(codec, media)
        tokens = codec.encode(media)
        decodes = not codec.tokenizer.why_encode_only
        work: dict[str, Callable[[], object]] = {"encode": partial(codec.encode, media)}
        if decodes:
            work["decode"] = partial(codec.decode, tokens)
        # The codec calls the network once for each group of channels.
        if not tokens.side_data.size and len(media.data) == codec.tokenizer.channels:
            codes = torch.from_numpy(tokens.codes)[None].long()
            if tokens.modality == "audio":
                codes = codes.flatten(2)
            work["bare_encode"] = partial(codec.tokenizer.encode, x)
            if decodes:
                work["bare_decode"] = partial(codec.tokenizer.decode, codes)
        for name, function in work.items():
            begin = time.process_time()
            with torch.inference_mode():
                function()
            if index:
                seconds[name] += time.process_time() - begin
    unit, scale = ("megapixels", 1e-6) if originals[0].modality == "image" else ("audio_seconds", 1.0)
    amount = scale * sum(extent(media_size(media)) for media in originals)
    found: dict[str, Any] = {f"{unit}_per_second": {n: amount / s for n, s in seconds.items() if s}}
    found["bare_share"] = {
        name: seconds[f"bare_{name}"] / seconds[name] for name in ("encode", "decode") if seconds[f"bare_{name}"]
    }
    return found | {"items": len(originals)}


def _input(codec: Codec, media: Media) -> torch.Tensor:
    """Return media as the network takes them: a batch of one, padded to whole grid steps."""
    tokenizer = codec.tokenizer
    data = as_float(media.data)
    if tokenizer.sample_rate and media.sample_rate:
        data = resample(data, media.sample_rate, tokenizer.sample_rate)
    return torch.from_numpy(padded(data, tokenizer.stride, tokenizer.padding))[None]
