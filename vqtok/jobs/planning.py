"""Plan the work of `vqtok encode` and `vqtok decode`: which outputs, which shards, which share of it all."""

from __future__ import annotations

import functools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import RemotePath, SpooledPath, as_path, error_context, read_bytes, spooled
from vqtok.jobs.failures import failures_beside
from vqtok.jobs.job import Job
from vqtok.jobs.mapping import check_input, plan_items, plan_jobs
from vqtok.jobs.worklist import Listed, Share, WorkList, parse_list, share_of
from vqtok.media.kinds import modality_of, stem

MEDIA = "images or audio files"
TOKEN_FILES = ".vqt or .vqts files"
ITEMS_PER_SHARD = 1000
"""Items in each shard on a cluster, unless the number of tasks is given."""


@dataclass(frozen=True)
class Work:
    """What to do: jobs of one output each, or shards and the items of each."""

    jobs: WorkList[Job] = field(default_factory=WorkList)
    shards: Sequence[tuple[Path, WorkList[tuple[str, Path]]]] = ()
    failures: Path | None = None
    """The manifest of failures."""
    share: str = ""
    """Describes which share of all work this is, if the environment chose it."""
    is_of_torchrun: bool = False
    """Whether other processes started by torchrun do the other shares."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files in the given folders that are not inputs, counted by suffix."""

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
    """Plan the work that the options of `vqtok encode` describe.

    Raises:
        UsageError, MediaError: As `plan_jobs` does, or options that contradict each other.
    """
    listed, ignored = None, Counter[str]()
    if filelist is not None:
        listed = _read_list(filelist, _folder_of_list(inputs))
    elif not inputs:
        raise UsageError("Missing argument 'IN': files, folders, or --filelist")
    share = share_of(num_tasks, task_index, {} if on_cluster else os.environ)
    if share.source and listed is None and not any(path.is_dir() for path in inputs):
        share = Share()  # Files that are named individually are for this process.
    if shard is not None:
        if output is not None:
            raise UsageError("--shard replaces -o; give one of them")
        return _plan_shards(inputs, shard, listed, share, on_cluster, ignored)
    if on_cluster:
        raise UsageError("--engine ray writes shards; give --shard DIR/")
    if share.index is None:
        raise UsageError(f"--num-tasks {share.count}: give --task-index as well, or --shard DIR/ for all parts")
    if output is not None and output.endswith(".vqts"):
        raise UsageError(f"-o {output}: to write a shard give --shard {output}")
    jobs = plan_jobs(inputs, output, suffix=".vqt", accepts=_is_media, what=MEDIA, listed=listed, ignored=ignored)
    part = jobs.split(share.count)[share.index]
    return Work(
        jobs=part,
        failures=failures_beside(output, len(jobs), _share_suffix(share)),
        share=_describe_share(share, len(part), len(jobs)),
        is_of_torchrun="RANK" in share.source,
        ignored=ignored,
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
    )


def _is_media(path: Path) -> bool:
    return modality_of(path) is not None


def _folder_of_list(inputs: Sequence[Path]) -> Path | None:
    if len(inputs) > 1 or (inputs and not inputs[0].is_dir()):
        raise UsageError("--filelist replaces IN, which may only be the folder that contains all of the listed files")
    return inputs[0] if inputs else None


def _read_list(filelist: Path, folder: Path | None) -> Iterator[Listed]:
    with error_context(filelist):
        yield from parse_list(read_bytes(filelist), folder)


def _num_shards(folder: Path, num_items: int) -> int:
    """Return the number of shards: that of the existing ones, so that a run continues an earlier one."""
    names = folder.names_below() if isinstance(folder, RemotePath) else os.listdir(folder) if folder.is_dir() else []
    for name in names:
        if found := re.match(r"\d+-of-(\d+)\.vqts", name):
            return int(found[1])
    return -(-num_items // ITEMS_PER_SHARD)


def _share_suffix(share: Share) -> str:
    return share.name(share.index) if share.count > 1 and share.index is not None else ""


def _describe_share(share: Share, num_items: int, total: int) -> str:
    if not share.source:
        return ""
    return f"task {share.index} of {share.count} ({share.source}): {num_items} of {total} inputs; --num-tasks 1 for all"
