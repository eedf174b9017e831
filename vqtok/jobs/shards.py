"""Encode many files to shards, which are resumable."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from vqtok.codec.codec import Codec, check_model
from vqtok.codec.files import Codecs, encode_opened, open_media, with_columns
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import DiskError, MediaError, OutputError, UsageError, VqtokError
from vqtok.files.atomic import make_folder, open_locked, write_error
from vqtok.files.paths import RemotePath, error_context
from vqtok.inspection import token_facts
from vqtok.jobs.columns import ColumnsOf, sidecar_columns
from vqtok.jobs.encode import leaving_out, memory_needed
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, skipped
from vqtok.jobs.parts import PartJobs
from vqtok.jobs.runner import OnFinished, attempt, ignore, run_jobs
from vqtok.media.kinds import kind_of, modality_of
from vqtok.media.transforms import WHOLE
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.shape import Coder
from vqtok.tokens.shard.payload import dump_joint
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import ShardWriter
from vqtok.tokens.tokens import Tokens

logger = logging.getLogger(__name__)


@contextmanager
def resumable_shard(shard: Path, existing: Existing, model_rate: int) -> Iterator[ShardWriter]:
    """Yield the writer of a shard, which is called `.part` until it is complete and survives an interrupt.

    A remote shard is written to a local file first, which does not survive.

    Args:
        model_rate: As for `ShardWriter`.

    Raises:
        OutputError: The shard exists, is being written by another process, or cannot be written.
        VqtokError: Its existing part is damaged or of another model.
    """
    existing.check(shard)
    with (
        _remote_shard(shard, existing, model_rate)
        if isinstance(shard, RemotePath)
        else _local_shard(shard, existing, model_rate) as writer
    ):
        yield writer


@contextmanager
def disk_errors_are_fatal(shard: Path) -> Iterator[None]:
    """End the run if the shard cannot be written to, which is no fault of the item.

    Raises:
        DiskError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise DiskError(f"{shard}.part: cannot be written: {error.strerror}") from error


@contextmanager
def _local_shard(shard: Path, existing: Existing, model_rate: int) -> Iterator[ShardWriter]:
    partial = shard.with_name(f"{shard.name}.part")
    if partial.exists() and not existing.overwrite and not existing.skip:
        raise OutputError(
            f"{partial}: left by an interrupted run; `skip_existing` continues it, `overwrite` starts over"
        )
    make_folder(shard.parent)
    writer, num_kept, resumed = None, 0, False
    with ExitStack() as opened:
        try:
            handle, _ = open_locked(partial)
            opened.callback(os.close, handle)  # Hold the lock until the shard has its final name.
            if existing.overwrite:
                os.ftruncate(handle, 0)
            resumed = os.fstat(handle).st_size > 0
            with open(os.dup(handle), "r+b") as file:
                with error_context(partial):
                    writer = ShardWriter.resume(file) if resumed else ShardWriter(file, model_rate)
                if shard.is_file() and not existing.overwrite:
                    writer.copy_all(shard, skip_existing=True)
                num_kept = len(writer.keys)
                yield writer
                if writer.keys:
                    writer.finish()
            if writer.keys:
                os.replace(partial, shard)
            else:
                partial.unlink()
        except BlockingIOError as error:
            raise OutputError(f"{partial}: is being written by another run") from error
        except BaseException as error:
            if writer and len(writer.keys) > num_kept:
                logger.warning(
                    "%s keeps the %d finished items; --skip-existing continues it", partial, len(writer.keys)
                )
            elif writer and not resumed:
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise write_error(partial, error) from error
            raise


@contextmanager
def _remote_shard(shard: RemotePath, existing: Existing, model_rate: int) -> Iterator[ShardWriter]:
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "shard"
        try:
            with local.open("w+b") as file:
                writer = ShardWriter(file, model_rate)
                if existing.skip and shard.exists():
                    writer.copy_all(shard)
                yield writer
                if writer.keys:
                    writer.finish()
            if writer.keys:
                shard.upload(local)
        except OSError as error:
            raise write_error(shard, error) from error


def encode_shard(
    items: Sequence[tuple[str, Path]] | Iterable[Job],
    shard: Path,
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    coder: ChosenCoder = "auto",
    columns: ColumnsOf = sidecar_columns,
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Encode media files, each with its key, or the rows of jobs to one shard; yield an outcome per item, in order.

    The shard has the suffix `.part` until it is complete; `existing.skip` continues such a part.

    Args:
        items: Files with their keys, or jobs with keys and rows, of which the first one decides the modality.
        columns: As for `encode_files`.

    Raises:
        UsageError: There are both images and audio, which no bundled model encodes.
        OutputError: The shard exists, or cannot be written.
    """
    if isinstance(items, Sequence):
        codec = _codec_of_all(items, shard, codecs)
        jobs: Iterable[Job] = (Job(source, shard, key) for key, source in items)
    elif isinstance(items, PartJobs) and items.files is not None:
        codec, jobs = _codec_of_all(items.files, shard, codecs), items
    else:
        codec, jobs = _codec_of_first(items, codecs)
    codebook_sizes = tuple(codec.tokenizer.codebook_sizes)[:num_codebooks]

    def encode(job: Job, budget: MemoryBudget) -> tuple[Job, Tokens, tuple[Coder, bytes]] | Outcome:
        if job.key in kept:
            return skipped(job)
        part, belongs = job.part or WHOLE, columns(job)
        with open_media(job.media) as (media, modality), budget.reserve(memory_needed(media, modality, codec)):
            tokens = encode_opened(media, modality, codec, mono, num_codebooks, part)
            tokens = with_columns(tokens, {**belongs, **part.facts(modality)}, job.name)
        return job, tokens, codec.on_core(lambda: dump_joint(tokens, codec.tokenizer.entropy_model, coder))

    def add(job: Job, tokens: Tokens, coded: tuple[Coder, bytes]) -> Outcome:
        assert job.key is not None
        with disk_errors_are_fatal(shard):
            header = writer.add_coded(job.key, tokens, *coded)
        return done(job, token_facts(job.source, header))

    identity = codec.tokenizer.identity
    if isinstance(items, Sequence) and existing.skip and _holds_all(shard, items, identity, codebook_sizes):
        yield from (skipped(Job(source, shard, key)) for key, source in items)
        return
    with resumable_shard(shard, existing, codec.tokenizer.sample_rate or 0) as writer:
        if writer.header:
            with error_context(shard):
                check_model(writer.header.model, codec.tokenizer.identity)
        if writer.header and writer.header.codebook_sizes != codebook_sizes:
            raise UsageError(f"{shard}: has {writer.header.num_codebooks} codebooks; `overwrite` starts over")
        kept = frozenset(writer.keys)
        with closing(run_jobs(jobs, _as_input, leaving_out(encode), on_finished)) as results:
            for result in results:
                if isinstance(result, Outcome):
                    yield result
                else:
                    yield attempt(_as_input(result[0]), functools.partial(add, *result))


def _as_input(job: Job) -> Job:
    """Return a job as messages call its input: a file by its path alone."""
    return replace(job, key=None) if job.row is None else job


def _codec_of_all(items: Sequence[tuple[str, Path]], shard: Path, codecs: Codecs) -> Codec:
    modalities = {_modality(source) for _, source in items}
    codec = codecs.get("audio" if "audio" in modalities else "image")
    if {"image", "audio"} <= modalities and codecs.get("image") is not codec:
        raise UsageError(f"{shard}: a shard cannot hold both images and audio; write one of each")
    return codec


def _codec_of_first(jobs: Iterable[Job], codecs: Codecs) -> tuple[Codec, Iterable[Job]]:
    """Return the codec of the first job whose media can be opened, and all jobs."""
    read, rest = list[Job](), iter(jobs)
    for job in rest:
        read.append(job)
        with suppress(VqtokError, OSError), open_media(job.media) as (_, modality):
            return codecs.get(modality), chain(read, rest)
    return codecs.get("image"), read


def _modality(source: Path) -> str | None:
    """Return the modality of a file; None if unreadable, in which case its job reports the reason."""
    try:
        return modality_of(source) or kind_of(source)
    except MediaError:
        return None


def encode_shards(
    shards: Iterable[tuple[Path, Sequence[tuple[str, Path]] | Iterable[Job]]], codecs: Codecs, **how: Any
) -> Generator[Outcome, None, None]:
    """Encode to several shards, one after another, each with its items. Arguments are those of `encode_shard`."""
    for shard, items in shards:
        yield from encode_shard(items, shard, codecs, **how)


def _holds_all(shard: Path, items: Sequence[tuple[str, Path]], model: bytes, codebook_sizes: tuple[int, ...]) -> bool:
    """Return whether a shard has all items already, so that it need not be written again."""
    try:
        with Shard(shard) as there:
            alike = (there.header.model, there.header.codebook_sizes) == (model[:8], codebook_sizes)
            return alike and {key for key, _ in items} <= set(there)
    except VqtokError:
        return False
