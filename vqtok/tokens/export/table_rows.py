"""Rows of Parquet tables and JSON lines, each read on access."""

from __future__ import annotations

import bisect
import functools
import json
import threading
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from vqtok.tokens.export.columns import read_json_columns
from vqtok.tokens.export.formats import pyarrow


class Table(Protocol):
    """Rows by number."""

    index: list[dict[str, Any]]
    """Some columns of all rows."""

    def __getitem__(self, number: int) -> dict[str, Any]: ...


class _Parquet:
    def __init__(self, path: Path, columns: list[str]) -> None:
        self._file = pyarrow().parquet.ParquetFile(path)
        self.index = self._file.read(columns).to_pylist()
        groups = range(self._file.num_row_groups)
        self._ends = list(accumulate(self._file.metadata.row_group(group).num_rows for group in groups))
        self._group = functools.lru_cache(maxsize=1)(self._file.read_row_group)
        self._lock = threading.Lock()  # Concurrent reads of one `ParquetFile` crash the process.

    def __getitem__(self, number: int) -> dict[str, Any]:
        group = bisect.bisect(self._ends, number)
        row = number - (self._ends[group - 1] if group else 0)
        with self._lock:
            (found,) = self._group(group).slice(row, 1).to_pylist()
        return read_json_columns(found, self._file.schema_arrow.metadata)


class _Lines:
    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path, self._starts = path, list[int]()
        self.index = []
        start = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._starts.append(start)
                    row = json.loads(line)
                    self.index.append({name: row[name] for name in columns})
                start += len(line)

    def __getitem__(self, number: int) -> dict[str, Any]:
        with self._path.open("rb") as file:
            file.seek(self._starts[number])
            return dict(json.loads(file.readline()))


def open_table(path: Path, to: str, columns: list[str]) -> Table:
    """Open a table, and read some of its columns."""
    return _Parquet(path, columns) if to == "parquet" else _Lines(path, columns)
