"""Outputs that exist already, and shards that are written bit by bit."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from vqtok.errors import DiskError, OutputError
from vqtok.files import make_folder, naming, open_locked, write_error
from vqtok.remote import RemotePath
from vqtok.tokens.shard.writer import ShardWriter

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Existing:
    """What to do with outputs that exist already: refuse them, unless one of these is set."""

    overwrite: bool = False
    skip: bool = False


REFUSED = Existing()


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
