"""Generated codes as tokens and media, and sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.generation.streams import Stream
from vqtok.generation.tokenizers import Tokenizers
from vqtok.media.media import Media
from vqtok.tokens.tokens import Tokens

Codes = NDArray[np.integer[Any]]

GAP = 2
"""Pixels between the images of a sheet."""


def to_tokens(
    codes: Codes,
    stream: Stream,
    tokenizers: Tokenizers,
    size: tuple[int, ...] = (),
    metadata: dict[str, Any] | None = None,
) -> Tokens:
    """Return codes `(num_codebooks, *grid)` of an image or mono audio as tokens.

    Args:
        size: The size of the media, as in `Tokens`; by default that of the training media if the grid is the window,
            else the largest that the grid has room for.
    """
    if not size and codes.shape[1:] == stream.window and stream.size:
        size = stream.size
    if not size:
        lengths = [length * stream.stride for length in codes.shape[1:]]
        rate = tokenizers.codec(stream).tokenizer.sample_rate
        size = tuple(lengths[::-1]) if stream.name == "image" else (lengths[0], rate or 1)
    return Tokens(
        codes=codes.astype(np.int32),
        codebook_sizes=stream.codebook_sizes,
        modality="image" if stream.name == "image" else "audio",
        size=size if stream.name == "image" else (*size[:2], 1),
        stride=stream.stride,
        model=stream.identity,
        metadata=metadata or {},
    )


def decode_stream(codes: Codes, stream: Stream, tokenizers: Tokenizers) -> list[Media]:
    """Decode codes `(batch, num_codebooks, *grid)` to media."""
    codec = tokenizers.codec(stream)
    return [codec.decode(to_tokens(item, stream, tokenizers)) for item in codes]


def contact_sheet(images: Sequence[Media], columns: int) -> Media:
    """Return one image with many side by side, row by row; each has the room of the largest."""
    height, width = (max(image.data.shape[axis] for image in images) + GAP for axis in (1, 2))
    rows = -(-len(images) // columns)
    sheet = np.ones((images[0].data.shape[0], rows * height - GAP, columns * width - GAP), np.float32)
    for index, image in enumerate(images):
        top, left = index // columns * height, index % columns * width
        _, rows_, columns_ = image.data.shape
        sheet[:, top : top + rows_, left : left + columns_] = image.data
    return Media("image", sheet)
