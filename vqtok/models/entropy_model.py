"""The entropy tables and the prior of a model file, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.prior import PREFIX as PRIOR_PREFIX
from vqtok.tokens.coding.prior import from_arrays
from vqtok.tokens.coding.rans import TOTAL

TABLE_PREFIX = "entropy."
PREFIXES = (TABLE_PREFIX, PRIOR_PREFIX)


def entropy_model(arrays: Mapping[str, NDArray[Any]], num_codebooks: int) -> EntropyModel:
    """Return the entropy model made of those arrays of a model file whose names begin with `PREFIXES`.

    Raises:
        CorruptFileError: The arrays are damaged.
    """
    named = [arrays.get(f"{TABLE_PREFIX}{index}") for index in range(num_codebooks)]
    for table in named:
        if table is not None and (table.ndim != 1 or table.dtype.kind != "i" or not _are_frequencies(table)):
            raise CorruptFileError("the entropy tables are damaged; copy the file again")
    tables = [None if table is None else table.astype(np.uint16) for table in named]
    return EntropyModel(tables, from_arrays(arrays, num_codebooks))


def _are_frequencies(table: NDArray[np.integer]) -> bool:
    return bool(table.min(initial=TOTAL) >= 1 and table.sum(dtype=np.int64) == TOTAL)
