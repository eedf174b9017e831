"""Generator files: a safetensors file with weights, config, streams, and the facts of the training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

from vqtok.config import from_dict
from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.files.atomic import atomic_write
from vqtok.generation.config import GeneratorConfig
from vqtok.generation.network import Generator
from vqtok.generation.streams import Stream, stream_of
from vqtok.models.card import FORMAT_VERSION, METADATA_KEY, read_generator_card


def save_generator(
    path: Path, generator: Generator, config: GeneratorConfig, training: Mapping[str, Any], dtype: torch.dtype
) -> str:
    """Write a generator file atomically and return its identity, in hex."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in generator.state_dict().items()}
    streams = [stream.to_dict() for stream in generator.streams.values()]
    digest = hashlib.sha256(json.dumps([config.to_dict()["network"], streams], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name} {list(tensors[name].shape)}\n".encode() + tensors[name].numpy().tobytes())
    metadata = {
        "format": FORMAT_VERSION,
        "kind": "generator",
        "identity": digest.hexdigest(),
        "config": config.to_dict(),
        "streams": streams,
        "training": dict(training),
    }
    atomic_write(path, to_safetensors(tensors, metadata={METADATA_KEY: json.dumps(metadata)}))
    return digest.hexdigest()


def load_generator(path: Path, device: torch.device | str = "cpu") -> Generator:
    """Load a generator in float32 and evaluation mode.

    Raises:
        ModelError: The file is not a generator, or not compatible with this version.
        CorruptFileError: It is damaged.
        UnsupportedVersionError: It has a newer format.
    """
    card = read_generator_card(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (not a dict)
        streams = [stream_of(values) for values in card.streams]
        config = from_dict(GeneratorConfig, card.config)
        generator = new_generator(config, streams, tensors)
        generator.load_state_dict(tensors)
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: the generator is damaged: {error}; copy it again") from None
    except (UsageError, RuntimeError, TypeError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path}: is not compatible with this version of vqtok: {reason}") from error
    return generator.to(device).eval().requires_grad_(False)


def new_generator(config: GeneratorConfig, streams: list[Stream], tensors: Mapping[str, torch.Tensor]) -> Generator:
    """Return a generator whose code tables have codebook vectors where these tensors do."""
    vectors = {
        stream.name: found
        for stream in streams
        if len(
            found := [
                tensors[name]
                for index in range(stream.num_codebooks)
                if (name := f"layers.{stream.name}.tables.{index}.vectors") in tensors
            ]
        )
        == stream.num_codebooks
    }
    return Generator(config.network, streams, vectors)
