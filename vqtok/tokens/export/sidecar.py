"""The JSON file next to an export, in the standard library alone: how its data are written, and their items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.files.paths import read_bytes

FORMAT, VERSION = "vqtok export", 1


def is_export(path: Path) -> bool:
    """Return whether a file is the data of an export, which has a JSON file next to it."""
    return path.suffix.lower() != ".vqt" and json_file(path).is_file()


def json_file(path: Path) -> Path:
    """Return the path of the JSON file of an export."""
    return path.with_name(path.name + ".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Read the JSON file of an export.

    Raises:
        CorruptFileError: It is not the JSON file of an export.
        UnsupportedVersionError: A newer vqtok wrote it.
        MediaError: It cannot be read.
    """
    try:
        facts = json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorruptFileError(f"{path}: is not the JSON file of an export")
    if facts.get("version") != VERSION:
        raise UnsupportedVersionError(f"{path}: export of version {facts.get('version')}: upgrade vqtok")
    return facts
