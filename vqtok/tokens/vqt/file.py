"""The `.vqt` token file: `dump` tokens to bytes and `load` them back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, islice, pairwise

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.tokens.coding.coders import NO_MODEL, ChosenCoder, EntropyModel, decode, encode
from vqtok.tokens.shape import Modality, cut
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import Header, Parts, pack_header, parse_whole, seal

SEGMENT_POSITIONS: dict[Modality, int] = {"image": 1 << 14, "audio": 1 << 12}
"""The most positions in a segment, unless a row is longer: 1024 x 1024 pixels at stride 8, 55 seconds at 75 Hz."""


def dump(tokens: Tokens, model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto") -> bytes:
    """Return the token file of tokens.

    Args:
        model: The entropy model of the model that made the tokens. It may have more codebooks.
        coder: "auto" takes the smallest of prior and static (if the model has them) and packed.

    Raises:
        ModelError: The model lacks what the chosen coder needs.
        ValueError: The metadata are not JSON, or longer than 64 KiB.
    """
    steps = _segment_steps(tokens)
    parts = [tokens.codes[:, *part] for part in cut(tokens.modality, tokens.grid, steps)]
    chosen, payloads = encode(tokens, parts, model, coder)
    header = Header(
        coder=chosen,
        modality=tokens.modality,
        model=tokens.model,
        codebook_sizes=tokens.codebook_sizes,
        grid=tokens.grid,
        stride=tokens.stride,
        size=tokens.size,
        payload_lengths=tuple(len(stream) for streams in payloads for stream in streams),
        segment_steps=steps,
        metadata=tokens.metadata,
    )
    return seal(pack_header(header), [b"".join(streams) for streams in payloads])


def _segment_steps(tokens: Tokens) -> int:
    """Return the number of rows of an image or time steps of audio in a segment; 0 for a file in one piece."""
    along = tokens.grid[0 if tokens.modality == "image" else -1]
    across = math.prod(tokens.grid) // along
    steps = max(1, SEGMENT_POSITIONS[tokens.modality] // across)
    return steps if steps < along else 0


def load(data: bytes, model: EntropyModel = NO_MODEL, num_codebooks: int | None = None) -> Tokens:
    """Read a token file.

    Args:
        model: The entropy model of the model that made the tokens; bit-packed files do not need it.
        num_codebooks: Decode only the first codebooks; None for all.

    Raises:
        CorruptFileError: The data is not a token file, or damaged.
        UnsupportedVersionError: It has a newer version of the format.
        ModelError: The entropy model is needed and missing, or that of another model.
        UsageError: The file has fewer codebooks.
    """
    return load_parts(data, parse_whole(data), model, num_codebooks)


def load_parts(
    data: bytes,
    parts: Parts,
    model: EntropyModel = NO_MODEL,
    num_codebooks: int | None = None,
    blank: Sequence[int] = (),
) -> Tokens:
    """Read the intact segments of a token file, or the whole codebooks of one that was cut off.

    Args:
        parts: The result of `vqtok.tokens.vqt.header.parse_parts`.
        model, num_codebooks: As for `load`.
        blank: The codes, one per codebook, that replace damaged segments.

    Raises:
        As `load` does.
    """
    header, starts = parts.header, parts.starts
    wanted = min(num_wanted(header, num_codebooks), parts.whole_codebooks or header.num_codebooks)
    model = model.of(header.modality)
    codes = np.empty((wanted, *header.grid), np.int32)
    lengths = iter(header.payload_lengths)
    for place, start in zip(cut(header.modality, header.grid, header.segment_steps), starts, strict=True):
        part, own = codes[:, *place], list(islice(lengths, header.num_codebooks))
        if start is None:
            part[...] = np.reshape(blank[:wanted], (-1, *[1] * len(header.grid)))
        else:
            edges = list(accumulate(own[:wanted], initial=start))
            part[...] = decode(
                header.coder,
                [data[a:b] for a, b in pairwise(edges)],
                part.shape[1:],
                header.codebook_sizes,
                header.model,
                model,
            )
    return with_codes(header, codes)


def num_wanted(header: Header, num_codebooks: int | None) -> int:
    """Return the number of codebooks to decode.

    Raises:
        UsageError: The file has fewer.
    """
    if num_codebooks is None:
        return header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"cannot decode {num_codebooks} codebooks: the token file has {header.num_codebooks}")
    return num_codebooks


def with_codes(header: Header, codes: NDArray[np.int32]) -> Tokens:
    return Tokens(
        codes=codes.reshape(len(codes), *header.grid),
        codebook_sizes=header.codebook_sizes[: len(codes)],
        modality=header.modality,
        size=header.size,
        stride=header.stride,
        model=header.model,
        metadata=header.metadata,
    )
