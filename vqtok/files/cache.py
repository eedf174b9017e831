"""Small facts that are remembered between runs, in the cache folder of the user."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from vqtok.errors import OutputError
from vqtok.files.atomic import atomic_write

logger = logging.getLogger(__name__)


def read_cache(name: str) -> dict[str, str]:
    """Return what `write_cache` has stored under a name; nothing if it cannot be read."""
    try:
        known = json.loads(_cache_file(name).read_bytes())
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def write_cache(name: str, known: Mapping[str, str]) -> None:
    """Store facts under a name. A cache that cannot be written is no error."""
    try:
        path = _cache_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(dict(known), indent=1).encode())
    except (OSError, OutputError, RuntimeError) as error:
        logger.info("%s is not remembered: %s", name, error)


def _cache_file(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqtok" / name
