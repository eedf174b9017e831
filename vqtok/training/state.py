"""Checkpoints: everything that the next step depends on, in one safetensors file written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vqtok.errors import TrainingError
from vqtok.files import atomic_write

CHECKPOINT_NAME = "checkpoint.safetensors"
PREVIOUS_NAME = "checkpoint.previous.safetensors"


def save_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write modules, optimiser and facts; the checkpoint before is kept under another name.

    Random numbers need no state: every step seeds its own from the run's seed and its number.
    """
    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for index, entries in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in entries.items()}
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"facts": json.dumps(facts)},
    )
    newest = folder / CHECKPOINT_NAME
    if newest.exists():
        newest.replace(folder / PREVIOUS_NAME)
    atomic_write(newest, data)


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore the newest whole checkpoint of a run folder and return its facts.

    Raises:
        TrainingError: there is none, or it does not fit the modules.
    """
    tensors, facts = _read_newest(folder)
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
    except RuntimeError as error:
        raise TrainingError(f"{folder}: the checkpoint is of another set-up: {error}") from None
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _below(tensors, "optimizer").items():
        index, _, entry = key.partition(".")
        state.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return facts


def _read_newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        try:
            with safe_open(folder / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                return tensors, json.loads(file.metadata()["facts"])
        except (FileNotFoundError, SafetensorError):
            continue
    raise TrainingError(f"{folder}: no checkpoint to resume from; start without --resume")


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
