"""The `.vqt` token file: `dump` tokens to bytes and `load` them back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError, UsageError
from vqtok.tokens import entropy, rans
from vqtok.tokens.grid import Tokens
from vqtok.tokens.header import Coder, Header, checksum, pack_header, packed_bytes, parse_header

Tables = Sequence[NDArray[np.uint16] | None]
"""A model's frequencies, one entry a codebook, coarse first; None for a codebook too large to have any."""


def dump(tokens: Tokens, tables: Tables | None = None, coder: Literal["auto", "static", "packed"] = "auto") -> bytes:
    """Write tokens as a token file.

    Args:
        tables: of the model that made the tokens; tables beyond the tokens' codebooks are not used.
        coder: "auto" takes the smaller of static (where every codebook has a table) and packed.

    Raises:
        ModelError: static coding without a table for every codebook.
        ValueError: metadata that is no JSON or longer than 64 KiB.
    """
    planes = tokens.codes.reshape(tokens.num_codebooks, -1)
    sizes = tokens.codebook_sizes
    candidates: dict[Coder, list[bytes]] = {}
    if coder != "static":
        candidates["packed"] = [entropy.pack(plane, size) for plane, size in zip(planes, sizes, strict=True)]
    have_all = tables is not None and all(table is not None for table in tables[: len(sizes)])
    if coder == "static" or (coder == "auto" and have_all):
        chosen_tables = _fitting(tables, sizes, tokens.model)
        candidates["static"] = [rans.encode(plane, table) for plane, table in zip(planes, chosen_tables, strict=True)]
    chosen, streams = min(candidates.items(), key=lambda candidate: sum(map(len, candidate[1])))
    header = Header(
        coder=chosen,
        modality=tokens.modality,
        model=tokens.model,
        codebook_sizes=tokens.codebook_sizes,
        grid=tokens.grid,
        stride=tokens.stride,
        size=tokens.size,
        payload_lengths=tuple(map(len, streams)),
        metadata=tokens.metadata,
    )
    body = pack_header(header) + b"".join(streams)
    return body + checksum(body)


def load(data: bytes, tables: Tables | None = None, num_codebooks: int | None = None) -> Tokens:
    """Read a token file.

    Args:
        tables: of the model that made the tokens; only statically coded files need them.
        num_codebooks: decode only the first so many; None for all.

    Raises:
        CorruptFileError: not a token file, or a damaged one.
        UnsupportedVersionError: a token file of a newer version of the format.
        ModelError: tables are needed and missing, or are those of another model.
        UsageError: the file has fewer codebooks than asked for.
    """
    header, offset = parse_header(data)
    num_codebooks = _checked(header, num_codebooks)
    sizes, count = header.codebook_sizes[:num_codebooks], math.prod(header.grid)
    needed = _fitting(tables, sizes, header.model) if header.coder == "static" else [None] * num_codebooks
    planes = []
    for size, length, table in zip(sizes, header.payload_lengths, needed, strict=False):
        stream = data[offset : offset + length]
        offset += length
        planes.append(entropy.unpack(stream, size, count) if table is None else rans.decode(stream, table, count))
    return _tokens(header, planes)


def dump_joint(tokens: Tokens, tables: Tables | None = None) -> tuple[Coder, bytes]:
    """Code tokens as one stream that needs no lengths of its codebooks, as shards do; `load_joint` reads it.

    Returns:
        The smaller of static (where every codebook has a table) and packed.
    """
    planes = tokens.codes.reshape(tokens.num_codebooks, -1)
    sizes = tokens.codebook_sizes
    packed = b"".join(entropy.pack(plane, size) for plane, size in zip(planes, sizes, strict=True))
    if tables is None or any(table is None for table in tables[: len(sizes)]):
        return "packed", packed
    stream = b""
    for plane, table in zip(planes[::-1], _fitting(tables, sizes, tokens.model)[::-1], strict=True):
        stream = rans.push(stream, plane, table)
    return ("static", stream) if len(stream) < len(packed) else ("packed", packed)


def load_joint(header: Header, stream: bytes, tables: Tables | None = None, num_codebooks: int | None = None) -> Tokens:
    """Read tokens from the one stream of all their codebooks.

    Args:
        tables, num_codebooks: as `load` takes them.

    Raises:
        As `load` does.
    """
    wanted = _checked(header, num_codebooks)
    sizes, count = header.codebook_sizes[:wanted], math.prod(header.grid)
    planes = []
    if header.coder == "static":
        for table in _fitting(tables, sizes, header.model):
            plane, stream = rans.pop(stream, table, count)
            planes.append(plane)
    else:
        for size in sizes:
            length = packed_bytes(size, count)
            planes.append(entropy.unpack(stream[:length], size, count))
            stream = stream[length:]
    if stream and wanted == header.num_codebooks:
        raise CorruptFileError("codes were not coded with these entropy tables: give the model that made them")
    return _tokens(header, planes)


def _checked(header: Header, num_codebooks: int | None) -> int:
    """Return how many codebooks to decode, if this reader can."""
    if header.coder == "prior":
        raise UnsupportedVersionError("token file is coded with a context prior, unknown here: upgrade vqtok")
    if num_codebooks is None:
        return header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"cannot decode {num_codebooks} codebooks: the token file has {header.num_codebooks}")
    return num_codebooks


def _tokens(header: Header, planes: list[NDArray[np.int32]]) -> Tokens:
    return Tokens(
        codes=np.stack(planes).reshape(len(planes), *header.grid),
        codebook_sizes=header.codebook_sizes[: len(planes)],
        modality=header.modality,
        size=header.size,
        stride=header.stride,
        model=header.model,
        metadata=header.metadata,
    )


def _fitting(tables: Tables | None, codebook_sizes: tuple[int, ...], model: bytes) -> list[NDArray[np.uint16]]:
    """Return a table for each codebook, or say which model has them."""
    fitting = [
        table
        for table, size in zip(tables or (), codebook_sizes, strict=False)
        if table is not None and len(table) == size
    ]
    if len(fitting) < len(codebook_sizes):
        raise ModelError(f"statically coded tokens need the entropy tables of model {model.hex()}: give that model")
    return fitting
