"""Encode and decode single files."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vqtok.codec.codec import CHUNK_SECONDS, TILE_PIXELS, Codec, check_model
from vqtok.compute.device import Precision, check_precision
from vqtok.errors import MediaError
from vqtok.files.paths import STDIO, RemotePath, as_path, naming, read_bytes
from vqtok.inspection import losses
from vqtok.media.audio import audio_writer, open_audio
from vqtok.media.image import read_pixels, write_pixels
from vqtok.media.kinds import kind_of, modality_of, sniff
from vqtok.media.media import Media, spool
from vqtok.models.registry import open_tokenizer
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import load_parts
from vqtok.tokens.vqt.header import Parts, parse_parts, parse_whole

logger = logging.getLogger(__name__)


MEDIA_SUFFIX = {"image": ".png", "audio": ".wav"}
"""Of decoded media, unless the output's name says otherwise."""


class Codecs:
    """The codec of each modality, loaded when first needed.

    Args:
        model: Name or path of the model for everything; by default the bundled model of each modality.
        tile, chunk_seconds, precision: As for `Codec`; as much of a sound is also read at once.
        jobs: Processor cores to use, for the network and for coding its codes; by default those that torch uses.
    """

    def __init__(
        self,
        model: str | None = None,
        device: str = "cpu",
        *,
        tile: int = TILE_PIXELS,
        chunk_seconds: float = CHUNK_SECONDS,
        precision: Precision = "float32",
        jobs: int | None = None,
    ) -> None:
        check_precision(precision, device)
        self.model, self.device = model, device
        self.jobs = jobs or torch.get_num_threads()
        self._how: dict[str, Any] = {
            "tile": tile,
            "chunk_seconds": chunk_seconds,
            "precision": precision,
            "jobs": self.jobs,
        }
        self._loaded: dict[str, Codec] = {}
        self._loading = threading.Lock()

    def get(self, modality: str) -> Codec:
        name = self.model or modality
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = Codec(open_tokenizer(name).to(self.device), self.device, **self._how)
        return self._loaded[name]


def encode(
    source: str | Path | Media,
    model: str | None = None,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
) -> Tokens:
    """Encode one medium, by path or in memory, with the bundled model of its modality or the one named.

    Raises:
        VqtokError: the medium cannot be read, or the model not found.
    """
    if isinstance(source, Media):
        return Codecs(model).get(source.modality).encode(source, num_codebooks)
    path = as_path(str(source))
    with naming(path):
        return encode_medium(path, Codecs(model), num_codebooks=num_codebooks, mono=mono)[0]


def encode_medium(
    source: Path | BinaryIO, codecs: Codecs, *, num_codebooks: int | None = None, mono: bool = False
) -> tuple[Tokens, Codec]:
    """Encode one medium, by path or as a file that can seek; give the tokens and the codec that made them.

    Raises:
        VqtokError: the medium cannot be read, or the model not found.
    """
    with _open_medium(source) as (medium, kind):
        codec = codecs.get(kind)
        return _encode_medium(medium, kind, codec, mono, num_codebooks), codec


def decode(
    tokens: str | Path | Tokens,
    model: str | None = None,
    *,
    num_codebooks: int | None = None,
    salvage: bool = False,
) -> Media:
    """Decode tokens, in memory or a token file, with the bundled model of their modality or the one named.

    Args:
        salvage: Decode what is whole of a damaged file; silence or grey takes the place of the rest, and a warning is
            logged.

    Raises:
        VqtokError: the file is damaged, or the model not found or another than made the tokens.
    """
    if isinstance(tokens, Tokens):
        return Codecs(model).get(tokens.modality).decode(tokens, num_codebooks)
    with naming(Path(tokens)):
        codec, loaded, parts = _load_tokens(read_bytes(Path(tokens)), Codecs(model), num_codebooks, salvage)
        if parts.damage:
            logger.warning("%s: %s", tokens, _losses(parts))
        return codec.decode(loaded)


@contextmanager
def _open_medium(source: Path | BinaryIO) -> Iterator[tuple[Path | BinaryIO, str]]:
    """Give what the media readers take, and the modality."""
    with ExitStack() as opened:
        medium = source
        if isinstance(source, Path) and source != STDIO and not isinstance(source, RemotePath) and source.is_file():
            kind = kind_of(source)
        else:
            medium = opened.enter_context(_opened_once(source)) if isinstance(source, Path) else source
            kind = sniff(medium.read(64)) or (modality_of(source) if isinstance(source, RemotePath) else None)
            medium.seek(0)
        if kind not in MEDIA_SUFFIX:
            raise MediaError("neither a picture nor a sound" + (f", but a {kind} file" if kind else ""))
        yield medium, kind


@contextmanager
def _opened_once(source: Path) -> Iterator[BinaryIO]:
    """Open for seeking what can be read but once: standard input, a pipe or a remote file."""
    with ExitStack() as opened:
        if source == STDIO:
            yield opened.enter_context(spool(sys.stdin.buffer, "stdin"))
            return
        try:
            file: BinaryIO = opened.enter_context(source.open("rb"))
            medium = file if isinstance(source, RemotePath) else opened.enter_context(spool(file, str(source)))
        except OSError as error:
            raise MediaError(f"{source}: cannot be read: {error.strerror}") from error
        yield medium


def _encode_medium(source: Path | BinaryIO, kind: str, codec: Codec, mono: bool, num_codebooks: int | None) -> Tokens:
    if kind == "image":
        return codec.encode_image(read_pixels(source, codec.tokenizer.channels), num_codebooks)
    with open_audio(source, mono) as sound:
        blocks = sound.blocks(max(1, round(codec.chunk_seconds * sound.sample_rate)))
        return codec.encode_audio(blocks, sound.sample_rate, sound.channels, num_codebooks)


def _decode_tokens(tokens: Tokens, codec: Codec, num_codebooks: int | None, file: BinaryIO, target: Path) -> None:
    """Write the media of tokens to a file that can seek, in the format of the target's suffix."""
    name, suffix = str(target), target.suffix.lower() or MEDIA_SUFFIX[tokens.modality]
    if tokens.modality == "image":
        write_pixels(codec.decode_pixels(tokens, num_codebooks), file, suffix)
        return
    _, sample_rate, channels = tokens.size
    with audio_writer(file, name, suffix, sample_rate, channels) as write:
        for piece in codec.decode_audio(tokens, num_codebooks):
            write(piece)


def _load_tokens(
    data: bytes, codecs: Codecs, num_codebooks: int | None, salvaging: bool = False
) -> tuple[Codec, Tokens, Parts]:
    parts = parse_parts(data) if salvaging else parse_whole(data)
    codec = codecs.get(parts.header.modality)
    check_model(parts.header.model, codec.tokenizer.identity)
    blank = codec.blank() if parts.damage else ()
    model = codec.tokenizer.entropy_model
    return codec, codec.on_core(lambda: load_parts(data, parts, model, num_codebooks, blank)), parts


def _losses(parts: Parts) -> str:
    """Tell what is lost of a damaged token file."""
    lost = losses(parts.header, parts.starts)
    if "lost_rows" in lost:
        stretches = ", ".join(f"rows {begin} to {end - 1}" for begin, end in lost["lost_rows"])
        whole, instead = f"{parts.header.size[1]}", "grey"
    else:
        stretches = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in lost["lost_seconds"])
        whole, instead = f"{parts.header.duration_seconds:.1f} s", "silence"
    if not stretches:
        return f"damaged ({parts.damage}), but nothing is lost"
    return f"damaged, lost {stretches} of {whole} ({lost['lost_fraction']:.1%}); {instead} in their place"
