"""Plan the work of `vqtok encode` and `vqtok decode`: which outputs, which shards, which share of it all."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import RemotePath, SpooledPath, as_path, error_context, read_bytes, spooled
from vqtok.jobs.columns import ChosenColumns, ColumnsOf, sidecar_columns
from vqtok.jobs.failures import failures_beside
from vqtok.jobs.job import Job
from vqtok.jobs.mapping import check_input, plan_items, plan_jobs
from vqtok.jobs.parts import PartJobs
from vqtok.jobs.rows import RowJobs, share_sources
from vqtok.jobs.table_files import TableFiles
from vqtok.jobs.worklist import Listed, Share, WorkList, parse_list, parse_table, share_of
from vqtok.media.kinds import modality_of, stem
from vqtok.media.transforms import Transforms
from vqtok.rows.row import ColumnChoice
from vqtok.rows.sources import Source, check_columns, find_sources, plain_inputs

MEDIA = "images or audio files"
TOKEN_FILES = ".vqt or .vqts files"
TABLES = (".parquet", ".tar")
"""Suffixes of outputs that hold tokens and columns of many items."""
NOTHING = Transforms()
TABLE_SUFFIXES = (".jsonl", ".csv", ".tsv")
"""File lists that have columns."""
ITEMS_PER_SHARD = 1000
"""Items in each shard on a cluster, unless the number of tasks is given."""

COUNTED_TARS = 4
"""Reading the headers of one tar can take a second, which is not worth the total of progress for many tars."""


@dataclass(frozen=True)
class Work:
    """What to do: jobs of one output each, or shards and the items of each."""

    jobs: WorkList[Job] | RowJobs | PartJobs = field(default_factory=WorkList)
    shards: Sequence[tuple[Path, WorkList[tuple[str, Path]] | RowJobs | PartJobs]] = ()
    table: TableFiles | None = None
    """The Parquet files or tars that all items of `jobs` go to."""
    failures: Path | None = None
    """The manifest of failures."""
    share: str = ""
    """Describes which share of all work this is, if the environment chose it."""
    is_of_torchrun: bool = False
    """Whether other processes started by torchrun do the other shares."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files in the given folders that are not inputs, counted by suffix."""
    columns: ColumnsOf = sidecar_columns
    """Returns the columns of an item to encode."""
    num_rows: int | None = None
    """The number of items of data sets, or of parts of files, if it is known."""

    @property
    def files(self) -> WorkList[Job]:
        """The jobs of work that is not of rows."""
        assert isinstance(self.jobs, WorkList)
        return self.jobs

    @property
    def only_jobs(self) -> Iterable[Job]:
        """The jobs if there is one output at most, which may be standard output."""
        return self.jobs if self.total == 1 and self.table is None and not isinstance(self.jobs, RowJobs) else ()

    @property
    def shards_of_files(self) -> Sequence[tuple[Path, WorkList[tuple[str, Path]]]]:
        """The shards of work that is not of rows."""
        return [(path, items) for path, items in self.shards if isinstance(items, WorkList)]

    @property
    def shards_on_cluster(self) -> Sequence[tuple[Path, WorkList[tuple[str, Path]] | RowJobs]]:
        """The shards of work without parts of files, which a cluster does not encode."""
        return [(path, items) for path, items in self.shards if not isinstance(items, PartJobs)]

    @property
    def is_of_rows(self) -> bool:
        """Whether the items are not the files themselves, but rows or parts of files."""
        return not isinstance(self.jobs, WorkList) or any(not isinstance(items, WorkList) for _, items in self.shards)

    @property
    def total(self) -> int | None:
        """The number of items; None if it is not known before they are read."""
        if self.is_of_rows:
            return self.num_rows
        return len(self.files) + sum(len(items) for _, items in self.shards_of_files)


def plan_encoding(
    inputs: Sequence[Path],
    output: str | None,
    *,
    shard: str | None = None,
    filelist: Path | None = None,
    num_tasks: int | None = None,
    task_index: int | None = None,
    on_cluster: bool = False,
    choice: ColumnChoice | None = None,
    transforms: Transforms = NOTHING,
    rows_per_file: int | None = None,
) -> Work:
    """Plan the work that the options of `vqtok encode` describe.

    Args:
        choice: The columns to keep, and which column of rows holds the media.
        transforms: What is done to media before they are encoded.
        rows_per_file: Items in each file, for outputs that are Parquet or tars.

    Raises:
        UsageError, MediaError: As `plan_jobs` does, or options that contradict each other.
    """
    work = _plan(inputs, output, shard, filelist, num_tasks, task_index, on_cluster, choice, rows_per_file)
    if transforms == NOTHING:
        return work
    if on_cluster:
        raise UsageError("--engine ray encodes media as they are; leave out --resize and the like")
    if output == "-" and (transforms.flip == "both" or transforms.segment_seconds is not None):
        raise UsageError("-o -: --flip both and --segment-seconds make several items; give -o DIR")
    total = work.total if transforms.flip != "both" and transforms.segment_seconds is None else None
    shards = [
        (path, PartJobs(_with_keys(path, items), transforms, True, items if isinstance(items, WorkList) else None))
        for path, items in work.shards
    ]
    jobs = work.jobs if work.shards else PartJobs(work.jobs, transforms, work.table is not None)
    return replace(work, jobs=jobs, shards=shards, num_rows=total)


def _with_keys(shard: Path, items: WorkList[tuple[str, Path]] | RowJobs | PartJobs) -> Iterable[Job]:
    return (Job(source, shard, key) for key, source in items) if isinstance(items, WorkList) else items


def _plan(
    inputs: Sequence[Path],
    output: str | None,
    shard: str | None,
    filelist: Path | None,
    num_tasks: int | None,
    task_index: int | None,
    on_cluster: bool,
    choice: ColumnChoice | None,
    rows_per_file: int | None,
) -> Work:
    """Plan the work without transforms."""
    is_table = output is not None and output.lower().endswith(TABLES)
    if rows_per_file is not None and not is_table:
        raise UsageError("--rows-per-file is for -o FILE.parquet and -o FILE.tar")
    listed, ignored = None, Counter[str]()
    choice = choice or ColumnChoice()
    table: dict[Path, str] = {}
    if filelist is not None:
        listed = _read_list(filelist, _folder_of_list(inputs), choice.media, table)
    elif sources := find_sources(inputs, choice):
        share = share_of(num_tasks, task_index, {} if on_cluster else os.environ)
        if on_cluster:
            if shard is None or not (shard.endswith("/") or as_path(shard).is_dir()):
                raise UsageError("--engine ray writes shards; give --shard DIR/")
            if share.count == 1:
                share = Share(len(sources), None if len(sources) > 1 else 0)
        return _plan_rows(sources, output, shard, share, choice, rows_per_file)
    elif not inputs:
        raise UsageError("Missing argument 'IN': files, folders, or --filelist")
    inputs = plain_inputs(inputs)
    columns: ColumnsOf = sidecar_columns
    if table or not choice.is_default or filelist is not None:
        columns = ChosenColumns(choice, table)
    share = share_of(num_tasks, task_index, {} if on_cluster else os.environ)
    if share.source and listed is None and not any(path.is_dir() for path in inputs):
        share = Share()  # Files that are named individually are for this process.
    if shard is not None:
        if output is not None:
            raise UsageError("--shard replaces -o; give one of them")
        return _plan_shards(inputs, shard, listed, share, on_cluster, ignored, columns)
    if on_cluster:
        raise UsageError("--engine ray writes shards; give --shard DIR/")
    if share.index is None:
        raise UsageError(f"--num-tasks {share.count}: give --task-index as well, or --shard DIR/ for all parts")
    if output is not None and output.endswith(".vqts"):
        raise UsageError(f"-o {output}: to write a shard give --shard {output}")
    if is_table:
        assert output is not None
        items = plan_items(inputs, accepts=_is_media, what=MEDIA, listed=listed, ignored=ignored)
        keyed = items.split(share.count)[share.index]
        target = TableFiles(as_path(output), rows_per_file, _table_task(share))
        own: WorkList[Job] = WorkList()
        for key, source in keyed:
            own.add(key, _InTable(source, target.pattern))
        return Work(
            jobs=own,
            table=target,
            failures=_failures_of_table(target),
            share=_describe_share(share, len(keyed), len(items)),
            is_of_torchrun="RANK" in share.source,
            ignored=ignored,
            columns=columns,
        )
    jobs = plan_jobs(inputs, output, suffix=".vqt", accepts=_is_media, what=MEDIA, listed=listed, ignored=ignored)
    part = jobs.split(share.count)[share.index]
    return Work(
        jobs=part,
        failures=failures_beside(output, len(jobs), _share_suffix(share)),
        share=_describe_share(share, len(part), len(jobs)),
        is_of_torchrun="RANK" in share.source,
        ignored=ignored,
        columns=columns,
    )


def _plan_rows(
    sources: Sequence[Source],
    output: str | None,
    shard: str | None,
    share: Share,
    choice: ColumnChoice,
    rows_per_file: int | None,
) -> Work:
    """Plan the work on data sets, after a check of what can be checked before they are read."""
    target = shard if shard is not None else output
    if shard is not None and output is not None:
        raise UsageError("--shard replaces -o; give one of them")
    if target is None:
        raise UsageError(f"{sources[0].path}: contains many items; give -o DIR for their outputs, or --shard OUT.vqts")
    if output is not None and (output == "-" or output.endswith((".vqt", ".vqts"))):
        raise UsageError(f"-o {output}: a data set needs a folder; for a shard give --shard OUT.vqts")
    path = as_path(target)
    tars = len(sources) <= COUNTED_TARS and all(str(source.path).lower().endswith(".tar") for source in sources)
    counts = [source.count(choice, tars=tars) for source in sources]
    check_columns(sources, choice)
    num_rows = sum(filter(None, counts)) if None not in counts and share.count == 1 else None
    table = None
    if output is not None and output.lower().endswith(TABLES):
        table = TableFiles(path, rows_per_file, _table_task(share))
    if shard is None:
        if table is None and path.exists() and not path.is_dir():
            raise UsageError(f"{output}: is a file; the items of a data set need a folder")
        if share.index is None:
            raise UsageError(f"--num-tasks {share.count}: give --task-index as well, or --shard DIR/ for all parts")
        jobs = share_sources(RowJobs(sources, choice, path, in_folder=table is None), share, share.index)
        failures = failures_beside(output, 2, _share_suffix(share)) if table is None else _failures_of_table(table)
        return Work(
            jobs=jobs,
            table=table,
            failures=failures,
            share=_describe_sources(share, len(jobs.sources), len(sources)),
            is_of_torchrun="RANK" in share.source,
            columns=ChosenColumns(choice),
            num_rows=num_rows,
        )
    is_folder = target.endswith("/") or path.is_dir()
    if not is_folder and share.count > 1 and (share.index is None or share.source):
        raise UsageError(f"--shard {shard}: would be written by several tasks; give a folder, --shard DIR/")
    shards = []
    for index in share.indices:
        one = path / f"{share.name(index)}.vqts" if is_folder else path
        shards.append((one, share_sources(RowJobs(sources, choice, one, in_folder=False), share, index)))
    return Work(
        shards=shards,
        failures=failures_beside(shard, 2, _share_suffix(share) if is_folder else ""),
        share=_describe_sources(share, len(shards[0][1].sources), len(sources)),
        is_of_torchrun="RANK" in share.source,
        columns=ChosenColumns(choice),
        num_rows=num_rows,
    )


def plan_decoding(
    inputs: Sequence[Path], output: str | None, *, keys: Sequence[str] = (), salvage: bool = False
) -> Work:
    """Plan the work that the options of `vqtok decode` describe. An input that cannot be read fails as a job.

    Args:
        keys: Decode only these items of the one input, a shard or export.

    Raises:
        UsageError, MediaError: As `plan_jobs` does, or `keys` of several inputs or of a token file.
    """
    from vqtok.models.token_reader import open_items
    from vqtok.tokens.vqt.header import read_header

    for path in inputs:
        check_input(path, len(inputs), output)  # before a pipe is read
    inputs, opened = [spooled(path) for path in inputs], functools.lru_cache(maxsize=1)(open_items)

    def items(path: Path) -> Iterable[str] | None:
        if path.suffix.lower() == ".vqt":
            return None
        try:
            found = opened(path)
            return found and (keys or list(found))
        except VqtokError:
            return None

    def suffix(path: Path, key: str | None = None) -> str:
        try:
            found = opened(path)
            made_of = found or read_header(path, salvage)
            modality = made_of.modality if found is None or key is None else found.modality_of(key)
            return ".wav" if modality == "audio" else ".png"
        except (VqtokError, OSError):
            return ".png"

    if keys and not (len(inputs) == 1 and (items(inputs[0]) or not inputs[0].exists())):
        raise UsageError("--key chooses items of a shard or export; give one shard or export")
    if len(keys) == 1 and output is None and not isinstance(inputs[0], SpooledPath):
        output = str(inputs[0].with_name(Path(stem(keys[0])).name + suffix(inputs[0], keys[0])))
    ignored = Counter[str]()
    jobs = plan_jobs(
        inputs,
        output,
        suffix=suffix,
        accepts=lambda path: path.suffix.lower() in (".vqt", ".vqts"),
        what=TOKEN_FILES,
        items=items,
        stem=stem,
        ignored=ignored,
    )
    return Work(jobs=jobs, failures=failures_beside(output, len(jobs)), ignored=ignored)


def _plan_shards(
    inputs: Sequence[Path],
    shard: str,
    listed: Iterator[Listed] | None,
    share: Share,
    on_cluster: bool,
    ignored: Counter[str],
    columns: ColumnsOf,
) -> Work:
    path = as_path(shard)
    is_folder = shard.endswith("/") or path.is_dir()
    was_chosen = share.index is not None and not share.source
    if not is_folder and (on_cluster or (share.count > 1 and not was_chosen)):
        others = f" ({share.source})" if share.source else ""
        raise UsageError(f"--shard {shard}: would be written by several tasks{others}; give a folder, --shard DIR/")
    items = plan_items(inputs, accepts=_is_media, what=MEDIA, listed=listed, ignored=ignored)
    if on_cluster and share.count == 1:
        share = Share(_num_shards(path, len(items)), None)
    parts = items.split(share.count)
    shards = [
        (path / f"{share.name(index)}.vqts" if is_folder else path, parts[index])
        for index in share.indices
        if len(parts[index])
    ]
    return Work(
        shards=shards,
        failures=failures_beside(shard, len(items), _share_suffix(share) if is_folder else ""),
        share=_describe_share(share, sum(len(part) for _, part in shards), len(items)),
        is_of_torchrun="RANK" in share.source,
        ignored=ignored,
        columns=columns,
    )


@dataclass(frozen=True)
class _InTable:
    """Makes the job of a file that goes to a table."""

    source: Path
    target: Path

    def __call__(self, key: str) -> Job:
        return Job(self.source, self.target, key)


def _table_task(share: Share) -> str:
    return f"{share.index:05}-" if share.count > 1 else ""


def _failures_of_table(table: TableFiles) -> Path:
    name = table.pattern.with_suffix("").name.replace("{shard}", "").strip("-_.") or "tokens"
    return table.pattern.with_name(f"{name}{'.' if table.task else ''}{table.task.rstrip('-')}.failures.jsonl")


def _is_media(path: Path) -> bool:
    return modality_of(path) is not None


def _folder_of_list(inputs: Sequence[Path]) -> Path | None:
    if len(inputs) > 1 or (inputs and not inputs[0].is_dir()):
        raise UsageError("--filelist replaces IN, which may only be the folder that contains all of the listed files")
    return inputs[0] if inputs else None


def _read_list(filelist: Path, folder: Path | None, column: str | None, table: dict[Path, str]) -> Iterator[Listed]:
    """Yield the listed files. The columns of a list that is a table go into `table`, by path."""
    suffix = filelist.suffix.lower()
    with error_context(filelist):
        if suffix not in TABLE_SUFFIXES:
            yield from parse_list(read_bytes(filelist), folder)
            return
        for (root, name), fields in parse_table(read_bytes(filelist), suffix, folder, column):
            table[root / name] = fields
            yield root, name


def _num_shards(folder: Path, num_items: int) -> int:
    """Return the number of shards: that of the existing ones, so that a run continues an earlier one."""
    names = folder.names_below() if isinstance(folder, RemotePath) else os.listdir(folder) if folder.is_dir() else []
    for name in names:
        if found := re.match(r"\d+-of-(\d+)\.vqts", name):
            return int(found[1])
    return -(-num_items // ITEMS_PER_SHARD)


def _share_suffix(share: Share) -> str:
    return share.name(share.index) if share.count > 1 and share.index is not None else ""


def _describe_sources(share: Share, num_sources: int, total: int) -> str:
    if not share.source:
        return ""
    part = f"{num_sources} of {total} files" if total >= share.count else "its part of the rows"
    return f"task {share.index} of {share.count} ({share.source}): {part}; --num-tasks 1 for all"


def _describe_share(share: Share, num_items: int, total: int) -> str:
    if not share.source:
        return ""
    return f"task {share.index} of {share.count} ({share.source}): {num_items} of {total} inputs; --num-tasks 1 for all"
