"""How a codec runs its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vqtok.compute.device import Precision

TILE_PIXELS = 1024
CHUNK_SECONDS = 10.0


@dataclass(frozen=True)
class CodecOptions:
    """Settings that change memory and speed. `effort` changes codes, `tile` and `precision` can, and rarely do."""

    tile: int = TILE_PIXELS
    """Side of the part of an image that the network computes at once, in pixels, without the context around it."""
    chunk_seconds: float = CHUNK_SECONDS
    """Seconds of audio that are read and decoded at once. Encoding always uses windows of `CHUNK_SECONDS`."""
    precision: Precision = "float32"
    """What the network computes in. In bfloat16, and in tf32 on a GPU, some codes differ from those in float32."""
    effort: int = 1
    """Paths through residual codebooks that are followed in encoding: more take longer and lose less. With 1, each
    codebook takes the vector that is nearest to what the ones before it have left."""
    jobs: int | None = None
    """Processor cores to use; by default as many as torch uses."""


DEFAULT_OPTIONS = CodecOptions()
