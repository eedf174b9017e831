"""The columns of jobs: what belongs to an item, in its row, in its sidecars, or in the list that names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from vqtok.files.paths import RemotePath, is_stream
from vqtok.files.sidecars import read_columns
from vqtok.jobs.job import Job
from vqtok.rows.row import ColumnChoice

ColumnsOf: TypeAlias = Callable[[Job], Mapping[str, Any]]


def sidecar_columns(job: Job) -> Mapping[str, Any]:
    """Return the columns in the row of a job, or in the sidecars of its file."""
    return job.row.columns if job.row else _sidecars(job.source)


class ChosenColumns:
    """Returns those columns of a job that were chosen.

    Args:
        listed: The columns of listed files as JSON objects, by path. They count more than sidecars.
    """

    def __init__(self, choice: ColumnChoice, listed: Mapping[Path, str] | None = None) -> None:
        self._choice, self._listed = choice, {} if listed is None else listed

    def __call__(self, job: Job) -> Mapping[str, Any]:
        """Return the columns of a job.

        Raises:
            MediaError: A column that was asked for cannot be stored.
        """
        if job.row:
            return self._choice.choose(job.row.columns, job.key or "")
        columns = _sidecars(job.source, strict=self._choice.names is not None)
        if job.source in self._listed:
            columns |= json.loads(self._listed[job.source])
        return self._choice.choose(columns, str(job.source))


def _sidecars(path: Path, *, strict: bool = False) -> dict[str, Any]:
    return {} if isinstance(path, RemotePath) or is_stream(path) else read_columns(path, strict=strict)
