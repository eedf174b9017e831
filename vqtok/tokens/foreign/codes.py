"""Codes from files of other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError


@dataclass(frozen=True)
class ForeignCodes:
    """Codes, and what else a file states about them.

    Shapes:
        codes: `(num_codebooks, *grid)`; audio with several channels is `(num_codebooks, channels, time)`, where
            channels that are encoded together count as one.
    """

    codes: NDArray[Any]
    size: tuple[int, ...] | None = None
    """As in `Tokens`; None if the file does not store it."""
    model: str | None = None
    """The name of the model that made them; None if the file does not store it."""
    side_data: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    metadata: dict[str, Any] = field(default_factory=dict)


Items = Mapping[str | None, Callable[[], ForeignCodes]]
"""Functions that read the items of a file, by key; None is the key of a single item without one."""


def integers(values: Any) -> NDArray[np.int64]:
    """Return codes as an array `(num_codebooks, *grid)`; a single row is that of a single codebook."""
    codes = np.asarray(values)
    if not np.issubdtype(codes.dtype, np.integer) or not codes.size:
        raise CorruptFileError(f"contains {codes.dtype} of shape {codes.shape} instead of codes")
    return codes.astype(np.int64) if codes.ndim > 1 else codes.astype(np.int64)[None]
