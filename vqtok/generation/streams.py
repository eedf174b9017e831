"""`Stream`: how a generator sees the tokens of one modality. Hidden codes, and captions as bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

StreamName = Literal["image", "audio", "text"]
STREAM_NAMES: tuple[StreamName, ...] = ("image", "audio", "text")
"""The streams in the order in which they follow each other in a sequence."""

HIDDEN = -1
"""Stands for a code that the network has to predict."""
TEXT_END = 256
"""The symbol after the last byte of a caption, which fills the stream to its length."""
TEXT_SIZE = TEXT_END + 1


@dataclass(frozen=True)
class Stream:
    """The tokens of one modality.

    Codes have the shape `(num_codebooks, *window)`; a window larger than an item's grid does not occur.
    """

    name: StreamName
    codebook_sizes: tuple[int, ...]
    window: tuple[int, ...]
    """The part of a grid that the network sees at once: `(height, width)` or `(time,)`."""
    model: str = ""
    """The first 8 bytes of the identity of the tokenizer, in hex; empty for text."""
    size: tuple[int, ...] = ()
    """The original size of the media that a window stands for: `(width, height)` or `(samples, sample_rate)`."""
    stride: int = 1

    @property
    def identity(self) -> bytes:
        """The first 8 bytes of the identity of the tokenizer."""
        return bytes.fromhex(self.model)

    @property
    def num_codebooks(self) -> int:
        return len(self.codebook_sizes)

    @property
    def positions(self) -> int:
        return math.prod(self.window)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def stream_of(values: Mapping[str, Any]) -> Stream:
    """Return the stream that `to_dict` described."""
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return Stream(**{**values, **lists})


def in_order(names: Sequence[str]) -> tuple[StreamName, ...]:
    """Return names of streams in the order of a sequence."""
    return tuple(name for name in STREAM_NAMES if name in names)


def text_codes(text: str, length: int) -> NDArray[np.int32]:
    """Return a caption as codes `(1, length)`: its UTF-8 bytes, cut to the length, and end symbols."""
    data = np.frombuffer(text.encode()[:length], np.uint8)
    codes = np.full((1, length), TEXT_END, np.int32)
    codes[0, : len(data)] = data
    return codes


def text_of(codes: NDArray[np.integer[Any]]) -> str:
    """Return the caption of codes `(1, length)`; bytes that are not UTF-8 are replaced."""
    data = codes.ravel().tolist()
    data = data[: data.index(TEXT_END)] if TEXT_END in data else data
    return bytes(data).decode(errors="replace")
