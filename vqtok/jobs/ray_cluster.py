"""Encode to many shards on a Ray cluster: a pool of actors, each with its own model, encodes one shard at a time."""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqtok.codec.files import Codecs
from vqtok.codec.options import DEFAULT_OPTIONS, CodecOptions
from vqtok.compute.device import choose_device
from vqtok.errors import DiskError, ModelError, UsageError, VqtokError
from vqtok.files.atomic import refuse_existing
from vqtok.files.paths import absolute, as_path
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome
from vqtok.jobs.rows import RowJobs
from vqtok.jobs.shards import encode_shard
from vqtok.media.image import set_max_pixels
from vqtok.models.registry import bundled_models

Shards = Sequence[tuple[Path, Sequence[tuple[str, Path]] | RowJobs]]


def encode_on_ray(
    shards: Shards,
    model: str | None = None,
    *,
    address: str | None = None,
    device: str = "auto",
    options: CodecOptions = DEFAULT_OPTIONS,
    max_pixels: int | None = None,
    existing: Existing = REFUSED,
    **how: Any,
) -> Generator[Outcome, None, None]:
    """Encode to shards, each with its items or rows; yield outcomes shard by shard, in any order.

    All nodes must see inputs, outputs and the model under the same names. If an actor or its node dies, another one
    continues its shard.

    Args:
        address: Address of a cluster, or "auto" for the one that this machine belongs to. By default a cluster is
            started on this machine, unless this process has joined one already.
        device: Device of the actors. With "cuda" each takes a GPU; "auto" is "cuda" if the cluster has GPUs.
        options: Options of the actors; by default each has one processor core.
        max_pixels: Largest image to read; by default Pillow's limit.
        how: Other arguments of `encode_shard`.

    Raises:
        UsageError: Ray is not installed, or the cluster cannot be reached.
        ModelError: There is no such model.
        OutputError: A shard exists.
        DiskError: The disk is full or read-only.
    """
    if model is not None and model not in bundled_models() and Path(model).exists():
        model = absolute(Path(model))
    if not existing.overwrite and not existing.skip:
        _refuse_existing(path for path, _ in shards)
        existing = Existing(skip=True)  # Parts that exist from now on were left by actors that died.
    options = replace(options, jobs=options.jobs or 1)
    with _ray(address) as ray:
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU") else "cpu"
        there = ray.cluster_resources()
        room = there.get("GPU", 1) if device == "cuda" else there.get("CPU", 1) // options.jobs
        results = (
            ray.data.from_items([{"work": _pack(shard)} for shard in shards], override_num_blocks=len(shards))
            .map_batches(
                _ShardEncoder,
                fn_constructor_args=((model, device, options), how | {"existing": existing}, max_pixels),
                batch_size=1,
                # Actors that do not fit into the cluster would wait until they fail.
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(len(shards), int(room)))),
                num_cpus=options.jobs,
                num_gpus=1 if device == "cuda" else 0,
            )
            .iter_rows()
        )
        for row in results:
            for outcome in pickle.loads(row["outcomes"]):
                if isinstance(outcome.error, DiskError | ModelError):  # All other shards would fail in the same way.
                    raise outcome.error
                yield outcome


class _ShardEncoder:
    """An actor, which encodes shards."""

    def __init__(
        self, codecs: tuple[str | None, str, CodecOptions], how: dict[str, Any], max_pixels: int | None = None
    ) -> None:
        if max_pixels:
            set_max_pixels(max_pixels)
        model, device, options = codecs
        self.codecs = Codecs(model, str(choose_device(device)), options)
        self.how = how

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[bytes]]:
        return {"outcomes": [pickle.dumps(self._encode(work)) for work in batch["work"]]}

    def _encode(self, work: bytes) -> list[Outcome]:
        name, items = pickle.loads(work)
        shard = as_path(name)
        if not isinstance(items, RowJobs):
            items = [(key, as_path(source)) for key, source in items]
        try:
            outcomes = encode_shard(items, shard, self.codecs, **self.how)
            # Without the media of rows, which would travel back.
            return [replace(outcome, job=replace(outcome.job, row=None)) for outcome in outcomes]
        except VqtokError as error:
            facts = {"file": name, "error": str(error), "exit_code": error.exit_code}
            return [Outcome(Job(shard, shard), facts, error)]


def _pack(shard: tuple[Path, Sequence[tuple[str, Path]] | RowJobs]) -> bytes:
    """Return a shard's name and items as bytes, since Ray does not accept names that are not UTF-8."""
    path, items = shard
    if isinstance(items, RowJobs):
        sources = [replace(source, path=source.absolute) for source in items.sources]
        return pickle.dumps((absolute(path), replace(items, sources=sources)))
    return pickle.dumps((absolute(path), [(key, absolute(source)) for key, source in items]))


def _refuse_existing(shards: Iterator[Path]) -> None:
    for shard in shards:
        for path in (shard, shard.with_name(f"{shard.name}.part")):
            refuse_existing(path, skippable=True)


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Join or start a cluster for the duration of the context, and silence Ray's own messages."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray logs an error for every actor with arguments.
    try:
        import ray
        import ray.data
    except ImportError:
        raise UsageError("Ray is not installed: pip install 'vqtok[ray]'") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    was_there = ray.is_initialized()
    try:
        if not was_there:
            here: dict[str, Any] = {} if address else {"include_dashboard": False}
            with _native_stderr_off():  # It tells of the level that is set above.
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **here)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray
    except ConnectionError as error:
        raise UsageError(f"`address` {address}: {str(error).splitlines()[0]}") from error
    except ray.exceptions.RayError as error:
        raise VqtokError(f"Ray: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if not was_there:
            ray.shutdown()


@contextmanager
def _native_stderr_off() -> Iterator[None]:
    """Discard what the process writes to stderr, also by code that is not Python's."""
    try:
        kept = os.dup(2)
    except OSError:  # It is closed.
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
