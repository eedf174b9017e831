"""Encode many files to token files."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import BinaryIO

from vqtok.codec.codec import Codec
from vqtok.codec.files import Codecs, _encode_medium, _open_medium
from vqtok.codec.threads import Room
from vqtok.inspection import token_facts
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome
from vqtok.jobs.runner import _at_once, _output, _settled, _skipped
from vqtok.media.audio import audio_info
from vqtok.media.image import num_pixels
from vqtok.tokens.coding.coders import ChosenCoder
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import Header, parse_header, read_header

BYTES_PER_PIXEL, BYTES_PER_SAMPLE = 16, 32
"""Of memory that it takes to encode or decode a medium, counted with Pillow's copies and float32 windows."""


def encode_files(
    jobs: Sequence[Job],
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    coder: ChosenCoder = "auto",
    existing: Existing = REFUSED,
) -> Generator[Outcome, None, None]:
    """Encode media files to token files; an outcome a job, in order."""

    def encode(job: Job, room: Room) -> Outcome:
        if _settled(job, existing, lambda target: _is_current(read_header(target), codecs)):
            return _skipped(job)
        with _open_medium(job.source) as (medium, kind):
            codec = codecs.get(kind)
            with room.take(_bytes_held(medium, kind, codec)):
                tokens = _encode_medium(medium, kind, codec, mono, num_codebooks)
        encoded = codec.on_core(lambda: dump(tokens, codec.tokenizer.entropy_model, coder))
        with _output(job.target) as file:
            file.write(encoded)
        header, _ = parse_header(encoded)
        return Outcome(job, token_facts(job.source, header) | {"output": str(job.target)})

    return _at_once(jobs, lambda job: job, encode)


def _bytes_held(source: Path | BinaryIO, kind: str, codec: Codec) -> int:
    """Estimate how much memory it takes to encode a file."""
    if not isinstance(source, Path):
        return 0  # Of what comes through a pipe, one after the other.
    if kind == "image":
        return BYTES_PER_PIXEL * num_pixels(source)
    samples, sample_rate, channels = audio_info(source)
    if codec.tokenizer.encoder_context is not None:
        samples = min(samples, round(codec.options.chunk_seconds * sample_rate))
    return BYTES_PER_SAMPLE * samples * channels


def _is_current(header: Header, codecs: Codecs) -> bool:
    return header.model == codecs.get(header.modality).tokenizer.identity[:8]
