"""Tokens and columns of many items in Parquet tables and WebDataset tars, as arrays of codes that any program can read.

A Parquet table has a row for each item: `key`, `codes` (flattened, coarse codebook first), `shape`, which is
`(num_codebooks, *grid)`, `size`, `modality`, `model`, `codebook_sizes`, `stride`, and the columns of the item. A tar
has two members for each: `KEY.npy` with the codes, and `KEY.json` with all else.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.files.atomic import atomic_open
from vqtok.tokens.shape import Layout, Modality
from vqtok.tokens.stored import StoredTokens
from vqtok.tokens.tokens import Tokens

FOOTER_KEY = b"vqtok_tokens"
"""Marks Parquet files of this kind in their footer."""
FIELDS = ("shape", "size", "modality", "model", "codebook_sizes", "stride")
ROW_GROUP_CODES = 2**20
"""Codes in a row group of a Parquet file, which is held in memory."""
SUFFIXES = (".parquet", ".tar")

Add = Callable[[str, Tokens], object]


def is_token_table(path: Path) -> bool:
    """Return whether a file was written by `write_token_table`."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet

            return FOOTER_KEY in (pyarrow.parquet.read_metadata(path).metadata or {})
        except (ImportError, OSError, ValueError):
            return False
    if path.suffix.lower() != ".tar":
        return False
    try:
        with tarfile.open(path) as tar:
            first, second = tar.next(), tar.next()
            if first is None or second is None or not second.name.endswith(".json"):
                return False
            return first.name.endswith(".npy") and set(FIELDS) <= set(_json(tar, second))
    except (tarfile.TarError, OSError, ValueError, EOFError, TypeError):
        return False


@contextmanager
def write_token_table(path: Path) -> Iterator[Add]:
    """Yield a function that writes the tokens of an item with its key; the file gets its name when it is complete.

    Raises:
        UsageError: Parquet needs pyarrow, which is not installed.
        OutputError: The file cannot be written.
    """
    with (_parquet if path.suffix.lower() == ".parquet" else _tar)(path) as add:
        yield add


def _fields(tokens: Tokens) -> dict[str, Any]:
    return {
        "shape": list(tokens.codes.shape),
        "size": list(tokens.size),
        "modality": tokens.modality,
        "model": tokens.model.hex(),
        "codebook_sizes": list(tokens.codebook_sizes),
        "stride": tokens.stride,
    }


@contextmanager
def _tar(path: Path) -> Iterator[Add]:
    with atomic_open(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def member(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))

        def add(key: str, tokens: Tokens) -> None:
            buffer = io.BytesIO()
            small = max(tokens.codebook_sizes) <= 2**16
            np.save(buffer, tokens.codes.astype("<u2" if small else "<i4"))
            columns = {name: value for name, value in tokens.metadata.items() if name not in (*FIELDS, "key")}
            # WebDataset takes the name up to its first dot for the key.
            name = key.replace(".", "_")
            member(f"{name}.npy", buffer.getvalue())
            member(f"{name}.json", json.dumps({"key": key, **_fields(tokens), **columns}).encode())

        yield add


@contextmanager
def _parquet(path: Path) -> Iterator[Add]:
    from vqtok.tokens.export.columns import ColumnWriter
    from vqtok.tokens.export.formats import pyarrow

    pa = pyarrow()
    types = {
        "shape": pa.list_(pa.int32()),
        "size": pa.list_(pa.int64()),
        "modality": pa.string(),
        "model": pa.string(),
        "codebook_sizes": pa.list_(pa.int64()),
        "stride": pa.int32(),
    }
    items: list[tuple[str, Tokens]] = []
    columns = ColumnWriter(pa, ("key", "codes", *FIELDS))
    writer: Any = None
    held = 0

    with atomic_open(path) as file:

        def flush() -> None:
            nonlocal writer, held
            ends = np.cumsum([0, *(tokens.codes.size for _, tokens in items)], dtype=np.int32)
            codes = np.concatenate([tokens.codes.ravel() for _, tokens in items])
            table = {"key": pa.array([key for key, _ in items], pa.string())}
            table["codes"] = pa.ListArray.from_arrays(ends, pa.array(codes, pa.int32()))
            facts = [_fields(tokens) for _, tokens in items]
            table |= {name: pa.array([one[name] for one in facts], kind) for name, kind in types.items()}
            table |= columns.arrays([tokens.metadata for _, tokens in items])
            made = pa.table(table).replace_schema_metadata({FOOTER_KEY: b"1", **columns.schema_metadata()})
            if writer is None:
                writer = pa.parquet.ParquetWriter(file, made.schema, compression="zstd")
            writer.write_table(made)
            items.clear()
            held = 0

        def add(key: str, tokens: Tokens) -> None:
            nonlocal held
            items.append((key, tokens))
            held += tokens.codes.size
            if held >= ROW_GROUP_CODES:
                flush()

        try:
            yield add
            if items:
                flush()
            columns.warn(path)
        finally:
            if writer is not None:
                writer.close()


class TokenTable(StoredTokens):
    """The tokens in a file that `write_token_table` has written, each read on access.

    Raises:
        CorruptFileError: The file is damaged.
        MediaError: It cannot be read.
    """

    _remedy = "encode again"

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._damaged():
            self._items: _Items = _ParquetItems(path) if path.suffix.lower() == ".parquet" else _TarItems(path)
            self._places: dict[str, Modality] = {facts["key"]: facts["modality"] for facts in self._items.facts}

    @property
    def modality(self) -> Modality:
        return next(iter(self._places.values()), "image")

    def modality_of(self, key: str) -> Modality:
        """Return the modality of an item."""
        return self._places[key]

    def layouts(self) -> list[Layout]:
        """Return what the tokens of each model and modality have in common, in the order of the file.

        Raises:
            CorruptFileError: The file is damaged.
        """
        with self._damaged():
            found = {
                (facts["modality"], facts["model"], tuple(facts["codebook_sizes"]), facts["stride"]): None
                for facts in self._items.facts
            }
            return [
                Layout(modality=modality, model=bytes.fromhex(model), codebook_sizes=sizes, stride=stride)
                for modality, model, sizes, stride in found
            ]

    def __getitem__(self, key: str) -> Tokens:
        if key not in self._places:
            raise KeyError(key)
        with self._damaged(f"{key}: "):
            codes, facts = self._items.read(key)
            known = (*FIELDS, "key", "codes")
            return Tokens(
                np.asarray(codes).reshape(facts["shape"]),
                codebook_sizes=tuple(facts["codebook_sizes"]),
                modality=facts["modality"],
                size=tuple(facts["size"]),
                stride=facts["stride"],
                model=bytes.fromhex(facts["model"]),
                metadata={name: value for name, value in facts.items() if name not in known and value is not None},
            )


class _Items:
    """The items of a file by key."""

    facts: list[dict[str, Any]]
    """Of each item its key and layout, at least."""

    def read(self, key: str) -> tuple[NDArray[Any], dict[str, Any]]:
        raise NotImplementedError


class _ParquetItems(_Items):
    def __init__(self, path: Path) -> None:
        from vqtok.tokens.export.table_rows import open_table

        self._table = open_table(path, "parquet", ["key", "modality", "model", "codebook_sizes", "stride"])
        self.facts = self._table.index
        self._places = {row["key"]: number for number, row in enumerate(self.facts)}

    def read(self, key: str) -> tuple[NDArray[Any], dict[str, Any]]:
        row = self._table[self._places[key]]
        return np.array(row["codes"], np.int32), row


class _TarItems(_Items):
    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, tuple[int, int, dict[str, Any]]] = {}
        self.facts = []
        with tarfile.open(path) as tar:
            codes: tarfile.TarInfo | None = None
            for member in tar:
                if member.name.endswith(".npy"):
                    codes = member
                elif member.name.endswith(".json") and codes is not None:
                    facts = _json(tar, member)
                    self._places[facts["key"]] = codes.offset_data, codes.size, facts
                    self.facts.append(facts)

    def read(self, key: str) -> tuple[NDArray[Any], dict[str, Any]]:
        offset, size, facts = self._places[key]
        with self._path.open("rb") as file:
            file.seek(offset)
            return np.load(io.BytesIO(file.read(size))), facts


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    content = tar.extractfile(member)
    facts = json.load(content) if content else None
    if not isinstance(facts, dict):
        raise ValueError(f"{member.name} is not a JSON object")
    return facts
