"""Codes as the files of other tools hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError


@dataclass(frozen=True)
class ForeignCodes:
    """Codes and what else a file says of them.

    Shapes:
        codes: `(num_codebooks, *grid)`, of sound with several channels `(num_codebooks, channels, time)`; channels that
            are coded together count as one.
    """

    codes: NDArray[Any]
    size: tuple[int, ...] | None = None
    """As in `Tokens`, if it is stored."""
    model: str | None = None
    """The name of the model that made them, if it is stored."""
    side_data: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    metadata: dict[str, Any] = field(default_factory=dict)


Items = Mapping[str | None, Callable[[], ForeignCodes]]
"""What reads each item of a file, by its key; None if there is but one, which has none."""


def integers(values: Any) -> NDArray[np.int64]:
    """Give codes as an array `(num_codebooks, *grid)`; a single row of them is that of a single codebook."""
    codes = np.asarray(values)
    if not np.issubdtype(codes.dtype, np.integer) or not codes.size:
        raise CorruptFileError(f"holds {codes.dtype} of shape {codes.shape}, not codes")
    return codes.astype(np.int64) if codes.ndim > 1 else codes.astype(np.int64)[None]
