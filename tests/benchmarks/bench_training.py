"""Compare the throughput of training with the bare forward and backward pass of the network, by processor time.

python tests/benchmarks/bench_training.py [PRESET...]

The presets are image, audio and digits. The bare pass has the network, the quantizer and the losses; training adds data
loading, clipping, the optimizer, averaging and the monitoring of the codebooks.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

from vqtok.config import Config, load_preset
from vqtok.training import initialise as start
from vqtok.training.data import BatchLoader, MediaCache, find_items
from vqtok.training.loop import Trainer
from vqtok.training.objective import TensorBatch
from vqtok.training.optim import Budget

STEPS, REPEATS = 3, 4
"""Timed at once, and how often; the two kinds take turns, since the machine's speed drifts."""


def make_media(folder: Path, config: Config) -> None:
    rng = np.random.default_rng(0)
    if config.model.modality == "image":
        np.save(folder / "noise.npy", rng.integers(0, 256, (16, 200, 200, config.model.channels), dtype=np.uint8))
    else:
        soundfile.write(folder / "noise.wav", rng.normal(0, 0.1, 240_000), config.model.sample_rate)


def make_trainer(config: Config, folder: Path) -> Trainer:
    items = find_items(folder, *config.model.modalities)
    loader = BatchLoader(config, items, MediaCache(config), 0)
    return Trainer(config, loader, {}, folder, torch.device("cpu"), Budget(steps=10**6))


def timed(step: Callable[[], object]) -> float:
    since = time.process_time()
    for _ in range(STEPS):
        step()
    return (time.process_time() - since) / STEPS


def measure(config: Config, folder: Path) -> list[tuple[float, float]]:
    """Give pairs of processor seconds a step: bare, and training."""
    make_media(folder, config)
    trainer = make_trainer(config, folder)
    batches = trainer.loader.batches(0)
    (x,) = TensorBatch.of(next(batches), torch.device("cpu")).media.values()

    def train() -> None:
        trainer._train_step(TensorBatch.of(next(batches), torch.device("cpu")), 0.0)
        trainer.step += 1

    def bare() -> None:
        trainer.optimizer.zero_grad(set_to_none=True)
        with start.autocast(x.device, trainer.precision):
            x_hat, output = trainer.model(start.channels_last(x))
        (reconstruction,) = trainer.reconstruction.values()
        losses = reconstruction(x, x_hat.float()) | output.losses
        sum(getattr(config.loss, name) * loss for name, loss in losses.items()).backward()

    train()
    bare()
    times = [(timed(bare), timed(train)) for _ in range(REPEATS)]
    batches.close()
    return times


def main() -> None:
    torch.set_num_threads(1)
    start.KMEANS_VECTORS = 4096
    print("| preset | bare items/s | training items/s | training / bare |\n|---|---|---|---|")
    for preset in sys.argv[1:] or ["image", "audio", "digits"]:
        config = load_preset(preset, ["train.continuous_steps=0"])
        with tempfile.TemporaryDirectory() as folder:
            times = measure(config, Path(folder))
        bare, train = (config.train.batch_size / statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"| {preset} | {bare:.1f} | {train:.1f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
