"""The weights of a checkpoint, read without running any code that it may hold."""

from __future__ import annotations

import argparse
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

AVERAGES = "model_ema."
"""Before the names of averaged weights, which have lost their dots."""
FIRST_STAGE = "first_stage_model."
"""Before the names of a tokenizer inside a model of its latents."""
SECTIONS = ("ema", "model_ema", "ema_state_dict", "model", "state_dict", "model_state_dict", "generator", "module")
"""Of a checkpoint, that hold weights; the averaged ones first, then in the order in which they are looked into."""
WRAPPERS = re.compile(r"(?:^(?:(?:module|_orig_mod|model|generator|state_dict)\.)+)|(?:(?<=\.)(?:module|_orig_mod)\.)")
"""In the names of weights: what distributed training, torch.compile and whatever holds the model put before them."""
SHOWN = 5
"""Of names in a message."""


class Checkpoint:
    """Weights by name, each of which is taken once, or dropped by a rule that has a name.

    Args:
        tensors: All of them; they go as they are taken or dropped.
        dropped: How many entries of the file each rule has dropped already.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dropped: Mapping[str, int] | None = None) -> None:
        self.tensors = dict(tensors)
        self.num_taken = 0
        self.dropped = Counter(dropped)
        self.averaged = False

    def take(self, name: str, dims: int | None = None) -> Tensor:
        """Give weights, in float32.

        Raises:
            ModelError: there are none of that name, or with so many dimensions.
        """
        tensor = self._find(name, dims)
        del self.tensors[name]
        self.num_taken += 1
        return tensor.float()

    def size(self, name: str, axis: int) -> int:
        """Give the size along an axis of what is a convolution's weight; raises as `take`."""
        return self._find(name, dims=4).shape[axis]

    def _find(self, name: str, dims: int | None) -> Tensor:
        if name not in self.tensors:
            raise ModelError(f"lacks {name}; is it of another family?")
        tensor = self.tensors[name]
        if dims is not None and tensor.ndim != dims:
            raise ModelError(f"its {name} has shape {tuple(tensor.shape)}; is it of another family?")
        return tensor

    def drop(self, rule: str, applies: Callable[[str], bool]) -> None:
        names = [name for name in self.tensors if applies(name)]
        for name in names:
            del self.tensors[name]
        if names:
            self.dropped[rule] += len(names)

    def enter_first_stage(self) -> None:
        """Leave the tokenizer only of a model that holds one, whose averages such a model does not use."""
        if any(name.startswith(FIRST_STAGE) for name in self.tensors):
            self.drop("the model around it", lambda name: not name.startswith(FIRST_STAGE))
            self.tensors = {name.removeprefix(FIRST_STAGE): tensor for name, tensor in self.tensors.items()}
            self.drop("averaged weights, which the model around it does not use", _is_average)

    def use_averages(self) -> None:
        """Put averaged weights in the place of those that they are the averages of.

        Raises:
            ModelError: two weights have the same name without dots.
        """
        averages = {name.removeprefix(AVERAGES): name for name in self.tensors if _is_average(name)}
        names = [name for name in self.tensors if not _is_average(name)]
        short = Counter(name.replace(".", "") for name in names)
        for name in names:
            source = averages.get(name.replace(".", ""))
            if source is None:
                continue
            if short[name.replace(".", "")] > 1:
                raise ModelError(f"{source} may be the average of several weights, such as {name}")
            self.tensors[name] = self.tensors.pop(source)
            self.dropped["weights that averages stand in for"] += 1
            self.averaged = True
        self.drop("counters of the averages", {f"{AVERAGES}decay", f"{AVERAGES}num_updates"}.__contains__)

    def refuse_leftovers(self) -> None:
        """Refuse a checkpoint that holds more than what was taken or dropped.

        Raises:
            ModelError: error_context what is left.
        """
        if self.tensors:
            raise ModelError(f"holds {len(self.tensors)} weights that are not known: {_shown(sorted(self.tensors))}")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a PyTorch or safetensors file: of several sets of weights the averaged ones, by their names in the model.

    Raises:
        ModelError: it cannot be read, is no checkpoint, or holds objects that only code in it could make.
    """
    content, dropped, averaged = _read(path), Counter[str](), False
    while sections := [name for name in SECTIONS if isinstance(content.get(name), Mapping)]:
        chosen, *others = sections
        averaged |= "ema" in chosen
        dropped["state of the training run"] += len(content) - len(sections)
        dropped["weights that averages stand in for"] += sum(len(content[name]) for name in others)
        content = content[chosen]
    checkpoint = Checkpoint(_unwrapped(_tensors(content)), +dropped)
    checkpoint.averaged = averaged
    return checkpoint


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take what wraps the model out of the names of weights."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = WRAPPERS.sub("", name)
        if own in found:
            raise ModelError(f"holds several weights that are {own} in the model, such as {name}")
        found[own] = tensor
    return found


def _read(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            if sniff(file.read(16)) == "model":
                return load_file(path)
            file.seek(0)
            # Settings of a command line are plain values.
            with torch.serialization.safe_globals([argparse.Namespace]):
                # As a file, since torch would go by the suffix of a name.
                content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}") from None
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL ([\w.]+)", str(error))
        if unsafe is None:
            raise ModelError("not a PyTorch checkpoint of weights, or a damaged one") from None
        raise ModelError(
            f"holds more than weights ({unsafe[1]}), and to read that would run code from it; if you trust it, "
            "keep its weights alone: python -c \"import torch; torch.save({'state_dict': torch.load("
            f"'{path.name}', 'cpu', weights_only=False)['state_dict']}}, 'weights.ckpt')\""
        ) from None
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError):
        raise ModelError("not a PyTorch or safetensors checkpoint, or a damaged one") from None
    if not isinstance(content, Mapping):
        raise ModelError(f"holds a {type(content).__name__}, not a checkpoint's weights by name")
    return content


def _tensors(values: Mapping[str, Any]) -> dict[str, Tensor]:
    others = [str(name) for name, value in values.items() if not isinstance(value, Tensor)]
    if others:
        raise ModelError(f"holds {len(others)} entries that are no weights: {_shown(others)}")
    return dict(values)


def _is_average(name: str) -> bool:
    return name.startswith(AVERAGES)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
