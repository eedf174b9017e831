"""The `.vqt` token file: `dump` tokens to bytes and `load` them back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.tokens import entropy, rans
from vqtok.tokens.grid import Tokens
from vqtok.tokens.header import Coder, Fields, Header, checksum, pack_header, packed_bytes, parse_header, varint
from vqtok.tokens.prior import Prior

logger = logging.getLogger(__name__)

ChosenCoder = Literal["auto", "prior", "static", "packed"]
CHOSEN_CODERS: tuple[ChosenCoder, ...] = get_args(ChosenCoder)


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
    chosen, streams = _code(tokens, model, coder)
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


def chosen_coder(name: str) -> ChosenCoder:
    """Give the coder of this name.

    Raises:
        UsageError: there is none.
    """
    for coder in CHOSEN_CODERS:
        if coder == name:
            return coder
    raise UsageError(f"no coder {name!r}; there are {', '.join(CHOSEN_CODERS)}")


def _code(tokens: Tokens, model: EntropyModel, coder: ChosenCoder, *, joint: bool = False) -> tuple[Coder, list[bytes]]:
    """Give the payload by the coder asked for or the best: one stream a codebook, or the parts of a joint one."""
    planes = tokens.codes.reshape(tokens.num_codebooks, -1)
    sizes = tokens.codebook_sizes
    candidates: dict[Coder, list[bytes]] = {}
    if joint or coder in ("auto", "packed"):
        candidates["packed"] = [entropy.pack(plane, size) for plane, size in zip(planes, sizes, strict=True)]
    tables = model.tables[: len(sizes)]
    if coder == "static" or (coder == "auto" and tables and all(table is not None for table in tables)):
        fitting = _fitting_tables(model, sizes, tokens.model)
        pairs = list(zip(planes, fitting, strict=True))
        candidates["static"] = [_push(pairs)] if joint else [rans.encode(plane, table) for plane, table in pairs]
    if coder == "prior" or (coder == "auto" and model.prior):
        prior = _fitting_prior(model, sizes, tokens.model)
        streams = prior.encode(tokens.codes)
        # Decoded at once: a coder whose two sides could disagree must never be the only copy of anyone's tokens.
        if np.array_equal(prior.decode(streams, tokens.grid), tokens.codes):
            candidates["prior"] = _with_lengths(streams) if joint else streams
        else:
            logger.warning("the prior does not give back the codes on this machine, please report it; left out")
    if not candidates:
        raise ModelError("the prior does not give back the codes on this machine, please report it; use another coder")
    return min(candidates.items(), key=lambda candidate: sum(map(len, candidate[1])))


def _push(planes: Sequence[tuple[NDArray[np.int32], NDArray[np.uint16]]]) -> bytes:
    stream = b""
    for plane, table in reversed(planes):
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
    header, offset = parse_header(data)
    streams = []
    for length in header.payload_lengths[: _wanted(header, num_codebooks)]:
        streams.append(data[offset : offset + length])
        offset += length
    return _decode(header, streams, model)


def dump_joint(tokens: Tokens, model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto") -> tuple[Coder, bytes]:
    """Code tokens as shards do, which have no room for the lengths of codebooks; `load_joint` reads it.

    Packed codes stand one codebook after the other, statically coded ones in one stream of all. With a prior each
    codebook has a stream, and all but the last its length before it, as a varint.

    Args:
        model, coder: as `dump` takes them, but never more bytes than packed codes take: rather these.

    Raises:
        ModelError: a coder was asked for and the model lacks what it needs.
    """
    chosen, parts = _code(tokens, model, coder, joint=True)
    return chosen, b"".join(parts)


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
    return _decode(header, streams, model)


def _wanted(header: Header, num_codebooks: int | None) -> int:
    """Return how many codebooks to decode."""
    if num_codebooks is None:
        return header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"cannot decode {num_codebooks} codebooks: the token file has {header.num_codebooks}")
    return num_codebooks


def _decode(header: Header, streams: list[bytes], model: EntropyModel) -> Tokens:
    """Decode the streams of the first codebooks."""
    sizes, count = header.codebook_sizes[: len(streams)], math.prod(header.grid)
    if header.coder == "prior":
        codes = _fitting_prior(model, sizes, header.model).decode(streams, header.grid)
    elif header.coder == "static":
        tables = _fitting_tables(model, sizes, header.model)
        codes = np.stack([rans.decode(stream, table, count) for stream, table in zip(streams, tables, strict=True)])
    else:
        codes = np.stack([entropy.unpack(stream, size, count) for stream, size in zip(streams, sizes, strict=True)])
    return _tokens(header, codes)


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
