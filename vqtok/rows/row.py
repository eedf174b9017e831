"""`Row`, one item of a data set with its columns, and `ColumnChoice`, which decides what of it is kept."""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok.errors import MediaError
from vqtok.tokens.fields import MAX_METADATA_BYTES, pack_metadata

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One item of a data set, with what belongs to it."""

    key: str
    """Its name in the source, with the suffix of its media where there is one; empty for a fault of the source."""
    media: Path | bytes | None = None
    """A file, or the content of one; None if there is a fault."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """A caption, a label and the like: JSON values, or an `Unreadable` in place of what is none."""
    shares_stem: bool = False
    """Whether other media of the source have its key but for the suffix, which their outputs must keep then."""
    fault: str = ""
    """Why it cannot be encoded; empty if nothing is known to be wrong."""


@dataclass(frozen=True)
class Unreadable:
    """Stands for a column whose value cannot be read."""

    reason: str
    hides: bool = False
    """Whether it could have held any other columns, as a file of JSON fields does."""


class ColumnChoice:
    """Chooses the columns of rows that become metadata of their tokens.

    Columns that cannot be stored are left out with one warning for each name. If they were asked for, their row fails.

    Args:
        names: The columns to keep; by default all.
        label_folders: Add the name of the folder that contains an item as its column `label`.
        media: The column, or the suffix of members of a tar, that holds the media.
        key: The column of a table that holds the key.
    """

    def __init__(
        self,
        names: Sequence[str] | None = None,
        *,
        label_folders: bool = False,
        media: str | None = None,
        key: str | None = None,
    ) -> None:
        self.names = None if names is None else tuple(names)
        self.label_folders, self.media, self.key = label_folders, media, key
        self._warned: set[str] = set()
        self._found: set[str] = set()

    @property
    def is_default(self) -> bool:
        """Whether nothing was chosen that only rows have."""
        return self.names is None and not self.label_folders

    def choose(self, columns: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Return the columns to store of an item.

        Args:
            key: The key of the item, whose folder may be its label.

        Raises:
            MediaError: A column that was asked for cannot be stored.
        """
        folder = Path(key).parent.name
        if self.label_folders and folder:
            columns = {"label": folder, **columns}
        self._found.update(columns)
        if self.names is not None:
            missing = [name for name in self.names if name not in columns]
            for name, value in columns.items():
                if missing and isinstance(value, Unreadable) and value.hides:
                    raise MediaError(f"column {missing[0]}: {name} {value.reason}")
            columns = {name: columns[name] for name in self.names if name in columns}
        chosen: dict[str, Any] = {}
        for name, value in columns.items():
            try:
                plain = as_json(value)
                if plain is not None:
                    pack_metadata(chosen | {name: plain})
                    chosen[name] = plain
            except ValueError as error:
                if self.names is not None:
                    raise MediaError(f"column {name}: {error}") from None
                self._warn(name, key, error)
        return chosen

    @property
    def not_found(self) -> list[str]:
        """The columns that were asked for and that no item had; empty before the first item."""
        return [name for name in self.names or () if self._found and name not in self._found]

    def _warn(self, name: str, key: str, error: ValueError) -> None:
        if name not in self._warned:
            self._warned.add(name)
            logger.warning("%s: column %s is left out, here and without a warning from now on: %s", key, name, error)


def as_json(value: Any) -> Any:
    """Return the value of a column as JSON stores it.

    Raises:
        ValueError: JSON cannot store it.
    """
    if isinstance(value, Unreadable):
        raise ValueError(value.reason)
    if isinstance(value, datetime.date | datetime.time):  # A datetime is a date, too.
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return None  # The missing number of pandas.
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"{type(value).__name__} is not JSON") from None
    return value


def describe_limit() -> str:
    """Return the limit of columns in words, which is said before long work starts."""
    return f"at most {MAX_METADATA_BYTES:,} bytes an item"
