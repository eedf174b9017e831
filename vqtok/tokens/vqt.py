"""The `.vqt` token file: `dump` tokens to bytes and `load` them back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice, pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.tokens import entropy, rans
from vqtok.tokens.fields import Fields, varint
from vqtok.tokens.grid import Tokens
from vqtok.tokens.header import (
    Coder,
    Header,
    Modality,
    Parts,
    cut,
    pack_header,
    packed_bytes,
    parse_whole,
    seal,
)
from vqtok.tokens.prior import Prior

logger = logging.getLogger(__name__)

Codes = NDArray[np.int32]

ChosenCoder = Literal["auto", "prior", "static", "packed"]
CHOSEN_CODERS: tuple[ChosenCoder, ...] = get_args(ChosenCoder)

SEGMENT_POSITIONS: dict[Modality, int] = {"image": 1 << 14, "audio": 1 << 12}
"""Of a segment, at most, but for rows that are longer: a picture of 1024 x 1024 at stride 8, a minute at 75 Hz."""


@dataclass(frozen=True)
class EntropyModel:
    """What a model knows of how often its codes occur."""

    tables: Sequence[NDArray[np.uint16] | None] = ()
    """Frequencies, one entry a codebook, coarse first; None for a codebook too large to have any."""
    prior: Prior | None = None


NO_MODEL = EntropyModel()


def dump(tokens: Tokens, model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto") -> bytes:
    """Write tokens as a token file.

    Args:
        model: of the model that made the tokens; what it has beyond the tokens' codebooks is not used.
        coder: "auto" takes the smallest of prior, static (where the model has all they need) and packed.

    Raises:
        ModelError: a coder was asked for and the model lacks what it needs.
        ValueError: metadata that is no JSON or longer than 64 KiB.
    """
    steps = _segment_steps(tokens)
    parts = [tokens.codes[:, *part] for part in cut(tokens.modality, tokens.grid, steps)]
    chosen, payloads = _code(tokens, parts, model, coder)
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
    """Return how many rows of a picture or steps of a sound to put into a segment; 0 for all."""
    along = tokens.grid[0 if tokens.modality == "image" else -1]
    across = math.prod(tokens.grid) // along
    steps = max(1, SEGMENT_POSITIONS[tokens.modality] // across)
    return steps if steps < along else 0


def chosen_coder(name: str) -> ChosenCoder:
    """Give the coder of this name.

    Raises:
        UsageError: there is none.
    """
    for coder in CHOSEN_CODERS:
        if coder == name:
            return coder
    raise UsageError(f"no coder {name!r}; there are {', '.join(CHOSEN_CODERS)}")


def _code(
    tokens: Tokens, parts: Sequence[Codes], model: EntropyModel, coder: ChosenCoder, *, joint: bool = False
) -> tuple[Coder, list[list[bytes]]]:
    """Code the parts of the codes by the coder asked for or the best: each one's streams, or the pieces of a joint one.

    Shapes:
        parts: `(num_codebooks, *grid)` of each.
    """
    sizes = tokens.codebook_sizes
    candidates: dict[Coder, list[list[bytes]]] = {}

    def planes(part: Codes) -> list[Codes]:
        return list(part.reshape(len(sizes), -1))

    if joint or coder in ("auto", "packed"):
        candidates["packed"] = [list(map(entropy.pack, planes(part), sizes)) for part in parts]
    tables = model.tables[: len(sizes)]
    if coder == "static" or (coder == "auto" and tables and all(table is not None for table in tables)):
        fitting = _fitting_tables(model, sizes, tokens.model)
        if joint:
            candidates["static"] = [[_push(planes(part), fitting)] for part in parts]
        else:
            candidates["static"] = [list(map(rans.encode, planes(part), fitting)) for part in parts]
    if coder == "prior" or (coder == "auto" and model.prior):
        prior = _fitting_prior(model, sizes, tokens.model)
        try:
            streams = [prior.encode(part) for part in parts]
            candidates["prior"] = list(map(_with_lengths, streams)) if joint else streams
        except CorruptFileError:
            logger.warning("the prior does not give back the codes on this machine, please report it; left out")
    if not candidates:
        raise ModelError("the prior does not give back the codes on this machine, please report it; use another coder")
    return min(candidates.items(), key=lambda candidate: sum(len(stream) for part in candidate[1] for stream in part))


def _push(planes: Sequence[Codes], tables: Sequence[NDArray[np.uint16]]) -> bytes:
    stream = b""
    for plane, table in zip(reversed(planes), reversed(tables), strict=True):
        stream = rans.push(stream, plane, table)
    return stream


def _with_lengths(streams: Sequence[bytes]) -> list[bytes]:
    """Put its length before each stream but the last, which ends where all end."""
    return [*(varint(len(stream)) + stream for stream in streams[:-1]), streams[-1]]


def load(data: bytes, model: EntropyModel = NO_MODEL, num_codebooks: int | None = None) -> Tokens:
    """Read a token file.

    Args:
        model: of the model that made the tokens; bit-packed files do not need it.
        num_codebooks: decode only the first so many; None for all.

    Raises:
        CorruptFileError: not a token file, or a damaged one.
        UnsupportedVersionError: a token file of a newer version of the format.
        ModelError: the entropy model is needed and missing, or is that of another model.
        UsageError: the file has fewer codebooks than asked for.
    """
    return load_parts(data, parse_whole(data), model, num_codebooks)


def load_parts(
    data: bytes,
    parts: Parts,
    model: EntropyModel = NO_MODEL,
    num_codebooks: int | None = None,
    blank: Sequence[int] = (),
) -> Tokens:
    """Read what is whole of a token file.

    Args:
        parts: as `vqtok.tokens.header.parse_parts` gives them.
        model, num_codebooks: as `load` takes them.
        blank: the codes, one a codebook, that take the place of what is damaged.

    Raises:
        As `load` does.
    """
    header, starts, _ = parts
    wanted = _wanted(header, num_codebooks)
    codes = np.empty((wanted, *header.grid), np.int32)
    lengths = iter(header.payload_lengths)
    for place, start in zip(cut(header.modality, header.grid, header.segment_steps), starts, strict=True):
        part, own = codes[:, *place], list(islice(lengths, header.num_codebooks))
        if start is None:
            part[...] = np.reshape(blank[:wanted], (-1, *[1] * len(header.grid)))
        else:
            edges = list(accumulate(own[:wanted], initial=start))
            part[...] = _decode(header, [data[a:b] for a, b in pairwise(edges)], part.shape[1:], model)
    return _tokens(header, codes)


def dump_joint(tokens: Tokens, model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto") -> tuple[Coder, bytes]:
    """Code tokens as shards do, which have no room for the lengths of codebooks; `load_joint` reads it.

    Packed codes stand one codebook after the other, statically coded ones in one stream of all. With a prior each
    codebook has a stream, and all but the last its length before it, as a varint.

    Args:
        model, coder: as `dump` takes them, but never more bytes than packed codes take: rather these.

    Raises:
        ModelError: a coder was asked for and the model lacks what it needs.
    """
    chosen, [pieces] = _code(tokens, [tokens.codes], model, coder, joint=True)
    return chosen, b"".join(pieces)


def load_joint(
    header: Header, stream: bytes, model: EntropyModel = NO_MODEL, num_codebooks: int | None = None
) -> Tokens:
    """Read what `dump_joint` has written.

    Args:
        model, num_codebooks: as `load` takes them.

    Raises:
        As `load` does.
    """
    wanted, count = _wanted(header, num_codebooks), math.prod(header.grid)
    if header.coder == "static":
        planes = []
        for table in _fitting_tables(model, header.codebook_sizes[:wanted], header.model):
            plane, stream = rans.pop(stream, table, count)
            planes.append(plane)
        if stream and wanted == header.num_codebooks:
            raise CorruptFileError("codes were not coded with these frequencies: give the model that made them")
        return _tokens(header, np.stack(planes))
    fields, streams = Fields(stream, 0, len(stream)), []
    for index in range(wanted):
        if header.coder == "packed":
            length = packed_bytes(header.codebook_sizes[index], count)
        else:
            length = fields.number() if index < header.num_codebooks - 1 else len(stream) - fields.offset
        streams.append(fields.take(length))
    return _tokens(header, _decode(header, streams, header.grid, model))


def _wanted(header: Header, num_codebooks: int | None) -> int:
    """Return how many codebooks to decode."""
    if num_codebooks is None:
        return header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"cannot decode {num_codebooks} codebooks: the token file has {header.num_codebooks}")
    return num_codebooks


def _decode(header: Header, streams: list[bytes], grid: tuple[int, ...], model: EntropyModel) -> Codes:
    """Decode the streams of the first codebooks, of a grid or a part of it."""
    sizes, count = header.codebook_sizes[: len(streams)], math.prod(grid)
    if header.coder == "prior":
        return _fitting_prior(model, sizes, header.model).decode(streams, grid)
    if header.coder == "static":
        tables = _fitting_tables(model, sizes, header.model)
        planes = [rans.decode(stream, table, count) for stream, table in zip(streams, tables, strict=True)]
    else:
        planes = [entropy.unpack(stream, size, count) for stream, size in zip(streams, sizes, strict=True)]
    return np.stack(planes).reshape(-1, *grid)


def _tokens(header: Header, codes: NDArray[np.int32]) -> Tokens:
    return Tokens(
        codes=codes.reshape(len(codes), *header.grid),
        codebook_sizes=header.codebook_sizes[: len(codes)],
        modality=header.modality,
        size=header.size,
        stride=header.stride,
        model=header.model,
        metadata=header.metadata,
    )


def _fitting_tables(model: EntropyModel, sizes: Sequence[int], identity: bytes) -> list[NDArray[np.uint16]]:
    """Return a table for each codebook, or say which model has them."""
    fitting = [
        table for table, size in zip(model.tables, sizes, strict=False) if table is not None and len(table) == size
    ]
    if len(fitting) < len(sizes):
        raise ModelError(f"statically coded tokens need the entropy tables of model {identity.hex()}: give that model")
    return fitting


def _fitting_prior(model: EntropyModel, sizes: Sequence[int], identity: bytes) -> Prior:
    prior = model.prior
    if prior is None or prior.codebook_sizes[: len(sizes)] != tuple(sizes):
        raise ModelError(f"tokens coded with a prior need that of model {identity.hex()}: give that model")
    return prior
