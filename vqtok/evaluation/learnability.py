"""How well a generator learns the tokens of a tokenizer in a short training."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqtok.errors import VqtokError
from vqtok.evaluation.candidates import Model
from vqtok.evaluation.items import Item, Worker
from vqtok.generation.train import train_generator

logger = logging.getLogger(__name__)

SEED = 0


def measure_learnability(worker: Worker, model: Model, items: Sequence[Item], minutes: float) -> dict[str, Any]:
    """Train a generator on the tokens of all items but some, and return its bits per token on these.

    Args:
        minutes: The time of the training, with its validations.

    Returns:
        `bits_per_token` on held-out items, and how the training was; empty, with a warning, if it was not possible.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tokens"
        folder.mkdir()
        for number, item in enumerate(items):
            encoded = worker.encode(model, worker.degraded(item, worker.read(item)))
            count = max(model.codebooks)
            (folder / f"{number}.vqt").write_bytes(encoded[count].file(count))
        try:
            trained = train_generator(
                [folder],
                Path(name) / "generator.safetensors",
                tokenizers=[model.model],
                minutes=minutes,
                device=worker.plan.device,
                seed=SEED,
            ).training
        except VqtokError as error:
            logger.warning("no learnability of %s: %s", model.name, error)
            return {}
    return {
        "bits_per_token": trained["evaluation"]["bits"][model.modality],
        "num_codebooks": max(model.codebooks),
        "minutes": minutes,
        **{fact: trained[fact] for fact in ("steps", "items", "held_out_items", "preset", "seed")},
    }
