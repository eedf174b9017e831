"""Encode and decode single files with the model of their modality."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from numpy.typing import NDArray
from PIL.Image import Image

from vqtok.codec.codec import Codec
from vqtok.codec.options import DEFAULT_OPTIONS, CodecOptions
from vqtok.compute.device import check_precision
from vqtok.errors import MediaError
from vqtok.files.paths import STDIO, RemotePath, as_path, error_context, read_bytes, stdin
from vqtok.files.sidecars import read_columns
from vqtok.inspection import losses
from vqtok.media.audio import audio_writer, can_store, open_audio
from vqtok.media.convert import as_media
from vqtok.media.image import Pixels, read_windowed, write_pixels
from vqtok.media.kinds import HEAD_BYTES, kind_of, modality_of, sniff
from vqtok.media.limits import BYTES
from vqtok.media.media import Media, spool
from vqtok.media.transforms import WHOLE, Part
from vqtok.models.registry import find_model, is_adapted, open_tokenizer, wrong_model
from vqtok.models.tokenizer import Tokenizer
from vqtok.tokens.fields import pack_metadata
from vqtok.tokens.tokens import SUBTYPE, WINDOW, Tokens
from vqtok.tokens.vqt.file import load_parts
from vqtok.tokens.vqt.header import Parts, parse_parts, parse_whole

logger = logging.getLogger(__name__)


MEDIA_SUFFIX = {"image": ".png", "audio": ".wav"}
"""Suffix of decoded media unless the output is named."""


class Codecs:
    """The codec of each modality, loaded when it is first needed.

    Args:
        model: Name or path of the model for all modalities; by default the bundled model of each.

    Raises:
        ModelError: There is no model of this name.
    """

    def __init__(self, model: str | None = None, device: str = "cpu", options: CodecOptions = DEFAULT_OPTIONS) -> None:
        check_precision(options.precision, device)
        if model is not None and not is_adapted(model):
            find_model(model)
        self.model, self.device = model, device
        self.jobs = options.jobs or torch.get_num_threads()
        self.options = replace(options, jobs=self.jobs)
        self._opened: dict[str, Tokenizer] = {}
        self._codecs: dict[Tokenizer, Codec] = {}
        self._loading = threading.Lock()

    def get(self, modality: str) -> Codec:
        name = self.model or modality
        with self._loading:
            if name not in self._opened:
                self._opened[name] = open_tokenizer(name).to(self.device)
            tokenizer = self._opened[name].of(modality)
            if tokenizer not in self._codecs:
                self._codecs[tokenizer] = Codec(tokenizer, self.device, self.options)
            return self._codecs[tokenizer]


def encode(
    source: str | Path | Media | bytes | Image | NDArray[Any] | torch.Tensor,
    model: str | None = None,
    *,
    num_codebooks: int | None = None,
    mono: bool = False,
    sample_rate: int | None = None,
) -> Tokens:
    """Encode one image or audio, by path or in memory, with the bundled model of its modality or the named one.

    Args:
        source: A path, or what `vqtok.media.convert.as_media` takes: `Media`, the bytes of a file, a PIL image, an
            array or a tensor.
        sample_rate: The sample rate of an array of audio in Hz.

    Raises:
        VqtokError: The media cannot be read, or the model is not found.
    """
    if isinstance(source, bytes):
        return encode_media(BytesIO(source), Codecs(model), num_codebooks=num_codebooks, mono=mono)[0]
    if not isinstance(source, str | Path):
        codecs = Codecs(model)
        media = as_media(source, sample_rate, mono=mono)
        codec = codecs.get(media.modality)
        if media.modality == "image" and codec.tokenizer.channels != len(media.data):
            media = as_media(source, channels=codec.tokenizer.channels)
        return codec.encode(media, num_codebooks)
    path = as_path(source)
    with error_context(path):
        return encode_media(path, Codecs(model), num_codebooks=num_codebooks, mono=mono)[0]


def encode_media(
    source: Path | BinaryIO, codecs: Codecs, *, num_codebooks: int | None = None, mono: bool = False
) -> tuple[Tokens, Codec]:
    """Encode one image or audio, by path or from a seekable file, and return the tokens and the codec that made them.

    Raises:
        VqtokError: The media cannot be read, or the model is not found.
    """
    with open_media(source) as (medium, kind):
        codec = codecs.get(kind)
        tokens = encode_opened(medium, kind, codec, mono, num_codebooks)
        return with_columns(tokens, read_columns(medium) if isinstance(medium, Path) else {}, source), codec


def decode(
    tokens: str | Path | Tokens,
    model: str | None = None,
    *,
    num_codebooks: int | None = None,
    salvage: bool = False,
) -> Media:
    """Decode tokens, in memory or from a token file, with the bundled model of their modality or the named one.

    Args:
        salvage: Decode the intact parts of a damaged file. Silence or gray replaces the rest, and a warning is logged.

    Raises:
        VqtokError: The file is damaged, or the model is not found or did not make the tokens.
    """
    if isinstance(tokens, Tokens):
        return Codecs(model).get(tokens.modality).decode(tokens, num_codebooks)
    with error_context(Path(tokens)):
        codec, loaded, parts = load_tokens(
            read_bytes(Path(tokens)), Codecs(model), num_codebooks, salvage, Path(tokens).parent
        )
        if parts.damage:
            logger.warning("%s: %s", tokens, describe_losses(parts))
        return codec.decode(loaded)


@contextmanager
def open_media(source: Path | BinaryIO) -> Iterator[tuple[Path | BinaryIO, str]]:
    """Yield what the media readers accept, and the modality."""
    with ExitStack() as opened:
        medium = source
        if isinstance(source, Path) and source != STDIO and not isinstance(source, RemotePath) and source.is_file():
            kind = kind_of(source)
        else:
            medium = opened.enter_context(_opened_once(source)) if isinstance(source, Path) else source
            kind = sniff(medium.read(HEAD_BYTES)) or (modality_of(source) if isinstance(source, RemotePath) else None)
            medium.seek(0)
        if kind not in MEDIA_SUFFIX:
            raise MediaError("neither an image nor audio" + (f", but a {kind} file" if kind else ""))
        yield medium, kind


@contextmanager
def _opened_once(source: Path) -> Iterator[BinaryIO]:
    """Open standard input, a pipe or a remote file so that it can seek."""
    with ExitStack() as opened:
        if source == STDIO:
            yield opened.enter_context(spool(stdin(), "stdin"))
            return
        try:
            file: BinaryIO = opened.enter_context(source.open("rb"))
            medium = file if isinstance(source, RemotePath) else opened.enter_context(spool(file, str(source)))
        except OSError as error:
            raise MediaError(f"{source}: cannot be read: {error.strerror}") from error
        yield medium


def encode_opened(
    source: Path | BinaryIO, kind: str, codec: Codec, mono: bool, num_codebooks: int | None, part: Part = WHOLE
) -> Tokens:
    """Encode what `open_media` yields.

    Args:
        part: What is done to the media before, and which part of them is encoded.
    """
    if kind == "image":
        return encode_image_file(source, codec, num_codebooks, part)[1]
    with open_audio(source, mono) as audio:
        blocks = audio.blocks(max(1, round(codec.options.chunk_seconds * audio.sample_rate)))
        tokens = codec.encode_audio(
            part.audio(blocks, audio.sample_rate), audio.sample_rate, audio.channels, num_codebooks
        )
        finer = BYTES.get(audio.subtype, 0) > BYTES["PCM_16"]
        return replace(tokens, metadata={**tokens.metadata, SUBTYPE: audio.subtype}) if finer else tokens


def encode_image_file(
    source: Path | BinaryIO, codec: Codec, num_codebooks: int | None, part: Part = WHOLE
) -> tuple[Pixels, Tokens]:
    """Encode an image that `open_media` yields, and return its pixels, too."""
    read, window = read_windowed(source, codec.tokenizer.channels)
    pixels = part.image(read)
    tokens = codec.encode_image(pixels, num_codebooks)
    return pixels, replace(tokens, metadata={**tokens.metadata, WINDOW: list(window)}) if window else tokens


def with_columns(tokens: Tokens, columns: Mapping[str, Any], source: object) -> Tokens:
    """Return tokens with the columns of their item as metadata, or without them if they do not fit.

    Args:
        source: What was encoded, for the warning.
    """
    if not columns:
        return tokens
    metadata = {**columns, **tokens.metadata}
    try:
        pack_metadata(metadata)
    except ValueError as error:
        logger.warning("%s: gets no %s: %s", source, " and ".join(columns), error)
        return tokens
    return replace(tokens, metadata=metadata)


def write_media(
    tokens: Tokens,
    codec: Codec,
    num_codebooks: int | None,
    file: BinaryIO,
    target: Path,
    subtype: str | None = None,
) -> None:
    """Decode tokens into a seekable file, in the format of the target's suffix.

    Args:
        subtype: How samples of audio are stored; by default as those of the original if the format can, else in 16
            bits.

    Raises:
        UsageError: The format cannot store samples like that.
    """
    name, suffix = str(target), target.suffix.lower() or MEDIA_SUFFIX[tokens.modality]
    if tokens.modality == "image":
        write_pixels(codec.decode_pixels(tokens, num_codebooks), file, suffix)
        return
    samples, sample_rate, channels = tokens.size
    original = tokens.metadata.get(SUBTYPE)
    if subtype is None and isinstance(original, str) and can_store(suffix, original):
        subtype = original
    with audio_writer(file, name, suffix, sample_rate, channels, samples, subtype) as write:
        for piece in codec.decode_audio(tokens, num_codebooks):
            write(piece)


def load_tokens(
    data: bytes, codecs: Codecs, num_codebooks: int | None, salvage: bool = False, beside: Path | None = None
) -> tuple[Codec, Tokens, Parts]:
    """Read a token file, and return its tokens with the codec that decodes them.

    Args:
        beside: The folder of the file, where a model that made it may be found for the error message.

    Raises:
        WrongModelError: Another model made it.
        VqtokError: It is damaged.
    """
    parts = parse_parts(data) if salvage else parse_whole(data)
    codec = codecs.get(parts.header.modality)
    if not codec.tokenizer.can_decode(parts.header.model):
        raise wrong_model(parts.header.model, codecs.model, beside)
    blank = codec.blank() if parts.damage else ()
    model = codec.tokenizer.entropy_model
    return codec, codec.on_core(lambda: load_parts(data, parts, model, num_codebooks, blank)), parts


def describe_losses(parts: Parts, filled: bool = False) -> str:
    """Describe the lost parts of a damaged token file in one line, and what is in their place.

    Args:
        filled: Whether a generator has filled them in.
    """
    lost = losses(parts.header, parts.starts)
    if "lost_rows" in lost:
        stretches = ", ".join(f"rows {begin} to {end - 1}" for begin, end in lost["lost_rows"])
        whole, instead = f"{parts.header.size[1]}", "gray"
    else:
        stretches = ", ".join(f"{begin:.1f} to {end:.1f} s" for begin, end in lost["lost_seconds"])
        whole, instead = f"{parts.header.duration_seconds:.1f} s", "silence"
    cut_off = parts.whole_codebooks is not None
    if not stretches:
        return parts.damage if cut_off else f"damaged ({parts.damage}), but nothing is lost"
    instead = "what a generator made" if filled else instead
    begin = f"{parts.damage} of its first segment" if cut_off else "damaged"
    return f"{begin}, lost {stretches} of {whole} ({lost['lost_fraction']:.1%}); {instead} in their place"
