"""Read tokens from files of any kind, with the entropy models they need, without torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError, safe_open

from vqtok.errors import CorruptFileError
from vqtok.files.paths import error_context, read_bytes
from vqtok.media.kinds import is_shard
from vqtok.models.card import check_identity, read_card
from vqtok.models.entropy_model import PREFIXES, entropy_model
from vqtok.models.registry import bundled_models, find_model, is_adapted, wrong_model
from vqtok.tokens.coding.coders import NO_MODEL, EntropyModel
from vqtok.tokens.export.export import Export, read_export
from vqtok.tokens.export.mixture_reader import MixtureExport
from vqtok.tokens.export.sidecar import is_export
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.token_table import TokenTable, is_token_table
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import load
from vqtok.tokens.vqt.header import parse_header

Models: TypeAlias = tuple[str, ...]
"""Names or paths of several models."""


def read_entropy_model(path: Path) -> EntropyModel:
    """Read the entropy tables and the prior of a model file, and check its identity."""
    check_identity(path)
    count = len(read_card(path).codebook_sizes)
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys() if name.startswith(PREFIXES)}  # noqa: SIM118
    except SafetensorError as error:
        raise CorruptFileError(f"{path}: the model file is damaged: {error}; copy it again") from None
    with error_context(path):
        return entropy_model(arrays, count)


def entropy_model_of(identity: bytes, model: str | Models | None, beside: Path | None = None) -> EntropyModel:
    """Return the entropy model of the model with this identity (its first 8 bytes): a named one, or a bundled one.

    Raises:
        WrongModelError: The named models are others, or no bundled model has this identity.
    """
    names = [model] if isinstance(model, str) else list(model or ())
    if names and all(is_adapted(name) for name in names):
        raise wrong_model(identity, names[0], beside)
    paths = [find_model(name) for name in names if not is_adapted(name)] or list(bundled_models().values())
    for path in paths:
        if read_card(path).can_decode(identity):
            return read_entropy_model(path)
    raise wrong_model(identity, " or ".join(names) or None, beside)


def open_shard(path: str | Path, model: str | None = None) -> Shard:
    """Open a shard: a mapping of its keys to `Tokens`, which are read on access.

    Args:
        model: The model that made the tokens; by default a bundled one. Bit-packed items need none.

    Raises:
        VqtokError: As for `vqtok.tokens.shard.reader.Shard`.
    """
    return Shard(path, functools.partial(entropy_model_of, model=model, beside=Path(path).parent))


def open_items(path: Path, model: str | None = None) -> Shard | Export | MixtureExport | TokenTable | None:
    """Open a shard or an export, which contain several items: a mapping of keys to `Tokens`; None for other files.

    Args:
        model: As for `open_shard`.

    Raises:
        VqtokError: As for `vqtok.tokens.shard.reader.Shard` and `vqtok.tokens.export.export.Export`.
    """
    if is_shard(path):
        return open_shard(path, model)
    if is_token_table(path):
        return TokenTable(path)
    if not is_export(path):
        return None
    return read_export(path)


class TokenReader:
    """Reads token files and items of shards, with the entropy models of the models that made them.

    Args:
        model: The model that made all the tokens, or all that made some; by default a bundled one. Bit-packed files
            need none.
    """

    def __init__(self, model: str | Models | None = None) -> None:
        self._model_of = functools.cache(functools.partial(entropy_model_of, model=model))
        self._shard = functools.lru_cache(maxsize=1)(self._open)

    def keys(self, file: Path) -> Iterable[str | None]:
        """Return the keys of the items of a shard, in order. A token file is a single item without a key.

        Raises:
            CorruptFileError: The list of keys is damaged.
        """
        return self._shard(file) or [None]

    def read(self, file: Path, key: str | None = None, num_codebooks: int | None = None) -> Tokens:
        """Read a token file or an item of a shard, as `vqtok.tokens.vqt.file.load` does.

        Raises:
            WrongModelError: Another model made the tokens, or one that was not found.
            ModelError: The model cannot be read.
        """
        if key is not None:
            shard = self._shard(file)
            if isinstance(shard, TokenTable):
                tokens = shard[key]
                return tokens if num_codebooks is None else tokens.prefix(num_codebooks)
            assert shard
            return shard.load(shard.find(key), num_codebooks)
        with error_context(file):
            data = read_bytes(file)
            header, _ = parse_header(data)
            needed = NO_MODEL if header.coder == "packed" else self._model_of(header.model, beside=file.parent)
            return load(data, needed, num_codebooks)

    def _open(self, file: Path) -> Shard | TokenTable | None:
        if is_token_table(file):
            return TokenTable(file)
        return Shard(file, functools.partial(self._model_of, beside=file.parent)) if is_shard(file) else None
