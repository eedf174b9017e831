"""Sheets that show the worst, median and best items beside their reconstructions: images, and spectrograms of audio."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vqtok.evaluation.picks import MEDIA
from vqtok.evaluation.results import number
from vqtok.files.atomic import atomic_open, make_folder
from vqtok.losses.reconstruction import magnitudes
from vqtok.media.audio import read_audio
from vqtok.media.media import Media

SHEETS = "sheets"
"""The folder of the sheets in a report."""
SIDE, LINE, MARGIN = 256, 13, 6
"""Size of the images in a sheet, height of a line of text, and space between images, in pixels."""
WINDOW, BAND_ROWS = 1024, 192
"""Window of spectrograms in samples, and their height in pixels."""
RANGE_DB = 80.0
HEAT = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]], np.float64)
"""Colors from silence to full scale."""


def draw_sheets(results: Mapping[str, Any], output: Path) -> None:
    """Write a sheet for each picked item to the folder of a report.

    Raises:
        OutputError: They cannot be written.
    """
    make_folder(output / SHEETS)
    for modality, found in results["modalities"].items():
        for pick in found.get("picks", ()):
            sheet = _sheet(modality, found, pick, output / MEDIA)
            name = f"{modality}-{'-'.join(pick['roles'])}-{_safe(pick['candidate'])}.png"
            with atomic_open(output / SHEETS / name) as file:
                sheet.save(file, "PNG")


def figure_lines(metrics: list[dict[str, Any]], figures: Mapping[str, Any]) -> list[str]:
    """Return the caption of a reconstruction: its bytes, and its figures, two in a line."""
    texts = [f"{number(figures['bytes']):,.0f} bytes"]
    for metric in metrics:
        value = figures.get(metric["name"])
        if value is not None:
            texts.append(f"{metric['heading']} {number(value):.{metric['decimals']}f}")
    return [", ".join(texts[index : index + 2]) for index in range(0, len(texts), 2)]


def _sheet(modality: str, found: Mapping[str, Any], pick: Mapping[str, Any], folder: Path) -> Image.Image:
    """Draw one row for each model and codec and one column for each number of codebooks, after the original."""
    item = found["items"][pick["item"]]
    shown = [c for c in found["candidates"] if c["id"] in pick["media"]]
    counts = sorted({candidate["num_codebooks"] for candidate in shown})
    rows = list(dict.fromkeys((candidate["heading"], candidate["model"]) for candidate in shown))
    pictures = {name: picture(modality, folder / file) for name, file in pick["media"].items()}
    width = max(max(image.width for image in pictures.values()), 200)
    height = max(image.height for image in pictures.values())
    captions = {c["id"]: [_title(c), *figure_lines(found["metrics"], item["figures"][c["id"]])] for c in shown}
    text_height = LINE * max(map(len, captions.values()))
    step_x, step_y = width + MARGIN, height + text_height + MARGIN
    sheet = Image.new("RGB", (step_x * (1 + len(counts)), step_y * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)

    def put(name: str, lines: list[str], column: int, row: int) -> None:
        x, y = column * step_x, row * step_y
        for index, line in enumerate(lines):
            pen.text((x + 2, y + LINE * index), line, fill="black")
        sheet.paste(pictures[name], (x, y + text_height))

    put("", [f"{item['key']}: original", f"{', '.join(pick['roles'])} by {pick['metric']}", pick["candidate"]], 0, 0)
    for candidate in shown:
        place = rows.index((candidate["heading"], candidate["model"]))
        put(candidate["id"], captions[candidate["id"]], 1 + counts.index(candidate["num_codebooks"]), place)
    return sheet


def _title(candidate: Mapping[str, Any]) -> str:
    count = candidate["num_codebooks"]
    if candidate["kind"] == "model":
        return f"{candidate['source']}, {count} codebook{'s' * (count > 1)}"
    return f"{candidate['heading']} at the bytes of {candidate['model']}"


def picture(modality: str, path: Path) -> Image.Image:
    """Return the middle of an image, or the spectrogram of audio."""
    if modality == "audio":
        return Image.fromarray(spectrogram(read_audio(path)))
    with Image.open(path) as image:
        left, top = (max(0, (length - SIDE) // 2) for length in image.size)
        return image.convert("RGB").crop((left, top, min(left + SIDE, image.width), min(top + SIDE, image.height)))


def spectrogram(media: Media, width: int = 2 * SIDE) -> NDArray[np.uint8]:
    """Return the spectrogram of the first channel as colors: 80 dB below full scale is black.

    Shapes:
        Returns `(BAND_ROWS, width, 3)`; low frequencies are at the bottom.
    """
    import torch

    found = magnitudes(torch.from_numpy(media.data[:1]), WINDOW)[0].numpy()
    level = 20 * np.log10(np.maximum(found / (WINDOW / 4), 1e-9))
    rows = np.linspace(0, len(level) - 1, BAND_ROWS).round().astype(int)[::-1]
    columns = np.linspace(0, level.shape[1] - 1, width).round().astype(int)
    height = (level[rows][:, columns] / RANGE_DB + 1).clip(0, 1) * (len(HEAT) - 1)
    colors = [np.interp(height, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)]
    return np.stack(colors, axis=-1).round().astype(np.uint8)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)
