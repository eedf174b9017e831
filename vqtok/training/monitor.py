"""Figures of a training run: progress, codebook usage over a window, averaged losses, `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtok.compute.distributed import rank
from vqtok.files.atomic import atomic_write
from vqtok.tokens import statistics
from vqtok.training.validation import Validations, one_or_all

METRICS_NAME = "metrics.jsonl"
WINDOW_STEPS = 100


@dataclass(frozen=True)
class Progress:
    """The state of training after a step, for progress displays."""

    step: int
    fraction: float
    seconds: float
    items_per_second: float
    waiting: float
    """The fraction of the time spent waiting for data."""
    learning_rate: float
    losses: dict[str, float]
    codebooks: dict[str, list[float]] = field(default_factory=dict)
    """Usage and perplexity over the last steps, one entry per codebook."""
    validation: Validations = field(default_factory=dict)
    """The validation of each modality, if there was one after the step."""
    left: float = 0.0
    """The estimated seconds to the end of the run."""

    def to_dict(self) -> dict[str, Any]:
        """Return the values of a line of `metrics.jsonl`."""
        values: dict[str, Any] = {
            "step": self.step,
            "fraction": round(self.fraction, 5),
            "seconds": round(self.seconds, 1),
            "items_per_second": round(self.items_per_second, 2),
            "waiting": round(self.waiting, 4),
            "learning_rate": self.learning_rate,
            **self.losses,
            **self.codebooks,
        }
        found = {modality: validation.to_dict() for modality, validation in self.validation.items()}
        return values | ({"validation": one_or_all(found)} if found else {})


class CodebookWindow:
    """Usage and perplexity of each codebook over the last hundred steps; a single batch understates both."""

    def __init__(self, codebook_sizes: tuple[int, ...]) -> None:
        self.codebook_sizes = codebook_sizes
        self._batches: deque[Tensor] = deque(maxlen=WINDOW_STEPS)

    def add(self, codes: Tensor) -> None:
        """Add the codes `(batch, num_codebooks, *grid)` of a step."""
        self._batches.append(codes.detach().movedim(1, 0).flatten(1).int())

    @property
    def full(self) -> bool:
        return len(self._batches) == WINDOW_STEPS

    @property
    def num_tokens(self) -> int:
        """The number of tokens per codebook in the window."""
        return sum(batch.shape[1] for batch in self._batches)

    def clear(self) -> None:
        self._batches.clear()

    def state(self) -> Tensor:
        """Return the contents of the window, `(steps, num_codebooks, tokens)`."""
        return torch.stack(list(self._batches)) if self._batches else torch.zeros(0, dtype=torch.int32)

    def load(self, state: Tensor) -> None:
        """Restore what `state` returned."""
        self._batches = deque(state, maxlen=WINDOW_STEPS)

    def codes(self) -> Tensor:
        """Return the codes of the window, `(num_codebooks, num_tokens)`."""
        return torch.cat(list(self._batches), dim=1)

    def summary(self) -> dict[str, list[float]]:
        """Return usage (a fraction of the codes) and perplexity, one entry per codebook."""
        if not self._batches:
            return {}
        usage, perplexity = [], []
        for plane, size in zip(self.codes(), self.codebook_sizes, strict=True):
            count = torch.bincount(plane, minlength=size).cpu().numpy()
            usage.append(statistics.usage(count))
            perplexity.append(statistics.perplexity(count))
        return {"usage": usage, "perplexity": perplexity}


class RunningMeans:
    """Means of named scalars since the last `take`; values that are not finite are ignored."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        """Return the means and start again."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        return means


def append_metrics(folder: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON line to the run folder's `metrics.jsonl`."""
    if rank() != 0:
        return
    with (folder / METRICS_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def cut_metrics(folder: Path, step: int) -> None:
    """Drop the lines after a step, which a resumed run writes again, and lines that are incomplete."""
    path = folder / METRICS_NAME
    if rank() != 0 or not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line).get("step", 0) <= step:
                kept.append(line)
        except ValueError:
            continue
    atomic_write(path, "".join(kept).encode())
