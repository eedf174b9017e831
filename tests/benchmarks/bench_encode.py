"""Throughput of `vqtok encode` on folders, against the bare forward pass of the same network on ready tensors.

    python tests/benchmarks/bench_encode.py PHOTOS SOUNDS [--photos 500] [--clips 200] [--rounds 10] [--coder auto]

Makes copies of 500 x 375 pixels and clips of 10 s from what the folders hold. The bare pass runs in float32 in the
layout, batch and division of the processor's cores that a trial finds fastest: that of the encoder, and that of the
model's `encode`, which is the encoder and the search in its codebooks. They take turns, part by part, since other work
on the machine slows whichever runs; ratios are of the sums.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as the command line has it, before numpy is there

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vqtok.cli.process import set_up_process
from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs
from vqtok.jobs.encode import encode_files
from vqtok.jobs.job import Job, Outcome
from vqtok.jobs.runner import Existing
from vqtok.media.audio import read_audio
from vqtok.media.image import as_float, read_pixels
from vqtok.media.kinds import modality_of
from vqtok.media.tiling import padded
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.vqt.file import dump

CLIP_SECONDS = 10
TRIALS = 8
"""Items that the trial of a set-up of the bare pass takes."""


def make_photos(source: Path, folder: Path, count: int) -> list[Path]:
    found = [path for path in sorted(source.rglob("*")) if modality_of(path) == "image"]
    for index, path in zip(range(count), itertools.cycle(found)):
        with Image.open(path) as image:
            ImageOps.fit(image.convert("RGB"), (500, 375)).save(folder / f"{index:04}.jpg", quality=92)
    return sorted(folder.iterdir())


def make_clips(source: Path, folder: Path, count: int) -> list[Path]:
    index = 0
    for path in itertools.cycle([path for path in sorted(source.rglob("*")) if modality_of(path) == "audio"]):
        samples, rate = soundfile.read(path)
        for begin in range(0, len(samples) - CLIP_SECONDS * rate + 1, CLIP_SECONDS * rate):
            soundfile.write(folder / f"{index:04}.wav", samples[begin:][: CLIP_SECONDS * rate], rate)
            index += 1
            if index == count:
                return sorted(folder.iterdir())
    raise AssertionError


def processor_seconds() -> float:
    """Give the processor time of this process and of those that it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return how many seconds work takes on the clock and of processors."""
    clock, processor = time.perf_counter(), processor_seconds()
    work()
    return time.perf_counter() - clock, processor_seconds() - processor


class Bare:
    """The forward pass of all that makes codes, on ready tensors; without `search`, of the encoder alone.

    Args:
        batch, layout: Of the tensors.
        threads: Of each of the workers that share the batches.
    """

    def __init__(self, codec: Codec, items: list[Tensor], batch: int, layout: torch.memory_format, threads: int):
        self.name = f"batches of {batch}, {str(layout).removeprefix('torch.')}, {threads} thread(s) a batch"
        self._tokenizer, self.search = codec.tokenizer, True
        self._threads, self._workers = threads, torch.get_num_threads() // threads
        self._batches = [torch.cat(items[i : i + batch]) for i in range(0, len(items), batch)]
        if self._batches[0].ndim == 4:
            self._batches = [x.contiguous(memory_format=layout) for x in self._batches]

    def run(self, count: int) -> None:
        """Compute so many items, the same ones again and again where there are too few."""
        least = -(-count // len(self._batches[0]))
        batches = itertools.islice(itertools.cycle(self._batches), least)
        before = torch.get_num_threads()
        with ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(self._threads,)) as pool:
            list(pool.map(self._forward, batches))
        torch.set_num_threads(before)

    @torch.inference_mode()
    def _forward(self, x: Tensor) -> None:
        self._tokenizer.encode(x) if self.search else self._tokenizer.encoder(x)


def fastest(codec: Codec, items: list[Tensor]) -> Bare:
    layouts = [torch.channels_last, torch.contiguous_format] if items[0].ndim == 4 else [torch.contiguous_format]
    candidates = [
        Bare(codec, items, batch, layout, threads)
        for batch in (1, 4)
        for layout in layouts
        for threads in sorted({1, torch.get_num_threads()})
    ]
    seconds: dict[Bare, float] = defaultdict(lambda: float("inf"))
    for _ in range(5):
        for bare in candidates:
            seconds[bare] = min(seconds[bare], timed(partial(bare.run, TRIALS))[0])
    return min(candidates, key=lambda bare: seconds[bare])


def load(path: Path, codec: Codec) -> Tensor:
    tokenizer = codec.tokenizer
    if tokenizer.modality == "image":
        data = as_float(read_pixels(path, tokenizer.channels))
    else:
        data = read_audio(path, tokenizer.sample_rate).data
    return torch.from_numpy(padded(data, tokenizer.stride))[None]


@contextmanager
def clocked(split: dict[str, float], stage: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    split[stage] += time.process_time() - begin


@torch.inference_mode()
def time_split(paths: list[Path], codec: Codec, coder: ChosenCoder) -> dict[str, float]:
    """Give the milliseconds of processor time that an item spends in each stage, one after the other."""
    split: dict[str, float] = defaultdict(float)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    for path in paths:
        with clocked(split, "read"):
            x = load(path, codec)
        with clocked(split, "network"):
            z = codec.tokenizer.encoder(x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x)
        with clocked(split, "search"):
            codec.tokenizer.quantizer.encode(z)
        tokens = codec.encode_image(read_pixels(path)) if x.ndim == 4 else codec.encode(read_audio(path))
        with clocked(split, "code"):
            data = dump(tokens, codec.tokenizer.entropy_model, coder)
        with clocked(split, "write"):
            path.with_suffix(".tmp").write_bytes(data)
        path.with_suffix(".tmp").unlink()
    torch.set_num_threads(before)
    return {stage: 1000 * seconds / len(paths) for stage, seconds in split.items()}


def _exhaust(outcomes: Iterator[Outcome]) -> None:
    assert not any(outcome.error for outcome in outcomes)


def compare(paths: list[Path], modality: str, rounds: int, coder: ChosenCoder) -> None:
    codecs = Codecs()
    codec = codecs.get(modality)
    bare = fastest(codec, [load(path, codec) for path in paths[:: max(1, len(paths) // 16)]][:16])
    encoder = copy(bare)
    encoder.search = False
    size, total = -(-len(paths) // rounds), np.zeros((3, 2))
    for part in (paths[begin : begin + size] for begin in range(0, len(paths), size)):
        jobs = [Job(path, path.with_suffix(".vqt")) for path in part]
        outcomes = encode_files(jobs, codecs, coder=coder, existing=Existing(overwrite=True))
        runs = partial(_exhaust, outcomes), partial(encoder.run, len(part)), partial(bare.run, len(part))
        total += [timed(run) for run in runs]
    count = len(paths)
    split = time_split(paths[:: max(1, count // 24)], codec, coder)
    print(f"{modality}: {count} items, {codecs.jobs} jobs, coder {coder}; bare pass: {bare.name}")
    print("| | items/s | processor ms an item | over that of encode |\n|---|---|---|---|")
    for name, (clock, processor) in zip(("encode", "bare encoder", "bare encoder and search"), total, strict=True):
        ratio = processor / total[0, 1]
        print(f"| {name} | {count / clock:.2f} | {1000 * processor / count:.0f} | {ratio:.2f} |")
    print(f"processor ms an item: {', '.join(f'{stage} {ms:.1f}' for stage, ms in split.items())}\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos_from", metavar="PHOTOS", type=Path)
    parser.add_argument("sounds_from", metavar="SOUNDS", type=Path)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--coder", default="auto")
    options = parser.parse_args()
    set_up_process()
    with tempfile.TemporaryDirectory() as photos, tempfile.TemporaryDirectory() as clips:
        if options.photos:
            paths = make_photos(options.photos_from, Path(photos), options.photos)
            compare(paths, "image", options.rounds, options.coder)
        if options.clips:
            paths = make_clips(options.sounds_from, Path(clips), options.clips)
            compare(paths, "audio", options.rounds, options.coder)


if __name__ == "__main__":
    main()
