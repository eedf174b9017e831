"""`SavedModel`: a model that transformers or diffusers saved with `save_pretrained`."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.digest import read_weights, weight_files, weight_variant, weights_digest
from vqtok.models.hub import modules_of
from vqtok.models.tokenizer import Tokenizer

TOGETHER = 1 << 17
"""Samples in a batch on CPUs, of networks that a batch makes faster: several seconds of audio."""


class SavedModel(Tokenizer):
    """A model in a folder saved by another library; each family is a subclass.

    Args:
        source: The folder.

    Raises:
        ModelError: The library is not installed or cannot load the folder.
        CorruptFileError: A weight file is damaged.
    """

    package: ClassVar[str] = "transformers"
    network_class: str
    one_by_one = True
    settings: tuple[str, ...]
    """Entries of the config that affect codes or media; they are part of the identity, like the weights."""
    section: str = ""
    """The entry of the config of a larger model that is the config of the tokenizer within it."""

    def __init__(self, source: str) -> None:
        self.folder = Path(source)
        modules = modules_of(self.folder)
        self.files = weight_files(self.folder, modules)
        digest = weights_digest(self.files, modules)
        self.network = self._load(modules)
        self.config = self.network.config
        settings = {name: attrgetter(name)(self.config) for name in self.settings}
        text = json.dumps([self.network_class, settings | self.more_settings(), digest], sort_keys=True)
        self.identity = hashlib.sha256(text.encode()).digest()

    def _load(self, modules: Sequence[str]) -> Any:
        if modules:
            return load_part(self.folder, self.files, self.network_class, self.section, modules)
        return load_saved(self.folder, self.package, self.network_class)

    def more_settings(self) -> dict[str, Any]:
        """Return settings that are not in the config, but affect codes or media."""
        return {}

    def encode(self, x: Tensor) -> Tensor:
        return self.encode_first(x, len(self.codebook_sizes))

    @abstractmethod
    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor: ...

    def decode(self, codes: Tensor) -> Tensor:
        raise ModelError(f"this model only encodes: {self.why_encode_only}")

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self

    def facts(self) -> dict[str, Any]:
        config = self.config.to_dict() if hasattr(self.config, "to_dict") else dict(self.config)
        return {
            "family": self.network_class,
            "num_parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "file_bytes": sum(file.stat().st_size for file in self.files),
            "whole": self.why_whole,
            "config": config,
        }


def load_saved(folder: Path, library: str, network_class: str) -> Any:
    """Load a network in float32. All weights must match the network."""
    found = find_class(folder, library, network_class)
    keyword = "dtype" if library == "transformers" else "torch_dtype"
    try:
        with silent(library):
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
    return ready(network)


def load_part(folder: Path, files: Sequence[Path], network_class: str, section: str, modules: Sequence[str]) -> Any:
    """Load modules of a larger model of transformers in float32, from the files that hold them.

    Args:
        section: The entry of the model's config that is the config of the network.
    """
    found = find_class(folder, "transformers", network_class)
    try:
        config = json.loads((folder / "config.json").read_bytes())[section]
        with silent("transformers"):
            network = found(found.config_class(**config))
    except Exception as error:  # The library may raise anything for a config that it cannot use.
        raise ModelError(f"{folder}: transformers cannot load it: {type(error).__name__}: {error}") from error
    return ready(fill(network, folder, files, modules))


def load_imported(folder: Path, files: Sequence[Path], what: str, build: Callable[..., nn.Module]) -> Any:
    """Load a network of vqtok from a folder that an importer wrote.

    Args:
        what: The name of the tokenizer, for messages.
        build: Returns the network, given the entries of config.json as keyword arguments.
    """
    try:
        facts = json.loads((folder / "config.json").read_bytes())
        facts.pop("model_type")
        network = build(**facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder}: its config.json is not that of {what}: {error!r}") from None
    return ready(fill(with_config(network, facts), folder, files, ()))


def with_config(network: Any, settings: Mapping[str, Any], described: Mapping[str, Any] | None = None) -> Any:
    """Give a network a `config` like those of transformers.

    Args:
        settings: Its attributes.
        described: What its `to_dict` returns; by default the settings.
    """
    facts = dict(settings if described is None else described)
    network.__dict__["config"] = SimpleNamespace(**settings, to_dict=lambda: facts)
    return network


def fill(network: Any, folder: Path, files: Sequence[Path], modules: Sequence[str]) -> Any:
    """Set the weights of a network to those of files. All must match the network."""
    weights = {name: tensor for file in files for name, tensor in read_weights(file, modules)}
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        details = " ".join(str(error).partition("\n")[2].split())
        raise ModelError(f"{folder}: the weights do not match the config: {details}") from None
    return network


def ready(network: Any) -> Any:
    assert isinstance(network, nn.Module)
    return network.float().eval().requires_grad_(False)


def find_class(folder: Path, library: str, name: str) -> Any:
    """Return a class of a library.

    Raises:
        ModelError: The library is not installed, or has no such class.
    """
    try:
        found = getattr(import_module(library), name)
    except ImportError as error:
        raise ModelError(f"{folder}: requires {library}: pip install 'vqtok[{library}]' ({error})") from error
    except AttributeError as error:
        raise ModelError(f"{folder}: requires a newer {library}, which has {name}: upgrade {library}") from error
    return found


@contextmanager
def silent(library: str) -> Iterator[None]:
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
