"""The formats of exports: a writer that takes one item after another, and a reader, for each."""

from __future__ import annotations

import bisect
import functools
import json
import struct
import threading
import tokenize
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.files.atomic import atomic_open
from vqtok.files.paths import STDIO, stdout
from vqtok.tokens.export.options import ARRAYS, ExportFormat, ExportSpec
from vqtok.tokens.export.sidecar import FOOTER_KEY, FORMAT, VERSION

ExportRow = dict[str, Any]
"""`key`, `size`, `grid` and, if there is any, `metadata`."""
Add = Callable[[ExportRow, NDArray[np.int64]], object]

ROW_GROUP_IDS = 2**20
"""Token ids in a row group of a Parquet file, which is held in memory."""
MEGATRON_DTYPES = {"uint16": 8, "int32": 4}


@contextmanager
def _open_output(path: Path) -> Iterator[BinaryIO]:
    if path == STDIO:
        yield stdout()
        stdout().flush()
        return
    with atomic_open(path) as file:
        yield file


@contextmanager
def _write_npy(path: Path, form: ExportSpec) -> Iterator[Add]:
    length = 0
    with atomic_open(path) as file:

        def write_header() -> None:
            header = {"descr": _dtype(form).str, "fortran_order": False}
            # numpy pads the header, so that any length fits when it is written again.
            np.lib.format.write_array_header_1_0(file, header | {"shape": (length, *form.steps)})

        def add(item: ExportRow, ids: NDArray[np.int64]) -> None:
            nonlocal length
            length += len(ids)
            file.write(ids.astype(_dtype(form)).tobytes())

        write_header()
        yield add
        file.seek(0)
        write_header()


@contextmanager
def _write_bin(path: Path, form: ExportSpec) -> Iterator[Add]:
    with atomic_open(path) as file:
        yield lambda item, ids: file.write(ids.astype(_dtype(form)).tobytes())


@contextmanager
def _write_megatron(path: Path, form: ExportSpec) -> Iterator[Add]:
    lengths = array("q")
    with atomic_open(path) as file, atomic_open(path.with_suffix(".idx")) as index:

        def add(item: ExportRow, ids: NDArray[np.int64]) -> None:
            file.write(ids.astype(_dtype(form)).tobytes())
            lengths.append(ids.size)

        yield add
        count, sizes = len(lengths), np.array(lengths, "<i8")
        index.write(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, MEGATRON_DTYPES[form.dtype], count, count + 1))
        index.write(sizes.astype("<i4").tobytes())
        index.write(((np.cumsum(sizes) - sizes) * _dtype(form).itemsize).tobytes())
        index.write(np.arange(count + 1, dtype="<i8").tobytes())


def _dtype(form: ExportSpec) -> np.dtype[np.integer]:
    return np.dtype(form.dtype).newbyteorder("<")


@contextmanager
def _write_jsonl(path: Path, form: ExportSpec) -> Iterator[Add]:
    with _open_output(path) as file:
        yield lambda item, ids: file.write(json.dumps(item | {"input_ids": ids.tolist()}).encode() + b"\n")


@contextmanager
def _write_text(path: Path, form: ExportSpec) -> Iterator[Add]:
    text = form.token_text()
    with _open_output(path) as file:
        yield lambda item, ids: file.write(text.render(ids).encode() + b"\n")


@contextmanager
def _write_parquet(path: Path, form: ExportSpec, written: Mapping[str, Any]) -> Iterator[Add]:
    pa = pyarrow()
    ids_type = pa.list_(pa.list_(pa.int32())) if form.steps else pa.list_(pa.int32())
    columns = {
        "key": pa.string(),
        "size": pa.list_(pa.int64()),
        "grid": pa.list_(pa.int32()),
        "metadata": pa.string(),
        "input_ids": ids_type,
    }
    rows: list[tuple[ExportRow, NDArray[np.int64]]] = []
    held = 0
    with atomic_open(path) as file, pa.parquet.ParquetWriter(file, pa.schema(columns), compression="zstd") as writer:

        def flush() -> None:
            nonlocal held
            items, ids = zip(*rows, strict=True)
            values = pa.array(np.concatenate(ids).ravel(), pa.int32())
            for width in form.steps:
                values = pa.ListArray.from_arrays(np.arange(0, len(values) + 1, width, dtype=np.int32), values)
            ends = np.cumsum([0, *map(len, ids)], dtype=np.int32)
            metadata = [json.dumps(item["metadata"]) if "metadata" in item else None for item in items]
            table = {name: [item[name] for item in items] for name in ("key", "size", "grid")}
            table |= {"metadata": metadata, "input_ids": pa.ListArray.from_arrays(ends, values)}
            writer.write_table(pa.table(table, pa.schema(columns)))
            rows.clear()
            held = 0

        def add(item: ExportRow, ids: NDArray[np.int64]) -> None:
            nonlocal held
            rows.append((item, ids))
            held += ids.size
            if held >= ROW_GROUP_IDS:
                flush()

        yield add
        if rows:
            flush()
        facts = {"format": FORMAT, "version": VERSION, **form.facts(), **written}
        writer.add_key_value_metadata({FOOTER_KEY: json.dumps(facts).encode()})


def open_writer(path: Path, form: ExportSpec, written: Mapping[str, Any]) -> AbstractContextManager[Add]:
    """Return a context that yields the function which adds an item to an export.

    Args:
        written: What has been written, for the facts that a Parquet file holds itself.
    """
    return _write_parquet(path, form, written) if form.to == "parquet" else _WRITERS[form.to](path, form)


_WRITERS: dict[ExportFormat, Callable[[Path, ExportSpec], AbstractContextManager[Add]]] = {
    "npy": _write_npy,
    "bin": _write_bin,
    "megatron": _write_megatron,
    "jsonl": _write_jsonl,
    "text": _write_text,
}


class Rows(Protocol):
    """The items of an export, by number."""

    keys: list[str]

    def __getitem__(self, index: int) -> tuple[ExportRow, NDArray[np.integer]]: ...


def open_rows(path: Path, form: ExportSpec, items: list[ExportRow]) -> Rows:
    """Open the data of an export.

    Args:
        items: The items in the JSON file; empty for formats that store them in the data.

    Raises:
        ValueError, KeyError, TypeError, EOFError: The data are damaged, or belong to another JSON file.
        OSError: They cannot be read.
        UsageError: Parquet needs pyarrow, which is not installed.
    """
    return _READERS[form.to](path, form, items)


def _open_npy(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):  # Headers of later versions may claim gigabytes.
            raise ValueError("is not an npy file of version 1.0")
    try:
        ids: NDArray[Any] = np.load(path, mmap_mode="r")
    except (SyntaxError, tokenize.TokenError) as error:  # numpy parses the header as Python.
        raise ValueError(f"its header is damaged: {error}") from None
    return ids.ravel()


class _ArrayRows:
    def __init__(self, path: Path, form: ExportSpec, items: list[ExportRow]) -> None:
        self.items, self.keys = items, [item["key"] for item in items]
        self.ids = _open_npy(path) if form.to == "npy" else np.memmap(path, _dtype(form), "r")

    def __getitem__(self, index: int) -> tuple[ExportRow, NDArray[np.integer]]:
        item = self.items[index]
        start, end = item["start"], item["start"] + item["length"]
        if not 0 <= start <= end <= self.ids.size:
            raise ValueError(f"claims token ids {start} to {end} of {self.ids.size}")
        return item, self.ids[start:end]


class _LineRows:
    """Lines, found by their offsets."""

    def __init__(self, path: Path, form: ExportSpec, items: list[ExportRow]) -> None:
        self.path, self.items, self.keys = path, items, [item["key"] for item in items]
        self.text = form.token_text() if form.to == "text" else None
        self.starts = []
        start = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self.starts.append(start)
                    if self.text is None:
                        self.keys.append(json.loads(line)["key"])
                start += len(line)
        if len(self.starts) != len(self.keys):
            raise ValueError(f"{len(self.starts)} lines for {len(self.keys)} items")

    def __getitem__(self, index: int) -> tuple[ExportRow, NDArray[np.integer]]:
        with self.path.open("rb") as file:
            file.seek(self.starts[index])
            line = file.readline()
        if self.text is None:
            item = json.loads(line)
            return item, np.array(item["input_ids"])
        return self.items[index], self.text.parse(line.decode().rstrip("\r\n"))


class _TableRows:
    def __init__(self, path: Path, form: ExportSpec, items: list[ExportRow]) -> None:
        self.file = pyarrow().parquet.ParquetFile(path)
        self.keys = self.file.read(["key"])["key"].to_pylist()
        groups = range(self.file.num_row_groups)
        self.ends = list(accumulate(self.file.metadata.row_group(group).num_rows for group in groups))
        self.group = functools.lru_cache(maxsize=1)(self.file.read_row_group)
        self.lock = threading.Lock()  # Concurrent reads of one `ParquetFile` crash the process.

    def __getitem__(self, index: int) -> tuple[ExportRow, NDArray[np.integer]]:
        group = bisect.bisect(self.ends, index)
        row = index - (self.ends[group - 1] if group else 0)
        with self.lock:
            (item,) = self.group(group).slice(row, 1).to_pylist()
        if item.get("metadata") is not None:
            item["metadata"] = json.loads(item["metadata"])
        return item, np.array(item["input_ids"])


_READERS: dict[ExportFormat, Callable[[Path, ExportSpec, list[ExportRow]], Rows]] = {
    **dict.fromkeys(ARRAYS, _ArrayRows),
    **dict.fromkeys(("jsonl", "text"), _LineRows),
    "parquet": _TableRows,
}


def pyarrow() -> Any:
    """Import pyarrow and its Parquet part.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError("Parquet needs pyarrow: pip install 'vqtok[parquet]'") from None
    return pyarrow
