"""The JSON file beside an export, in the standard library alone: how its data are written and which items they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.files.paths import read_bytes

FORMAT, VERSION = "vqtok export", 1


def is_export(path: Path) -> bool:
    """Tell whether a file is the data of an export: its JSON file lies beside it."""
    return path.suffix.lower() != ".vqt" and json_file(path).is_file()


def json_file(path: Path) -> Path:
    """Name the JSON file of an export."""
    return path.with_name(path.name + ".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Read the JSON file of an export.

    Raises:
        CorruptFileError: it is none. UnsupportedVersionError: written by a newer vqtok. MediaError: it cannot be read.
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
