"""The JSON file next to an export, in the standard library alone: how its data are written, and their items.

Parquet files also hold it in their footer, without the items.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, UnsupportedVersionError
from vqtok.files.paths import read_bytes

FORMAT, VERSION, MIXTURE_VERSION = "vqtok export", 1, 2
"""Version 2 is that of exports of rows, in one vocabulary."""
FOLDER_FILE = ".vqtok.json"
"""The JSON file of all files of a folder. Readers of data sets pass over hidden files."""
FOOTER_KEY = b"vqtok"
"""The key of the same facts in the footer of a Parquet file, which remain when the file is copied alone."""
_HIDDEN = ("jsonl", "parquet", "text")
"""Formats whose JSON file is hidden, so that readers of data sets do not take it for data."""
_DATA_SUFFIXES = (".parquet", ".jsonl", ".bin", ".npy", ".txt")


def is_export(path: Path) -> bool:
    """Return whether a file is the data of an export, which has a JSON file next to it or facts in its footer."""
    return path.suffix.lower() != ".vqt" and (json_file(path).is_file() or footer_facts(path) is not None)


def sidecar_name(path: Path, to: str) -> Path:
    """Return the path of the JSON file that an export to `path` gets."""
    return path.with_name(f"{'.' if to in _HIDDEN else ''}{path.name}.json")


def remove_other_sidecar(path: Path, to: str) -> None:
    """Remove the JSON file that an earlier export to the same path has left under the other name."""
    for name in (path.with_name(f"{path.name}.json"), path.with_name(f".{path.name}.json")):
        if name != sidecar_name(path, to):
            name.unlink(missing_ok=True)


def json_file(path: Path) -> Path:
    """Return the path of the JSON file of an export: beside it, hidden or not, or that of its folder."""
    beside = path.with_name(f"{path.name}.json")
    hidden, of_folder = path.with_name(f".{path.name}.json"), path.with_name(FOLDER_FILE)
    if hidden.is_file() and not beside.is_file():
        return hidden
    if path.suffix.lower() in _DATA_SUFFIXES and of_folder.is_file() and not beside.is_file():
        return of_folder
    return beside


def export_facts_of(path: Path) -> dict[str, Any]:
    """Return the facts of an export, from its JSON file or its footer.

    Raises:
        CorruptFileError, UnsupportedVersionError, MediaError: As for `read_facts`.
    """
    if not json_file(path).is_file():
        facts = footer_facts(path)
        if facts is not None:
            return checked(facts, path)
    return read_facts(json_file(path))


def footer_facts(path: Path) -> dict[str, Any] | None:
    """Return the facts in the footer of a Parquet file; None if there are none, or pyarrow is not installed."""
    if path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    try:
        import pyarrow.parquet

        with path.open("rb") as file:
            found = (pyarrow.parquet.read_metadata(file).metadata or {}).get(FOOTER_KEY)
        facts = json.loads(found) if found else None
    except (ImportError, OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


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
    return checked(facts, path)


def checked(facts: Any, path: Path) -> dict[str, Any]:
    """Return the facts of an export that `path` holds.

    Raises:
        CorruptFileError, UnsupportedVersionError: As for `read_facts`.
    """
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise CorruptFileError(f"{path}: is not the JSON file of an export")
    if facts.get("version") not in (VERSION, MIXTURE_VERSION):
        raise UnsupportedVersionError(f"{path}: export of version {facts.get('version')}: upgrade vqtok")
    return facts
