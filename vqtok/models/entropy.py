"""A model file's entropy tables and prior, read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from vqtok.errors import CorruptFileError, ModelError, WrongModelError
from vqtok.files.paths import naming
from vqtok.models.card import check_identity, read_card
from vqtok.models.zoo import bundled_models, find_model, is_adapted
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.prior import PREFIX as PRIOR_PREFIX
from vqtok.tokens.coding.prior import from_arrays
from vqtok.tokens.coding.rans import TOTAL

TABLE_PREFIX = "entropy."
PREFIXES = (TABLE_PREFIX, PRIOR_PREFIX)


def read_entropy_model(path: Path) -> EntropyModel:
    """Read the integer frequencies of each codebook, and the prior where there is one, and check the identity."""
    check_identity(path)
    count = len(read_card(path).codebook_sizes)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIXES)}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: damaged model file: {error}") from None
    with naming(path):
        return entropy_model(arrays, count)


def entropy_model(arrays: Mapping[str, NDArray[Any]], num_codebooks: int) -> EntropyModel:
    """Make the entropy model of the arrays of a model file whose names begin with `PREFIXES`.

    Raises:
        CorruptFileError: they are damaged.
    """
    named = [arrays.get(f"{TABLE_PREFIX}{index}") for index in range(num_codebooks)]
    for table in named:
        if table is not None and (table.ndim != 1 or table.dtype.kind != "i" or not _are_frequencies(table)):
            raise CorruptFileError("damaged entropy tables; copy it again")
    tables = [None if table is None else table.astype(np.uint16) for table in named]
    return EntropyModel(tables, from_arrays(arrays, num_codebooks))


def _are_frequencies(table: NDArray[np.integer]) -> bool:
    return bool(table.min(initial=TOTAL) >= 1 and table.sum(dtype=np.int64) == TOTAL)


def entropy_model_of(identity: bytes, model: str | None) -> EntropyModel:
    """Give the entropy model of the model with this identity (its first 8 bytes): the one named, or a bundled one.

    Raises:
        WrongModelError: the model named is another. ModelError: no bundled model is the one.
    """
    if model is not None and is_adapted(model):
        raise WrongModelError(f"made by model {identity.hex()}, which {model} is not; give the right one with --model")
    paths = [find_model(model)] if model is not None else list(bundled_models().values())
    for path in paths:
        if bytes.fromhex(read_card(path).identity)[:8] == identity:
            return read_entropy_model(path)
    if model is not None:
        given = read_card(paths[0]).identity[:16]
        raise WrongModelError(f"made by model {identity.hex()}, you gave {given}; give the right one with --model")
    raise ModelError(f"made by model {identity.hex()}, which is no bundled model; give it with --model")
