"""Encode many files to shards, which are resumable."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from vqtok.codec.codec import check_model
from vqtok.codec.files import Codecs, encode_opened, open_media
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import DiskError, MediaError, OutputError, UsageError, VqtokError
from vqtok.files.atomic import make_folder, open_locked, write_error
from vqtok.files.paths import RemotePath, error_context
from vqtok.inspection import token_facts
from vqtok.jobs.encode import memory_needed
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, skipped
from vqtok.jobs.runner import OnFinished, attempt, ignore, run_jobs
from vqtok.media.kinds import kind_of, modality_of
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
    items: Sequence[tuple[str, Path]],
    shard: Path,
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    coder: ChosenCoder = "auto",
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Encode media files, each with its key, to one shard; yield an outcome per item, in order.

    The shard has the suffix `.part` until it is complete; `existing.skip` continues such a part.

    Raises:
        UsageError: There are both images and audio, which no bundled model encodes.
        OutputError: The shard exists, or cannot be written.
    """
    modalities = {_modality(source) for _, source in items}
    codec = codecs.get("audio" if "audio" in modalities else "image")
    if {"image", "audio"} <= modalities and codecs.get("image") is not codec:
        raise UsageError(f"{shard}: a shard cannot hold both images and audio; write one of each")
    codebook_sizes = tuple(codec.tokenizer.codebook_sizes)[:num_codebooks]

    def encode(item: tuple[str, Path], budget: MemoryBudget) -> tuple[Tokens, tuple[Coder, bytes]] | Outcome:
        key, source = item
        if key in kept:
            return skipped(Job(source, shard, key))
        with open_media(source) as (media, modality), budget.reserve(memory_needed(media, modality, codec)):
            tokens = encode_opened(media, modality, codec, mono, num_codebooks)
        return tokens, codec.on_core(lambda: dump_joint(tokens, codec.tokenizer.entropy_model, coder))

    def add(job: Job, tokens: Tokens, coded: tuple[Coder, bytes]) -> Outcome:
        assert job.key is not None
        with disk_errors_are_fatal(shard):
            header = writer.add_coded(job.key, tokens, *coded)
        return done(job, token_facts(job.source, header))

    if existing.skip and _holds_all(shard, items, codec.tokenizer.identity, codebook_sizes):
        yield from (skipped(Job(source, shard, key)) for key, source in items)
        return
    with resumable_shard(shard, existing, codec.tokenizer.sample_rate or 0) as writer:
        if writer.header:
            with error_context(shard):
                check_model(writer.header.model, codec.tokenizer.identity)
        if writer.header and writer.header.codebook_sizes != codebook_sizes:
            raise UsageError(f"{shard}: has {writer.header.num_codebooks} codebooks; `overwrite` starts over")
        kept = frozenset(writer.keys)
        with closing(run_jobs(items, lambda item: Job(item[1], shard), encode, on_finished)) as results:
            for (key, source), result in zip(items, results, strict=True):
                if isinstance(result, Outcome):
                    yield result
                else:
                    yield attempt(Job(source, shard), functools.partial(add, Job(source, shard, key), *result))


def _modality(source: Path) -> str | None:
    """Return the modality of a file; None if unreadable, in which case its job reports the reason."""
    try:
        return modality_of(source) or kind_of(source)
    except MediaError:
        return None


def encode_shards(
    shards: Iterable[tuple[Path, Sequence[tuple[str, Path]]]], codecs: Codecs, **how: Any
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
