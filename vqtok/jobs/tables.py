"""Encode straight to Parquet tables and WebDataset tars of tokens and columns."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing
from pathlib import Path

from vqtok.codec.files import Codecs, encode_opened, open_media, with_columns
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import DiskError, OutputError, UsageError
from vqtok.files.atomic import make_folder, refuse_existing
from vqtok.files.paths import RemotePath
from vqtok.inspection import grid_facts
from vqtok.jobs.columns import ColumnsOf, sidecar_columns
from vqtok.jobs.encode import leaving_out, memory_needed
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, skipped
from vqtok.jobs.runner import OnFinished, ignore, run_jobs
from vqtok.jobs.table_files import TableFiles
from vqtok.media.transforms import WHOLE
from vqtok.tokens.token_table import Add, TokenTable, write_token_table
from vqtok.tokens.tokens import Tokens


def encode_table(
    jobs: Iterable[Job],
    files: TableFiles,
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    columns: ColumnsOf = sidecar_columns,
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Encode items to Parquet tables or tars; yield an outcome per job, in order.

    A file gets its name when it is complete. `existing.skip` keeps the files that are there and goes on with the next.
    One file of all items is complete: items that it lacks fail.

    Raises:
        OutputError: A file exists.
    """
    if isinstance(files.pattern, RemotePath):
        raise UsageError(f"{files.pattern}: tables are written to local files; copy them when they are complete")
    there = list(files.there())
    kept: set[str] = set()
    if there and not existing.overwrite:
        if not existing.skip:
            refuse_existing(there[0], skippable=True)
        for path in there:
            kept |= set(TokenTable(path))
    first = len(there) if kept else 0

    def encode(job: Job, budget: MemoryBudget) -> tuple[Job, Tokens] | Outcome:
        if job.key in kept:
            return skipped(job)
        if kept and files.limit is None:
            raise OutputError(f"{job.name}: {there[0]} is complete without it; `overwrite` replaces it")
        part, belongs = job.part or WHOLE, columns(job)
        with open_media(job.media) as (media, modality):
            codec = codecs.get(modality)
            with budget.reserve(memory_needed(media, modality, codec)):
                tokens = encode_opened(media, modality, codec, mono, num_codebooks, part)
        return job, with_columns(tokens, {**belongs, **part.facts(modality)}, job.name)

    with _Writer(files, first) as writer:
        with closing(run_jobs(jobs, lambda job: job, leaving_out(encode), on_finished)) as results:
            for result in results:
                if isinstance(result, Outcome):
                    yield result
                    continue
                job, tokens = result
                assert job.key is not None
                path = writer.add(job.key, tokens)
                yield done(_at(job, path), {"file": str(job.source), "kind": "tokens", **_facts(tokens)})
        writer.finish()
    for path in there[writer.count :] if existing.overwrite else ():
        path.unlink(missing_ok=True)


def _at(job: Job, target: Path) -> Job:
    return Job(job.source, target, job.key)


def _facts(tokens: Tokens) -> dict[str, object]:
    """Return what `--json` prints of an item; its bytes are those of bit-packed codes."""
    facts = grid_facts(tokens)
    if tokens.modality == "image":
        rate = {"bpp": tokens.raw_bits / math.prod(tokens.size)}
    else:
        rate = {"kbps": tokens.raw_bits / 1000 * tokens.size[1] / tokens.size[0]}
    return {**facts, **rate, "file_bytes": math.ceil(tokens.raw_bits / 8)}


class _Writer:
    """Writes items to one file after another."""

    def __init__(self, files: TableFiles, first: int) -> None:
        self._files, self.count = files, first
        self._stack = ExitStack()
        self._add: Add | None = None
        self._in_file = 0
        self._path = files.file(first)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # An interrupt keeps what is done in a shorter file, if another run can go on with the next one.
        if kind in (KeyboardInterrupt, GeneratorExit) and self._files.limit is not None:
            self.finish()
        self._stack.__exit__(kind, error, trace)  # type: ignore[arg-type]

    def add(self, key: str, tokens: Tokens) -> Path:
        """Write an item; return the file that it is in."""
        path = self._path
        if self._add is None:
            make_folder(path.parent)
            self._add = self._stack.enter_context(write_token_table(path))
        try:
            self._add(key, tokens)
        except OSError as error:
            raise DiskError(f"{path}: cannot be written: {error.strerror}") from error
        self._in_file += 1
        if self._in_file == self._files.limit:
            self.finish()
        return path

    def finish(self) -> None:
        """Complete the file."""
        if self._add is not None:
            self._stack.close()
            self._add, self._in_file, self.count = None, 0, self.count + 1
            self._path = self._files.file(self.count)
