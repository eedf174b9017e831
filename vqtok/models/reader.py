"""Read tokens wherever they lie, in token files, shards or exports, without torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path

from vqtok.files.paths import naming, read_bytes
from vqtok.media.kinds import is_shard
from vqtok.models.entropy import entropy_model_of
from vqtok.tokens.coding.coders import NO_MODEL
from vqtok.tokens.export.export import Export
from vqtok.tokens.export.sidecar import is_export
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import load
from vqtok.tokens.vqt.header import parse_header


def open_shard(path: str | Path, model: str | None = None) -> Shard:
    """Open a shard: a mapping of its keys to `Tokens`, each read when it is asked for.

    Args:
        model: The model that made it; by default a bundled one. Bit-packed items need none.

    Raises:
        VqtokError: as `vqtok.tokens.shard.reader.Shard`.
    """
    return Shard(path, functools.partial(entropy_model_of, model=model))


def open_items(path: Path, model: str | None = None) -> Shard | Export | None:
    """Open what holds several items, a shard or an export: a mapping of their keys to `Tokens`; None for other files.

    Args:
        model: As `open_shard` takes it.

    Raises:
        VqtokError: as `vqtok.tokens.shard.reader.Shard` and `vqtok.tokens.export.export.Export`.
    """
    if is_shard(path):
        return open_shard(path, model)
    return Export(path) if is_export(path) else None


class TokenReader:
    """Read token files and the items of shards, with what they need of the models that made them.

    Args:
        model: The model that made them all; by default a bundled one. Bit-packed files need none.
    """

    def __init__(self, model: str | None = None) -> None:
        self._model_of = functools.cache(functools.partial(entropy_model_of, model=model))
        self._shard = functools.lru_cache(maxsize=1)(self._open)

    def keys(self, file: Path) -> Iterable[str | None]:
        """Give the keys of the items of a shard, in order; a token file is one item without a key.

        Raises:
            CorruptFileError: the shard is damaged where its keys are.
        """
        return self._shard(file) or [None]

    def read(self, file: Path, key: str | None = None, num_codebooks: int | None = None) -> Tokens:
        """Read a token file or an item of a shard, as `vqtok.tokens.vqt.file.load` does.

        Raises:
            WrongModelError, ModelError: another model made it, or one that is not at hand.
        """
        if key is not None:
            shard = self._shard(file)
            assert shard
            return shard.load(shard.find(key), num_codebooks)
        with naming(file):
            data = read_bytes(file)
            header, _ = parse_header(data)
            return load(data, NO_MODEL if header.coder == "packed" else self._model_of(header.model), num_codebooks)

    def _open(self, file: Path) -> Shard | None:
        return Shard(file, self._model_of) if is_shard(file) else None
