"""Measure what `--effort` gains and costs: quality, bytes and processor time of encoding.

python tests/benchmarks/bench_effort.py MEDIA MODEL [--items 16]

MEDIA is a folder of images or audio, MODEL the name or path of a model. Time is that of the process, of network and
search, with one thread, and relative to an effort of 1 with as many codebooks.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.config import Config, from_dict
from vqtok.metrics.audio import si_sdr, stoi
from vqtok.metrics.image import psnr
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.registry import find_model
from vqtok.tokens.vqt.file import dump
from vqtok.training.data import MediaCache, find_items

EFFORTS, CODEBOOKS = (1, 2, 4, 8), (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path)
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    path = find_model(options.model)
    model, cache = load_model(path), MediaCache(from_dict(Config, read_card(path).config))
    items = [cache.read(item) for item in find_items(options.media, model.modality)[: options.items]]
    columns = "PSNR dB" if model.modality == "image" else "SI-SDR dB | STOI"
    print(f"{len(items)} files, {options.model}\n\n| codebooks | effort | {columns} | bytes | time |")
    print("|---" * (4 + len(columns.split("|"))) + "|")
    for codebooks in CODEBOOKS:
        first = 0.0
        for effort in EFFORTS:
            codec = Codec(model, options=CodecOptions(effort=effort, jobs=1))
            figures, size, seconds = [], 0, 0.0
            for media in items:
                assert media
                began = time.process_time()
                tokens = codec.encode(media, codebooks)
                seconds += time.process_time() - began
                size += len(dump(tokens, model.entropy_model))
                x, x_hat = (torch.from_numpy(data)[None] for data in (media.data, codec.decode(tokens).data))
                if media.sample_rate:
                    figures.append((si_sdr(x, x_hat).item(), stoi(x, x_hat, media.sample_rate).item()))
                else:
                    figures.append((psnr(x, x_hat).item(),))
            first = first or seconds
            means = " | ".join(f"{mean:.3f}" for mean in np.nanmean(figures, axis=0))
            print(f"| {codebooks} | {effort} | {means} | {size} | {seconds / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
