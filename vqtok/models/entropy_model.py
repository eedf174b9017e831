"""The entropy tables and the prior of a model file, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.prior import PREFIX as PRIOR_PREFIX
from vqtok.tokens.coding.prior import from_arrays
from vqtok.tokens.coding.rans import TOTAL
from vqtok.tokens.shape import MODALITIES

TABLE_PREFIX = "entropy."
PREFIXES = (TABLE_PREFIX, PRIOR_PREFIX)


def entropy_model(arrays: Mapping[str, NDArray[Any]], num_codebooks: int) -> EntropyModel:
    """Return the entropy model made of those arrays of a model file whose names begin with `PREFIXES`.

    Raises:
        CorruptFileError: The arrays are damaged.
    """
    found = {modality: _arrays_of(arrays, modality) for modality in MODALITIES}
    if any(found.values()):
        return EntropyModel(sides={modality: _one(own, num_codebooks) for modality, own in found.items()})
    return _one(arrays, num_codebooks)


def of_side(arrays: Mapping[str, NDArray[Any]], modality: str) -> dict[str, NDArray[Any]]:
    """Return arrays under the names that they have for one modality of a fusion model: `prior.image.kernel`."""
    return {f"{prefix}{modality}.{name.removeprefix(prefix)}": arrays[name] for name, prefix in _prefixed(arrays)}


def _arrays_of(arrays: Mapping[str, NDArray[Any]], modality: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of one modality of a fusion model under the names that they have in other models."""
    return {
        prefix + name.removeprefix(f"{prefix}{modality}."): arrays[name]
        for name, prefix in _prefixed(arrays)
        if name.startswith(f"{prefix}{modality}.")
    }


def _prefixed(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each name that has one of the prefixes, and the prefix."""
    yield from ((name, prefix) for name in names for prefix in PREFIXES if name.startswith(prefix))


def _one(arrays: Mapping[str, NDArray[Any]], num_codebooks: int) -> EntropyModel:
    """Return the entropy model of one modality."""
    named = [arrays.get(f"{TABLE_PREFIX}{index}") for index in range(num_codebooks)]
    for table in named:
        if table is not None and (table.ndim != 1 or table.dtype.kind != "i" or not _are_frequencies(table)):
            raise CorruptFileError("the entropy tables are damaged; copy the file again")
    tables = [None if table is None else table.astype(np.uint16) for table in named]
    return EntropyModel(tables, from_arrays(arrays, num_codebooks))


def _are_frequencies(table: NDArray[np.integer]) -> bool:
    return bool(table.min(initial=TOTAL) >= 1 and table.sum(dtype=np.int64) == TOTAL)
