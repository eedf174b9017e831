"""Find token files and shards in folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.walk import files_below


def token_files(paths: Sequence[str | Path]) -> list[Path]:
    """Return the token files and shards among `paths`, and below those that are folders.

    Raises:
        MediaError: A folder has none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = [path / name for name in files_below(path, lambda file: file.suffix in (".vqt", ".vqts"))]
        if not found:
            raise MediaError(f"{path}: no .vqt or .vqts files in this folder")
        files += found
    return files
