"""Encode many files to shards."""

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
from vqtok.codec.files import Codecs, _encode_medium, _open_medium
from vqtok.codec.threads import Room
from vqtok.errors import DiskError, MediaError, OutputError, UsageError, VqtokError
from vqtok.files.atomic import make_folder, open_locked, write_error
from vqtok.files.paths import RemotePath, naming
from vqtok.inspection import token_facts
from vqtok.jobs.encode import _bytes_held
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome
from vqtok.jobs.runner import _at_once, _attempt, _skipped
from vqtok.media.kinds import kind_of, modality_of
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.shape import Coder
from vqtok.tokens.shard.payload import dump_joint
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import ShardWriter
from vqtok.tokens.tokens import Tokens

logger = logging.getLogger(__name__)


@contextmanager
def partial_shard(shard: Path, existing: Existing, model_rate: int) -> Iterator[ShardWriter]:
    """Give the writer of a shard that gets its name when all is written; what was written till then is kept.

    A remote shard is written to a local file first, of which nothing is kept.

    Args:
        model_rate: As `ShardWriter` takes it.

    Raises:
        OutputError: the shard exists, is being written by another process, or cannot be written.
        VqtokError: what is there of it is damaged or of another model.
    """
    if shard.exists() and not existing.overwrite and not existing.skip:
        raise OutputError(f"{shard}: exists; give --force to overwrite it or --skip-existing to add what it lacks")
    with (
        _remote_shard(shard, existing, model_rate)
        if isinstance(shard, RemotePath)
        else _local_shard(shard, existing, model_rate) as writer
    ):
        yield writer


@contextmanager
def growing(shard: Path) -> Iterator[None]:
    """Make it the end of the run that a shard cannot grow: no fault of the item that was to be added.

    Raises:
        DiskError: in place of an OSError.
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
            f"{partial}: left by an interrupted run; give --skip-existing to go on with it or --force to start anew"
        )
    make_folder(shard.parent)
    writer, num_kept, resumed = None, 0, False
    with ExitStack() as opened:
        try:
            handle, _ = open_locked(partial)
            opened.callback(os.close, handle)  # The lock is held until the shard has its name.
            if existing.overwrite:
                os.ftruncate(handle, 0)
            resumed = os.fstat(handle).st_size > 0
            with open(os.dup(handle), "r+b") as file:
                with naming(partial):
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
                logger.warning("%s keeps the %d items done; --skip-existing goes on with it", partial, len(writer.keys))
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
) -> Generator[Outcome, None, None]:
    """Encode media files, each with its key, to one shard; an outcome an item, in order.

    Until all is done the shard bears `.part` behind its name; `existing.skip` goes on with what was left of it.

    Raises:
        UsageError: both pictures and sounds, which no model codes. OutputError: the shard exists, or cannot be written.
    """
    kinds = {_kind(source) for _, source in items}
    if {"image", "audio"} <= kinds and codecs.model is None:
        raise UsageError(f"{shard}: pictures and sounds do not go into one shard; make one of each")
    codec = codecs.get("audio" if "audio" in kinds else "image")
    codebook_sizes = tuple(codec.tokenizer.codebook_sizes)[:num_codebooks]

    def code(item: tuple[str, Path], room: Room) -> tuple[Tokens, tuple[Coder, bytes]] | Outcome:
        key, source = item
        if key in kept:
            return _skipped(Job(source, shard, key))
        with _open_medium(source) as (medium, kind), room.take(_bytes_held(medium, kind, codec)):
            tokens = _encode_medium(medium, kind, codec, mono, num_codebooks)
        return tokens, codec.on_core(lambda: dump_joint(tokens, codec.tokenizer.entropy_model, coder))

    def add(key: str, tokens: Tokens, coded: tuple[Coder, bytes], job: Job) -> Outcome:
        with growing(shard):
            header = writer.add_coded(key, tokens, *coded)
        return Outcome(job, token_facts(job.source, header) | {"output": str(shard), "key": key})

    if existing.skip and _holds_all(shard, items, codec.tokenizer.identity, codebook_sizes):
        yield from (_skipped(Job(source, shard, key)) for key, source in items)
        return
    with partial_shard(shard, existing, codec.tokenizer.sample_rate or 0) as writer:
        if writer.header:
            with naming(shard):
                check_model(writer.header.model, codec.tokenizer.identity)
        if writer.header and writer.header.codebook_sizes != codebook_sizes:
            raise UsageError(f"{shard}: has {len(writer.header.codebook_sizes)} codebooks; give --force to start anew")
        kept = frozenset(writer.keys)
        with closing(_at_once(items, lambda item: Job(item[1], shard), code)) as results:
            for (key, source), result in zip(items, results, strict=True):
                if isinstance(result, Outcome):
                    yield result
                else:
                    yield _attempt(Job(source, shard), functools.partial(add, key, *result))


def _kind(source: Path) -> str | None:
    """Tell what a file will be; one that cannot be read now will say so when its turn comes."""
    try:
        return modality_of(source) or kind_of(source)
    except MediaError:
        return None


def encode_shards(
    shards: Iterable[tuple[Path, Sequence[tuple[str, Path]]]], codecs: Codecs, **how: Any
) -> Generator[Outcome, None, None]:
    """Encode to several shards, one after another, each with its items, as `encode_shard` does."""
    for shard, items in shards:
        yield from encode_shard(items, shard, codecs, **how)


def _holds_all(shard: Path, items: Sequence[tuple[str, Path]], model: bytes, codebook_sizes: tuple[int, ...]) -> bool:
    """Tell whether a shard has all items already, so that it need not be written again."""
    try:
        with Shard(shard) as there:
            alike = (there.header.model, there.header.codebook_sizes) == (model[:8], codebook_sizes)
            return alike and {key for key, _ in items} <= set(there)
    except VqtokError:
        return False
