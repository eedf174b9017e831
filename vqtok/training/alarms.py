"""Alarms: what goes wrong in training is said at once, counted, and kept for the model card."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok.quantizers import VQ, Quantizer
from vqtok.training.monitor import WINDOW_STEPS, CodebookWindow, append_metrics
from vqtok.training.validation import Validation

logger = logging.getLogger(__name__)

COLLAPSED_USAGE = 0.2
"""Of the entries that even use of the codebook would reach; below it a codebook has collapsed."""
PATIENCE = 2
"""Validations in a row that must be worse than the best before that is an alarm."""
WORSE_PSNR, WORSE_MEL_DISTANCE = 0.5, 0.05
"""How much is worse: in dB, and as a fraction of the best."""


@dataclass
class Alarms:
    """Say alarms in the log and in `metrics.jsonl`; each kind the first, second, fourth, eighth... time it comes."""

    folder: Path
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each kind the first message, its step, the last step and the count."""

    def add(self, kind: str, step: int, message: str) -> None:
        entry = self.kinds.setdefault(kind, {"message": message, "step": step, "count": 0})
        entry["count"] += 1
        entry["last_step"] = step
        count = entry["count"]
        if count & (count - 1) == 0:
            logger.warning("step %d: %s%s", step, message, f" (time {count})" if count > 1 else "")
            append_metrics(self.folder, {"step": step, "alarm": kind, "message": message, "count": count})

    def count(self, kind: str) -> int:
        return self.kinds[kind]["count"] if kind in self.kinds else 0

    def lines(self) -> list[str]:
        """Sum up each kind in one line."""
        return [
            f"step {entry['step']}: {entry['message']}"
            + (f" ({entry['count']} times, last at step {entry['last_step']})" if entry["count"] > 1 else "")
            for entry in self.kinds.values()
        ]


def collapsed_codebooks(window: CodebookWindow) -> list[int]:
    """Find codebooks that carry less than half their bits, or of which few entries are used, over a whole window."""
    if not window.full:
        return []
    use = window.summary()
    found = []
    for index, size in enumerate(window.codebook_sizes):
        reachable = 1 - math.exp(-window.num_tokens / size)
        few = use["usage"][index] < COLLAPSED_USAGE * reachable
        if few or use["perplexity"][index] < math.sqrt(min(size, window.num_tokens)):
            found.append(index)
    return found


def describe_collapse(window: CodebookWindow, found: list[int]) -> str:
    """Say which codebooks have collapsed and how far."""
    use = window.summary()
    figures = [
        f"{index + 1} (usage {use['usage'][index]:.1%}, perplexity {use['perplexity'][index]:.1f} of "
        f"{window.codebook_sizes[index]})"
        for index in found
    ]
    return f"over {WINDOW_STEPS} steps collapsed: codebook {', '.join(figures)}"


def mark_for_restart(quantizer: Quantizer, found: list[int]) -> str:
    """Take back the start of those codebooks, so that `prepare` gives them a new one; say what is done."""
    learned = [module for module in quantizer.modules() if isinstance(module, VQ)]
    if not learned:
        return "this kind has no codebook to restart; lower train.learning_rate or raise loss.entropy"
    if learned[0].frozen:
        return "not restarted, as it is frozen"
    if learned[0].restart_below == 0:
        return "not restarted, as model.quantizer.restart_below is 0"
    for index in found:
        learned[index].initialised.fill_(False)
    return "started anew by k-means"


class RegressionWatch:
    """Tell when validation has become worse than it was, not just by chance.

    Args:
        best, streak: To go on from, as read back from `state`.
    """

    def __init__(self, best: float = math.inf, streak: int = 0) -> None:
        self.best, self.streak = best, streak

    @property
    def state(self) -> dict[str, Any]:
        return {"best": self.best, "streak": self.streak}

    def check(self, validation: Validation) -> str:
        """Take in a validation; say what got worse, if that has lasted, else give an empty string."""
        figure = sum(validation.quality) / len(validation.quality)
        if not math.isfinite(figure):
            return "validation is not finite"
        is_psnr = validation.quality_name == "psnr"
        loss = -figure if is_psnr else figure
        worse = loss - self.best > (WORSE_PSNR if is_psnr else WORSE_MEL_DISTANCE * self.best)
        best, self.best = self.best, min(self.best, loss)
        self.streak = self.streak + 1 if worse else 0
        if self.streak < PATIENCE:
            return ""
        self.streak = 0
        name, unit = ("PSNR", " dB") if is_psnr else ("mel distance", "")
        return f"validation got worse: {name} {figure:.2f}{unit}, {abs(best):.2f} at its best"
