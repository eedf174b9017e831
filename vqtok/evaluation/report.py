"""A report: evaluate all items, and write the results, the protocol, figures and the page to a folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vqtok.errors import MediaError, OutputError
from vqtok.evaluation.candidates import Plan
from vqtok.evaluation.curves import draw_curves
from vqtok.evaluation.items import Item, Worker
from vqtok.evaluation.learnability import measure_learnability
from vqtok.evaluation.page import write_page
from vqtok.evaluation.picks import MEDIA, choose, keep
from vqtok.evaluation.protocol import digest, make_protocol
from vqtok.evaluation.results import FORMAT, VERSION, summarize, to_json
from vqtok.evaluation.run import Record, evaluate_items, read_records
from vqtok.evaluation.sheets import draw_sheets
from vqtok.evaluation.speed import measure_speed
from vqtok.files.atomic import atomic_write, make_folder, refuse_existing

logger = logging.getLogger(__name__)

RESULTS, PROTOCOL = "results.json", "protocol.json"


def make_report(
    plans: Sequence[Plan],
    items: Mapping[str, Sequence[Item]],
    output: Path,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    learnability: float | None = None,
    on_finished: Callable[[Record], None] = lambda record: None,
) -> dict[str, Any]:
    """Evaluate the items of each plan's modality and write the report. An interrupted run is continued.

    Args:
        plans: One for each modality.
        items: The items of each modality.
        output: The folder of the report.
        jobs: The number of processes.
        overwrite: Replace an existing report.
        learnability: Minutes of training a generator on the tokens of each model.
        on_finished: As for `evaluate_items`.

    Returns:
        The results, as in `results.json`.

    Raises:
        OutputError: The report exists, or cannot be written.
        MediaError: No item could be evaluated.
    """
    if not overwrite:
        refuse_existing(output / RESULTS)
    make_folder(output)
    results: dict[str, Any] = {"format": FORMAT, "version": VERSION, "modalities": {}}
    for plan in plans:
        lines = unfinished(output, plan.modality)
        own = items[plan.modality]
        evaluate_items(plan, own, lines, digest(plan), jobs=jobs, overwrite=overwrite, on_finished=on_finished)
        results["modalities"][plan.modality] = summarize(plan, read_records(lines, own))
    if not any(found["items"] for found in results["modalities"].values()):
        raise MediaError(f"none of the {sum(map(len, items.values()))} items could be evaluated")
    for plan in plans:
        found = results["modalities"][plan.modality]
        _complete(plan, items[plan.modality], found, output / MEDIA, learnability)
    results = to_json(results)
    evaluated = {modality: found["items"] for modality, found in results["modalities"].items()}
    _write_json(output / PROTOCOL, make_protocol(plans, evaluated))
    _write_json(output / RESULTS, results)
    draw_report(output, results)
    for plan in plans:
        unfinished(output, plan.modality).unlink(missing_ok=True)
    return results


def draw_report(output: Path, results: Mapping[str, Any]) -> None:
    """Draw the curves, the sheets and the page of a report from its results, its protocol and the kept media.

    Raises:
        MediaError: Kept media or the protocol are missing.
        OutputError: The folder cannot be written to.
    """
    why = draw_curves(results, output)
    if why:
        logger.warning("%s", why)
    try:
        draw_sheets(results, output)
        write_page(results, json.loads((output / PROTOCOL).read_bytes()), output)
    except FileNotFoundError as error:
        raise MediaError(f"{error.filename}: is missing; give the whole folder of the report") from error


def unfinished(output: Path, modality: str) -> Path:
    """Return the file to which a run appends its results until the report is complete."""
    return output / f"{modality}-items.jsonl"


def _complete(
    plan: Plan, items: Sequence[Item], found: dict[str, Any], folder: Path, learnability: float | None
) -> None:
    """Add to results what needs a tokenizer once more: its speed, the media of some items, and a training."""
    by_key = {item.key: item for item in items}
    evaluated = [by_key[item["key"]] for item in found["items"]]
    worker = Worker(plan)
    for name, speed in measure_speed(worker, evaluated).items():
        found["models"][name]["throughput"] = speed
    if learnability is not None:
        for model in plan.models:
            learned = measure_learnability(worker, model, evaluated, learnability)
            found["models"][model.name] |= {"learnability": learned} if learned else {}
    found["picks"] = choose(plan, found)
    kept: dict[int, dict[str, str]] = {}
    for pick in found["picks"]:
        index = pick["item"]
        if index not in kept:
            settings = found["items"][index]["settings"]
            kept[index] = keep(worker, evaluated[index], settings, folder, f"{plan.modality}-{index}")
        pick["media"] = kept[index]


def _write_json(path: Path, facts: Mapping[str, Any]) -> None:
    try:
        atomic_write(path, json.dumps(facts, indent=1, allow_nan=False).encode())
    except ValueError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from error
