"""Checkpoints: everything that the next step depends on, in one safetensors file written atomically."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vqtok.errors import TrainingError
from vqtok.files.atomic import atomic_write

logger = logging.getLogger(__name__)

RUN_SUFFIX = ".run"
"""Of the folder that holds what training writes besides the model."""
CHECKPOINT_NAME = "checkpoint.safetensors"
PREVIOUS_NAME = "checkpoint.previous.safetensors"
RUN_FILES = (CHECKPOINT_NAME, PREVIOUS_NAME, "metrics.jsonl", "step-*.png", "step-*.wav", "tensorboard/events.*")
"""What a run folder holds, as patterns."""


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    window: Tensor,
    facts: dict[str, Any],
) -> None:
    """Write modules, optimisers, codebook window and facts; the checkpoint before is kept under another name.

    Random numbers need no state: every step seeds its own from the run's seed and its number.
    """
    tensors = {
        f"{name}.{key}": tensor for name, module in modules.items() for key, tensor in module.state_dict().items()
    }
    for name, optimizer in optimizers.items():
        for parameter, path in _parameter_names(modules, optimizer).items():
            for entry, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name}.{entry}.{path}"] = torch.as_tensor(value)
    tensors["window"] = window
    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        metadata={"facts": json.dumps(facts)},
    )
    for leftover in folder.glob(f".{CHECKPOINT_NAME}.*.tmp"):  # Of a run killed while it wrote.
        leftover.unlink()
    newest = folder / CHECKPOINT_NAME
    if newest.exists():
        newest.replace(folder / PREVIOUS_NAME)
    atomic_write(newest, data)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts of the newest whole checkpoint of a run folder.

    Raises:
        TrainingError: there is none.
    """
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        try:
            with safe_open(folder / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                return tensors, json.loads(file.metadata()["facts"])
        except FileNotFoundError:
            continue
        except SafetensorError as error:
            logger.warning("%s: damaged, left out: %s", folder / name, error)
    raise TrainingError(f"{folder}: no checkpoint to resume from; start without --resume")


def restore(
    tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Put the tensors of a checkpoint back into modules and optimisers.

    Raises:
        TrainingError: they do not fit.
    """
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainingError(f"the checkpoint is of another model; start anew with --force: {reason}") from None
    for name, optimizer in optimizers.items():
        _restore_optimizer(_below(tensors, name), optimizer, _parameter_names(modules, optimizer))


def _restore_optimizer(
    tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]
) -> None:
    by_path: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        entry, _, path = key.partition(".")
        by_path.setdefault(path, {})[entry] = tensor
    # torch numbers parameters by their place in the groups.
    state = {index: by_path[path] for index, path in enumerate(names.values()) if path in by_path}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, entries in optimizer.state.items():
        for entry, tensor in entries.items():
            if tensor.shape == parameter.shape:
                # The fused optimiser walks through raw memory: its means must lie there as their parameter does
                # (channels_last), not as in the file.
                entries[entry] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _parameter_names(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """Name the parameters of an optimiser by module and path, in its order."""
    paths = {
        parameter: f"{name}.{path}" for name, module in modules.items() for path, parameter in module.named_parameters()
    }
    return {parameter: paths[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
