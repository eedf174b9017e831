"""Fixtures and functions of the tests of training."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vqtok.config import Config, load_preset
from vqtok.training import loop
from vqtok.training.data import (
    Batch,
    MediaCache,
    find_items,
    items_of,
    make_loader,
    pair_stem,
    split_items,
    validation_crops,
)
from vqtok.training.loop import Trainer
from vqtok.training.objective import TensorBatch
from vqtok.training.optim import Budget
from vqtok.training.state import read_checkpoint
from vqtok.training.train import train

CONTINUOUS_STEPS = 6

TINY = [
    "model.channels=3",
    "model.network.widths=8,12",
    "model.network.encoder_blocks=0,1",
    "model.network.decoder_blocks=0,1",
    "model.quantizer.dim=4",
    "model.quantizer.codebook_size=16",
    "model.quantizer.depth=2",
    "data.crop_pixels=16",
    "data.validation_fraction=0.2",
    "train.batch_size=8",
    "train.warmup_steps=5",
    f"train.continuous_steps={CONTINUOUS_STEPS}",
    "train.average_decay=0.9",
    "train.validations=3",
    "train.precision=float32",
]

TINY_AUDIO = [
    "model.modality=audio",
    "model.sample_rate=2000",
    "model.network.strides=5,2",
    "loss.l2=0",
    "loss.l1=1",
    "loss.mel=0.1",
    "data.crop_seconds=0.1",
]


@pytest.fixture(autouse=True)
def quick(quick_kmeans: None) -> Iterator[None]:
    """Use one thread, since sums over several threads depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tiny(*settings: str) -> Config:
    return load_preset("digits", [*TINY, *settings])


def make_trainer(media: Path, folder: Path, budget: Budget, *settings: str, seed: int = 0, **options: Any) -> Trainer:
    config = tiny(*settings)
    items = find_items(media, *config.model.modalities)
    training, held_out = split_items(items, config.data.validation_fraction, pair_stem)
    cache = MediaCache(config)
    crops = {
        name: [
            (item.name, crop) for item, crop in validation_crops(config.of(name), items_of(held_out, name), cache.read)
        ]
        for name in config.model.modalities
    }
    folder.mkdir(exist_ok=True)
    loader = make_loader(config, training, cache, seed)
    return Trainer(config, loader, crops, folder, torch.device("cpu"), budget, seed, **options)


def media_of(batch: Batch) -> NDArray[np.float32]:
    """Return the crops of a batch of one modality."""
    (media,) = batch.media.values()
    return media


def scaled(batch: Batch, factor: float) -> Batch:
    media = {name: media * np.float32(factor) for name, media in batch.media.items()}
    return replace(batch, media=media, inputs=media)


def strict_json(line: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(line, parse_constant=refuse)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal_state(a: nn.Module, b: nn.Module) -> bool:
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


class Killed(BaseException):
    """Ends a run like SIGKILL: nothing more is written."""


def kill_at(step: int) -> Callable[[loop.Progress], None]:
    def on_progress(progress: loop.Progress) -> None:
        if progress.step == step:
            raise Killed

    return on_progress


STEPS = 14

SCRIPT = """
import json, sys, torch
from vqtok.training import initialise as start
from vqtok.training.train import train
torch.set_num_threads(1)
start.KMEANS_VECTORS = 256
result = train(*sys.argv[1:3], preset="digits", settings=json.loads(sys.argv[3]), steps=int(sys.argv[4]), device="cpu")
print(result.identity)
"""


def distance(a: Path, b: Path, module: str) -> float:
    """Return the distance between the weights of two runs."""
    first, second = (read_checkpoint(folder)[0] for folder in (a, b))
    names = [name for name in first if name.startswith(f"{module}.")]
    assert names
    return sum(float((first[name].float() - second[name].float()).square().sum()) for name in names) ** 0.5


def run_two_processes(media: Path, output: Path, settings: list[str]) -> list[str]:
    """Train with two processes and return what each prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SCRIPT, media, output, json.dumps(settings), str(STEPS)]
    environment = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(
            command, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    printed = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    return printed


def watched(trainer: Trainer) -> list[tuple[int, dict[str, float]]]:
    """Record the losses of each step that the trainer takes."""
    seen: list[tuple[int, dict[str, float]]] = []
    step = trainer._train_step

    def record(batch: TensorBatch, fraction: float) -> dict[str, float]:
        number, losses = trainer.step, step(batch, fraction)
        seen.append((number, losses))
        return losses

    trainer._train_step = record  # type: ignore[method-assign]
    return seen


def run_train(media: Path, output: Path, *settings: str, **options: Any) -> Any:
    return train(media, output, preset="digits", settings=[*TINY, *settings], device="cpu", **options)


def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """Advance the clock by a third of a second at each call; return a function that gives the time so far."""
    ticks = itertools.count()
    seen = [0.0]

    def monotonic() -> float:
        seen[0] = next(ticks) / 3
        return seen[0]

    monkeypatch.setattr(time, "monotonic", monotonic)
    return lambda: seen[0]
