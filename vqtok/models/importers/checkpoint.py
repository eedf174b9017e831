"""Reads the weights of a checkpoint without running any code that it may contain."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vqtok.errors import ModelError
from vqtok.media.kinds import sniff
from vqtok.models.adapters.digest import read_weights, weight_files
from vqtok.models.importers.torchscript import is_torchscript, read_torchscript

AVERAGES = "model_ema."
"""The prefix of averaged weights, whose names then have no dots."""
FIRST_STAGE = "first_stage_model."
"""The prefix of the weights of a tokenizer inside a latent diffusion model."""
BASE = "semantic_model."
"""The prefix of the weights of another model that a checkpoint builds on."""
SECTIONS = ("ema", "model_ema", "ema_state_dict", "model", "state_dict", "model_state_dict", "generator", "module")
"""The entries of a checkpoint that may contain weights, in the order in which they are tried; averages first."""
WRAPPERS = re.compile(r"(?:^(?:(?:module|_orig_mod|model|generator|state_dict)\.)+)|(?:(?<=\.)(?:module|_orig_mod)\.)")
"""Prefixes in the names of weights from distributed training, torch.compile and modules that contain the model."""
SHOWN = 5
"""The most names in a message."""


class Checkpoint:
    """Weights by name. Each is either taken once or dropped by a named rule.

    Args:
        tensors: All weights; those that are taken or dropped are removed.
        dropped: The number of entries of the file that each rule has already dropped.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dropped: Mapping[str, int] | None = None) -> None:
        self.tensors = dict(tensors)
        self.num_taken = 0
        self.dropped = Counter(dropped)
        self.averaged = False
        self.metadata: Mapping[str, Any] = {}
        """The entry `metadata` of the file, in which some projects store settings."""
        self.base_config: Mapping[str, Any] = {}
        """The config.json of the model that was added by `add_base`."""

    def add_base(self, folder: Path) -> None:
        """Add the weights of another model, saved by transformers, that the checkpoint builds on.

        Raises:
            ModelError: The folder has no config.json or no weights.
            CorruptFileError: Its weights are damaged.
        """
        try:
            self.base_config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError):
            raise ModelError(f"the `base` {folder} has no config.json of transformers; choose another") from None
        for file in weight_files(folder):
            self.tensors |= {f"{BASE}{name}": tensor for name, tensor in read_weights(file)}

    def take(self, name: str, dims: int | None = None) -> Tensor:
        """Remove and return weights, in float32.

        Raises:
            ModelError: There are no weights of that name, or they have another number of dimensions.
        """
        tensor = self._find(name, dims)
        del self.tensors[name]
        self.num_taken += 1
        return tensor.float()

    def size(self, name: str, axis: int) -> int:
        """Return the size of a convolution's weight along an axis; raises like `take`."""
        return self._find(name, dims=4).shape[axis]

    def _find(self, name: str, dims: int | None) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"has no {name}; it may be of another family")
        tensor = self.tensors[name]
        if dims is not None and tensor.ndim != dims:
            raise ModelError(f"{name} has shape {tuple(tensor.shape)}; it may be of another family")
        return tensor

    def drop(self, rule: str, applies: Callable[[str], bool]) -> None:
        """Drop the weights whose names satisfy a condition, and count them under the name of the rule."""
        names = [name for name in self.tensors if applies(name)]
        for name in names:
            del self.tensors[name]
        if names:
            self.dropped[rule] += len(names)

    def enter_first_stage(self) -> None:
        """Reduce a latent diffusion model to its tokenizer, without averages, which such a model does not use."""
        if any(name.startswith(FIRST_STAGE) for name in self.tensors):
            self.drop("the model around it", lambda name: not name.startswith(FIRST_STAGE))
            self.tensors = {name.removeprefix(FIRST_STAGE): tensor for name, tensor in self.tensors.items()}
            self.drop("averaged weights, which the model around it does not use", _is_average)

    def use_averages(self) -> None:
        """Replace weights by their averages.

        Raises:
            ModelError: The average of a weight is ambiguous, because another one has the same name without dots.
        """
        averages = {name.removeprefix(AVERAGES): name for name in self.tensors if _is_average(name)}
        names = [name for name in self.tensors if not _is_average(name)]
        short = Counter(name.replace(".", "") for name in names)
        for name in names:
            source = averages.get(name.replace(".", ""))
            if source is None:
                continue
            if short[name.replace(".", "")] > 1:
                raise ModelError(f"{source} could be the average of several weights, such as {name}")
            self.tensors[name] = self.tensors.pop(source)
            self.dropped["weights that averages stand in for"] += 1
            self.averaged = True
        self.drop("counters of the averages", {f"{AVERAGES}decay", f"{AVERAGES}num_updates"}.__contains__)

    def refuse_leftovers(self) -> None:
        """Raise if weights are left that were neither taken nor dropped.

        Raises:
            ModelError: Naming the weights that are left.
        """
        if self.tensors:
            raise ModelError(f"has {len(self.tensors)} unknown weights: {_shown(sorted(self.tensors))}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the weights of a PyTorch or safetensors file; the averaged ones if there are several sets.

    Raises:
        ModelError: The file cannot be read, is not a checkpoint, or contains objects that need code to load.
    """
    content, dropped, averaged = _read(path), Counter[str](), False
    if isinstance(content.get("CodecEnc"), Mapping) and isinstance(content.get("generator"), Mapping):
        # BigCodec's two networks, of which generator is the decoder.
        encoder = {f"CodecEnc.{name}": tensor for name, tensor in content["CodecEnc"].items()}
        content = {"state_dict": encoder | dict(content["generator"])}
    metadata = content.get("metadata")
    while sections := [name for name in SECTIONS if isinstance(content.get(name), Mapping)]:
        chosen, *others = sections
        averaged |= "ema" in chosen
        dropped["state of the training run"] += len(content) - len(sections)
        dropped["weights that averages stand in for"] += sum(len(content[name]) for name in others)
        content = content[chosen]
    checkpoint = Checkpoint(_unwrapped(_tensors(content)), +dropped)
    checkpoint.averaged = averaged
    checkpoint.metadata = metadata if isinstance(metadata, Mapping) else {}
    return checkpoint


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes of wrapper modules from the names of weights."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = WRAPPERS.sub("", name)
        if own in found:
            raise ModelError(f"has several weights for {own} of the model, such as {name}")
        found[own] = tensor
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            if sniff(file.read(16)) == "model":
                return load_file(path)
            if is_torchscript(file):
                return read_torchscript(file)
            file.seek(0)
            # A Namespace, in which training scripts store their settings, only has plain values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                # The open file instead of the path, whose suffix would influence PyTorch.
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None:
            raise ModelError("not a PyTorch checkpoint, or damaged") from None
        raise ModelError(
            f"contains more than weights ({unsafe[1]}), which cannot be read without running code from it; if you "
            "trust it, extract its weights: python -c \"import torch; torch.save({'state_dict': torch.load("
            f"'{path.name}', 'cpu', weights_only=False)['state_dict']}}, 'weights.ckpt')\""
        ) from None
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError):
        raise ModelError("not a PyTorch or safetensors checkpoint, or damaged") from None
    if not isinstance(content, Mapping):
        raise ModelError(f"contains a {type(content).__name__} instead of weights by name")
    return content


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    others = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"has entries that are not weights: {_shown(others)}")
    return dict(values)


def _is_average(name: str) -> bool:
    return name.startswith(AVERAGES)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
