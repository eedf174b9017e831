"""Rows of Parquet tables and of Hugging Face data sets: a column of media, and the others."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import as_path, error_context
from vqtok.rows.row import Row
from vqtok.tokens.export.formats import pyarrow

BATCH_ROWS = 32
"""Rows that are in memory at once."""
SAVED_FILES = ("dataset_dict.json", "state.json")
"""Files of a data set that `save_to_disk` of Hugging Face datasets has written."""
KEY_COLUMNS = ("key", "__key__")
"""Columns that are taken for the key if they hold text; else it is the number of the row."""


def parquet_rows(path: Path, media: str | None, key: str | None, columns: tuple[str, ...] | None) -> Iterator[Row]:
    """Yield the rows of a Parquet table. Damage becomes the fault of a last row.

    Args:
        media, key: The columns with the media and the key; by default those that are plainly so.
        columns: The other columns to read; by default all.

    Raises:
        UsageError: pyarrow is not installed, a column does not exist, or it is not plain which holds the media.
    """
    pa = pyarrow()
    number = 0
    try:
        with path.open("rb") as opened:
            file = pa.parquet.ParquetFile(opened)
            schema = file.schema_arrow
            with error_context(path):
                medium, named = _columns_of(schema, media, key)
            labels = _labels(schema.metadata)
            wanted = None if columns is None else [*{medium, *columns, *([named] if named else [])} & {*schema.names}]
            for batch in file.iter_batches(BATCH_ROWS, columns=wanted):
                for values in batch.to_pylist():
                    yield table_row(_named(values, labels), number, medium, named, path.parent)
                    number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        after = f" after row {number - 1}" if number else ""
        yield Row("", fault=f"not a Parquet file, or damaged{after}: {' '.join(str(error).split())}")


def check_parquet(path: Path, media: str | None, key: str | None) -> int:
    """Return the number of rows of a Parquet table; 1 if it is damaged, which its turn reports.

    Raises:
        UsageError: As `parquet_rows` does.
    """
    pa = pyarrow()
    try:
        with path.open("rb") as opened:
            file = pa.parquet.ParquetFile(opened)
            with error_context(path):
                _columns_of(file.schema_arrow, media, key)
            return int(file.metadata.num_rows)
    except (pa.ArrowException, OSError):
        return 1


def columns_of_parquet(path: Path) -> set[str]:
    """Return the names of the columns of a Parquet table; empty if it is damaged.

    Raises:
        UsageError: pyarrow is not installed.
    """
    pa = pyarrow()
    try:
        with path.open("rb") as opened:
            return set(pa.parquet.read_schema(opened).names)
    except (pa.ArrowException, OSError):
        return set()


def table_row(values: Mapping[str, Any], number: int, media: str, key: str | None, folder: Path) -> Row:
    """Return the row of a table.

    Args:
        number: Its number, which is its key if there is no column for that.
        media: The column of the media: the bytes of a file, a path, or a struct of both.
        folder: What paths are relative to.
    """
    columns = {name: value for name, value in values.items() if name not in (media, key)}
    named = values.get(key) if key else f"{number:09}"
    if named is None or named == "":
        return Row(f"{number:09}", columns=columns, fault=f"row {number} has nothing in its column {key}")
    content = values.get(media)
    data, path = (content.get("bytes"), content.get("path")) if isinstance(content, Mapping) else (content, None)
    if isinstance(data, str):
        data, path = None, data
    if isinstance(data, bytes | bytearray | memoryview) and len(data):
        return Row(str(named), bytes(data), columns)
    if data is not None and not isinstance(data, bytes):
        return Row(str(named), columns=columns, fault=f"column {media} holds {type(data).__name__}, not a file")
    if not path:
        return Row(str(named), columns=columns, fault=f"column {media} holds neither bytes nor a path")
    try:
        file = as_path(path)
    except UsageError as error:
        return Row(str(named), columns=columns, fault=str(error))
    return Row(str(named), folder / file, columns)


def _columns_of(schema: Any, media: str | None, key: str | None) -> tuple[str, str | None]:
    """Return the columns of a table with the media and, if there is one, with the key."""
    pa = pyarrow()

    def is_binary(kind: Any) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_file(kind: Any) -> bool:
        return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0

    kinds = dict(zip(schema.names, schema.types, strict=True))
    candidates = [name for name, kind in kinds.items() if is_file(kind)]
    candidates = candidates or [name for name, kind in kinds.items() if is_binary(kind)]
    medium = choose_media(list(kinds), candidates, media)
    is_text = {name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)}
    return medium, choose_key(list(kinds), is_text, key)


def choose_media(names: list[str], candidates: list[str], asked: str | None) -> str:
    """Return the column that holds the media: the one asked for, or the only candidate.

    Raises:
        UsageError: It does not exist, or it is not plain which one it is.
    """
    if asked is not None:
        if asked not in names:
            raise UsageError(f"`media_column` {asked}: no such column; there are {', '.join(names)}")
        return asked
    if len(candidates) != 1:
        which = "several columns may hold" if candidates else "no column plainly holds"
        raise UsageError(f"{which} the media; give one as `media_column`: {', '.join(candidates or names)}")
    return candidates[0]


def choose_key(names: list[str], texts: set[str], asked: str | None) -> str | None:
    """Return the column that holds the key; None if rows are numbered.

    Raises:
        UsageError: The one asked for does not exist.
    """
    if asked is not None and asked not in names:
        raise UsageError(f"`key_column` {asked}: no such column; there are {', '.join(names)}")
    return asked or next((name for name in KEY_COLUMNS if name in texts), None)


def _labels(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes of each column of labels, from what Hugging Face datasets notes in its tables."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: found["names"] for name, found in features.items() if found.get("_type") == "ClassLabel"}
    return {}


def _named(values: dict[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """Replace the numbers of classes by their names."""
    for name, names in labels.items():
        number = values.get(name)
        if isinstance(number, int) and 0 <= number < len(names):
            values[name] = names[number]
    return values


class HubDataset:
    """A data set that the library `datasets` opens: `ORG/NAME[/CONFIG][:SPLIT]` of the Hub, or a saved folder.

    Raises:
        UsageError: The library is not installed, or it is not plain which column holds the media.
        MediaError: There is no such data set.
    """

    def __init__(self, name: str, media: str | None, key: str | None) -> None:
        try:
            import datasets
        except ImportError:
            raise UsageError(f"{name}: needs Hugging Face datasets: pip install 'vqtok[datasets]'") from None
        for library in ("datasets", "huggingface_hub"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # What fails is raised as well.
        datasets.disable_progress_bars()
        source, _, wanted = name.partition(":")
        if source.startswith(("/", "./", "../", "~")) and not Path(source).is_dir():
            raise MediaError(f"{name}: no such folder")  # `load_dataset` would search another one.
        try:
            if Path(source).is_dir():
                found: Any = _from_folder(datasets, source)
            else:
                parts = source.split("/")
                found = datasets.load_dataset("/".join(parts[:2]), *parts[2:3], streaming=True)
        except Exception as error:  # The library and what it calls raise almost anything.
            raise MediaError(f"{name}: cannot be opened: {' '.join(str(error).split())}") from error
        if not isinstance(found, Mapping):
            found = {wanted or "": found}
        if wanted and wanted not in found:
            raise UsageError(f"{name}: has no split {wanted}, only {', '.join(map(str, found))}")
        self.splits = {split: table for split, table in found.items() if not wanted or split == wanted}
        self.folder = Path(source) if Path(source).is_dir() else Path()
        self._datasets, self._columns = datasets, {}
        for split, table in self.splits.items():
            features = dict(table.features or {})
            candidates = [
                column for column, kind in features.items() if isinstance(kind, datasets.Image | datasets.Audio)
            ]
            texts = {column for column, kind in features.items() if getattr(kind, "dtype", "") == "string"}
            with error_context(name):
                medium = choose_media(list(features), candidates, media)
                self._columns[split] = medium, choose_key(list(features), texts, key)

    def count(self, split: str) -> int | None:
        """Return the number of rows of a split, if it is known."""
        try:
            return len(self.splits[split])
        except TypeError:
            return None

    def rows(self, split: str) -> Iterator[Row]:
        """Yield the rows of a split. A failure of the library becomes the fault of a last row."""
        table, (medium, key), number = self.splits[split], self._columns[split], 0
        labels = {}
        for column, kind in (table.features or {}).items():
            if isinstance(kind, self._datasets.ClassLabel):
                labels[column] = list(kind.names)
            elif isinstance(kind, self._datasets.Image | self._datasets.Audio):
                table = table.cast_column(column, type(kind)(decode=False))
        try:
            for values in table:
                yield table_row(_named(dict(values), labels), number, medium, key, self.folder)
                number += 1
        except Exception as error:  # As above.
            yield Row("", fault=f"cannot be read on after {number} rows: {' '.join(str(error).split())}")


def _from_folder(datasets: Any, folder: str) -> Any:
    """Open what `save_to_disk` has written, or any folder that `load_dataset` opens."""
    if any((Path(folder) / name).is_file() for name in SAVED_FILES):
        return datasets.load_from_disk(folder)
    return datasets.load_dataset(folder, streaming=True)
