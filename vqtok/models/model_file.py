"""Model files: a safetensors file with weights, entropy tables, config, training summary and identity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vqtok.config import Config, from_dict
from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.files.atomic import atomic_write
from vqtok.files.paths import error_context
from vqtok.models.card import BIT_VALUE, FORMAT_VERSION, METADATA_KEY, hash_identity, read_card
from vqtok.models.entropy_model import PREFIXES, TABLE_PREFIX, entropy_model
from vqtok.models.vqmodel import VQModel, build_model
from vqtok.quantizers import VQ


def save_model(
    path: Path,
    model: VQModel,
    config: Config,
    *,
    entropy_tables: Mapping[int, NDArray[np.integer]] | Mapping[str, NDArray[np.integer]],
    prior: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    training: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> bytes:
    """Write a model file atomically and return its identity.

    Args:
        entropy_tables: Integer frequencies by codebook, in a fusion model by names such as `image.0`; codes of a
            codebook without a table are bit-packed.
        prior: Arrays of a context prior by name, in a fusion model as `of_side` names them.
    """
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in decoding_state(model).items()}
    for index, table in entropy_tables.items():
        tensors[f"{TABLE_PREFIX}{index}"] = torch.from_numpy(np.asarray(table, dtype=np.int16))
    tensors |= {name: torch.from_numpy(array) for name, array in prior.items()}
    return _write(path, model, config.to_dict(), tensors, training, bit_value=model.bit_value)


def save_part(
    path: Path,
    model: VQModel,
    config: Config,
    parent: Path,
    part: Literal["encoder", "decoder"],
    *,
    training: Mapping[str, Any],
) -> bytes:
    """Write a model file with one part of a model and all else of another file, and return its identity.

    With another encoder the identity stays that of the other file. With another decoder it is a new one, and the model
    decodes the tokens of the other file as well.

    Raises:
        ModelError, CorruptFileError: The other file cannot be read.
    """
    card, tensors = read_card(parent), _read_tensors(parent)
    for name, tensor in model.state_dict().items():
        if name.startswith(f"{part}."):
            tensors[name] = tensor.detach().cpu().to(tensors[name].dtype).contiguous()
    decodes = card.decodes if part == "encoder" else (card.identity, *card.decodes)
    return _write(
        path, model, config.to_dict() | {"model": card.config["model"]}, tensors, training, decodes, card.bit_value
    )


def _write(
    path: Path,
    model: VQModel,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    training: Mapping[str, Any],
    decodes: Sequence[str] = (),
    bit_value: float = BIT_VALUE,
) -> bytes:
    identity = compute_identity(config["model"], tensors)
    strides = [side.stride for side in model.sides.values()]
    metadata = {
        "format": FORMAT_VERSION if len(strides) > 1 else 1,
        "identity": identity.hex(),
        "config": config,
        "training": dict(training),
        "codebook_sizes": model.codebook_sizes,
        "stride": strides[0] if len(strides) == 1 else strides,
        "bit_value": bit_value,
    } | ({"decodes": list(decodes)} if decodes else {})
    atomic_write(path, to_safetensors(dict(tensors), metadata={METADATA_KEY: json.dumps(metadata)}))
    return identity


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: the model file is damaged: {error}; copy it again") from None


def load_model(path: Path) -> VQModel:
    """Load a model file in float32 and evaluation mode, and check its identity.

    Raises:
        ModelError: The file is not a vqtok model.
        CorruptFileError: It is damaged.
        UnsupportedVersionError: It has a newer format.
    """
    card, tensors = read_card(path), _read_tensors(path)
    identity = compute_identity(card.config["model"], tensors)
    if identity.hex() != card.identity:
        raise CorruptFileError(f"{path}: the weights do not match the identity {card.identity[:8]}; copy it again")
    arrays = {name: tensors.pop(name).numpy() for name in list(tensors) if name.startswith(PREFIXES)}
    try:
        model = build_model(from_dict(Config, card.config).model)
        missing, unexpected = model.load_state_dict(tensors, strict=False)
    except (UsageError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path}: is not compatible with this version of vqtok: {reason}") from error
    missing = [name for name in missing if name in decoding_state(model)]
    if missing or unexpected:
        raise ModelError(f"{path}: the weights do not match the config: {[*missing, *unexpected][0]}")
    for module in model.modules():
        if isinstance(module, VQ):
            module.reset_statistics()
    with error_context(path):
        model.entropy_model = entropy_model(arrays, len(model.codebook_sizes))
    model.identity, model.decodes = identity, tuple(map(bytes.fromhex, card.decodes))
    model.bit_value = card.bit_value
    for modality, side in model.sides.items():
        side.decodes = model.decodes
        side.identity, side.entropy_model = identity, model.entropy_model.of(modality)
        side.bit_value = card.bit_value
    return model.eval().requires_grad_(False)


def decoding_state(model: VQModel) -> dict[str, Tensor]:
    """Return the model's state without the statistics that only training needs."""
    statistics = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, VQ)
        for buffer in VQ.statistics
    }
    return {name: tensor for name, tensor in model.state_dict().items() if name not in statistics}


def compute_identity(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Return the identity of a model: a hash of quantizer, decoder, tables, prior and config, as they are stored."""

    def read(name: str) -> tuple[str, list[int], bytes]:
        tensor = tensors[name]
        return str(tensor.dtype), list(tensor.shape), tensor.numpy().tobytes()

    return hash_identity(config, tensors, read)
