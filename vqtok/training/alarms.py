"""Alarms: problems in training, which are logged, counted and recorded in the model card."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok.quantizers import VQ, Quantizer
from vqtok.training.monitor import WINDOW_STEPS, CodebookWindow, append_metrics
from vqtok.training.validation import Validation

logger = logging.getLogger(__name__)

COLLAPSED_USAGE = 0.2
"""A codebook has collapsed if its usage is below this fraction of the usage that uniform codes would reach."""
PATIENCE = 2
"""The number of successive validations worse than the best one that cause an alarm."""
WORSE_PSNR, WORSE_MEL_DISTANCE = 0.5, 0.05
"""How much worse than the best a validation must be: in dB, and as a fraction of the best distance."""
LEAST_SHARE, WON = 0.02, 0.98
"""The share of the gradient below which discriminators are not heard, and the accuracy from which they have won."""


@dataclass
class Alarms:
    """Writes alarms to the log and to `metrics.jsonl`: the first, second, fourth, eighth... one of each kind."""

    folder: Path
    kinds: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For each kind: the first message and its step, the last step and the count."""

    def add(self, kind: str, step: int, message: str) -> None:
        """Count an alarm, and report it if its count is a power of two."""
        entry = self.kinds.setdefault(kind, {"message": message, "step": step, "count": 0})
        entry["count"] += 1
        entry["last_step"] = step
        count = entry["count"]
        if count & (count - 1) == 0:
            logger.warning("step %d: %s%s", step, message, f" (occurrence {count})" if count > 1 else "")
            append_metrics(self.folder, {"step": step, "alarm": kind, "message": message, "count": count})

    def count(self, kind: str) -> int:
        return self.kinds[kind]["count"] if kind in self.kinds else 0

    def lines(self) -> list[str]:
        """Summarize each kind of alarm in one line."""
        return [
            f"step {entry['step']}: {entry['message']}"
            + (f" ({entry['count']} times, last at step {entry['last_step']})" if entry["count"] > 1 else "")
            for entry in self.kinds.values()
        ]


def collapsed_codebooks(window: CodebookWindow) -> list[int]:
    """Return the codebooks that carry less than half of their bits, or use few codes, over a full window."""
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
    """Describe which codebooks have collapsed, and how far."""
    use = window.summary()
    figures = [
        f"{index + 1} (usage {use['usage'][index]:.1%}, perplexity {use['perplexity'][index]:.1f} of "
        f"{window.codebook_sizes[index]})"
        for index in found
    ]
    return f"collapsed over the last {WINDOW_STEPS} steps: codebook {', '.join(figures)}"


def mark_for_restart(quantizer: Quantizer, found: list[int]) -> str:
    """Mark codebooks for `prepare` to initialize again, and return a description of what is done."""
    learned = [module for module in quantizer.modules() if isinstance(module, VQ)]
    if not learned:
        return "this kind of quantizer has no codebook to restart; lower train.learning_rate or raise loss.entropy"
    if learned[0].frozen:
        return "not restarted because it is frozen"
    if learned[0].restart_below == 0:
        return "not restarted because model.quantizer.restart_below is 0"
    for index in found:
        learned[index].initialised.fill_(False)
    return "restarted by k-means"


def discriminator_problems(figures: Mapping[str, float]) -> dict[str, str]:
    """Return what is wrong with the discriminators by the kind of the alarm, given the mean figures of some steps."""
    problems = {}
    share, accuracy = figures.get("adversarial_share", 1.0), figures.get("discriminator_accuracy", 0.0)
    if share < LEAST_SHARE:
        problems["discriminators not heard"] = (
            f"the adversarial loss has {share:.1%} of the gradient, so that it hardly has an effect; "
            "raise adversarial.weight, or set adversarial.weighting=balanced"
        )
    if "adversarial" in figures and accuracy >= WON:
        problems["discriminators have won"] = (
            f"the discriminators tell {accuracy:.1%} of the patches, so that the model learns little from them; "
            "set adversarial.gradient_penalty, lower adversarial.learning_rate, or raise adversarial.every"
        )
    return problems


class RegressionWatch:
    """Detects validations that are worse than the best one, and not just by chance.

    Args:
        best, streak: The `state` of an earlier watch, to continue from.
        psnr, mel_distance: How much worse a validation must be, in dB and as a fraction of the best distance.
    """

    is_worse = False
    """Whether the last validation was worse than the best one."""

    def __init__(
        self,
        best: float = math.inf,
        streak: int = 0,
        *,
        psnr: float = WORSE_PSNR,
        mel_distance: float = WORSE_MEL_DISTANCE,
    ) -> None:
        self.best, self.streak = best, streak
        self.psnr, self.mel_distance = psnr, mel_distance

    @property
    def state(self) -> dict[str, Any]:
        return {"best": self.best, "streak": self.streak}

    def check(self, validation: Validation) -> str:
        """Return a description of what got worse if several successive validations were worse, else an empty string."""
        figure = sum(validation.quality) / len(validation.quality)
        self.is_worse = True
        if not math.isfinite(figure):
            return "validation is not finite"
        is_psnr = validation.quality_name == "psnr"
        loss = -figure if is_psnr else figure
        self.is_worse = loss - self.best > (self.psnr if is_psnr else self.mel_distance * self.best)
        best, self.best = self.best, min(self.best, loss)
        self.streak = self.streak + 1 if self.is_worse else 0
        if self.streak < PATIENCE:
            return ""
        self.streak = 0
        name, unit = ("PSNR", " dB") if is_psnr else ("mel distance", "")
        return f"validation got worse: {name} {figure:.2f}{unit}, best {abs(best):.2f}{unit}"
