"""The names of the files of a table of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PLACEHOLDER = "{shard}"
ROWS_PER_TAR = 10_000
"""Items of a tar whose number is not given."""


@dataclass(frozen=True)
class TableFiles:
    """The files of a table: one, or several with a number in their name.

    Args:
        pattern: A path, with `{shard}` where the number goes. Without it the number goes before the suffix if there are
            several files.
        rows_per_file: Items in each file; by default all in one file, and 10,000 in each of several.
        task: Goes before the number, if several tasks write files of the same pattern.
    """

    pattern: Path
    rows_per_file: int | None = None
    task: str = ""

    @property
    def limit(self) -> int | None:
        """The number of items in each file; None for all in one file."""
        return self.rows_per_file or (ROWS_PER_TAR if PLACEHOLDER in self.pattern.name else None)

    def file(self, number: int) -> Path:
        """Return the path of a file."""
        name, label = self.pattern.name, f"{self.task}{number:05}"
        if PLACEHOLDER in name:
            return self.pattern.with_name(name.replace(PLACEHOLDER, label))
        if self.limit is None and not self.task:
            return self.pattern
        return self.pattern.with_name(f"{self.pattern.stem}-{label}{self.pattern.suffix}")

    def there(self) -> Iterator[Path]:
        """Yield the files that exist, in order, up to the first that does not."""
        number = 0
        while (path := self.file(number)).exists():
            yield path
            number += 1
            if self.limit is None and PLACEHOLDER not in self.pattern.name:
                return
