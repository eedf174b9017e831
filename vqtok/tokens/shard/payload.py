"""The codes of one item as the payload of a record in a shard."""

from __future__ import annotations

import math

import numpy as np

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding import rans
from vqtok.tokens.coding.coders import NO_MODEL, ChosenCoder, EntropyModel, decode, encode, fitting_tables
from vqtok.tokens.fields import Fields
from vqtok.tokens.shape import Coder, packed_bytes
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import num_wanted, with_codes
from vqtok.tokens.vqt.header import Header


def dump_joint(tokens: Tokens, model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto") -> tuple[Coder, bytes]:
    """Encode tokens for a shard, which does not store the lengths of codebooks; `load_joint` reads the result.

    Packed codes follow one another by codebook; statically coded ones share a single stream. With a prior each
    codebook has its own stream, and each but the last is prefixed by its length as a varint.

    Args:
        model, coder: As for `dump`, except that packed codes replace a result that is longer than they are.

    Raises:
        ModelError: The model lacks what the chosen coder needs.
    """
    chosen, [pieces] = encode(tokens, [tokens.codes], model, coder, joint=True)
    return chosen, b"".join(pieces)


def load_joint(
    header: Header, stream: bytes, model: EntropyModel = NO_MODEL, num_codebooks: int | None = None
) -> Tokens:
    """Decode the result of `dump_joint`.

    Args:
        model, num_codebooks: As for `load`.

    Raises:
        As `load` does.
    """
    wanted, count, model = num_wanted(header, num_codebooks), math.prod(header.grid), model.of(header.modality)
    if header.coder == "static":
        planes = []
        for table in fitting_tables(model, header.codebook_sizes[:wanted], header.model):
            plane, stream = rans.pop(stream, table, count)
            planes.append(plane)
        if stream and wanted == header.num_codebooks:
            raise CorruptFileError("the codes were not coded with these frequencies; give the model that made them")
        return with_codes(header, np.stack(planes))
    fields, streams = Fields(stream, 0, len(stream)), []
    for index in range(wanted):
        if header.coder == "packed":
            length = packed_bytes(header.codebook_sizes[index], count)
        else:
            length = fields.number() if index < header.num_codebooks - 1 else len(stream) - fields.offset
        streams.append(fields.take(length))
    return with_codes(header, decode(header.coder, streams, header.grid, header.codebook_sizes, header.model, model))
