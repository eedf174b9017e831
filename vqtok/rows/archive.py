"""Rows of `.zip` archives: their images and audio, with sidecars as in folders."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vqtok.files.sidecars import CAPTION_SUFFIX, FIELDS_SUFFIX
from vqtok.media.kinds import modality_of, stem
from vqtok.rows.row import Row
from vqtok.rows.tar import column_of

_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError)
"""What damaged, encrypted and unusually compressed archives raise."""


def zip_rows(path: Path, media: str | None) -> Iterator[Row]:
    """Yield the rows of an archive, sorted by name. An archive that cannot be opened becomes the fault of one row.

    Args:
        media: The suffix of the files that hold the media; by default all that are images or audio.
    """
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(zipfile.ZipFile(opened.enter_context(path.open("rb"))))
        except _ERRORS as error:
            yield Row("", fault=f"not a zip archive, or damaged: {getattr(error, 'strerror', None) or error}")
            return
        names = {name for name in archive.namelist() if not _is_hidden(name)}
        found = sorted(name for name in names if _is_media(name, media))
        if not found:
            yield Row("", fault="contains neither images nor audio")
        stems = Counter(stem(name) for name in found)
        for name in found:
            try:
                columns: dict[str, Any] = {}
                for suffix in (FIELDS_SUFFIX, CAPTION_SUFFIX):
                    beside = os.path.splitext(name)[0] + suffix
                    if beside in names:
                        columns |= column_of(suffix.removeprefix("."), archive.read(beside))
                yield Row(name, archive.read(name), columns, shares_stem=stems[stem(name)] > 1)
            except _ERRORS as error:
                yield Row(name, fault=f"cannot be read: {getattr(error, 'strerror', None) or error}")


def zip_count(path: Path, media: str | None) -> int:
    """Return the number of rows."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return max(1, sum(_is_media(name, media) and not _is_hidden(name) for name in set(archive.namelist())))
    except _ERRORS:
        return 1


def _is_media(name: str, media: str | None) -> bool:
    if media is not None:
        return name.lower().endswith(f".{media.lower()}")
    return modality_of(Path(name)) is not None


def _is_hidden(name: str) -> bool:
    return name.endswith("/") or any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
