"""`Media`: one picture or sound in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Media:
    """One picture or sound as float32 with a nominal range of [-1, 1].

    Shapes:
        data: `(channels, height, width)` for images, `(channels, samples)` for sound.
    """

    modality: Literal["image", "audio"]
    data: NDArray[np.float32]
    sample_rate: int | None = None
    """Hz; None for images."""
