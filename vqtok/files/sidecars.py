"""Files beside a media file that belong to it: `0003.txt` is the caption of `0003.png` and of `0003.ogg`."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CAPTION_SUFFIX = ".txt"
MAX_BYTES = 2**16
"""The most bytes of a caption: those of all metadata of a token file."""


def read_columns(source: Path) -> dict[str, Any]:
    """Return what the sidecar of a local media file says about it: its `caption`, without white space around it.

    A sidecar that cannot be used is left out with a warning, since the media are complete without it.
    """
    path = source.with_suffix(CAPTION_SUFFIX)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"is longer than {MAX_BYTES} bytes")
        caption = data.decode("utf-8-sig").strip()
        return {"caption": caption} if caption else {}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = "is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        logger.warning("%s: %s; %s gets no caption", path, reason, source.name)
        return {}


def is_sidecar(name: str, names: Sequence[str], accepts: Callable[[Path], bool]) -> bool:
    """Return whether a file is the sidecar of an accepted file.

    Args:
        name: The name of the file.
        names: The sorted names of all files of its folder, in which those of one stem are neighbors.
        accepts: Returns whether a file is an input.
    """
    stem, suffix = os.path.splitext(name)
    if suffix.lower() != CAPTION_SUFFIX:
        return False
    for other in islice(names, bisect_left(names, f"{stem}."), None):
        if not other.startswith(f"{stem}."):
            break
        if os.path.splitext(other)[0] == stem and accepts(Path(other)):
            return True
    return False
