"""`.npy` files and lines of text."""

from __future__ import annotations

import io
import json
import re
import tokenize
from collections.abc import Callable
from functools import partial

import numpy as np

from vqtok.errors import CorruptFileError, MediaError
from vqtok.tokens.foreign.codes import ForeignCodes, Items, integers
from vqtok.tokens.foreign.dac import read_dac

MAGIC = b"\x93NUMPY"
PICKLED = re.compile(MAGIC + rb"\x01\x00..\{'descr': '\|O', 'fortran_order': False, 'shape': \(\), \} *\n", re.DOTALL)
"""The header of a single object, which is followed by its pickle."""


def read_npy(data: bytes) -> ForeignCodes:
    """Read an array of codes, or a `.dac` file, which is a pickle inside an array."""
    pickled = PICKLED.match(data)
    if pickled:
        return read_dac(data[pickled.end() :])
    try:
        return ForeignCodes(integers(np.load(io.BytesIO(data), allow_pickle=False)))
    except (ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError, MemoryError):
        raise CorruptFileError("damaged .npy file, or one that contains objects") from None


def read_lines(data: bytes) -> Items:
    items: dict[str | None, Callable[[], ForeignCodes]] = {}
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise CorruptFileError("is not text") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            key = _key(line) or str(number)
            if key in items:
                raise CorruptFileError(f"line {number}: another item has the key {key!r}")
            items[key] = partial(_read_line, line, number)
    if not items:
        raise CorruptFileError("contains no lines")
    return items


def _key(line: str) -> str | None:
    """Return the key of a line; None if it has none or is damaged, which reading it reports."""
    if not line.lstrip().startswith(("{", "[")):
        return line.split(maxsplit=1)[0]
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return str(values["key"]) if isinstance(values, dict) and "key" in values else None


def _read_line(line: str, number: int) -> ForeignCodes:
    """Read `KEY [[...], ...]`, `[[...], ...]`, or a JSON object with `codes` and optionally `key` and `size`."""
    try:
        text = line.strip()
        values = json.loads(text if text.startswith(("{", "[")) else text.split(maxsplit=1)[1])
        if not isinstance(values, dict):
            return ForeignCodes(integers(values))
        if "codes" not in values and "input_ids" in values:
            raise MediaError(f"line {number}: token ids need the JSON file that vqtok export wrote next to them")
        size = values.get("size")
        return ForeignCodes(integers(values["codes"]), None if size is None else tuple(map(int, size)))
    except (ValueError, LookupError, TypeError, OverflowError):
        raise CorruptFileError(f"line {number}: is neither KEY [[CODES], ...] nor a JSON object with codes") from None
