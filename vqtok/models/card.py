"""The header of a model file, read without torch or numpy."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError
from vqtok.files.atomic import atomic_write

FORMAT_VERSION = 2
"""Of fusion models; all others have version 1, so that earlier versions of vqtok read them."""
MAX_HEADER_BYTES = 1 << 24
METADATA_KEY = "vqtok"
BIT_VALUE = 0.25
"""The `bit_value` of new models, and of files that have none. Tuned on 10 photographs at 2 and 4 codebooks; below 1,
since the prior knows more than the static tables."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The names of data types in safetensors files, and those in torch, which are part of the identity."""


@dataclass(frozen=True)
class ModelCard:
    """The header of a vqtok model file."""

    identity: str
    """SHA-256 of everything that decoding depends on, in hex."""
    config: dict[str, Any]
    """The `Config` of the training."""
    training: dict[str, Any]
    """The training data, the duration of the training, and its results on held-out files."""
    codebook_sizes: tuple[int, ...]
    strides: dict[str, int]
    """The stride by modality."""
    decodes: tuple[str, ...]
    """The identities of the models whose tokens it also decodes, in hex: it has their codebooks, tables and prior."""
    num_parameters: int
    """The number of parameters of encoder, quantizer and decoder."""
    has_prior: bool
    file_bytes: int
    bit_value: float = BIT_VALUE
    """The error that a bit may cost in encoding with effort, in units of what a bit of the last codebook saves."""

    def can_decode(self, model: bytes) -> bool:
        """Return whether the model decodes the tokens of a model, given the first 8 bytes of its identity."""
        return any(bytes.fromhex(identity)[:8] == model for identity in (self.identity, *self.decodes))

    @property
    def stride(self) -> int:
        """The stride of a model of one modality, or the first of a fusion model."""
        return next(iter(self.strides.values()))


@dataclass(frozen=True)
class GeneratorCard:
    """The header of a file with a generator, a model of tokens."""

    identity: str
    """SHA-256 of network and streams, in hex."""
    config: dict[str, Any]
    streams: list[dict[str, Any]]
    """What it generates: for each modality its tokenizer, codebooks and window."""
    training: dict[str, Any]
    num_parameters: int
    file_bytes: int


def is_generator(path: Path) -> bool:
    """Return whether a model file has a generator instead of a tokenizer. Raises as `read_card` does."""
    return _read_values(path)[1].get("kind") == "generator"


def read_generator_card(path: Path) -> GeneratorCard:
    """Read the header of a generator.

    Raises:
        ModelError: The file does not exist or is not a generator.
        CorruptFileError: It is truncated or damaged.
        UnsupportedVersionError: It has a newer format.
    """
    tensors, values, file_bytes = _read_values(path)
    if values.get("kind") != "generator":
        raise ModelError(f"{path}: is a tokenizer, not a generator; train one with the preset generator")
    try:
        if not all(isinstance(stream, dict) for stream in values["streams"]):
            raise ValueError
        return GeneratorCard(
            identity=bytes.fromhex(values["identity"]).hex(),
            config=values["config"],
            streams=values["streams"],
            training=values["training"],
            num_parameters=sum(math.prod(entry["shape"]) for entry in tensors.values()),
            file_bytes=file_bytes,
        )
    except (ValueError, LookupError, TypeError):
        raise CorruptFileError(f"{path}: the header is damaged; copy the file again") from None


def read_card(path: Path) -> ModelCard:
    """Read the header of a model file.

    Raises:
        ModelError: The file does not exist or is not a model of vqtok.
        CorruptFileError: It is truncated or damaged.
        UnsupportedVersionError: It has a newer format.
    """
    tensors, values, file_bytes = _read_values(path)
    if values.get("kind") == "generator":
        raise ModelError(f"{path}: is a generator of tokens, not a tokenizer; vqtok generate uses it, or --fill")
    try:
        _check_types(values)
        return ModelCard(
            identity=bytes.fromhex(values["identity"]).hex(),
            config=values["config"],
            training=values["training"],
            codebook_sizes=tuple(values["codebook_sizes"]),
            strides=dict(zip(_modalities(values), _strides(values), strict=True)),
            decodes=tuple(bytes.fromhex(other).hex() for other in values.get("decodes", ())),
            num_parameters=sum(
                math.prod(x["shape"]) for name, x in tensors.items() if not name.startswith(("entropy.", "prior."))
            ),
            has_prior=any(name.startswith("prior.") for name in tensors),
            file_bytes=file_bytes,
            bit_value=values.get("bit_value", BIT_VALUE),
        )
    except (ValueError, LookupError, TypeError):
        raise CorruptFileError(f"{path}: the header is damaged; copy the file again") from None


def _read_values(path: Path) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Return the descriptions of the tensors in a model file, the values of its header, and its size in bytes."""
    tensors, metadata, file_bytes = _read_header(path)
    if METADATA_KEY not in metadata:
        raise ModelError(f"{path}: is a safetensors file, but not a vqtok model; choose another `model`")
    try:
        values = json.loads(metadata[METADATA_KEY])
        newer = values["format"] > FORMAT_VERSION
    except (ValueError, LookupError, TypeError):
        raise CorruptFileError(f"{path}: the header is damaged; copy the file again") from None
    if newer:
        raise UnsupportedVersionError(f"{path}: model format {values['format']}; upgrade vqtok to read it")
    return tensors, values, file_bytes


def _check_types(values: dict[str, Any]) -> None:
    """Raise if the entries of a header do not have the expected types.

    Raises:
        ValueError, LookupError, TypeError: An entry is missing or has another type.
    """
    config, sizes = values["config"], values["codebook_sizes"]
    whole = [*_strides(values), config["model"]["sample_rate"], *sizes]
    if not all(type(number) is int and number >= 0 for number in whole) or not sizes:
        raise ValueError
    if len(_strides(values)) != len(_modalities(values)) or not isinstance(config["data"]["note"], str):
        raise ValueError
    if not isinstance(values["training"], dict) or not isinstance(values.get("decodes", []), list):
        raise ValueError
    if not 0 <= values.get("bit_value", BIT_VALUE) < math.inf:
        raise ValueError


def _modalities(values: dict[str, Any]) -> list[str]:
    modality: str = values["config"]["model"]["modality"]
    return {"image": ["image"], "audio": ["audio"], "fusion": ["image", "audio"]}[modality]


def _strides(values: dict[str, Any]) -> list[int]:
    stride = values["stride"]
    return stride if isinstance(stride, list) else [stride]


def replace_training(path: Path, training: Mapping[str, Any]) -> None:
    """Replace the training facts in the header of a model file; its tensors and its identity stay as they are.

    Raises:
        ModelError, CorruptFileError, UnsupportedVersionError: As for `read_card`.
        OutputError: The file cannot be written.
    """
    _, values, _ = _read_values(path)
    tensors, metadata, _ = _read_header(path)
    metadata[METADATA_KEY] = json.dumps(values | {"training": dict(training)})
    header = json.dumps({"__metadata__": metadata, **tensors}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # Tensors begin at a multiple of 8, as the writers of safetensors align them.
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    atomic_write(path, len(header).to_bytes(8, "little") + header + data[begin:])


def check_identity(path: Path) -> None:
    """Raise if the contents of a model file do not match its identity.

    Raises:
        CorruptFileError: They do not match.
        ModelError, UnsupportedVersionError: As for `read_card`.
    """
    card = read_card(path)
    tensors, _, _ = _read_header(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")

        def read(name: str) -> tuple[str, list[int], bytes]:
            tensor = tensors[name]
            begin, end = tensor["data_offsets"]
            file.seek(start + begin)
            return f"torch.{_DTYPES[tensor['dtype']]}", tensor["shape"], file.read(end - begin)

        identity = hash_identity(card.config["model"], tensors, read)
    if identity.hex() != card.identity:
        raise CorruptFileError(f"{path}: the weights do not match the identity {card.identity[:8]}; copy it again")


def hash_identity(
    config: Mapping[str, Any], names: Iterable[str], read: Callable[[str], tuple[str, list[int], bytes]]
) -> bytes:
    """Return the SHA-256 of everything that decoding depends on: the model config and all tensors but the encoder's.

    Settings added by a later version are not in older files, so that their identities do not change.

    Args:
        names: The names of all tensors.
        read: Returns the torch data type, the shape and the bytes of a tensor by name.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(names):
        if not name.startswith("encoder."):
            dtype, shape, data = read(name)
            digest.update(f"\n{name} {dtype} {shape}\n".encode())
            digest.update(data)
    return digest.digest()


def _read_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """Return the descriptions of the tensors in a safetensors file, its metadata, and its size in bytes."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            raw = file.read(length) if length <= MAX_HEADER_BYTES else b""
            file_bytes = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    if not raw.startswith(b"{"):
        raise ModelError(f"{path}: is not a safetensors file; choose another `model`")
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
        raise CorruptFileError(f"{path}: the model file is damaged or truncated; copy it again") from None
    return header, metadata, file_bytes
