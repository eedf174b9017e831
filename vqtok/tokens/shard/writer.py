"""Write and merge `.vqts` shards, and salvage the intact items of damaged ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vqtok.errors import CorruptFileError, UsageError, WrongModelError
from vqtok.files.atomic import atomic_open, make_folder, refuse_existing
from vqtok.files.paths import error_context
from vqtok.tokens.coding.coders import NO_MODEL, ChosenCoder, EntropyModel
from vqtok.tokens.fields import Buffer
from vqtok.tokens.shape import Coder
from vqtok.tokens.shard.format import Record, ShardHeader, pack_record, parse_record, parse_shard_header
from vqtok.tokens.shard.index import (
    GROUP,
    HASH_BYTES,
    OFFSET_BYTES,
    Gap,
    find_header,
    key_hash,
    map_file,
    pack_index,
    parse_index,
    scan,
    walk,
)
from vqtok.tokens.shard.payload import dump_joint
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import Header


class ShardWriter:
    """Writes items to a file, which becomes a shard when `finish` is called.

    Args:
        file: Open for writing, at its start.
        model_rate: Sample rate of an audio model. If it is known, items need not store their grid.
    """

    def __init__(self, file: BinaryIO, model_rate: int = 0) -> None:
        self.header: ShardHeader | None = None
        """Taken from the first item."""
        self.keys: set[str] = set()
        self._file, self._model_rate = file, model_rate
        self._hashes, self._offsets = bytearray(), bytearray()
        self._end = 0

    @classmethod
    def resume(cls, file: BinaryIO) -> ShardWriter:
        """Continue after the last of the consecutive intact items of a file that is open for reading and writing.

        Raises:
            CorruptFileError: The file does not begin with the header of a shard.
        """
        writer = cls(file)
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            writer.header, writer._end = parse_shard_header(data)
            for found in scan(writer.header, data, writer._end):
                if isinstance(found, Gap):
                    break
                writer._note(found.key, found.end - found.start)
        file.truncate(writer._end)
        file.seek(writer._end)
        return writer

    def add(
        self, key: str, tokens: Tokens, entropy_model: EntropyModel = NO_MODEL, coder: ChosenCoder = "auto"
    ) -> Header:
        """Write tokens under a key.

        Args:
            entropy_model, coder: As for `dump_joint`.

        Returns:
            The header that a token file of this item would have.

        Raises:
            UsageError: The key exists, or the tokens have other codebooks than those before.
            WrongModelError: Another model made the tokens than those before.
            ModelError: The entropy model lacks what the coder needs.
            ValueError: The key is empty or too long, or the metadata are not JSON or longer than 64 KiB.
        """
        return self.add_coded(key, tokens, *dump_joint(tokens, entropy_model, coder))

    def add_coded(self, key: str, tokens: Tokens, coder: Coder, payload: bytes) -> Header:
        """Write tokens that `dump_joint` has encoded already, as `add` does."""
        model_rate = self._model_rate if tokens.modality == "audio" else 0
        like = ShardHeader(
            modality=tokens.modality,
            model=tokens.model,
            codebook_sizes=tokens.codebook_sizes,
            stride=tokens.stride,
            usual_size=tokens.size[1:],
            model_rate=model_rate,
        )
        header = self._fitting(key, like)
        record = pack_record(header, key, coder, tokens.size, tokens.grid, tokens.metadata, payload)
        self._write(header, key, record)
        return parse_record(header, record, 0, len(record), check=False).header(header)

    def copy(self, record: Record, shard: ShardHeader, data: Buffer) -> None:
        """Copy an item of another shard without decoding it.

        Raises:
            UsageError, WrongModelError: As `add` does.
        """
        header = self._fitting(record.key, shard)
        fields = record.key, record.coder, record.size, record.grid, record.metadata
        self._write(header, record.key, pack_record(header, *fields, record.payload_of(data)))

    def copy_all(self, path: Path, *, skip_existing: bool = False) -> None:
        """Copy the items of another shard, all of them or those with new keys.

        Raises:
            VqtokError: The shard is damaged, or its items are unlike those of this one.
        """
        with error_context(path):
            data = map_file(path)
            shard, start = parse_shard_header(data)
            for record in walk(shard, data, start, parse_index(data, start)):
                if not skip_existing or record.key not in self.keys:
                    self.copy(record, shard, data)

    def finish(self) -> None:
        """Write the index.

        Raises:
            UsageError: There are not an items.
        """
        if self.header is None:
            raise UsageError("a shard needs at least one item")
        self._file.write(pack_index(self.header, bytes(self._hashes), bytes(self._offsets), self._end))

    def _fitting(self, key: str, like: ShardHeader) -> ShardHeader:
        """Return the header for another item, after checking that it is like those before."""
        if key in self.keys:
            raise UsageError(f"there are two items with the key {key}; keys must be unique")
        header = self.header or like
        if header.model != like.model:
            raise WrongModelError(
                f"made by model {like.model.hex()}, items before it by {header.model.hex()}; a shard has one model"
            )
        if (header.modality, header.codebook_sizes, header.stride) != (like.modality, like.codebook_sizes, like.stride):
            counts = f"{like.num_codebooks} (sizes {list(like.codebook_sizes)}), those before it {header.num_codebooks}"
            raise UsageError(f"has other codebooks than the items of this shard, which must be alike: {counts}")
        return header

    def _write(self, header: ShardHeader, key: str, record: bytes) -> None:
        if self.header is None:
            self.header = header
            self._end = self._file.write(header.pack())
        self._note(key, self._file.write(record))
        self._file.flush()  # Written items survive if the process is killed.

    def _note(self, key: str, length: int) -> None:
        if len(self.keys) % GROUP == 0:
            self._offsets += self._end.to_bytes(OFFSET_BYTES, "little")
        self._hashes += key_hash(key).to_bytes(HASH_BYTES, "little")
        self.keys.add(key)
        self._end += length


def write_shard(
    path: str | Path,
    items: Iterable[tuple[str, Tokens]],
    entropy_model: EntropyModel = NO_MODEL,
    *,
    model_rate: int = 0,
    overwrite: bool = False,
) -> None:
    """Write tokens and their keys to a shard.

    Args:
        entropy_model: The `entropy_model` of the model that made the tokens, which `load_model` returns.
        model_rate: As for `ShardWriter`.

    Raises:
        OutputError: The file exists, or cannot be written.
        VqtokError, ValueError: As `ShardWriter.add` does.
    """
    with _new_file(Path(path), overwrite) as file:
        writer = ShardWriter(file, model_rate)
        for key, tokens in items:
            writer.add(key, tokens, entropy_model)
        writer.finish()


class Loss(NamedTuple):
    """A part of a shard without an intact item."""

    file: str
    start: int
    end: int
    after: str | None
    """The key of the last intact item before; None if there is none."""
    cut_off: bool
    """Whether the shard ends here; then the number of lost items is not known."""

    def __str__(self) -> str:
        where = f"after item {self.after}" if self.after is not None else "before the first whole item"
        if self.cut_off:
            return f"{self.file}: cut off {where}: the last {self.end - self.start} bytes are not an item"
        return f"{self.file}: damaged {where}: bytes {self.start} to {self.end} are not an item"


@dataclass(frozen=True)
class Merged:
    """The result of a merge."""

    num_items: int
    losses: list[Loss]
    """Empty without `salvage`, where damage is an error."""


def merge(paths: Sequence[str | Path], output: str | Path, *, salvage: bool = False, overwrite: bool = False) -> Merged:
    """Merge shards of one model, copying items without decoding them.

    Args:
        salvage: Copy the intact items of shards that are damaged or cut off, and the first of items with equal keys.

    Raises:
        CorruptFileError: A shard is damaged, or nothing of it is intact.
        OutputError: The output exists, or cannot be written.
        UsageError, WrongModelError: The shards have different models or codebooks, or share a key.
    """
    losses: list[Loss] = []
    with _new_file(Path(output), overwrite) as file:
        writer = ShardWriter(file)
        for path in map(Path, paths):
            if salvage:
                losses += _salvage(path, writer)
            else:
                writer.copy_all(path)
        writer.finish()
    return Merged(len(writer.keys), losses)


def _salvage(path: Path, writer: ShardWriter) -> Iterator[Loss]:
    data = map_file(path)
    header = find_header(data)
    if header is None:
        raise CorruptFileError(f"{path}: contains no intact header of a shard; nothing can be salvaged")
    shard, start = header
    after = None
    for found in scan(shard, data, start):
        if isinstance(found, Gap):
            yield Loss(str(path), found.start, found.end, after, cut_off=found.end == len(data))
            continue
        after = found.key
        if after not in writer.keys:
            with error_context(path):
                writer.copy(found, shard, data)


@contextmanager
def _new_file(path: Path, overwrite: bool) -> Iterator[BinaryIO]:
    if not overwrite:
        refuse_existing(path)
    make_folder(path.parent)
    with atomic_open(path) as file:
        yield file
