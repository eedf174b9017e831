"""The results of an evaluation: means over items, statistics of codes, distances of sets."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, MediaError
from vqtok.evaluation.candidates import Candidate, Model, Plan
from vqtok.evaluation.items import extent
from vqtok.evaluation.packing import unpack
from vqtok.metrics.catalogue import METRICS
from vqtok.metrics.means import Moments, common_means, frechet_distance
from vqtok.tokens.statistics import entropy_bits, perplexity, usage

FORMAT, VERSION = "vqtok evaluation", 1
Facts = dict[str, Any]


def summarize(plan: Plan, records: Iterable[Mapping[str, Any]]) -> Facts:
    """Return the results of one modality.

    Args:
        records: Those of all items, in order. Failed ones are left out of all means.

    Returns:
        A JSON-like dict: `candidates` with their figures, `metrics`, `models`, `items`, `failed`. Figures are numbers,
        None where a metric is not defined, or "inf".
    """
    items: list[Facts] = []
    failed: list[Facts] = []
    codes = {model.name: _Codes(model) for model in plan.models}
    moments: dict[tuple[str, str], Moments] = defaultdict(Moments)
    total = 0.0
    for record in records:
        if "error" in record:
            failed.append({"key": record["key"], "error": record["error"]})
            continue
        for name, found in record["models"].items():
            codes[name].add(found)
        for metric, vectors in record["features"].items():
            for candidate, vector in vectors.items():
                moments[metric, candidate].add(unpack(vector, "f4"))
        total += extent(record["size"])
        facts = {name: record[name] for name in ("key", "file", "sha256", "size", "figures", "settings")}
        items.append(facts)
    candidates = plan.candidates
    summaries, counts = _means(candidates, items, plan)
    for metric in plan.set_metrics:
        for candidate in candidates:
            pair = (moments[metric.name, other] for other in ("", candidate.id))
            summaries[candidate.id][metric.name] = frechet_distance(*pair) if items else math.nan
        counts[metric.name] = len(items)
    for candidate in candidates:
        if candidate.kind == "model" and items:
            bits = codes[candidate.source].order0_bits(candidate.num_codebooks or 0)
            name, scale = ("order0_bpp", 1.0) if plan.modality == "image" else ("order0_kbps", 1e-3)
            summaries[candidate.id][name] = bits / total * scale
    return {
        "candidates": [candidate.facts() | {"figures": summaries[candidate.id]} for candidate in candidates],
        "metrics": [_metric_facts(name, counts.get(name, 0)) for name in plan.metrics],
        "models": {model.name: codes[model.name].facts(total) for model in plan.models},
        "left_out": plan.missing,
        "items": items,
        "failed": failed,
    }


def _means(
    candidates: list[Candidate], items: list[Facts], plan: Plan
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Return the mean figures of each candidate, and the number of items that those of each metric are of."""
    summaries: dict[str, dict[str, float]] = {candidate.id: {} for candidate in candidates}
    counts = {}
    rates = "bytes", "bpp" if plan.modality == "image" else "kbps"
    encode_only = {model.name for model in plan.models if not model.decodes}
    decoded = [c for c in candidates if c.kind != "model" or c.source not in encode_only]
    for name in (*rates, *(metric.name for metric in plan.item_metrics)):
        known = candidates if name in rates else decoded
        columns = {c.id: [item["figures"][c.id][name] for item in items] for c in known}
        means, counts[name] = common_means(columns) if items else (dict.fromkeys(columns, math.nan), 0)
        for candidate in candidates:
            summaries[candidate.id][name] = means.get(candidate.id, math.nan)
    return summaries, counts


def _metric_facts(name: str, count: int) -> Facts:
    metric = METRICS[name]
    return {
        "name": name,
        "heading": metric.heading,
        "decimals": metric.decimals,
        "higher_is_better": metric.higher_is_better,
        "of_sets": metric.of_sets,
        "note": metric.note,
        "items": count,
    }


class _Codes:
    """The codes of one model over all items."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._counts: list[NDArray[np.int64]] = [np.zeros(size, np.int64) for size in model.codebook_sizes]
        self._agreement: dict[str, list[int]] = {}
        self._of: dict[str, int] = defaultdict(int)
        self._num_items = self._num_tokens = 0

    def add(self, found: Mapping[str, Any]) -> None:
        for count, packed in zip(self._counts, found["counts"], strict=True):
            count += unpack(packed, "u4")
        for name, agreement in found["agreement"].items():
            before = self._agreement.get(name, [0] * len(self._counts))
            self._agreement[name] = [a + b for a, b in zip(before, agreement["equal"], strict=True)]
            self._of[name] += agreement["of"]
        self._num_items += 1
        self._num_tokens += found["num_tokens"]

    def order0_bits(self, num_codebooks: int) -> float:
        """Return the bits of all codes of the first codebooks by the entropy of their histograms."""
        return sum(entropy_bits(count) * int(count.sum()) for count in self._counts[:num_codebooks])

    def facts(self, total: float) -> Facts:
        """Return the statistics; `total` is the number of pixels or seconds."""
        model = self._model
        facts: Facts = {
            "model": model.given,
            "identity": model.identity,
            "codebook_sizes": list(model.codebook_sizes),
            "stride": model.stride,
            "sample_rate": model.sample_rate,
        }
        if not self._num_items:
            return facts
        per = "tokens_per_image" if model.modality == "image" else "tokens_per_second"
        number = self._num_items if model.modality == "image" else total
        return facts | {
            per: self._num_tokens / number,
            "usage": [usage(count) for count in self._counts],
            "perplexity": [perplexity(count) for count in self._counts],
            "entropy_bits": [entropy_bits(count) for count in self._counts],
            "dead_codes": [int((count == 0).sum()) for count in self._counts],
            "agreement": {name: [value / self._of[name] for value in equal] for name, equal in self._agreement.items()},
        }


def to_json(value: Any) -> Any:
    """Return JSON-like values with None in place of NaN and "inf" or "-inf" in place of infinity."""
    if isinstance(value, dict):
        return {name: to_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def number(value: Any) -> float:
    """Return a figure of `results.json` as a number, NaN if there is none."""
    return math.nan if value is None else float(value)


def read_results(path: Path) -> Facts:
    """Read `results.json`, or that of a report's folder.

    Raises:
        MediaError: It cannot be read.
        CorruptFileError: It is not the result of an evaluation.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        facts = json.loads(file.read_bytes())
    except OSError as error:
        raise MediaError(f"{file}: cannot be read: {error.strerror}") from error
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorruptFileError(f"{file}: is not the results.json of vqtok evaluate")
    if facts.get("version") != VERSION:
        raise CorruptFileError(f"{file}: has version {facts.get('version')}, this vqtok reads {VERSION}")
    return facts
