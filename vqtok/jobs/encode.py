"""Encode many files to token files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TypeVar

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs, encode_opened, open_media, with_columns
from vqtok.codec.rate_control import Target, encode_to_target
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import VqtokError
from vqtok.inspection import token_facts
from vqtok.jobs.columns import ColumnsOf, sidecar_columns
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, skipped
from vqtok.jobs.runner import BYTES_PER_PIXEL, OnFinished, ignore, is_settled, open_output, run_jobs
from vqtok.media.audio import audio_info
from vqtok.media.image import num_pixels
from vqtok.media.transforms import WHOLE, LeftOutError
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import parse_header, read_header

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

BYTES_PER_SAMPLE = 32
"""Memory per sample while audio is encoded."""


def encode_files(
    jobs: Iterable[Job],
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    coder: ChosenCoder = "auto",
    target: Target | None = None,
    columns: ColumnsOf = sidecar_columns,
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Encode media files to token files; yield an outcome per job, in order.

    Args:
        target: Chooses the number of codebooks of each item, up to `num_codebooks`. A warning is logged for an item
            that does not reach it.
        columns: Returns what belongs to the item of a job, for the metadata of its tokens.
    """

    def is_current(target: Path) -> bool:
        try:
            header = read_header(target)
            return header.model == codecs.get(header.modality).tokenizer.identity[:8]
        except VqtokError:
            return False

    def encode(job: Job, budget: MemoryBudget) -> Outcome:
        if is_settled(job, existing, is_current):
            return skipped(job)
        part, belongs = job.part or WHOLE, columns(job)
        with open_media(job.media) as (media, modality):
            codec = codecs.get(modality)
            belongs = {**belongs, **part.facts(modality)}
            with budget.reserve(memory_needed(media, modality, codec)):
                if target is not None:
                    reached = encode_to_target(
                        media,
                        modality,
                        codec,
                        target,
                        mono=mono,
                        num_codebooks=num_codebooks,
                        coder=coder,
                        columns=belongs,
                    )
                else:
                    tokens = encode_opened(media, modality, codec, mono, num_codebooks, part)
                    tokens = with_columns(tokens, belongs, job.name)
        if target is None:
            encoded, facts = codec.on_core(lambda: dump(tokens, codec.tokenizer.entropy_model, coder)), {}
        else:
            encoded, facts = reached.file, reached.facts
        with open_output(job.target) as file:
            file.write(encoded)
        if target is not None and reached.shortfall:
            logger.warning("%s: the target is not reached: %s", job.name, reached.shortfall)
        header, _ = parse_header(encoded)
        return done(job, token_facts(job.source, header) | facts)

    return run_jobs(jobs, lambda job: job, leaving_out(encode), on_finished)


def leaving_out(
    encode: Callable[[Job, MemoryBudget], Result | Outcome],
) -> Callable[[Job, MemoryBudget], Result | Outcome]:
    """Return a function that skips the items which the user wants to be left out."""

    def encode_or_skip(job: Job, budget: MemoryBudget) -> Result | Outcome:
        try:
            return encode(job, budget)
        except LeftOutError as error:
            return skipped(job, str(error))

    return encode_or_skip


def memory_needed(source: Path | BinaryIO, modality: str, codec: Codec) -> int:
    """Return the estimated number of bytes that encoding a file takes."""
    if not isinstance(source, Path | BytesIO):
        return 0  # Pipes are read one after another.
    if modality == "image":
        needed = BYTES_PER_PIXEL * num_pixels(source)
        _rewind(source)
        return needed
    samples, sample_rate, channels = audio_info(source)
    _rewind(source)
    if codec.tokenizer.encoder_context is not None:
        samples = min(samples, round(codec.options.chunk_seconds * sample_rate))
    return BYTES_PER_SAMPLE * samples * channels


def _rewind(source: Path | BytesIO) -> None:
    if isinstance(source, BytesIO):
        source.seek(0)
