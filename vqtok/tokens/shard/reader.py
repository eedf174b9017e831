"""Read `.vqts` shards with random access; `vqtok.tokens.shard.format` describes the format."""

from __future__ import annotations

import mmap
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.files.paths import as_path, error_context
from vqtok.tokens.coding.coders import NO_MODEL, EntropyModel
from vqtok.tokens.shape import Modality
from vqtok.tokens.shard.format import Record, parse_record, parse_shard_header
from vqtok.tokens.shard.index import GROUP, HASH_BYTES, SALVAGE, key_hash, map_file, parse_index, walk
from vqtok.tokens.shard.payload import load_joint
from vqtok.tokens.tokens import Tokens


class Shard(Mapping[str, Tokens]):
    """The items of a shard, each read on access.

    `shard["a/b.png"]`, `shard[0]` and `shard[-1]` are `Tokens`, `shard[:10]` is a list of them. Iteration yields the
    keys in the order of the file.

    Args:
        model_of: Returns the entropy model for the identity of a model. Without it only bit-packed items can be read.

    Raises:
        CorruptFileError: The file is not a shard, is cut off, or has a damaged index; later, an item is damaged.
        UnsupportedVersionError: The shard has a newer version of the format.
        MediaError: The file cannot be read.
    """

    def __init__(self, path: str | Path, model_of: Callable[[bytes], EntropyModel] | None = None) -> None:
        self.path = as_path(path)
        self._model_of = model_of
        self._data = map_file(self.path)
        with error_context(self.path):
            self.header, self._start = parse_shard_header(self._data)
            self._index = parse_index(self._data, self._start)

    @property
    def modality(self) -> Modality:
        return self.header.modality

    def modality_of(self, key: str) -> Modality:
        """Return the modality of an item, which is that of all."""
        return self.modality

    def __len__(self) -> int:
        return self._index.num_items

    def __iter__(self) -> Iterator[str]:
        with error_context(self.path):
            for record in walk(self.header, self._data, self._start, self._index, check=False):
                yield record.key

    def __contains__(self, key: object) -> bool:
        try:
            return isinstance(key, str) and bool(self.find(key))
        except KeyError:
            return False

    @overload
    def __getitem__(self, key: str | SupportsIndex) -> Tokens: ...
    @overload
    def __getitem__(self, key: slice) -> list[Tokens]: ...
    def __getitem__(self, key: str | SupportsIndex | slice) -> Tokens | list[Tokens]:
        if isinstance(key, slice):
            return [self.load(self.find(index)) for index in range(*key.indices(len(self)))]
        return self.load(self.find(key))

    def find(self, key: str | SupportsIndex) -> Record:
        """Find an item by its key or its number, and check that it is intact.

        Raises:
            KeyError, IndexError: There is no such item.
            CorruptFileError: It is damaged.
        """
        if isinstance(key, str):
            return self._find_key(key)
        index = operator.index(key)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.path}: no item {index}: there are {len(self)}")
        return self._find_index(index % len(self))

    def load(self, record: Record, num_codebooks: int | None = None) -> Tokens:
        """Read the tokens of an item, of all codebooks or of the first `num_codebooks`.

        Raises:
            ModelError: The entropy model is needed and missing, or that of another model.
            UsageError: The shard has fewer codebooks.
        """
        with error_context(f"{self.path}: {record.key}"):
            model = self._entropy_model if record.coder != "packed" else NO_MODEL
            return load_joint(record.header(self.header), record.payload_of(self._data), model, num_codebooks)

    def close(self) -> None:
        """Close the file."""
        if isinstance(self._data, mmap.mmap):
            self._data.close()

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shard, (self.path, self._model_of)  # Copies in the workers of a data loader open the file again.

    @cached_property
    def _entropy_model(self) -> EntropyModel:
        return self._model_of(self.header.model) if self._model_of else NO_MODEL

    @cached_property
    def _offsets(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._index.offsets, "<u8")

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
        """The hashes of the keys in ascending order, and the numbers of their items."""
        padded = np.zeros((len(self), 4), np.uint8)
        padded[:, :HASH_BYTES] = np.frombuffer(self._index.hashes, np.uint8).reshape(-1, HASH_BYTES)
        hashes = padded.view("<u4")[:, 0]
        order = np.argsort(hashes)
        return hashes[order], order

    def _find_key(self, key: str) -> Record:
        hashes, order = self._by_hash
        wanted = key_hash(key)
        first, end = np.searchsorted(hashes, np.array([wanted, wanted + 1], np.uint32))
        damaged: CorruptFileError | None = None
        for index in order[first:end].tolist():
            try:
                record = self._find_index(index)
            except CorruptFileError as error:
                damaged = error
                continue
            if record.key == key:
                return record
        if damaged:
            raise CorruptFileError(f"{self.path}: {key}: damaged; {SALVAGE}") from damaged
        raise KeyError(key)

    def _find_index(self, index: int) -> Record:
        start, end = int(self._offsets[index // GROUP]), self._index.records_end
        try:
            for _ in range(index % GROUP):
                start = parse_record(self.header, self._data, start, end, check=False).end
            record = parse_record(self.header, self._data, start, end)
        except CorruptFileError as error:
            raise CorruptFileError(f"{self.path}: item {index} or one before is damaged: {error}; {SALVAGE}") from None
        if not self._index.fits(index, record.key):
            raise CorruptFileError(f"{self.path}: an item before item {index} is damaged; {SALVAGE}")
        return record
