"""What training says of itself: codebook use over a window, averaged losses, `metrics.jsonl`."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WINDOW_STEPS = 100


class CodebookWindow:
    """Usage and perplexity of each codebook over the last hundred steps: one batch alone understates both."""

    def __init__(self, codebook_sizes: tuple[int, ...]) -> None:
        self.codebook_sizes = codebook_sizes
        self._batches: deque[Tensor] = deque(maxlen=WINDOW_STEPS)

    def add(self, codes: Tensor) -> None:
        """Take in the codes `(batch, num_codebooks, *grid)` of a step."""
        self._batches.append(codes.detach().cpu().movedim(1, 0).flatten(1).int())

    def summary(self) -> dict[str, list[float]]:
        """Give usage (fraction of entries) and perplexity, one entry a codebook."""
        if not self._batches:
            return {}
        codes = torch.cat(list(self._batches), dim=1)
        usage, perplexity = [], []
        for plane, size in zip(codes, self.codebook_sizes, strict=True):
            counts = torch.bincount(plane, minlength=size).double()
            shares = counts / counts.sum()
            usage.append((counts > 0).double().mean().item())
            perplexity.append(torch.exp(-torch.xlogy(shares, shares).sum()).item())
        return {"usage": usage, "perplexity": perplexity}


class RunningMeans:
    """Means of named scalars since they were last taken; values that are not finite are left out."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._values.setdefault(name, []).append(value)

    def take(self) -> dict[str, float]:
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values = {}
        return means


def append_metrics(folder: Path, values: Mapping[str, Any]) -> None:
    """Append one JSON line to the run folder's `metrics.jsonl`."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
