"""The `.vqt` token file: `dump` tokens to bytes and `load` them back."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import ModelError, UsageError
from vqtok.tokens import entropy, rans
from vqtok.tokens.grid import Tokens
from vqtok.tokens.header import Coder, Header, checksum, pack_header, parse_header
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


def _code(tokens: Tokens, model: EntropyModel, coder: ChosenCoder) -> tuple[Coder, list[bytes]]:
    """Give the payload, one stream a codebook, by the coder asked for or the best."""
    planes = tokens.codes.reshape(tokens.num_codebooks, -1)
    sizes = tokens.codebook_sizes
    candidates: dict[Coder, list[bytes]] = {}
    if coder in ("auto", "packed"):
        candidates["packed"] = [entropy.pack(plane, size) for plane, size in zip(planes, sizes, strict=True)]
    tables = model.tables[: len(sizes)]
    if coder == "static" or (coder == "auto" and tables and all(table is not None for table in tables)):
        fitting = _fitting_tables(model, sizes, tokens.model)
        candidates["static"] = [rans.encode(plane, table) for plane, table in zip(planes, fitting, strict=True)]
    if coder == "prior" or (coder == "auto" and model.prior):
        prior = _fitting_prior(model, sizes, tokens.model)
        streams = prior.encode(tokens.codes)
        # Decoded at once: a coder whose two sides could disagree must never be the only copy of anyone's tokens.
        if np.array_equal(prior.decode(streams, tokens.grid), tokens.codes):
            candidates["prior"] = streams
        else:
            logger.warning("the prior does not give back the codes on this machine, please report it; left out")
    if not candidates:
        raise ModelError("the prior does not give back the codes on this machine, please report it; use another coder")
    return min(candidates.items(), key=lambda candidate: sum(map(len, candidate[1])))


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
    if num_codebooks is None:
        num_codebooks = header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"cannot decode {num_codebooks} codebooks: the token file has {header.num_codebooks}")
    sizes, count = header.codebook_sizes[:num_codebooks], math.prod(header.grid)
    streams = []
    for length in header.payload_lengths[:num_codebooks]:
        streams.append(data[offset : offset + length])
        offset += length
    if header.coder == "prior":
        codes = _fitting_prior(model, sizes, header.model).decode(streams, header.grid)
    elif header.coder == "static":
        tables = _fitting_tables(model, sizes, header.model)
        codes = np.stack([rans.decode(stream, table, count) for stream, table in zip(streams, tables, strict=True)])
    else:
        codes = np.stack([entropy.unpack(stream, size, count) for stream, size in zip(streams, sizes, strict=True)])
    return Tokens(
        codes=codes.reshape(num_codebooks, *header.grid),
        codebook_sizes=sizes,
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
