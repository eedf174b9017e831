"""`SavedModel`: a model that transformers or diffusers saved with `save_pretrained`."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.digest import weight_files, weight_variant, weights_digest
from vqtok.models.tokenizer import Tokenizer


class SavedModel(Tokenizer):
    """A model in a folder saved by another library; each family is a subclass.

    Args:
        source: The folder.

    Raises:
        ModelError: The library is not installed or cannot load the folder.
        CorruptFileError: A weight file is damaged.
    """

    package: ClassVar[str] = "transformers"
    network_class: ClassVar[str]
    one_by_one = True
    settings: ClassVar[tuple[str, ...]]
    """Entries of the config that affect codes or media; they are part of the identity, like the weights."""

    def __init__(self, source: str) -> None:
        self.folder = Path(source)
        digest = weights_digest(weight_files(self.folder))
        self.network = _load(self.folder, self.package, self.network_class)
        self.config = self.network.config
        settings = {name: attrgetter(name)(self.config) for name in self.settings}
        text = json.dumps([self.network_class, settings, digest], sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).digest()

    def encode(self, x: Tensor) -> Tensor:
        return self.encode_first(x, len(self.codebook_sizes))

    @abstractmethod
    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor: ...

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def facts(self) -> dict[str, Any]:
        config = self.config.to_dict() if hasattr(self.config, "to_dict") else dict(self.config)
        return {
            "family": self.network_class,
            "num_parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "file_bytes": sum(file.stat().st_size for file in weight_files(self.folder)),
            "whole": self.why_whole,
            "config": config,
        }


def _load(folder: Path, library: str, network_class: str) -> Any:
    """Load a network in float32. All weights must match the network."""
    try:
        found: Any = getattr(import_module(library), network_class)
    except ImportError as error:
        raise ModelError(f"{folder}: requires {library}: pip install 'vqtok[{library}]' ({error})") from error
    keyword = "dtype" if library == "transformers" else "torch_dtype"
    try:
        with _silent(library):
            network, loading = found.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                weights_only=True,
                variant=weight_variant(folder),
                **{keyword: torch.float32},
            )
    except Exception as error:  # The library may raise anything for a folder that it cannot load.
        raise ModelError(f"{folder}: {library} cannot load it: {str(error).strip().partition(chr(10))[0]}") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if loading.get(what):
            keys = ", ".join(sorted(map(str, loading[what])))
            raise ModelError(f"{folder}: the weights do not match the config: {what.replace('_', ' ')} {keys}")
    assert isinstance(network, nn.Module)
    return network.eval().requires_grad_(False)


@contextmanager
def _silent(library: str) -> Iterator[None]:
    """Suppress the library's progress bars and warnings."""
    logging = import_module(f"{library}.utils.logging")
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
