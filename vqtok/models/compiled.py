"""Networks compiled ahead of time, each to one program for inputs of every size."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtok.errors import ModelError, UsageError
from vqtok.models.tokenizer import Tokenizer
from vqtok.models.vqmodel import VQModel

BATCH, GRIDS = 2, {1: (75,), 2: (24, 32)}
"""What is compiled for: the sizes decide which variants of its parts the compiler takes, for all sizes."""
CHECKED = {1: ((1, 1), (3, 37)), 2: ((1, 1, 2), (3, 5, 11))}
"""Batches and grids that show whether the result is right for other sizes, too."""
OPTIONS: dict[str, Any] = {"freezing": True, "cpp.threads": 1}

_compiling = threading.Lock()

Program = Callable[[Tensor], Tensor]


def compiled(tokenizer: Tokenizer, autocast: torch.dtype | None, threads: int) -> Tokenizer:
    """Give the same model with networks that compile themselves when they are first needed.

    Args:
        autocast: What the network computes in, if not in float32.
        threads: How many will use it at once.

    Raises:
        ModelError: the model is not of this package's networks.
    """
    if not isinstance(tokenizer, VQModel):
        raise ModelError("--compile: models of other libraries are not compiled; leave it out")
    config = tokenizer.config
    device, stride = next(tokenizer.parameters()).device, tokenizer.stride
    axes = 2 if tokenizer.modality == "image" else 1

    def network(network: nn.Module, channels: int, step: int) -> nn.Module:
        def example(batch: int, *grid: int) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            return torch.rand(batch, channels, *(length * step for length in grid), generator=generator).to(device)

        return _Compiled(_Autocast(network, device, autocast), example, axes, threads)

    twin = copy.copy(tokenizer)
    twin._modules = tokenizer._modules | {  # which a copy shares
        "encoder": network(tokenizer.encoder, tokenizer.channels, stride),
        "decoder": network(tokenizer.decoder, config.quantizer.dim, 1),
    }
    return twin


class _Compiled(nn.Module):
    """A network that runs as a program of its own, compiled ahead of time.

    Unlike: torch.compile compiles variants for the kinds of sizes as they come, and runs the network as it is when
        there are too many. What is computed would depend on what came before. Here one program does all.
    """

    def __init__(self, network: nn.Module, example: Callable[..., Tensor], axes: int, threads: int) -> None:
        super().__init__()
        self.network = network
        self._example, self._axes, self._threads = example, axes, threads
        self._lock = threading.Lock()
        self._program: Program | ModelError | None = None

    def forward(self, x: Tensor) -> Tensor:
        with self._lock:
            if self._program is None:
                self._program = self._made()
        if isinstance(self._program, ModelError):
            raise self._program
        return self._program(_channels_last(x))

    def _made(self) -> Program | ModelError:
        try:
            with _compiling, warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # of torch, about itself
                program = self._compile()
                self._check(program)
        except Exception as error:  # of whatever kind: they come from many parts of torch
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            return ModelError(f"--compile: this model cannot be compiled, leave it out: {first}")
        return program

    def _compile(self) -> Program:
        from torch._inductor.package.package import load_package

        x = _channels_last(self._example(BATCH, *GRIDS[self._axes]))
        free = {axis: torch.export.Dim.DYNAMIC for axis in range(x.ndim) if axis != 1}
        exported = torch.export.export(self.network, (x,), dynamic_shapes={"x": free})
        path = _cache_folder() / f"{_fingerprint(exported)}.pt2"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Others may be doing the same.
            part = path.with_name(f"{os.getpid()}-{path.name}")
            torch._inductor.aoti_compile_and_package(exported, package_path=str(part), inductor_configs=dict(OPTIONS))
            part.replace(path)
        index = -1 if x.device.index is None else x.device.index
        program: Program = load_package(str(path), num_runners=self._threads, device_index=index)
        return program

    def _check(self, program: Program) -> None:
        """Compare with the network itself: a program does not notice sizes or layouts that it was not made for."""
        for sizes in CHECKED[self._axes]:
            x = _channels_last(self._example(*sizes))
            right = self.network(x).float()
            difference = (program(x).float() - right).norm() / right.norm()
            if not difference < 0.1:
                raise ValueError(f"what came out is wrong by {difference:.0%} for a grid of {sizes[1:]}")


class _Autocast(nn.Module):
    def __init__(self, network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.network, self._device, self._dtype = network, device.type, dtype

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device, self._dtype, enabled=self._dtype is not None):
            return self.network(x)


def _channels_last(x: Tensor) -> Tensor:
    """Lay channels last: programs take only the layout that they were compiled for."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _fingerprint(exported: torch.export.ExportedProgram) -> str:
    """Name all that the program depends on."""
    digest = hashlib.sha256()
    digest.update(exported.graph_module.print_readable(print_output=False).encode())
    tensors = {**exported.state_dict, **exported.constants}
    device = next(iter(tensors.values())).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    digest.update(repr((torch.__version__, device, machine, OPTIONS)).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _cache_folder() -> Path:
    """Give a folder of this machine, where torch keeps what it compiles: code for one processor fails on another."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "vqtok"


def check_compiler(device: str) -> None:
    """Refuse a kind of device that nothing can be compiled for.

    Raises:
        UsageError: telling what to install.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch.utils._triton import has_triton

    if device not in ("cpu", "cuda"):
        raise UsageError(f"--compile: not on --device {device}; leave it out")
    try:
        get_cpp_compiler()
    except RuntimeError:
        raise UsageError("--compile needs a C++ compiler: install g++, or name one in CXX") from None
    if device == "cuda" and not has_triton():
        raise UsageError("--compile on a GPU needs Triton: pip install triton")
