"""A model file's card: what its header says, read without torch or numpy."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1 << 24
METADATA_KEY = "vqtok"


@dataclass(frozen=True)
class ModelCard:
    """The header of a vqtok model file."""

    identity: str
    """SHA-256 in hex over all that decoding depends on."""
    config: dict[str, Any]
    """The `Config` it was trained with."""
    training: dict[str, Any]
    """What it was trained on, for how long, and what it reached on held-out files."""
    codebook_sizes: tuple[int, ...]
    stride: int
    num_parameters: int
    file_bytes: int


def read_card(path: Path) -> ModelCard:
    """Read the header of a model file.

    Raises:
        ModelError: not a model of vqtok. CorruptFileError: cut short. UnsupportedVersionError: of a newer format.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ModelError(f"{path}: not a safetensors file")
        raw = file.read(length)
    if len(raw) < length:
        raise CorruptFileError(f"{path}: model file is cut short in its header")
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        ends = [entry["data_offsets"][1] for entry in header.values()]
        sizes = [math.prod(entry["shape"]) for name, entry in header.items() if not name.startswith("entropy.")]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path}: not a safetensors file") from None
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path}: a safetensors file, but not a vqtok model")
    if file_bytes != 8 + length + max(ends, default=0):
        raise CorruptFileError(f"{path}: model file is cut short or has bytes added; copy it again")
    values = json.loads(metadata[METADATA_KEY])
    if values["format"] > FORMAT_VERSION:
        raise UnsupportedVersionError(f"{path}: model format {values['format']}; upgrade vqtok to read it")
    return ModelCard(
        identity=values["identity"],
        config=values["config"],
        training=values["training"],
        codebook_sizes=tuple(values["codebook_sizes"]),
        stride=values["stride"],
        num_parameters=sum(sizes),
        file_bytes=file_bytes,
    )
