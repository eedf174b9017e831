"""Write the results of an evaluation into the cards of the models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqtok.errors import ModelError
from vqtok.evaluation.candidates import Model, Plan
from vqtok.evaluation.results import number, to_json
from vqtok.metrics.catalogue import METRICS, versions
from vqtok.metrics.means import common_means
from vqtok.models.card import read_card, replace_training
from vqtok.models.registry import is_adapted

RULES = {
    "image": "whole images at their own size, reconstructions rounded to 8 bits; mean over images",
    "audio": "whole files at their own rate and with their own channels; mean over files",
}


def check_cards(models: Iterable[Model]) -> None:
    """Raise if a model has no card to write to.

    Raises:
        ModelError: It is not a vqtok model file.
    """
    for model in models:
        if is_adapted(model.model):
            raise ModelError(f"`model` {model.given}: only model files of vqtok have a card to update")
        read_card(Path(model.model))


def update_cards(plans: Sequence[Plan], results: Mapping[str, Any]) -> list[Path]:
    """Replace the evaluation in the card of each model file; its weights and its identity stay as they are.

    Args:
        plans: Those of the evaluation.
        results: What `make_report` returned.

    Returns:
        The model files.

    Raises:
        OutputError: A file cannot be written.
    """
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for plan in plans:
        for model in plan.models:
            found[model.model][plan.modality] = card_evaluation(plan, model, results["modalities"][plan.modality])
    for path, evaluations in found.items():
        card = read_card(Path(path))
        if len(card.strides) > 1:
            evaluation = card.training.get("evaluation", {}) | evaluations
        else:
            (evaluation,) = evaluations.values()
        replace_training(Path(path), card.training | {"evaluation": evaluation})
    return list(map(Path, found))


def card_evaluation(plan: Plan, model: Model, found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation of one model as a card stores it.

    Lists have one entry per number of codebooks in `prefixes`, or per codebook. If the items are in several folders,
    `by_folder` has the metrics of each.
    """
    folders: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for item in found["items"]:
        folders[item["key"].partition("/")[0] if "/" in item["key"] else ""].append(item)
    ids = [f"{model.name}@{count}" for count in model.codebooks]
    figures = {candidate["id"]: candidate["figures"] for candidate in found["candidates"]}
    of_sets = {
        metric.name: [round(number(figures[name][metric.name]), 4) for name in ids] for metric in plan.set_metrics
    }
    statistics = found["models"][model.name]
    values = {
        "protocol": _protocol(plan),
        "files": len(found["items"]),
        "prefixes": list(model.codebooks),
        **_means(plan, ids, found["items"]),
        **of_sets,
        **{name: statistics[name] for name in ("usage", "perplexity", "entropy_bits", "dead_codes")},
    }
    if len(folders) > 1:
        values["by_folder"] = {
            folder: {"files": len(items), **_means(plan, ids, items)} for folder, items in sorted(folders.items())
        }
    evaluation: dict[str, Any] = to_json(values)
    return evaluation


def _means(plan: Plan, ids: Sequence[str], items: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    means = {}
    for name in ("bpp" if plan.modality == "image" else "kbps", *(metric.name for metric in plan.item_metrics)):
        columns = {candidate: [number(item["figures"][candidate][name]) for item in items] for candidate in ids}
        found, count = common_means(columns)
        if count:
            means[name] = [round(mean, 4) for mean in found.values()]
    return means


def _protocol(plan: Plan) -> str:
    rules = [f"vqtok evaluate, {RULES[plan.modality]}"]
    if plan.sample_rate:
        rules.append(f"audio resampled to {plan.sample_rate} Hz first")
    if plan.mono:
        rules.append("audio mixed down to mono first")
    if plan.degrade:
        rules.append(f"inputs degraded: {','.join(plan.degrade)}")
    if plan.effort > 1:
        rules.append(f"encoded with an effort of {plan.effort}")
    for metric in map(METRICS.__getitem__, plan.metrics):
        if metric.packages:
            packages = ", ".join(f"{package} {version}" for package, version in versions(metric).items())
            rules.append(f"{metric.heading} by {packages}")
    return "; ".join(rules)
