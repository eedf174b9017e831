"""EnCodec's `.ecdc` files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vqtok.errors import CorruptFileError, MediaError, UnsupportedVersionError
from vqtok.tokens.foreign.codes import ForeignCodes

MAGIC = b"ECDC"
STRIDE, BITS, MAX_CODEBOOKS = 320, 10, 32


@dataclass(frozen=True)
class _Model:
    sample_rate: int
    channels: int = 1
    segment: int | None = None
    """Samples per segment, each segment with a scale; None: one segment, without a scale."""
    hop: int = 0
    """Samples from one segment to the next."""

    def segments(self, samples: int) -> Iterator[int]:
        """Yield the number of frames of each segment."""
        segment = self.segment or samples
        for start in range(0, samples, self.hop or samples):
            yield -(-min(segment, samples - start) // STRIDE)


MODELS = {"encodec_24khz": _Model(24_000), "encodec_48khz": _Model(48_000, 2, 48_000, 47_520)}


def read_ecdc(data: bytes) -> ForeignCodes:
    """Read the codes of an `.ecdc` file: a JSON header, then segments of bit-packed 10-bit codes, frame by frame.

    In each byte the low bits come first.

    Source: Défossez et al. 2022, "High Fidelity Neural Audio Compression", in the form of its library (version 0).
    """
    try:
        _, version, length = struct.unpack_from("!4sBI", data)
        if version != 0:
            raise UnsupportedVersionError(f"an .ecdc file of version {version}; vqtok knows 0")
        header = json.loads(data[9 : 9 + length])
        name, samples, count, coded = (header[key] for key in ("m", "al", "nc", "lm"))
        if type(samples) is not int or samples < 1 or type(count) is not int or not 1 <= count <= MAX_CODEBOOKS:
            raise ValueError("impossible numbers")
    except (struct.error, ValueError, KeyError, TypeError):
        raise CorruptFileError("damaged .ecdc header") from None
    if coded:
        raise MediaError(
            "coded with EnCodec's language model, whose floats only the machine that wrote it is sure to repeat; "
            "write it again with encodec, without its option --lm"
        )
    if name not in MODELS:
        raise MediaError(f"made by a model {name!r}; vqtok knows {', '.join(MODELS)}")
    model = MODELS[name]
    place, codes, scales = 9 + length, [], []
    for steps in model.segments(samples):
        if model.segment is not None:
            scales.append(data[place : place + 4])
            place += 4
        end = place + -(-steps * count * BITS // 8)
        if end > len(data):
            raise CorruptFileError("cut short; copy the file again")
        bits = np.unpackbits(np.frombuffer(data[place:end], np.uint8), count=steps * count * BITS, bitorder="little")
        codes.append(bits.reshape(steps, count, BITS) @ (1 << np.arange(BITS)))
        place = end
    if place != len(data):
        raise CorruptFileError(f"{len(data) - place} bytes too many; copy the file again")
    joined = np.concatenate(codes).T
    return ForeignCodes(
        joined if model.channels == 1 else joined[:, None],
        (samples, model.sample_rate, model.channels),
        name,
        np.frombuffer(b"".join(scales), ">f4").astype(np.float32),
    )
