"""Compare training of the decoder alone with and without kept codes, by processor time.

python tests/benchmarks/bench_decoder.py MEDIA/ [--model image] [--files 24]

The steps with codes are timed when all codes are known.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.config import Config
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.registry import find_model
from vqtok.training.coded import CodedLoader, CodeStore
from vqtok.training.data import BatchLoader, Loader, MediaCache, find_items
from vqtok.training.initialise import tuning_config
from vqtok.training.loop import Trainer
from vqtok.training.objective import TensorBatch
from vqtok.training.optim import Budget

STEPS, REPEATS = 4, 5
"""Timed at once, and how often; the kinds take turns, since the machine's speed drifts."""
SETTINGS = ["train.freeze=encoder,codebook", "train.batch_size=8"]


class Run:
    """A run whose steps can be timed."""

    def __init__(self, config: Config, loader: Loader, model: Path, folder: Path) -> None:
        budget, device = Budget(steps=10**6), torch.device("cpu")
        self.trainer = Trainer(config, loader, {}, folder, device, budget, initial=load_model(model))
        for step in range(STEPS * REPEATS):  # Reads the media, and encodes them where codes are kept.
            loader.batch(step)

    def seconds(self) -> float:
        """Return the processor seconds of a step, its batch included."""
        trainer = self.trainer
        since = time.process_time()
        for _ in range(STEPS):
            batch = trainer.loader.batch(trainer.step % (STEPS * REPEATS))
            trainer._train_step(TensorBatch.of(batch, trainer.device), 0.0)
            trainer.step += 1
        return (time.process_time() - since) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path)
    parser.add_argument("--model", default="image")
    parser.add_argument("--files", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = find_model(options.model)
    own = read_card(model).config
    print("| paths | items/s | with codes | faster |\n|---|---|---|---|")
    for paths in (1, 4, 8):
        config = tuning_config(own, None, [*SETTINGS, f"model.quantizer.beam={paths}"])
        coded = tuning_config(own, None, [*SETTINGS, f"data.cache_codes={paths}"])
        items = find_items(options.media, *config.model.modalities)
        items, cache = items[:: max(1, len(items) // options.files)], MediaCache(config)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            store = CodeStore(Codec(load_model(model), "cpu", CodecOptions(effort=paths)), folder)
            without = Run(config, BatchLoader(config, items, cache, 0), model, folder)
            having = Run(coded, CodedLoader(store, coded, items, cache, 0, 0), model, folder)
            for run in (without, having):
                run.seconds()
            times = [(without.seconds(), having.seconds()) for _ in range(REPEATS)]
        rates = (config.train.batch_size / statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(a / b for a, b in times)
        print(f"| {paths} | {' | '.join(f'{rate:.1f}' for rate in rates)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
