"""Work lists of millions of items, lists of files, and the share of the work that one of several processes does."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

from vqtok.errors import MediaError, UsageError
from vqtok.files.paths import RemotePath, absolute, as_path

T = TypeVar("T")
Listed: TypeAlias = tuple[Path, str]
"""A folder, and the path of a file relative to it."""


class WorkList(Sequence[T]):
    """A sequence whose items are made from their names on access: millions of objects would fill the memory."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._makers: list[Callable[[str], T]] = []
        self._maker_of = array("L")

    def add(self, name: str, make: Callable[[str], T]) -> None:
        if not self._makers or self._makers[-1] != make:
            self._makers.append(make)
        self._names.append(name)
        self._maker_of.append(len(self._makers) - 1)

    def replace(self, index: int, make: Callable[[str], T]) -> None:
        """Make the item at `index` by another maker."""
        if self._makers[-1] != make:
            self._makers.append(make)
        self._maker_of[index] = len(self._makers) - 1

    def split(self, count: int) -> list[WorkList[T]]:
        """Divide the list into parts of about equal length.

        The hash of a name decides its part, so that the parts do not depend on the order, and files that are added or
        removed do not move others.
        """
        if count == 1:
            return [self]
        parts: list[WorkList[T]] = [WorkList() for _ in range(count)]
        for name, maker in zip(self._names, self._maker_of, strict=True):
            digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
            parts[int.from_bytes(digest, "little") % count].add(name, self._makers[maker])
        return parts

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._makers[self._maker_of[index]](self._names[index])


@dataclass(frozen=True)
class Share:
    """One of the `count` parts of a work list, or all of them one after another."""

    count: int = 1
    index: int | None = 0
    """None stands for all parts."""
    source: str = ""
    """The environment variable that chose this part; empty if the user did."""

    def __post_init__(self) -> None:
        if self.index is not None and not 0 <= self.index < self.count:
            raise UsageError(f"task {self.index} of {self.count}: tasks are numbered from 0")

    @property
    def indices(self) -> Sequence[int]:
        return range(self.count) if self.index is None else [self.index]

    def name(self, index: int) -> str:
        """Return the name of a part, such as `00003-of-00100`."""
        return f"{index:05}-of-{self.count:05}"


def share_of(count: int | None, index: int | None, environment: Mapping[str, str] = os.environ) -> Share:
    """Return the requested share, else that of this task of a Slurm job array or process of torchrun.

    Raises:
        UsageError: An index without a count or beyond it, or a job array whose numbers have gaps.
    """
    task, tasks = _number(environment, "SLURM_ARRAY_TASK_ID"), _number(environment, "SLURM_ARRAY_TASK_COUNT")
    rank, ranks = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if count == 1:
        return Share()
    if count is not None:
        # When some tasks of an array are submitted again, only this number keeps its meaning.
        named = rank if task is None else task
        return Share(count, named if index is None else index)
    if index is not None:
        raise UsageError("--task-index needs --num-tasks")
    share = Share()
    if task is not None and tasks is not None:
        first, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "STEP"))
        place, between = divmod(task - (first or 0), step or 1)
        if between or not 0 <= place < tasks:
            raise UsageError(f"SLURM_ARRAY_TASK_ID={task}: the job array has gaps; give --num-tasks and --task-index")
        share = Share(tasks, place, "SLURM_ARRAY_TASK_ID")
    if rank is not None and ranks is not None:
        assert share.index is not None
        share = Share(share.count * ranks, share.index * ranks + rank, f"{share.source} RANK".strip())
    return share


def _number(environment: Mapping[str, str], name: str) -> int | None:
    try:
        return int(environment[name]) if name in environment else None
    except ValueError:
        raise UsageError(f"{name}={environment[name]}: is not a number; give --num-tasks and --task-index") from None


def parse_list(data: bytes, folder: Path | None = None) -> Iterator[Listed]:
    """Read a list of files: one per line (LF or CRLF), or each terminated by NUL if there is any. Skip empty lines.

    Args:
        folder: The folder that contains all of them.

    Yields:
        Each file by its path in `folder`, else by the listed path without a leading slash.

    Raises:
        MediaError: Nothing is listed.
        UsageError: A file is outside of the folder.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    separator, end = (b"\0", b"") if b"\0" in data else (b"\n", b"\r")
    name = b""
    for found in re.finditer(rb"[^%s]+" % re.escape(separator), data):
        if name := found[0].removesuffix(end):
            yield _placed(os.fsdecode(name), folder)
    if not name:
        raise MediaError("lists no files")


def _placed(name: str, folder: Path | None) -> Listed:
    path = as_path(name)
    if folder is not None:
        root, text = absolute(folder), absolute(path)
        if not text.startswith(root.rstrip("/") + "/"):
            raise UsageError(f"{name}: is not in {folder}, the folder that the list is relative to")
        return folder, text.removeprefix(root).lstrip("/")
    if isinstance(path, RemotePath):
        return as_path(f"{path.scheme}://"), str(path).partition("://")[2]
    text = os.path.normpath(path)
    if text.split("/")[0] == "..":
        raise UsageError(f"{name}: is outside of the current folder; list its absolute path, or give the folder")
    return (Path("/"), text.lstrip("/")) if path.is_absolute() else (Path(), text)


PATH_COLUMNS = ("path", "file_name", "file", "filename", "file_path", "image", "audio")
"""Columns of a table of files that name the file, the likeliest first; `file_name` is that of Hugging Face."""


def parse_table(data: bytes, suffix: str, folder: Path | None, column: str | None) -> Iterator[tuple[Listed, str]]:
    """Read a list of files with columns: `.jsonl`, or `.csv` and `.tsv` with names in their first line.

    Args:
        folder: The folder that paths are relative to.
        column: The column with the path; by default the first of `PATH_COLUMNS` that there is.

    Yields:
        Each file as `parse_list` does, and its other columns as a JSON object.

    Raises:
        MediaError: Nothing is listed, or a line is damaged.
        UsageError: No column names the files, or a file is outside of the folder.
    """
    number = 0
    for number, (line, fields) in enumerate(_table_lines(data, suffix), 1):
        name = column or next((name for name in PATH_COLUMNS if name in fields), None)
        path = fields.pop(name, None) if name else None
        if number == 1 and path is None:
            raise UsageError(
                f"no column {column or 'that names the file'}; `media_column` is one of {', '.join(fields)}"
            )
        if not isinstance(path, str) or not path:
            raise MediaError(f"line {line}: names no file")
        relative = folder / path if folder is not None and not os.path.isabs(path) else as_path(path)
        yield _placed(str(relative), folder), json.dumps(fields)
    if not number:
        raise MediaError("lists no files")


def _table_lines(data: bytes, suffix: str) -> Iterator[tuple[int, dict[str, Any]]]:
    text = data.decode("utf-8-sig", "surrogateescape")
    if suffix == ".jsonl":
        for line, content in enumerate(text.splitlines(), 1):
            if content.strip():
                try:
                    fields = json.loads(content)
                except (ValueError, RecursionError):
                    fields = None
                if not isinstance(fields, dict):
                    raise MediaError(f"line {line}: is not a JSON object")
                yield line, fields
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ",", restval="")
    try:
        for values in reader:
            yield reader.line_num, {name: value for name, value in values.items() if name and value != ""}
    except csv.Error as error:
        raise MediaError(f"line {reader.line_num}: {error}") from None
