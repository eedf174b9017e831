"""What importers of folders have in common: new names of weights, and sizes that follow from weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.importers.checkpoint import Checkpoint

Converted = tuple[dict[str, Any], dict[str, Tensor]]
"""The config.json and the weights of a folder."""


def renamed(rules: Mapping[str, str], name: str) -> str:
    """Return the new name of a weight, by the first rule (a regular expression and its replacement) that applies."""
    for pattern, replacement in rules.items():
        new, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            return new
    raise ModelError(f"has an unknown weight {name}; it may be of another family")


def take_all(checkpoint: Checkpoint, rules: Mapping[str, str]) -> dict[str, Tensor]:
    return {renamed(rules, name): checkpoint.take(name) for name in list(checkpoint.tensors)}


def without_weight_norm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace the magnitudes and directions of weights by the weights."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(("weight_g", "weight_v"))}
    for name in (name for name in tensors if name.endswith("weight_g")):
        stem = name.removesuffix("_g")
        plain[stem] = torch._weight_norm(tensors[f"{stem}_v"], tensors[name], 0)
    return plain


def strides(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[int]:
    """Return the strides of convolutions whose kernels are twice as long."""
    return [tensors[name].shape[2] // 2 for name in names]


def existing(template: str, tensors: Mapping[str, Tensor], start: int = 0) -> list[str]:
    """Return the names that exist of those with the numbers 0, 1, 2, ... or from another one on."""
    names: list[str] = []
    for index in count(start):
        if (name := template.format(index)) not in tensors:
            return names
        names.append(name)
    return names
