"""Codes in the files of other tools: EnCodec's `.ecdc`, DAC's `.dac`, numpy's `.npy`, and lines of text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vqtok.errors import CorruptFileError
from vqtok.files.paths import read_bytes
from vqtok.tokens.foreign import arrays, ecdc
from vqtok.tokens.foreign.codes import ForeignCodes, Items

__all__ = ["ForeignCodes", "read_foreign_codes"]

LINES = frozenset({".jsonl", ".txt"})


def read_foreign_codes(path: Path) -> Items:
    """Return functions that read the items of a file of another tool, by key.

    Raises:
        CorruptFileError: The file, or an item when it is read, is damaged or of another kind.
        MediaError: It cannot be read, or not exactly.
        UnsupportedVersionError: It is too new.
    """
    data = read_bytes(path)
    if data.startswith(ecdc.MAGIC):
        return {None: partial(ecdc.read_ecdc, data)}
    if data.startswith(arrays.MAGIC):
        return {None: partial(arrays.read_npy, data)}
    if path.suffix.lower() in LINES:
        return arrays.read_lines(data)
    raise CorruptFileError("neither an .ecdc, a .dac, an .npy nor a .jsonl file, or a damaged one")
