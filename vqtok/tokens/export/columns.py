"""Columns of any JSON values as columns of a Parquet table."""

from __future__ import annotations

import json
from typing import Any


def kind_of(pa: Any, values: list[Any]) -> Any:
    """Return the type of a column: that of its values, or text, as JSON, if they are objects or of several types."""
    try:
        kind = pa.array([value for value in values if value is not None]).type
    except (pa.ArrowException, ValueError, TypeError):
        return pa.string()
    item = kind
    while pa.types.is_list(item):
        item = item.value_type
    return pa.string() if pa.types.is_null(item) or pa.types.is_nested(item) else kind


def column_of(pa: Any, values: list[Any], kind: Any) -> Any:
    """Return a column; values that do not fit its type are null, but text, as JSON, holds all."""
    if pa.types.is_string(kind):
        texts = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
        return pa.array(texts, kind)
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, ValueError, TypeError):
        return pa.array([_fitting(pa, value, kind) for value in values], kind)


def _fitting(pa: Any, value: Any, kind: Any) -> Any:
    try:
        return pa.scalar(value, kind).as_py()
    except (pa.ArrowException, ValueError, TypeError):
        return None
