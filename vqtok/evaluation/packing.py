"""Arrays as text, for the lines that a run appends to its unfinished report."""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack(array: NDArray[Any]) -> str:
    """Return a vector as text, little-endian and compressed."""
    return b64encode(zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes(), 6)).decode()


def unpack(text: str, dtype: str) -> NDArray[Any]:
    """Return the vector of `pack`, of this dtype."""
    return np.frombuffer(zlib.decompress(b64decode(text)), np.dtype(dtype).newbyteorder("<"))
