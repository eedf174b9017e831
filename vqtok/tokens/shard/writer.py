"""Write `.vqts` shards, join them, and salvage what is whole of damaged ones."""

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
    """Write items to a file, which is a shard once `finish` has been called.

    Args:
        file: Open for writing, at its start.
        model_rate: Sample rate that the model of sounds works at; known, it spares items from telling their grid.
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
        """Go on behind the last item in a row of whole ones; the file is open for reading and writing.

        Raises:
            CorruptFileError: the file does not begin with the header of a shard.
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
            entropy_model, coder: As `dump_joint` takes them.

        Returns:
            What a token file of this item alone would say.

        Raises:
            UsageError: a key that is there already, or tokens unlike those before.
            WrongModelError: tokens of another model than those before.
            ModelError: the entropy model lacks what the coder needs.
            ValueError: a key that is empty or too long, or metadata that is no JSON or longer than 64 KiB.
        """
        return self.add_coded(key, tokens, *dump_joint(tokens, entropy_model, coder))

    def add_coded(self, key: str, tokens: Tokens, coder: Coder, payload: bytes) -> Header:
        """Write tokens as `add` does, which `dump_joint` has coded already."""
        model_rate = self._model_rate if tokens.modality == "audio" else 0
        like = ShardHeader(
            tokens.modality, tokens.model, tokens.codebook_sizes, tokens.stride, tokens.size[1:], model_rate
        )
        header = self._fitting(key, like)
        record = pack_record(header, key, coder, tokens.size, tokens.grid, tokens.metadata, payload)
        self._write(header, key, record)
        return parse_record(header, record, 0, len(record), check=False).header(header)

    def copy(self, record: Record, shard: ShardHeader, data: Buffer) -> None:
        """Write an item of another shard, as it is coded there.

        Raises:
            UsageError, WrongModelError: as `add`.
        """
        header = self._fitting(record.key, shard)
        fields = record.key, record.coder, record.size, record.grid, record.metadata
        self._write(header, record.key, pack_record(header, *fields, record.payload_of(data)))

    def copy_all(self, path: Path, *, skip_existing: bool = False) -> None:
        """Write the items of another shard, or those whose keys are not there yet.

        Raises:
            VqtokError: the shard is damaged, or unlike this one.
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
            UsageError: there are no items.
        """
        if self.header is None:
            raise UsageError("a shard needs at least one item")
        self._file.write(pack_index(self.header, bytes(self._hashes), bytes(self._offsets), self._end))

    def _fitting(self, key: str, like: ShardHeader) -> ShardHeader:
        """Return the header for one more item, which must be like those before."""
        if key in self.keys:
            raise UsageError(f"there are two items with the key {key}; a key must be that of one")
        header = self.header or like
        if header.model != like.model:
            raise WrongModelError(
                f"made by model {like.model.hex()}, items before it by {header.model.hex()}; a shard is of one model"
            )
        if (header.modality, header.codebook_sizes, header.stride) != (like.modality, like.codebook_sizes, like.stride):
            raise UsageError("has other codebooks than items before it; a shard has items alike")
        return header

    def _write(self, header: ShardHeader, key: str, record: bytes) -> None:
        if self.header is None:
            self.header = header
            self._end = self._file.write(header.pack())
        self._note(key, self._file.write(record))
        self._file.flush()  # What is written stays, also if the process is killed.

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
        entropy_model: Of the model that made the tokens: `entropy_model` of what `load_model` gives.
        model_rate: As `ShardWriter` takes it.

    Raises:
        OutputError: the file exists, or cannot be written.
        VqtokError, ValueError: as `ShardWriter.add`.
    """
    with _new_file(Path(path), overwrite) as file:
        writer = ShardWriter(file, model_rate)
        for key, tokens in items:
            writer.add(key, tokens, entropy_model)
        writer.finish()


class Loss(NamedTuple):
    """A stretch of a shard in which no item is whole, and what stands around it."""

    file: str
    start: int
    end: int
    after: str | None
    """Key of the last whole item before; None for none."""
    cut_off: bool
    """The shard ends here, and nobody knows how many items it had."""

    def __str__(self) -> str:
        where = f"after item {self.after}" if self.after is not None else "before the first whole item"
        if self.cut_off:
            return f"{self.file}: cut off {where}: the last {self.end - self.start} bytes are no item"
        return f"{self.file}: damaged {where}: bytes {self.start} to {self.end} are no item"


@dataclass(frozen=True)
class Merged:
    """What came of a merge."""

    num_items: int
    losses: list[Loss]
    """Only where salvage was asked for: without it, damage is an error."""


def merge(paths: Sequence[str | Path], output: str | Path, *, salvage: bool = False, overwrite: bool = False) -> Merged:
    """Join shards of one model into one, item by item as they are coded.

    Args:
        salvage: Take every item that is whole of shards that are damaged or cut off; of items with one key the first.

    Raises:
        CorruptFileError: a shard is damaged, or nothing is left of it. OutputError: the output exists, or cannot be
            written. UsageError, WrongModelError: the shards are not alike, or share a key.
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
        raise CorruptFileError(f"{path}: holds no whole header of a shard: nothing can be salvaged")
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
