"""Columns of any JSON values as columns of a Parquet table."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

JSON_KEY = b"vqtok_json"
"""In the schema of a table: the columns of JSON text, as a JSON list."""

logger = logging.getLogger(__name__)


class ColumnWriter:
    """Makes the columns of rows those of a table; they have the types of the first row group.

    Objects and values of several types become JSON text, as does what is not text in a column of text. In other columns
    later values that do not fit are null; `warn` reports all that is lost.

    Args:
        own: The names of columns that the table has itself, which rows cannot have.
    """

    def __init__(self, pa: Any, own: Container[str]) -> None:
        self._pa, self._own = pa, own
        self._kinds: dict[str, Any] = {}
        self._json: set[str] = set()
        self._is_first = True
        self._lost, self._new, self._texts = Counter[str](), Counter[str](), Counter[str]()

    def arrays(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the columns of the next row group by name."""
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in self._own]
        if self._is_first:
            self._is_first = False
            kinds = {name: _kind_of(self._pa, [row.get(name) for row in rows]) for name in names}
            self._kinds = {name: self._pa.string() if kind is None else kind for name, kind in kinds.items()}
            self._json = {name for name, kind in kinds.items() if kind is None}
        for name in (name for name in names if name not in self._kinds):
            self._new[name] += sum(row.get(name) is not None for row in rows)
        return {name: self._column(name, [row.get(name) for row in rows]) for name in self._kinds}

    def schema_metadata(self) -> dict[bytes, bytes]:
        """Return what `read_json_columns` needs, after the first call of `arrays`."""
        return {JSON_KEY: json.dumps(sorted(self._json)).encode()} if self._json else {}

    def warn(self, path: Path) -> None:
        """Log a warning for each column of a table that does not hold all values as they were."""
        for name, count in self._lost.items():
            text = "%s: column %s: values are left out which are not %s as in the first rows: %d"
            logger.warning(text, path, name, self._kinds[name], count)
        for name, count in self._new.items():
            logger.warning(
                "%s: column %s: values are left out, as none of the first rows has one: %d", path, name, count
            )
        for name, count in self._texts.items():
            logger.warning("%s: column %s: values that are not text are JSON text: %d", path, name, count)

    def _column(self, name: str, values: list[Any]) -> Any:
        pa, kind = self._pa, self._kinds[name]
        if name in self._json:
            return pa.array([None if value is None else _as_text(value) for value in values], kind)
        if pa.types.is_string(kind):
            others = [value is not None and not isinstance(value, str) for value in values]
            self._texts += Counter({name: sum(others)})
            texts = [_dumps(value) if other else value for value, other in zip(values, others, strict=True)]
            return pa.array(texts, kind)
        fitting = [_fitting(pa, value, kind) for value in values]
        lost = [value for value, new in zip(values, fitting, strict=True) if new is None and value is not None]
        self._lost += Counter({name: len(lost)})
        return pa.array(fitting, kind)


def read_json_columns(row: dict[str, Any], metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return a row of a table with the values that its JSON text stands for.

    Raises:
        ValueError: The metadata of the schema are damaged.
    """
    names = json.loads((metadata or {}).get(JSON_KEY, b"[]"))
    return row | {name: _from_text(row[name]) for name in names if isinstance(row.get(name), str)}


def _kind_of(pa: Any, values: list[Any]) -> Any:
    """Return the type of a column; None if it has objects or values of several types."""
    try:
        kind = pa.array([value for value in values if value is not None]).type
    except (pa.ArrowException, ValueError, TypeError):
        return None
    item = kind
    while pa.types.is_list(item):
        item = item.value_type
    return None if pa.types.is_null(item) or pa.types.is_nested(item) else kind


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _as_text(value: Any) -> str:
    """Return a value as JSON; text stays as it is, unless it would be read as something else."""
    return value if isinstance(value, str) and _from_text(value) == value else _dumps(value)


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fitting(pa: Any, value: Any, kind: Any) -> Any:
    """Return a value if the type can hold it as it is, else None: pyarrow cuts 0.5 to the integer 0."""
    try:
        return value if pa.scalar(value, kind).as_py() == value else None
    except (pa.ArrowException, ValueError, TypeError):
        return None
