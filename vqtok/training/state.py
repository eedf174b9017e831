"""Checkpoints: everything that the next step depends on, in one safetensors file that is written atomically."""

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

from vqtok.errors import OutputError, TrainingError, UsageError
from vqtok.files.atomic import atomic_write, refuse_existing

logger = logging.getLogger(__name__)

RUN_SUFFIX = ".run"
"""The suffix of the folder for what training writes besides the model."""
CHECKPOINT_NAME = "checkpoint.safetensors"
PREVIOUS_NAME = "checkpoint.previous.safetensors"
CODES_NAME = "codes.sqlite"
RUN_FILES = (
    CHECKPOINT_NAME,
    PREVIOUS_NAME,
    "metrics.jsonl",
    "step-*.png",
    "step-*.wav",
    "tensorboard/events.*",
    f"{CODES_NAME}*",
)
"""Patterns of the files in a run folder."""


def refuse_existing_run(output: Path, run_folder: Path, force: bool) -> None:
    """Raise if a model file or its run folder exists and is not to be overwritten, or cannot be created.

    Raises:
        UsageError, OutputError: What is in the way.
    """
    if output == run_folder:
        raise UsageError(f"{output}: the suffix {RUN_SUFFIX} is for the run folder; name the model .safetensors")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder")
    if not force and (run_folder / CHECKPOINT_NAME).exists():
        raise OutputError(f"{run_folder}: contains a run; `resume` continues it, `overwrite` starts over")
    if not force:
        refuse_existing(output)


def start_run_folder(run_folder: Path) -> None:
    """Create the run folder, or remove the files of an earlier run from it.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        run_folder.mkdir(exist_ok=True)
        for pattern in RUN_FILES:
            for path in run_folder.glob(pattern):
                path.unlink()
    except OSError as error:
        raise OutputError(f"{run_folder}: cannot be written: {error.strerror}") from None


def save_checkpoint(
    folder: Path,
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    window: Tensor,
    facts: dict[str, Any],
) -> None:
    """Write modules, optimizers, codebook window and facts, and keep the previous checkpoint under another name.

    The random generators need no state, since every step seeds them from the run's seed and its own number.
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
    for leftover in folder.glob(f".{CHECKPOINT_NAME}.*.tmp"):  # Left by a run that was killed while writing.
        leftover.unlink()
    newest = folder / CHECKPOINT_NAME
    if newest.exists():
        newest.replace(folder / PREVIOUS_NAME)
    atomic_write(newest, data)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts of the newest undamaged checkpoint of a run folder.

    Raises:
        TrainingError: There is no checkpoint.
    """
    for name in (CHECKPOINT_NAME, PREVIOUS_NAME):
        try:
            with safe_open(folder / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
                return tensors, json.loads(file.metadata()["facts"])
        except FileNotFoundError:
            continue
        except SafetensorError as error:
            logger.warning("%s: damaged checkpoint, skipped: %s", folder / name, error)
    raise TrainingError(f"{folder}: no checkpoint to resume from; start without `resume`")


def restore(
    tensors: dict[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Load the tensors of a checkpoint into modules and optimizers.

    Raises:
        TrainingError: The tensors do not fit.
    """
    try:
        for name, module in modules.items():
            module.load_state_dict(_below(tensors, name))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise TrainingError(f"the checkpoint is of another model; start over with `overwrite`: {reason}") from None
    for name, optimizer in optimizers.items():
        _restore_optimizer(_below(tensors, name), optimizer, _parameter_names(modules, optimizer))


def _restore_optimizer(
    tensors: dict[str, Tensor], optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]
) -> None:
    by_path: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        entry, _, path = key.partition(".")
        by_path.setdefault(path, {})[entry] = tensor
    # PyTorch numbers parameters by their position in the groups.
    state = {index: by_path[path] for index, path in enumerate(names.values()) if path in by_path}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    for parameter, entries in optimizer.state.items():
        for entry, tensor in entries.items():
            if tensor.shape == parameter.shape:
                # The fused optimizer works on raw memory: its means need the memory format of their parameter
                # (channels_last), which the file does not keep.
                entries[entry] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


def _parameter_names(modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """Return the parameters of an optimizer with their module and path, in its order."""
    paths = {
        parameter: f"{name}.{path}" for name, module in modules.items() for path, parameter in module.named_parameters()
    }
    return {parameter: paths[parameter] for group in optimizer.param_groups for parameter in group["params"]}


def _below(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
