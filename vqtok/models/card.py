"""A model file's card: what its header says, read without torch or numpy."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError

FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1 << 24
METADATA_KEY = "vqtok"
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""What torch calls them, for the identity."""


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
    """Of encoder, quantiser and decoder."""
    has_prior: bool
    file_bytes: int


def read_card(path: Path) -> ModelCard:
    """Read the header of a model file.

    Raises:
        ModelError: missing, or not a model of vqtok. CorruptFileError: cut short or damaged.
        UnsupportedVersionError: of a newer format.
    """
    tensors, metadata, file_bytes = _read_header(path)
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path}: a safetensors file, but not a vqtok model")
    try:
        values = json.loads(metadata[METADATA_KEY])
        if values["format"] > FORMAT_VERSION:
            raise UnsupportedVersionError(f"{path}: model format {values['format']}; upgrade vqtok to read it")
        _check_types(values)
        return ModelCard(
            identity=bytes.fromhex(values["identity"]).hex(),
            config=values["config"],
            training=values["training"],
            codebook_sizes=tuple(values["codebook_sizes"]),
            stride=values["stride"],
            num_parameters=sum(
                math.prod(x["shape"]) for name, x in tensors.items() if not name.startswith(("entropy.", "prior."))
            ),
            has_prior=any(name.startswith("prior.") for name in tensors),
            file_bytes=file_bytes,
        )
    except (ValueError, LookupError, TypeError):
        raise CorruptFileError(f"{path}: damaged model card; copy the file again") from None


def _check_types(values: dict[str, Any]) -> None:
    """Refuse a card whose entries are not of the kind that its readers count on.

    Raises:
        ValueError, LookupError, TypeError: they are not.
    """
    config, sizes = values["config"], values["codebook_sizes"]
    whole = [values["stride"], config["model"]["sample_rate"], *sizes]
    if not all(type(number) is int and number >= 0 for number in whole) or not sizes:
        raise ValueError
    if config["model"]["modality"] not in ("image", "audio") or not isinstance(config["data"]["note"], str):
        raise ValueError
    if not isinstance(values["training"], dict):
        raise ValueError


def check_identity(path: Path) -> None:
    """Check that a model file holds what its identity was computed from, as `vqtok.models.model_file` does with torch.

    Raises:
        CorruptFileError: it does not. Others as `read_card`.
    """
    card = read_card(path)
    tensors, _, _ = _read_header(path)
    digest = hashlib.sha256(json.dumps(card.config["model"], sort_keys=True).encode())
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in sorted(name for name in tensors if not name.startswith("encoder.")):
            tensor = tensors[name]
            begin, end = tensor["data_offsets"]
            digest.update(f"\n{name} torch.{_DTYPES[tensor['dtype']]} {tensor['shape']}\n".encode())
            file.seek(start + begin)
            digest.update(file.read(end - begin))
    if digest.hexdigest() != card.identity:
        raise CorruptFileError(f"{path}: weights do not match the identity {card.identity[:8]}; copy it again")


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return a safetensors file's tensors (shapes and places), its metadata and its size."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length) if length <= MAX_HEADER_BYTES else b""
            file_bytes = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw.startswith(b"{"):
        raise ModelError(f"{path}: not a safetensors file")
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", {})
        for entry in header.values():
            numbers = [*entry["shape"], *entry["data_offsets"]]
            if not all(type(number) is int and number >= 0 for number in numbers):
                raise ValueError
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in _DTYPES or begin > end:
                raise ValueError
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if not isinstance(metadata, dict) or file_bytes != 8 + length + end:
            raise ValueError
    except (ValueError, LookupError, TypeError):
        raise CorruptFileError(f"{path}: model file is damaged or cut short; copy it again") from None
    return header, metadata, file_bytes
