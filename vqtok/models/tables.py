"""A model file's entropy tables, read without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vqtok.errors import CorruptFileError, ModelError, WrongModelError
from vqtok.models.card import read_card
from vqtok.models.zoo import bundled_models, find_model
from vqtok.tokens.rans import TOTAL

TABLE_PREFIX = "entropy."

Tables = list[NDArray[np.uint16] | None]


def read_tables(path: Path) -> Tables:
    """Give the integer frequencies of each codebook; None where it is too large for a table."""
    count = len(read_card(path).codebook_sizes)
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            tables = [
                file.get_tensor(name).astype(np.uint16) if (name := f"{TABLE_PREFIX}{index}") in names else None
                for index in range(count)
            ]
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: damaged model file: {error}") from None
    if any(table is not None and table.sum() != TOTAL for table in tables):
        raise CorruptFileError(f"{path}: damaged entropy tables; copy it again")
    return tables


def tables_of(identity: bytes, model: str | None) -> Tables:
    """Give the tables of the model with this identity (its first 8 bytes): the one named, or a bundled one.

    Raises:
        WrongModelError: the model named is another. ModelError: no bundled model is the one.
    """
    paths = [find_model(model)] if model is not None else list(bundled_models().values())
    for path in paths:
        if bytes.fromhex(read_card(path).identity)[:8] == identity:
            return read_tables(path)
    if model is not None:
        given = read_card(paths[0]).identity[:16]
        raise WrongModelError(f"made by model {identity.hex()}, you gave {given}; give the right one with --model")
    raise ModelError(f"made by model {identity.hex()}, which is no bundled model; give it with --model")
