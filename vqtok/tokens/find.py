"""Find token files and shards in folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vqtok.errors import MediaError
from vqtok.files.walk import files_below


def token_files(paths: Sequence[str | Path], ignored: Counter[str] | None = None) -> list[Path]:
    """Return the token files and shards among `paths`, and below those that are folders.

    Args:
        ignored: Counts the other files in folders by their suffix.

    Raises:
        MediaError: A folder has none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        found = [path]
        if path.is_dir():
            found = [path / name for name in files_below(path, _is_token_file, ignored)]
        if not found:
            raise MediaError(f"{path}: no .vqt or .vqts files in this folder")
        files += found
    return files


def holds_tokens(path: Path) -> bool:
    """Return whether a path is a token file or shard, or a folder that contains one.

    Raises:
        MediaError: It is a folder that cannot be listed.
    """
    if path.is_dir():
        return any(True for _ in files_below(path, _is_token_file))
    return _is_token_file(path)


def _is_token_file(path: Path) -> bool:
    return path.suffix.lower() in (".vqt", ".vqts")
