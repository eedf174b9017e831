"""Tables of the results of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vqtok.cli.console import one_line, out

if TYPE_CHECKING:
    from vqtok.evaluation.compare import Change

Facts = Mapping[str, Any]
Row = tuple[str, list[str], bool]
"""The name of a row, its cells, and whether it begins a group."""
NOUNS = {"image": ("image", "images"), "audio": ("sound", "sounds")}


def show_results(results: Facts) -> None:
    """Print the tables of each modality."""
    for modality, found in results["modalities"].items():
        count, failed = len(found["items"]), len(found["failed"])
        what = NOUNS[modality][count != 1]
        without = f", {failed} failed and left out" if failed else ""
        out.print(one_line(f"{count} {what}{without}", style="bold"))
        if count:
            _show_candidates(modality, found)
            _show_models(modality, found)


def _show_candidates(modality: str, found: Facts) -> None:
    candidates = [candidate for candidate in found["candidates"] if candidate["kind"] != "curve"]
    rate = "bpp" if modality == "image" else "kbps"
    metrics = [
        metric
        for metric in found["metrics"]
        if any(candidate["figures"][metric["name"]] is not None for candidate in candidates)
    ]
    headings = ["bytes", rate, "order-0", *(metric["heading"] for metric in metrics)]
    rows: list[Row] = []
    for _, group in groupby(candidates, key=lambda candidate: candidate["num_codebooks"]):
        members = list(group)
        best = {metric["name"]: _best(members, metric) for metric in metrics}
        for index, candidate in enumerate(members):
            figures = candidate["figures"]
            cells = [_shown(figures["bytes"], 0), _shown(figures[rate], 3), _shown(figures.get(f"order0_{rate}"), 3)]
            for metric in metrics:
                value = figures[metric["name"]]
                is_best = len(members) > 1 and value is not None and value == best[metric["name"]]
                cells.append(_shown(value, metric["decimals"]) + ("*" if is_best else " "))
            rows.append((_name(candidate), cells, index == 0))
    _show_in_blocks(headings, rows)
    partly = [metric for metric in found["metrics"] if metric["items"] < len(found["items"])]
    notes = [f"{metric['heading']}: over {metric['items']} items" for metric in partly]
    lines = ["* best of its number of codebooks; codecs at the bytes of the model", *notes]
    out.print(one_line("; ".join(lines), style="dim"), soft_wrap=True)


def _name(candidate: Facts) -> str:
    if candidate["kind"] == "model":
        return f"{candidate['source']}, {candidate['num_codebooks']}"
    return f"  {candidate['heading']}"


def _best(candidates: Sequence[Facts], metric: Facts) -> float | None:
    values = [candidate["figures"][metric["name"]] for candidate in candidates]
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    return max(known) if metric["higher_is_better"] else min(known)


def _shown(value: float | str | None, decimals: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return value if isinstance(value, str) else f"{value:.{decimals}f}"


def _show_in_blocks(headings: Sequence[str], rows: Sequence[Row], console: Console = out) -> None:
    """Print a table; if it is wider than the console, print its columns in several tables, each with all names."""
    name_width = max(len(name) for name, _, _ in rows)
    widths = [max(len(heading), *(len(cells[i]) for _, cells, _ in rows)) for i, heading in enumerate(headings)]
    first = 0
    while first < len(headings):
        last, used = first, name_width
        while last < len(headings) and (last == first or used + 2 + widths[last] <= console.width):
            used += 2 + widths[last]
            last += 1
        table = Table(box=None, pad_edge=False)
        table.add_column("", no_wrap=True)
        for heading in headings[first:last]:
            table.add_column(heading, justify="right", no_wrap=True)
        for name, cells, is_first in rows:
            style = "bold" if is_first else ""
            table.add_row(one_line(name, style=style), *(_cell(cell) for cell in cells[first:last]))
        console.print(table)
        first = last


def _cell(cell: str) -> Text:
    return Text(cell, style="bold green" if cell.endswith("*") else "")


def _show_models(modality: str, found: Facts) -> None:
    """Print the statistics of the codes of each model, and its speed."""
    for name, facts in found["models"].items():
        changes = list(facts["agreement"])
        headings = ["usage", "perplexity", "entropy bits", "dead codes", *(f"{change} same" for change in changes)]
        rows: list[Row] = []
        for index, used in enumerate(facts["usage"]):
            cells = [
                f"{used:.1%}",
                f"{facts['perplexity'][index]:.1f}",
                f"{facts['entropy_bits'][index]:.2f}",
                str(facts["dead_codes"][index]),
                *(f"{facts['agreement'][change][index]:.1%}" for change in changes),
            ]
            rows.append((f"{name}, codebook {index + 1}", cells, False))
        _show_in_blocks(headings, rows)
        out.print(one_line(_speed_line(modality, name, facts), style="dim"), soft_wrap=True)


def _speed_line(modality: str, name: str, facts: Facts) -> str:
    is_image = modality == "image"
    rate = f"{facts['tokens_per_image']:.0f} tokens an image" if is_image else ""
    parts = [f"{name}: {rate or format(facts['tokens_per_second'], '.1f') + ' tokens a second'}"]
    speeds = facts.get("throughput", {}).get("megapixels_per_second" if is_image else "audio_seconds_per_second", {})
    unit = "megapixels/s" if is_image else "x real time"
    for verb in ("encode", "decode"):
        if verb in speeds:
            bare = speeds.get(f"bare_{verb}")
            beside = "" if bare is None else f" (bare network {bare:.2f})"
            parts.append(f"{verb} {speeds[verb]:.2f}{beside} {unit} on one core")
    learned = facts.get("learnability")
    if learned:
        parts.append(f"{learned['bits_per_token']:.2f} bits a token after {learned['steps']} steps of a generator")
    return ", ".join(parts)


VERDICTS = {"better": "bold green", "worse": "yellow", "regression": "bold red", "same": ""}


def show_changes(changes: Sequence[Change]) -> None:
    """Print what changed between two reports."""
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("figure", "old", "new", "difference", "95 %", "items"):
        table.add_column(heading, justify="left" if heading == "figure" else "right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for (candidate, other), group in groupby(changes, key=lambda change: (change.candidate, change.other)):
        name = f"{candidate} -> {other}" if other else candidate
        for index, change in enumerate(group):
            style = f".{change.decimals}f"
            known = not math.isnan(change.low)
            table.add_row(
                one_line(name if index == 0 else ""),
                change.heading,
                format(change.old, style),
                format(change.new, style),
                format(change.new - change.old, f"+{style}"),
                f"{change.low:+{style}} to {change.high:+{style}}" if known else "-",
                str(change.num_items),
                Text(change.verdict, style=VERDICTS[change.verdict]),
            )
    out.print(table)
