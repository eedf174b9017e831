"""Files beside a media file that belong to it: `0003.txt` is the caption of `0003.png` and of `0003.ogg`, `0003.json`
has their other columns."""

from __future__ import annotations

import json
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vqtok.errors import MediaError

logger = logging.getLogger(__name__)

CAPTION_SUFFIX, FIELDS_SUFFIX = ".txt", ".json"
MAX_BYTES = 2**16
"""The most bytes of a sidecar: those of all metadata of a token file."""


def read_columns(source: Path, *, strict: bool = False) -> dict[str, Any]:
    """Return what the sidecars of a local media file say about it.

    The fields of a `.json` file are its columns, the text of a `.txt` file is its `caption`, without white space around
    it. A sidecar that cannot be used is left out with a warning, since the media are complete without it.

    Args:
        strict: Raise an error instead of the warning.

    Raises:
        MediaError: A sidecar cannot be used, with `strict`.
    """
    columns: dict[str, Any] = {}
    for suffix, parse in ((FIELDS_SUFFIX, _fields), (CAPTION_SUFFIX, _caption)):
        path = source.with_suffix(suffix)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"is longer than {MAX_BYTES} bytes")
            columns |= parse(data)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
        except (OSError, ValueError, RecursionError) as error:
            reason = _reason(error)
            if strict:
                raise MediaError(f"{path}: {reason}") from None
            what = "caption" if suffix == CAPTION_SUFFIX else "fields"
            logger.warning("%s: %s; %s gets no %s", path, reason, source.name, what)
    return columns


def _caption(data: bytes) -> dict[str, Any]:
    caption = data.decode("utf-8-sig").strip()
    return {"caption": caption} if caption else {}


def _fields(data: bytes) -> dict[str, Any]:
    fields = json.loads(data.decode("utf-8-sig"))
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")
    return fields


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "is not UTF-8"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "is not JSON"
    return str(getattr(error, "strerror", None) or error)


def is_sidecar(name: str, names: Sequence[str], accepts: Callable[[Path], bool]) -> bool:
    """Return whether a file is the sidecar of an accepted file.

    Args:
        name: The name of the file.
        names: The sorted names of all files of its folder, in which those of one stem are neighbors.
        accepts: Returns whether a file is an input.
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() not in (CAPTION_SUFFIX, FIELDS_SUFFIX):
        return False
    for other in islice(names, bisect_left(names, f"{stem}."), None):
        if not other.startswith(f"{stem}."):
            break
        if os.path.splitext(other)[0] == stem and accepts(Path(other)):
            return True
    return False
