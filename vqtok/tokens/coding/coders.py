"""The three coders of a stream of codes, and the choice between them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.tokens.coding import packing, rans
from vqtok.tokens.coding.prior import Prior
from vqtok.tokens.fields import varint
from vqtok.tokens.shape import Coder
from vqtok.tokens.tokens import Tokens

logger = logging.getLogger(__name__)


Codes = NDArray[np.int32]

ChosenCoder = Literal["auto", "prior", "static", "packed"]
CHOSEN_CODERS: tuple[ChosenCoder, ...] = get_args(ChosenCoder)


@dataclass(frozen=True)
class EntropyModel:
    """A model's probabilities of its codes: static frequencies, and a context prior."""

    tables: Sequence[NDArray[np.uint16] | None] = ()
    """Integer frequencies, one entry per codebook, coarse first; None for a codebook that is too large."""
    prior: Prior | None = None
    sides: Mapping[str, EntropyModel] = field(default_factory=dict)
    """Those of each modality instead, for a model of several."""

    def of(self, modality: str) -> EntropyModel:
        """Return the probabilities of the codes of a modality."""
        return self.sides.get(modality, self)


NO_MODEL = EntropyModel()


def chosen_coder(name: str) -> ChosenCoder:
    """Return the coder with this name.

    Raises:
        UsageError: There is none.
    """
    for coder in CHOSEN_CODERS:
        if coder == name:
            return coder
    raise UsageError(f"no coder {name!r}; there are {', '.join(CHOSEN_CODERS)}")


def encode(
    tokens: Tokens, parts: Sequence[Codes], model: EntropyModel, coder: ChosenCoder, *, joint: bool = False
) -> tuple[Coder, list[list[bytes]]]:
    """Encode parts of a grid with the chosen coder, or with the one whose result is smallest.

    Shapes:
        parts: Each `(num_codebooks, *grid)`.

    Returns:
        The coder, and for each part one stream per codebook; with `joint` the pieces of a single stream.
    """
    sizes, model = tokens.codebook_sizes, model.of(tokens.modality)
    candidates: dict[Coder, list[list[bytes]]] = {}

    def planes(part: Codes) -> list[Codes]:
        return list(part.reshape(len(sizes), -1))

    if joint or coder in ("auto", "packed"):
        candidates["packed"] = [list(map(packing.pack, planes(part), sizes)) for part in parts]
    tables = model.tables[: len(sizes)]
    if coder == "static" or (coder == "auto" and tables and all(table is not None for table in tables)):
        fitting = fitting_tables(model, sizes, tokens.model)
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
            logger.warning("the prior does not reproduce the codes on this machine and is not used; please report this")
    if not candidates:
        raise ModelError(
            "the prior does not reproduce the codes on this machine, please report this; choose another `coder`"
        )
    return min(candidates.items(), key=lambda candidate: sum(len(stream) for part in candidate[1] for stream in part))


def _push(planes: Sequence[Codes], tables: Sequence[NDArray[np.uint16]]) -> bytes:
    stream = b""
    for plane, table in zip(reversed(planes), reversed(tables), strict=True):
        stream = rans.push(stream, plane, table)
    return stream


def _with_lengths(streams: Sequence[bytes]) -> list[bytes]:
    """Prefix each stream but the last with its length."""
    return [*(varint(len(stream)) + stream for stream in streams[:-1]), streams[-1]]


def decode(
    coder: Coder,
    streams: list[bytes],
    grid: tuple[int, ...],
    codebook_sizes: Sequence[int],
    identity: bytes,
    model: EntropyModel,
) -> Codes:
    """Decode the streams of the first codebooks of a grid or of a part of it.

    Args:
        codebook_sizes: Sizes of at least as many codebooks as there are streams.
        identity: The first 8 bytes of the identity of the model that made the codes, for error messages.

    Returns:
        Codes of shape `(len(streams), *grid)`.

    Raises:
        CorruptFileError: A stream is damaged.
        ModelError: `model` lacks the tables or the prior that the coder needs.
    """
    sizes, count = codebook_sizes[: len(streams)], math.prod(grid)
    if coder == "prior":
        return _fitting_prior(model, sizes, identity).decode(streams, grid)
    if coder == "static":
        tables = fitting_tables(model, sizes, identity)
        planes = [rans.decode(stream, table, count) for stream, table in zip(streams, tables, strict=True)]
    else:
        planes = [packing.unpack(stream, size, count) for stream, size in zip(streams, sizes, strict=True)]
    return np.stack(planes).reshape(-1, *grid)


def fitting_tables(model: EntropyModel, sizes: Sequence[int], identity: bytes) -> list[NDArray[np.uint16]]:
    """Return the table of each codebook.

    Raises:
        ModelError: The model lacks one; the message names the right model.
    """
    fitting = [
        table for table, size in zip(model.tables, sizes, strict=False) if table is not None and len(table) == size
    ]
    if len(fitting) < len(sizes):
        raise ModelError(
            f"statically coded tokens need the entropy tables of model {identity.hex()}; give it as `model`"
        )
    return fitting


def _fitting_prior(model: EntropyModel, sizes: Sequence[int], identity: bytes) -> Prior:
    prior = model.prior
    if prior is None or prior.codebook_sizes[: len(sizes)] != tuple(sizes):
        raise ModelError(f"tokens coded with a prior need the one of model {identity.hex()}; give it as `model`")
    return prior
