"""Write the sequences of an export of rows: Parquet, JSON lines, text, and flat or Megatron arrays of token ids."""

from __future__ import annotations

import json
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.files.atomic import atomic_open
from vqtok.tokens.export.columns import ColumnWriter
from vqtok.tokens.export.formats import MEGATRON_DTYPES, ROW_GROUP_IDS, pyarrow
from vqtok.tokens.export.mixture import Mixture
from vqtok.tokens.export.sidecar import FOOTER_KEY
from vqtok.tokens.export.text_ids import Characters

SequenceFormat = Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"]
SUFFIXES: dict[SequenceFormat, str] = {
    "npy": ".npy", "bin": ".bin", "megatron": ".bin", "jsonl": ".jsonl", "parquet": ".parquet", "text": ".txt",
}  # fmt: skip
OWN_COLUMNS = ("key", "input_ids", "segments", "position_ids", "cu_seqlens", "keys")


@dataclass(frozen=True)
class Sequence:
    """The token ids of one row, or of several in a sequence that is packed."""

    key: str
    ids: NDArray[np.int64]
    segments: list[dict[str, Any]] = field(default_factory=list)
    """Where the media in it lie, and what decoding them needs: `modality`, `start`, `length`, `size`, `grid`."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    boundaries: tuple[int, ...] = ()
    """In a packed sequence, where its documents begin and where it ends (`cu_seqlens`)."""

    def position_ids(self) -> NDArray[np.int64]:
        """Return the place of each id in its document, for packed sequences."""
        starts = np.repeat(self.boundaries[:-1], np.diff(self.boundaries))
        places: NDArray[np.int64] = np.arange(len(self.ids)) - starts
        return places


Write = Callable[[Sequence], object]


@contextmanager
def write_sequences(path: Path, to: SequenceFormat, mixture: Mixture, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Yield a function that writes a sequence; the file gets its name when all are written.

    Args:
        facts: The facts of the export, of which a Parquet file keeps in its footer what is known when it is complete.
    """
    with _WRITERS[to](path, mixture, facts) as write:
        yield write


@contextmanager
def _arrays(path: Path, mixture: Mixture, facts: Mapping[str, Any], to: SequenceFormat) -> Iterator[Write]:
    dtype = np.dtype(mixture.dtype).newbyteorder("<")
    lengths = array("q")
    with ExitStack() as opened:
        file = opened.enter_context(atomic_open(path))
        index = opened.enter_context(atomic_open(path.with_suffix(".idx"))) if to == "megatron" else None

        def header() -> None:
            if to == "npy":
                shape = {"descr": dtype.str, "fortran_order": False, "shape": (sum(lengths),)}
                np.lib.format.write_array_header_1_0(file, shape)

        def write(sequence: Sequence) -> None:
            file.write(sequence.ids.astype(dtype).tobytes())
            lengths.append(sequence.ids.size)

        header()
        yield write
        file.seek(0)
        header()
        if index:
            count, sizes = len(lengths), np.array(lengths, "<i8")
            index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, MEGATRON_DTYPES[mixture.dtype], count, count + 1))
            index.write(sizes.astype("<i4").tobytes())
            index.write(((np.cumsum(sizes) - sizes) * dtype.itemsize).tobytes())
            index.write(np.arange(count + 1, dtype="<i8").tobytes())


def _array_writer(to: SequenceFormat) -> Callable[..., AbstractContextManager[Write]]:
    return lambda path, mixture, facts: _arrays(path, mixture, facts, to)


@contextmanager
def _jsonl(path: Path, mixture: Mixture, facts: Mapping[str, Any]) -> Iterator[Write]:
    with atomic_open(path) as file:
        yield lambda sequence: file.write(json.dumps(_as_row(sequence), ensure_ascii=False).encode() + b"\n")


def _as_row(sequence: Sequence) -> dict[str, Any]:
    row: dict[str, Any] = {"key": sequence.key, "input_ids": sequence.ids.tolist()}
    if sequence.boundaries:
        return row | {"position_ids": sequence.position_ids().tolist(), "cu_seqlens": list(sequence.boundaries)}
    columns = {name: value for name, value in sequence.columns.items() if name not in OWN_COLUMNS}
    return row | {"segments": sequence.segments} | columns


@contextmanager
def _parquet(path: Path, mixture: Mixture, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Write a table."""
    pa = pyarrow()
    rows: list[Sequence] = []
    writer: Any = None
    held = 0
    segment = pa.struct(
        [
            ("modality", pa.string()),
            ("start", pa.int32()),
            ("length", pa.int32()),
            ("size", pa.list_(pa.int64())),
            ("grid", pa.list_(pa.int32())),
        ]
    )
    columns = ColumnWriter(pa, OWN_COLUMNS)
    with atomic_open(path) as file:

        def flush() -> None:
            nonlocal writer, held
            ends = np.cumsum([0, *(row.ids.size for row in rows)], dtype=np.int32)
            values = pa.array(np.concatenate([row.ids for row in rows]) if rows else [], pa.int32())
            table = {
                "key": pa.array([row.key for row in rows], pa.string()),
                "input_ids": pa.ListArray.from_arrays(ends, values),
            }
            if rows and rows[0].boundaries:
                places = pa.array(np.concatenate([row.position_ids() for row in rows]), pa.int32())
                table["position_ids"] = pa.ListArray.from_arrays(ends, places)
                table["cu_seqlens"] = pa.array([list(row.boundaries) for row in rows], pa.list_(pa.int32()))
            else:
                table["segments"] = pa.array([row.segments for row in rows], pa.list_(segment))
                table |= columns.arrays([row.columns for row in rows])
            made = pa.table(table)
            made = made.replace_schema_metadata(columns.schema_metadata() or None)
            if writer is None:
                writer = pa.parquet.ParquetWriter(file, made.schema, compression="zstd")
            writer.write_table(made)
            rows.clear()
            held = 0

        def write(sequence: Sequence) -> None:
            nonlocal held
            rows.append(sequence)
            held += sequence.ids.size
            if held >= ROW_GROUP_IDS:
                flush()

        try:
            yield write
            if rows or writer is None:
                flush()
            writer.add_key_value_metadata({FOOTER_KEY: json.dumps(facts).encode()})  # Complete by now.
            columns.warn(path)
        finally:
            if writer is not None:
                writer.close()


@contextmanager
def _text(path: Path, mixture: Mixture, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Write a row a line: its text, and the words of all other ids, which the extended tokenizer has."""
    words, characters = mixture.words(), Characters()
    with atomic_open(path) as file:

        def write(sequence: Sequence) -> None:
            parts = (words[number] if number >= 0 else characters.word(number) for number in sequence.ids.tolist())
            file.write("".join([*parts, "\n"]).encode())

        yield write


_WRITERS: dict[SequenceFormat, Callable[..., AbstractContextManager[Write]]] = {
    "npy": _array_writer("npy"),
    "bin": _array_writer("bin"),
    "megatron": _array_writer("megatron"),
    "jsonl": _jsonl,
    "text": _text,
    "parquet": _parquet,
}


class Packer:
    """Fills sequences of one length whole with documents, which may go on in the next sequence.

    Args:
        length: The number of ids of each sequence.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise UsageError(f"`pack` {length}: sequences need at least 2 ids")
        self.length, self.count = length, 0
        self._held: list[NDArray[np.int64]] = []
        self._size = 0

    @property
    def left(self) -> int:
        """The number of ids that have not filled a sequence."""
        return self._size

    def add(self, ids: NDArray[np.int64]) -> Iterator[Sequence]:
        """Add a document; yield the sequences that it fills."""
        while ids.size:
            part, ids = ids[: self.length - self._size], ids[self.length - self._size :]
            self._held.append(part)
            self._size += part.size
            if self._size == self.length:
                boundaries = tuple(np.cumsum([0, *(len(part) for part in self._held)]).tolist())
                yield Sequence(f"{self.count:09}", np.concatenate(self._held), boundaries=boundaries)
                self._held, self._size, self.count = [], 0, self.count + 1
