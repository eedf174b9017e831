"""Reads the weights of a TorchScript archive without running or compiling the program in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import torch
from torch import Tensor

from vqtok.errors import ModelError


def is_torchscript(file: BinaryIO) -> bool:
    """Return whether a file is an archive of TorchScript."""
    if not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def read_torchscript(file: BinaryIO) -> dict[str, Tensor]:
    """Return the tensors of the modules in an archive, by the names that `state_dict` gives them.

    The modules are described by a pickle, of which only tensors, numbers and lists become objects of Python.

    Raises:
        ModelError: The archive is damaged, or has something else in it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            place = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")
            with archive.open(place) as data:
                module = _Unpickler(data, archive, place.removesuffix(".pkl")).load()
                if not isinstance(module, _Module):
                    raise ValueError("not a module")
    except (pickle.UnpicklingError, zipfile.BadZipFile, LookupError, ValueError, TypeError, EOFError, RuntimeError):
        raise ModelError("is a TorchScript archive that is damaged, or has more than weights in it") from None
    return dict(_tensors_of(module, ""))


class _Module:
    """A module or another object of the program; its attributes are in `__dict__`."""


def _tensors_of(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Module):
            yield from _tensors_of(value, f"{prefix}{name}.")


def _rebuild(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *others: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()


def _same(value: Any, *others: Any) -> Any:
    return value


ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": dict,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch.jit._pickle.build_intlist": _same,
    "torch.jit._pickle.build_doublelist": _same,
    "torch.jit._pickle.build_boollist": _same,
    "torch.jit._pickle.build_tensorlist": _same,
    "torch.jit._pickle.restore_type_tag": _same,
}
"""What stands for the functions that the pickle may call."""
DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(data)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if f"{module}.{name}" in ALLOWED:
            return ALLOWED[f"{module}.{name}"]
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        data = bytearray(self._archive.read(f"{self._folder}/{key}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
