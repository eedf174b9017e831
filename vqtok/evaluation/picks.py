"""The worst, median and best items, kept as media for sheets and for the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqtok.evaluation.candidates import Candidate, Plan
from vqtok.evaluation.codecs import CODECS, Files
from vqtok.evaluation.items import Item, Worker, like
from vqtok.evaluation.results import number
from vqtok.files.atomic import make_folder
from vqtok.media.audio import write_audio
from vqtok.media.image import write_image
from vqtok.media.media import Media
from vqtok.metrics.catalogue import METRICS

RANKING = "ssimulacra2", "ms_ssim", "ssim", "psnr", "visqol_audio", "mel_distance", "stft_distance", "si_sdr"
"""The metrics by which items are ranked, the first that there is."""
MAX_SIDE, MAX_SECONDS = 512, 10.0
"""The size of the middle part of an item that is kept."""
MEDIA = "media"
"""The folder of the kept media in a report."""


def choose(plan: Plan, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the worst, median and best item of each model, at its middle number of codebooks.

    Returns:
        For each pick its `item` (an index), `roles`, `metric`, and `candidate`; an item that has several roles is
        listed once.
    """
    metric = next((name for name in RANKING if name in plan.metrics), None)
    picks: dict[tuple[str, int], dict[str, Any]] = {}
    for model in plan.models:
        if not model.decodes:
            continue
        candidate = Candidate(model.name, "model", model.codebooks[(len(model.codebooks) - 1) // 2]).id
        ranked = ranked_items(results["items"], candidate, metric)
        places = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1} if ranked else {}
        for role, place in places.items():
            pick = {"item": ranked[place], "roles": [], "metric": metric, "candidate": candidate}
            picks.setdefault((candidate, ranked[place]), pick)["roles"].append(role)
    return list(picks.values())


def ranked_items(items: Sequence[Mapping[str, Any]], candidate: str, metric: str | None) -> list[int]:
    """Return the indices of items from the worst to the best by a metric; those without a figure are left out."""
    if metric is None:
        return list(range(len(items)))
    values = [number(item["figures"][candidate][metric]) for item in items]
    sign = 1 if METRICS[metric].higher_is_better else -1
    return sorted((i for i, value in enumerate(values) if not math.isnan(value)), key=lambda i: sign * values[i])


def keep(worker: Worker, item: Item, settings: Mapping[str, int], folder: Path, stem: str) -> dict[str, str]:
    """Write the middle part of an item and of each of its reconstructions to a folder.

    Args:
        settings: The setting of each codec that is compared with a model, by the id of the candidate.

    Returns:
        The name of each file by the id of its candidate; that of the original has the id "".
    """
    make_folder(folder)
    original = worker.read(item)
    names = {"": _write(original, folder / f"{stem}-original")}
    given = worker.degraded(item, original)
    if worker.plan.degrade:
        _write(given, folder / f"{stem}-degraded")
    files = {name: Files(CODECS[name], given) for name in worker.plan.codecs}
    for model in worker.plan.models:
        if not model.decodes:
            continue
        encoded = worker.encode(model, given)
        for count in model.codebooks:
            candidate = Candidate(model.name, "model", count)
            names[candidate.id] = _write(
                like(original, encoded[count].decode(count)), folder / f"{stem}-{_safe(candidate)}"
            )
            for name, classical in files.items():
                matched = Candidate(name, "matched", count, model.name)
                decoded = classical.decode(settings[matched.id])
                names[matched.id] = _write(decoded, folder / f"{stem}-{_safe(matched)}")
    return names


def _safe(candidate: Candidate) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in candidate.id)


def _write(media: Media, path: Path) -> str:
    part = middle(media)
    if part.modality == "image":
        path = path.with_name(f"{path.name}.png")
        write_image(part, path)
    else:
        path = path.with_name(f"{path.name}.wav")
        write_audio(part, path)
    return path.name


def middle(media: Media) -> Media:
    """Return the middle part of media, of at most `MAX_SIDE` pixels or `MAX_SECONDS`."""
    lengths = media.data.shape[1:]
    limit = MAX_SIDE if media.modality == "image" else round(MAX_SECONDS * (media.sample_rate or 1))
    starts = [max(0, (length - limit) // 2) for length in lengths]
    part = media.data[:, *(slice(start, start + limit) for start in starts)]
    return Media(media.modality, part, media.sample_rate)
