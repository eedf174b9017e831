"""`index.html`: one page with all of a report that needs no other file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vqtok.evaluation.curves import CURVES
from vqtok.evaluation.picks import MEDIA
from vqtok.evaluation.sheets import picture
from vqtok.files.atomic import atomic_write
from vqtok.media.audio import read_audio, write_audio

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
DATA, TITLE = "/*DATA*/", "<!--TITLE-->"
"""What is replaced in the template."""


def write_page(results: Mapping[str, Any], protocol: Mapping[str, Any], output: Path) -> None:
    """Write the page of a report.

    Raises:
        OutputError: It cannot be written.
    """
    shown = {
        modality: found | {"curves": _curves(modality, found, output), "media": _media(modality, found, output / MEDIA)}
        for modality, found in results["modalities"].items()
    }
    data = json.dumps({"modalities": shown, "protocol": protocol}, separators=(",", ":"))
    sizes = [f"{len(found['items'])} {modality}" for modality, found in shown.items()]
    page = TEMPLATE.read_text(encoding="utf-8")
    page = page.replace(TITLE, escape(f"vqtok evaluate: {', '.join(sizes)}"))
    # In a script element, only this could end the data early.
    atomic_write(output / PAGE, page.replace(DATA, data.replace("</", "<\\/")).encode())


def _curves(modality: str, found: Mapping[str, Any], output: Path) -> dict[str, str]:
    """Return the curves that there are, by metric."""
    paths = {metric["name"]: output / CURVES / f"{modality}-{metric['name']}.svg" for metric in found["metrics"]}
    return {name: _uri("image/svg+xml", path.read_bytes()) for name, path in paths.items() if path.is_file()}


def _media(modality: str, found: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Return the media of all picks by the name of their file: what is shown, and what is played."""
    names = {name for pick in found.get("picks", ()) for name in pick["media"].values()}
    media = {}
    for name in sorted(names):
        if modality == "image":
            with Image.open(folder / name) as image:
                media[name] = {"shown": _webp(image.convert("RGB"))}
        else:
            file = BytesIO()
            write_audio(read_audio(folder / name), file, "flac")
            shown = _webp(picture(modality, folder / name))
            media[name] = {"shown": shown, "played": _uri("audio/flac", file.getvalue())}
    return media


def _webp(image: Image.Image) -> str:
    file = BytesIO()
    image.save(file, "WEBP", lossless=True)
    return _uri("image/webp", file.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"
