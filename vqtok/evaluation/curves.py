"""Rate-distortion curves as PNG and SVG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqtok.errors import OutputError
from vqtok.evaluation.results import number
from vqtok.files.atomic import make_folder
from vqtok.media.kinds import is_installed

CURVES = "curves"
"""The folder of the curves in a report."""
RATES = {"image": ("bpp", "bits per pixel"), "audio": ("kbps", "kilobits per second")}
COLORS = ("#0b6bcb", "#d1495b", "#2a9d5c", "#8e44ad", "#e08e0b", "#3d5a6c", "#c2185b", "#607d3b")

Line = tuple[str, list[tuple[float, float]], bool]
"""The label, the points (rate, value) in order, and whether it is a model."""


def draw_curves(results: Mapping[str, Any], output: Path) -> str:
    """Write the curves of each metric to the folder of a report.

    Returns:
        Why there are none; empty if there are.

    Raises:
        OutputError: They cannot be written.
    """
    if not is_installed("matplotlib"):
        return "curves need matplotlib: pip install 'vqtok[evaluate]'"
    make_folder(output / CURVES)
    for modality, found in results["modalities"].items():
        for metric in found["metrics"]:
            lines = lines_of(modality, found, metric["name"])
            if lines:
                _draw(modality, metric, lines, output / CURVES / f"{modality}-{metric['name']}")
    return ""


def lines_of(modality: str, found: Mapping[str, Any], metric: str) -> list[Line]:
    """Return the curve of each model and codec; points without a finite figure are left out."""
    rate = RATES[modality][0]
    points: dict[tuple[str, bool], list[tuple[float, float]]] = {}
    for candidate in found["candidates"]:
        if candidate["kind"] == "matched":
            continue
        figures = candidate["figures"]
        point = number(figures[rate]), number(figures[metric])
        if all(map(math.isfinite, point)):
            points.setdefault((candidate["heading"], candidate["kind"] == "model"), []).append(point)
    return [(label, sorted(line), is_model) for (label, is_model), line in points.items()]


def _draw(modality: str, metric: Mapping[str, Any], lines: Sequence[Line], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for color, (label, line, is_model) in zip(COLORS * len(lines), lines, strict=False):
        style = "o-" if is_model else ".--"
        axes.plot(*zip(*line, strict=True), style, color=color, label=label, linewidth=2 if is_model else 1.2)
    better = "higher" if metric["higher_is_better"] else "lower"
    axes.set(xlabel=RATES[modality][1], ylabel=f"{metric['heading']} ({better} is better)", xscale="log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    try:
        for suffix, options in ((".png", {"dpi": 120}), (".svg", {"metadata": {"Date": None}})):
            with matplotlib.rc_context({"svg.hashsalt": "vqtok", "svg.fonttype": "none"}):
                figure.savefig(path.with_name(path.name + suffix), **options)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error}") from None
    finally:
        plt.close(figure)
