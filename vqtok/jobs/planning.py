"""Plan the encoding of files, folders and lists of files: to token files or shards, all of it or a share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqtok.errors import UsageError
from vqtok.files.paths import RemotePath, as_path, naming, read_bytes
from vqtok.jobs.failures import failures_beside
from vqtok.jobs.job import Job
from vqtok.jobs.mapping import plan_items, plan_jobs
from vqtok.jobs.worklist import Listed, Share, WorkList, parse_list, share_of
from vqtok.media.kinds import modality_of

ITEMS_PER_SHARD = 1000
"""On a cluster, unless the number of tasks is given."""


@dataclass(frozen=True)
class Work:
    """What to encode: jobs of one file each, or shards and what goes into each."""

    jobs: WorkList[Job] = field(default_factory=WorkList)
    shards: Sequence[tuple[Path, WorkList[tuple[str, Path]]]] = ()
    failures: Path | None = None
    """Where to note what fails."""
    share: str = ""
    """Which share of all this is, if it was not asked for."""
    is_of_torchrun: bool = False
    """Whether other processes that torchrun started do the other shares."""

    @property
    def total(self) -> int:
        return len(self.jobs) + sum(len(items) for _, items in self.shards)


def plan_encoding(
    inputs: Sequence[Path],
    output: str | None,
    *,
    shard: str | None = None,
    filelist: Path | None = None,
    num_tasks: int | None = None,
    task_index: int | None = None,
    on_cluster: bool = False,
) -> Work:
    """Plan as the options of `vqtok encode` ask.

    Raises:
        UsageError, MediaError: as `plan_jobs`, or options that do not go together.
    """
    listed = None
    if filelist is not None:
        listed = _read_list(filelist, _folder_of_list(inputs))
    elif not inputs:
        raise UsageError("Missing argument 'IN': files, folders, or --filelist")
    share = share_of(num_tasks, task_index, {} if on_cluster else os.environ)
    if share.source and listed is None and not any(path.is_dir() for path in inputs):
        share = Share()  # Files that are named are meant for this process.
    if shard is not None:
        if output is not None:
            raise UsageError("--shard takes the place of -o; give one of them")
        return _plan_shards(inputs, shard, listed, share, on_cluster)
    if on_cluster:
        raise UsageError("--engine ray writes shards; give --shard DIR/")
    if share.index is None:
        raise UsageError(f"--num-tasks {share.count}: give --task-index, too, or --shard DIR/ for all of them")
    if output is not None and output.endswith(".vqts"):
        raise UsageError(f"-o {output}: to write a shard give --shard {output}")
    jobs = plan_jobs(inputs, output, suffix=".vqt", accepts=_is_medium, what="images or sounds", listed=listed)
    part = jobs.split(share.count)[share.index]
    return Work(
        jobs=part,
        failures=failures_beside(output, len(jobs), _named(share)),
        share=_told(share, len(part), len(jobs)),
        is_of_torchrun="RANK" in share.source,
    )


def _plan_shards(
    inputs: Sequence[Path], shard: str, listed: Iterator[Listed] | None, share: Share, on_cluster: bool
) -> Work:
    path = as_path(shard)
    is_folder = shard.endswith("/") or path.is_dir()
    was_chosen = share.index is not None and not share.source
    if not is_folder and (on_cluster or (share.count > 1 and not was_chosen)):
        others = f" ({share.source})" if share.source else ""
        raise UsageError(f"--shard {shard}: is to be written by several tasks{others}; give a folder, --shard DIR/")
    items = plan_items(inputs, accepts=_is_medium, what="images or sounds", listed=listed)
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
        failures=failures_beside(shard, len(items), _named(share) if is_folder else ""),
        share=_told(share, sum(len(part) for _, part in shards), len(items)),
        is_of_torchrun="RANK" in share.source,
    )


def _is_medium(path: Path) -> bool:
    return modality_of(path) is not None


def _folder_of_list(inputs: Sequence[Path]) -> Path | None:
    if len(inputs) > 1 or (inputs and not inputs[0].is_dir()):
        raise UsageError("--filelist takes the place of IN, which may only be the folder that holds all of its files")
    return inputs[0] if inputs else None


def _read_list(filelist: Path, folder: Path | None) -> Iterator[Listed]:
    with naming(filelist):
        yield from parse_list(read_bytes(filelist), folder)


def _num_shards(folder: Path, num_items: int) -> int:
    """Choose a number of shards: that of those which are there, so that a run goes on where another stopped."""
    there = folder.names_below() if isinstance(folder, RemotePath) else os.listdir(folder) if folder.is_dir() else []
    for name in there:
        if found := re.match(r"\d+-of-(\d+)\.vqts", name):
            return int(found[1])
    return -(-num_items // ITEMS_PER_SHARD)


def _named(share: Share) -> str:
    return share.name(share.index) if share.count > 1 and share.index is not None else ""


def _told(share: Share, num_items: int, total: int) -> str:
    if not share.source:
        return ""
    return f"task {share.index} of {share.count} ({share.source}): {num_items} of {total} inputs; --num-tasks 1 for all"
