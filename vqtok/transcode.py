"""Files to token files and back: many at once, told of in order, a failed one reported and the rest done."""

from __future__ import annotations

import functools
import logging
import math
import os
import stat
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from vqtok.codec import CHUNK_SECONDS, TILE_PIXELS, Codec, Precision, check_model, check_precision
from vqtok.errors import DiskError, MediaError, OutputError, UsageError, VqtokError
from vqtok.facts import grid_facts, losses, token_facts
from vqtok.files import STDIO, Job, atomic_open, make_folder, naming, read_bytes
from vqtok.media.audio import audio_info, audio_writer, open_audio
from vqtok.media.base import Media, spool
from vqtok.media.image import num_pixels, read_pixels, write_pixels
from vqtok.media.kinds import kind_of, modality_of, sniff
from vqtok.models.opening import open_tokenizer
from vqtok.models.reader import open_items
from vqtok.outputs import REFUSED, Existing, growing, partial_shard
from vqtok.pipeline import Room, in_order
from vqtok.remote import RemotePath, as_path
from vqtok.tokens.grid import Tokens
from vqtok.tokens.header import Coder, Header, Parts, parse_header, parse_parts, parse_whole, read_header
from vqtok.tokens.shard import Shard
from vqtok.tokens.vqt import ChosenCoder, dump, dump_joint, load_parts

logger = logging.getLogger(__name__)

MEDIA_SUFFIX = {"image": ".png", "audio": ".wav"}
"""Of decoded media, unless the output's name says otherwise."""
ITEMS_AHEAD = 64
"""Items under way at once: enough to fill batches with windows of small pictures."""
ROOM_BYTES = 1 << 29
"""Memory for the media of all items under way; one that takes more is worked on by itself."""
BYTES_PER_PIXEL, BYTES_PER_SAMPLE = 16, 32
"""Of memory that it takes to encode or decode a medium, counted with Pillow's copies and float32 windows."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What became of one job; `facts` is what `--json` prints."""

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    error: VqtokError | None = None
    skipped: bool = False


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


def decode_files(
    jobs: Sequence[Job],
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    salvage: bool = False,
    existing: Existing = REFUSED,
) -> Generator[Outcome, None, None]:
    """Decode token files, and items of shards and exports, to media files; an outcome a job, in order.

    Args:
        salvage: Also decode what is whole of damaged token files; the outcome has the output and an error both.
    """
    opened = functools.lru_cache(maxsize=1)(functools.partial(open_items, model=codecs.model))

    def decode(job: Job, room: Room) -> Outcome:
        # Outputs are written atomically, so one that exists is whole.
        if _settled(job, existing, lambda target: target.stat().st_size > 0):
            return _skipped(job)
        error = None
        items = opened(job.source)
        if items is None:
            data = read_bytes(job.source)
            codec, tokens, parts = _load_tokens(data, codecs, num_codebooks, salvage)
            facts = token_facts(job.source, parts.header)
            if parts.damage:
                error = MediaError(f"{job.name}: {_losses(parts)} in {'stdout' if job.target == STDIO else job.target}")
                facts |= losses(*parts[:2]) | {"error": str(error), "exit_code": error.exit_code}
        else:
            tokens = _item(items, job.key)
            codec = codecs.get(tokens.modality)
            facts = _named(job) | {"kind": "tokens"} | grid_facts(tokens)
        pixels = math.prod(tokens.size) if tokens.modality == "image" else 0
        with room.take(BYTES_PER_PIXEL * pixels), _output(job.target) as file:
            _decode_tokens(tokens, codec, num_codebooks, file, job.target)
        used = num_codebooks or tokens.num_codebooks
        return Outcome(job, facts | {"output": str(job.target), "decoded_codebooks": used}, error)

    return _at_once(jobs, lambda job: job, decode)


def _at_once(
    items: Sequence[Item], job_of: Callable[[Item], Job], work: Callable[[Item, Room], Result]
) -> Generator[Result | Outcome, None, None]:
    """Work on many items at once; give in order what comes of each, or the outcome that tells why it failed."""
    several, room = len(items) > 1, Room(ROOM_BYTES)
    yield from in_order(
        lambda item: _attempt(job_of(item), lambda _: work(item, room)),
        items,
        ITEMS_AHEAD,
        here=lambda item: not several or _may_wait(job_of(item).source),
    )


def _attempt(job: Job, work: Callable[[Job], Result]) -> Result | Outcome:
    try:
        with naming(job.name):
            return work(job)
    except DiskError:  # What else there is to do would fail likewise.
        raise
    except VqtokError as raised:
        error = raised
    except BrokenPipeError:
        raise
    except OSError as found:  # A folder on the way that may not be looked into, say.
        error = MediaError(": ".join(str(part) for part in (job.name, found.filename, found.strerror) if part))
    except (MemoryError, torch.OutOfMemoryError):
        error = MediaError(f"{job.name}: too large for this machine's memory; scale it down or cut it up")
    return Outcome(job, _named(job) | {"error": str(error), "exit_code": error.exit_code}, error)


def _may_wait(source: Path) -> bool:
    """Tell whether reading it may take for ever: standard input or a pipe."""
    if source == STDIO or isinstance(source, RemotePath):
        return source == STDIO
    try:
        return not stat.S_ISREG(os.stat(source).st_mode)
    except OSError:  # Reading it will say.
        return False


def _bytes_held(source: Path | BinaryIO, kind: str, codec: Codec) -> int:
    """Estimate how much memory it takes to encode a file."""
    if not isinstance(source, Path):
        return 0  # Of what comes through a pipe, one after the other.
    if kind == "image":
        return BYTES_PER_PIXEL * num_pixels(source)
    samples, sample_rate, channels = audio_info(source)
    if codec.tokenizer.encoder_context is not None:
        samples = min(samples, round(codec.chunk_seconds * sample_rate))
    return BYTES_PER_SAMPLE * samples * channels


def _skipped(job: Job) -> Outcome:
    return Outcome(job, _named(job) | {"output": str(job.target), "skipped": True}, skipped=True)


def _named(job: Job) -> dict[str, Any]:
    return {"file": str(job.source)} | ({} if job.key is None else {"key": job.key})


def _settled(job: Job, existing: Existing, is_done: Callable[[Path], bool]) -> bool:
    """Tell whether the output is there already and may stay.

    Raises:
        OutputError: it is there, and neither overwriting nor skipping was asked for.
    """
    if job.target == STDIO or existing.overwrite or not job.target.is_file():
        return False
    if not existing.skip:
        raise OutputError(f"{job.target}: exists; give --force to overwrite it or --skip-existing to keep it")
    try:
        return is_done(job.target)
    except (VqtokError, OSError):
        return False


def _is_current(header: Header, codecs: Codecs) -> bool:
    return header.model == codecs.get(header.modality).tokenizer.identity[:8]


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
    samples, sample_rate, channels = tokens.size
    with audio_writer(file, name, suffix, sample_rate, channels, samples) as write:
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


def _item(items: Mapping[str, Tokens], key: str | None) -> Tokens:
    try:
        # Without a key its keys could not be listed before, and listing them says why.
        return items[list(items)[-1] if key is None else key]
    except KeyError:
        raise MediaError("holds no item of this key; of a shard, vqtok inspect --items lists all") from None


@contextmanager
def _output(target: Path) -> Iterator[BinaryIO]:
    """Open an output for writing, atomically, and make the folder it goes to."""
    if target != STDIO:
        make_folder(target.parent)
    with atomic_open(target) as file:
        yield file
