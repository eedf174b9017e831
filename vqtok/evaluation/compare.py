"""What became better or worse between two reports, with confidence intervals over items."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.evaluation.results import number

RESAMPLES, SEED = 10_000, 0
CONFIDENCE = 0.95
DEFAULT_TOLERANCE = 0.01
BLOCK = 1 << 22
"""Values that are resampled at once."""


@dataclass(frozen=True)
class Change:
    """The change of one figure of one candidate."""

    modality: str
    candidate: str
    other: str
    """The candidate of the new report, if it has another name."""
    metric: str
    heading: str
    decimals: int
    old: float
    new: float
    low: float
    high: float
    """Ends of the confidence interval of the mean difference, new minus old; NaN for metrics of sets."""
    num_items: int
    gain: float
    """The difference in the direction that is better."""
    verdict: str
    """`better`, `worse`, `regression` (worse beyond the tolerance) or `same`."""


def parse_tolerance(text: str | None) -> tuple[float, dict[str, float]]:
    """Parse a tolerance such as `0.01` or `0.01,psnr=0.1`.

    Returns:
        The fraction of the old value that any figure may become worse by, and absolute tolerances by metric.

    Raises:
        UsageError: It is not of this form.
    """
    fraction, absolute = DEFAULT_TOLERANCE, {}
    for part in text.split(",") if text is not None else ():
        name, separator, value = part.rpartition("=")
        try:
            amount = float(value)
            if not amount >= 0:
                raise ValueError
        except ValueError:
            raise UsageError(
                f"`tolerance` {text}: give a fraction such as 0.01, or METRIC=AMOUNT, or both with a comma"
            ) from None
        if separator:
            absolute[name.strip()] = amount
        else:
            fraction = amount
    return fraction, absolute


def compare(old: Mapping[str, Any], new: Mapping[str, Any], tolerance: str | None = None) -> list[Change]:
    """Compare the candidates of two reports on the items that both have.

    Models are paired by name, the others in their order. A figure is better or worse if its confidence interval does
    not include zero, and a regression if it is worse by more than the tolerance; distances of sets, which have no
    interval, by the tolerance alone.

    Args:
        old, new: Contents of `results.json`.
        tolerance: As `parse_tolerance` takes it.

    Raises:
        UsageError: They have no item, candidate or metric in common.
    """
    limits = parse_tolerance(tolerance)
    changes = []
    for modality, before in old["modalities"].items():
        if modality in new["modalities"]:
            changes += _changes(modality, before, new["modalities"][modality], limits)
    if not changes:
        raise UsageError("these reports have no item, model and metric in common")
    return changes


def common_items(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the items of one modality that both reports have: the same key and the same contents."""
    others = {(item["key"], item["sha256"]): item for item in new["items"]}
    return [
        (item, others[item["key"], item["sha256"]]) for item in old["items"] if (item["key"], item["sha256"]) in others
    ]


def _changes(
    modality: str, old: Mapping[str, Any], new: Mapping[str, Any], limits: tuple[float, dict[str, float]]
) -> list[Change]:
    items = common_items(old, new)
    same_set = len(items) == len(old["items"]) == len(new["items"])
    newer = {metric["name"] for metric in new["metrics"]}
    metrics = [metric for metric in old["metrics"] if metric["name"] in newer]
    rate = {"image": "bpp", "audio": "kbps"}[modality]
    size = {"name": rate, "heading": rate, "decimals": 3, "higher_is_better": False, "of_sets": False}
    changes = []
    for first, second in _pairs(old, new):
        for metric in (size, *metrics):
            name = metric["name"]
            if metric["of_sets"]:
                before, after = (number(c["figures"].get(name)) for c in (first, second))
                found = (before, after, math.nan, math.nan, len(items)) if same_set else None
            else:
                values = [
                    (number(a["figures"][first["id"]][name]), number(b["figures"][second["id"]][name]))
                    for a, b in items
                ]
                found = _interval(values)
            if found is None or math.isnan(found[0] + found[1]):
                continue
            gain = (found[1] - found[0]) * (1 if metric["higher_is_better"] else -1)
            allowed = limits[1].get(name, limits[0] * abs(found[0]))
            other = "" if second["id"] == first["id"] else second["id"]
            changes.append(
                Change(
                    modality,
                    first["id"],
                    other,
                    name,
                    metric["heading"],
                    metric["decimals"],
                    *found,
                    gain,
                    _verdict(gain, found[2], found[3], allowed),
                )
            )
    return changes


def _pairs(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the model candidates that belong together: the same model, by name or else by order, and codebooks."""
    names, others = list(old["models"]), list(new["models"])
    paired = {name: name for name in names if name in others}
    left = [name for name in names if name not in paired], [name for name in others if name not in paired]
    paired |= dict(zip(*left, strict=False))
    newer = {(c["source"], c["num_codebooks"]): c for c in new["candidates"] if c["kind"] == "model"}
    pairs = []
    for candidate in old["candidates"]:
        key = paired.get(candidate["source"]), candidate["num_codebooks"]
        if candidate["kind"] == "model" and key in newer:
            pairs.append((candidate, newer[key]))
    return pairs


def _interval(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float, float, int] | None:
    """Return both means, the confidence interval of the mean difference, and the number of items with both figures."""
    values = np.array([pair for pair in pairs if all(map(math.isfinite, pair))])
    if not len(values):
        return None
    low, high = bootstrap(values[:, 1] - values[:, 0])
    return float(values[:, 0].mean()), float(values[:, 1].mean()), low, high, len(values)


def bootstrap(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean, with a fixed seed.

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    rng, count = np.random.default_rng(SEED), len(differences)
    rows = max(1, BLOCK // count)
    means = [
        differences[rng.integers(0, count, (min(rows, RESAMPLES - done), count))].mean(axis=1)
        for done in range(0, RESAMPLES, rows)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def _verdict(gain: float, low: float, high: float, allowed: float) -> str:
    if low <= 0 <= high or gain == 0:
        return "same"
    if gain > 0:
        return "better"
    return "regression" if -gain > allowed else "worse"
