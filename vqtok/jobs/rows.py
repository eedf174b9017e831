"""Jobs of the rows of data sets, made one after another while the sources are read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqtok.jobs.job import Job
from vqtok.jobs.worklist import Share
from vqtok.media.kinds import stem
from vqtok.rows.row import ColumnChoice, Row
from vqtok.rows.sources import Source

Target = Callable[[str], Path]
"""Returns the output of the row with a key."""


@dataclass(frozen=True)
class RowJobs:
    """The jobs of all rows of some sources; iterating reads the sources once.

    Args:
        sources: What is read, in order.
        choice: The columns to read.
        target: Where the outputs go: the folder of token files, or the one file for all.
        in_folder: Whether `target` is such a folder.
        count, index: Only the rows whose keys belong to part `index` of `count`.
    """

    sources: Sequence[Source]
    choice: ColumnChoice
    target: Path
    in_folder: bool
    count: int = 1
    index: int = 0

    def __iter__(self) -> Iterator[Job]:
        for source in self.sources:
            seen: set[int] = set()
            for row in source.rows(self.choice):
                if not row.key:
                    yield Job(source.path, self.target, None, row)
                    continue
                if self.count > 1 and part_of(source.prefix + row.key, self.count) != self.index:
                    continue
                row = self._checked(row, seen)
                key = source.prefix + row.key
                yield Job(source.path, self._target(key, row) if not row.fault else self.target, key, row)

    def _checked(self, row: Row, seen: set[int]) -> Row:
        """Return a row, with a fault if another row has its key or the key leads out of the folder for outputs."""
        path = Path(row.key)
        if path.is_absolute() or ".." in path.parts or "\0" in row.key:
            return replace(row, fault="its key leads out of the folder for outputs")
        number = hash(row.key if row.shares_stem else stem(row.key))
        if number in seen and not row.fault:
            return replace(row, fault="another row has the same key")
        seen.add(number)
        return row

    def _target(self, key: str, row: Row) -> Path:
        return self.target / f"{key if row.shares_stem else stem(key)}.vqt" if self.in_folder else self.target


def part_of(key: str, count: int) -> int:
    """Return the part of `count` that a row belongs to, by the hash of its key."""
    return int.from_bytes(hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest(), "little") % count


def share_sources(jobs: RowJobs, share: Share, index: int) -> RowJobs:
    """Return the part of jobs that belongs to one task.

    Whole sources are dealt out in turn, so that each is read by one task; if there are fewer than tasks, all read all,
    and the hash of a key decides.
    """
    if len(jobs.sources) >= share.count:
        return replace(jobs, sources=jobs.sources[index :: share.count])
    return replace(jobs, count=share.count, index=index)
