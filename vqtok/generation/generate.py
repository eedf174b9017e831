"""`generate`: new images, audio and captions from a generator, and repaired media."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.codec.codec import Codec
from vqtok.codec.files import encode_opened, open_media
from vqtok.errors import MediaError, UsageError, WrongModelError
from vqtok.files.paths import error_context
from vqtok.generation.blend import blend_audio, blend_image, smooth_fill
from vqtok.generation.media import to_tokens
from vqtok.generation.model_file import load_generator
from vqtok.generation.network import Generator
from vqtok.generation.objective import middle
from vqtok.generation.sampling import DEFAULT_SAMPLING, MOST_LIKELY, SamplingOptions, fill_grid, seeded
from vqtok.generation.streams import HIDDEN, Stream, StreamName, text_codes, text_of
from vqtok.generation.tokenizers import Tokenizers, codebook_vectors
from vqtok.media.image import read_image
from vqtok.media.kinds import kind_of
from vqtok.media.media import Media
from vqtok.models.card import read_generator_card
from vqtok.tokens.shape import cut
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import Parts, read_header

logger = logging.getLogger(__name__)

Source = str | Path | Media | Tokens
Codes = NDArray[np.integer[Any]]

BATCH = 64
"""Items that are sampled at once."""
MARGIN = 1
"""Grid steps beside a replaced part of audio that are generated too, since the encoder has seen that part."""


class Generation:
    """A generator with the tokenizers of its tokens.

    Args:
        path: The generator file.
        tokenizers: The models that made its tokens, by path or name. Bundled ones, and those in the current folder or
            beside the generator, are found without.
        device: Where the generator and the tokenizers compute.

    Raises:
        ModelError: The file is not a generator.
        CorruptFileError: It is damaged.
    """

    def __init__(self, path: str | Path, tokenizers: Sequence[str] = (), device: torch.device | str = "cpu") -> None:
        self.path, self.device = Path(path), device
        self.generator: Generator = load_generator(self.path, device)
        card = read_generator_card(self.path)
        self.identity, self.training = card.identity, card.training
        recorded = [Path(name) for name in self.training.get("tokenizers", {}).values()]
        folders = [self.path.parent, *(name.parent for name in recorded if name.suffix == ".safetensors")]
        self.tokenizers = Tokenizers(tokenizers, folders, device)

    def stream(self, name: str) -> Stream:
        """Return a stream by its name.

        Raises:
            UsageError: The generator has no such stream.
        """
        if name not in self.generator.streams:
            has = ", ".join(self.generator.streams)
            raise UsageError(f"{self.path}: was not trained on {name}; it generates {has}")
        return self.generator.streams[name]

    def codec(self, stream: Stream) -> Codec:
        """Return the codec of a stream's tokenizer.

        Raises:
            WrongModelError: The tokenizer is not found.
        """
        return self.tokenizers.codec(stream)

    # What is given: captions, media, tokens.

    def text_condition(self, text: str) -> dict[StreamName, Codes]:
        """Return the codes of a caption.

        Raises:
            UsageError: It has characters that no caption of the training had, or is too long.
        """
        stream = self.stream("text")
        known = self.training.get("caption_characters", text)
        if unknown := "".join(sorted(set(text) - set(known))):
            raise UsageError(
                f"`text` {text!r}: no caption of the training has the characters {unknown!r}; it has {known!r}"
            )
        if len(text.encode()) > stream.positions:
            raise UsageError(f"`text` is longer than the {stream.positions} bytes that the generator sees")
        captions = self.training.get("captions", [])
        if captions and text not in captions:
            logger.warning("%r is none of the captions of the training: %s", text, ", ".join(captions))
        return {"text": text_codes(text, stream.positions)}

    def condition(self, source: Source) -> dict[StreamName, Codes]:
        """Return the codes of media, of a token file or of a text file, as a condition.

        Raises:
            VqtokError: The source cannot be read, or does not fit the generator.
        """
        if isinstance(source, str | Path) and Path(source).suffix.lower() == ".txt":
            try:
                return self.text_condition(Path(source).read_text(encoding="utf-8").strip())
            except (OSError, ValueError) as error:
                raise MediaError(f"{source}: cannot be read as UTF-8 text: {error}") from None
        tokens = self.tokens(source)
        stream = self.stream(tokens.modality)
        codes = _mono(tokens)
        if any(length > side for length, side in zip(codes.shape[1:], stream.window, strict=True)):
            logger.warning("%s: is larger than the generator sees at once; its middle counts", _name(source))
            codes = middle(codes, [min(*sides) for sides in zip(codes.shape[1:], stream.window, strict=True)])
        return {stream.name: codes}

    def tokens(self, source: Source) -> Tokens:
        """Return the tokens of media or of a token file, with the codebooks that the generator knows.

        Raises:
            VqtokError: The source cannot be read, or does not fit the generator.
        """
        with error_context(Path(_name(source))):
            if isinstance(source, Media):
                stream = self.stream(source.modality)
                tokens = self.codec(stream).encode(source, stream.num_codebooks)
            elif isinstance(source, Tokens):
                tokens = source
            elif Path(source).suffix.lower() == ".vqt" or kind_of(Path(source)) == "tokens":
                self._check_model(read_header(source).modality, read_header(source).model)
                tokens = self.tokenizers.reader(read_header(source).model).read(Path(source))
            else:
                with open_media(Path(source)) as (medium, kind):
                    stream = self.stream(kind)
                    tokens = encode_opened(medium, kind, self.codec(stream), False, stream.num_codebooks)
            stream = self._check_model(tokens.modality, tokens.model)
            if tokens.num_codebooks < stream.num_codebooks:
                raise UsageError(f"has {tokens.num_codebooks} codebooks, the generator needs {stream.num_codebooks}")
            return tokens.prefix(stream.num_codebooks)

    def _check_model(self, modality: str, model: bytes) -> Stream:
        stream = self.stream(modality)
        if model.hex() != stream.model:
            raise WrongModelError(
                f"tokens of model {model.hex()}, but the generator was trained on {modality} tokens of {stream.model}"
            )
        return stream

    # What is generated.

    def sample(
        self,
        to: StreamName,
        conditions: Sequence[Mapping[StreamName, Codes]],
        seeds: Sequence[int],
        options: SamplingOptions | None = None,
        grid: Sequence[int] = (),
    ) -> Iterator[Codes]:
        """Yield new codes `(num_codebooks, *grid)` of a stream, one for each condition and seed.

        Args:
            conditions: What each is to fit to; all must be of the same streams and grids, perhaps of none.
            options: By default the most likely codes for text, else the default sampling.
            grid: The grid of each; by default the window.
        """
        stream = self.stream(to)
        options = options or (MOST_LIKELY if to == "text" else DEFAULT_SAMPLING)
        shape = stream.num_codebooks, *(grid or stream.window)
        for start in range(0, len(seeds), BATCH):
            part = conditions[start : start + BATCH]
            others = {name: self._batch([codes[name] for codes in part]) for name in part[0]}
            hidden = torch.full((len(part), *shape), HIDDEN, device=self.device)
            noise = seeded(seeds[start : start + BATCH])
            yield from fill_grid(self.generator, hidden, to, others, options, noise).cpu().numpy()

    def chain(
        self, via: StreamName, conditions: Sequence[Mapping[StreamName, Codes]], seeds: Sequence[int]
    ) -> list[dict[StreamName, Codes]]:
        """Return conditions with a further stream, which is generated to fit to them.

        What is sampled with a caption that the generator has read from an image fits to the image more often than what
        is sampled from the image alone.

        Raises:
            UsageError: The generator has no such stream, there is nothing it could fit to, or it is given.

        Source: Mizrahi et al. 2023, "4M", section 4 (chained generation).
        """
        self.stream(via)
        if not all(conditions):
            raise UsageError("`via` needs something to start from")
        if any(via in given for given in conditions):
            raise UsageError(f"`via` {via}: is given already")
        found = self.sample(via, conditions, seeds)
        return [{**given, via: codes} for given, codes in zip(conditions, found, strict=True)]

    def media(self, to: StreamName, codes: Codes, size: tuple[int, ...] = ()) -> Media | str:
        """Return what codes stand for: an image, audio, or a caption."""
        if to == "text":
            return text_of(codes)
        stream = self.stream(to)
        return self.codec(stream).decode(to_tokens(codes, stream, self.tokenizers, size))

    def inpaint(
        self, image: Source, mask: str | Path | NDArray[np.bool_], seed: int = 0, options: SamplingOptions | None = None
    ) -> Media:
        """Regenerate the masked part of an image; all other pixels stay as they are.

        Args:
            mask: An image of the same size, white where pixels are to be generated; or `(height, width)` booleans.

        Raises:
            UsageError: The mask has another size, or is empty.
        """
        stream = self.stream("image")
        codec = self.codec(stream)
        original = _read(image, codec)
        holes: NDArray[np.bool_] = (
            mask if isinstance(mask, np.ndarray) else np.asarray(read_image(Path(mask), channels=1).data[0] > 0)
        )
        if holes.shape != original.data.shape[1:]:
            raise UsageError(f"`mask` is {_size(holes.shape)}, but the image is {_size(original.data.shape[1:])}")
        if not holes.any():
            raise UsageError("`mask` has no white pixels, so there is nothing to generate")
        # The codes around the hole depend on what is in it, so something smooth has to be there.
        tokens = codec.encode(Media("image", smooth_fill(original.data, ~holes)), stream.num_codebooks)
        rows, columns = tokens.grid
        padding = [(0, rows * stream.stride - holes.shape[0]), (0, columns * stream.stride - holes.shape[1])]
        squares = np.pad(holes, padding).reshape(rows, stream.stride, columns, stream.stride)
        cells: NDArray[np.bool_] = np.asarray(squares.any((1, 3)))
        codes = self._fill(stream, tokens.codes[None], cells, seed, options)[0]
        generated = codec.decode(replace(tokens, codes=codes))
        return Media("image", blend_image(original.data, generated.data, holes))

    def replace(
        self, audio: Source, begin: float, end: float, seed: int = 0, options: SamplingOptions | None = None
    ) -> Media:
        """Regenerate a part of audio, from `begin` to `end` in seconds; the rest stays as it is.

        Raises:
            UsageError: The audio does not have this part.
        """
        stream = self.stream("audio")
        codec = self.codec(stream)
        original = _read(audio, codec)
        rate, samples = original.sample_rate or 1, original.data.shape[1]
        if not 0 <= begin < end or begin * rate >= samples:
            raise UsageError(f"`replace` {begin:g}-{end:g}: the audio is {samples / rate:g} s long")
        tokens = codec.encode(original, stream.num_codebooks)
        steps = tokens.grid[-1]
        step_rate = (codec.tokenizer.sample_rate or 1) / stream.stride
        first = max(0, math.floor(begin * step_rate) - MARGIN)
        cells = np.zeros(steps, bool)
        cells[first : math.ceil(end * step_rate) + MARGIN] = True
        channels = tokens.codes.reshape(stream.num_codebooks, -1, steps).swapaxes(0, 1)
        codes = self._fill(stream, channels, cells, seed, options).swapaxes(0, 1).reshape(tokens.codes.shape)
        generated = codec.decode(replace(tokens, codes=codes))
        last = min(round(end * rate), samples)
        return Media("audio", blend_audio(original.data, generated.data, round(begin * rate), last, rate), rate)

    def extend(self, audio: Source, seconds: float, seed: int = 0, options: SamplingOptions | None = None) -> Media:
        """Continue audio by so many seconds; what was there stays as it is."""
        if seconds <= 0:
            raise UsageError(f"`extend` must be above 0 seconds, not {seconds:g}")
        original = _read(audio, self.codec(self.stream("audio")))
        rate, samples = original.sample_rate or 1, original.data.shape[1]
        silence = np.zeros((len(original.data), round(seconds * rate)), np.float32)
        longer = Media("audio", np.concatenate([original.data, silence], axis=1), rate)
        return self.replace(longer, samples / rate, samples / rate + seconds, seed, options)

    def conceal(self, tokens: Tokens, parts: Parts, seed: int = 0) -> Tokens:
        """Return the tokens of a damaged file with its lost segments filled in from what surrounds them.

        Codebooks that the generator does not know get the code that changes the least.
        """
        stream = self._check_model(tokens.modality, tokens.model)
        header = parts.header
        lost = np.zeros(tokens.grid, bool)
        for where, start in zip(cut(header.modality, header.grid, header.segment_steps), parts.starts, strict=True):
            lost[where] |= start is None
        count = min(stream.num_codebooks, tokens.num_codebooks)
        if not lost.any() or count < stream.num_codebooks:
            return tokens
        codes = tokens.codes.copy()
        steps = tokens.grid[-len(stream.window) :]
        channels = codes[:count].reshape(count, -1, *steps).swapaxes(0, 1)
        cells: NDArray[np.bool_] = np.asarray(
            lost.reshape(-1, *steps).any(0)
        )  # A segment has all channels, so all miss the same.
        filled = self._fill(stream, channels, cells, seed, None)
        codes[:count] = filled.swapaxes(0, 1).reshape(codes[:count].shape)
        vectors = codebook_vectors(self.codec(stream).tokenizer, tokens.num_codebooks)
        for index in range(count, tokens.num_codebooks):
            codes[index][lost] = int(vectors[index].norm(dim=1).argmin()) if vectors else 0
        return replace(tokens, codes=codes)

    def _fill(
        self, stream: Stream, codes: Codes, cells: NDArray[np.bool_], seed: int, options: SamplingOptions | None
    ) -> NDArray[np.int32]:
        """Generate the marked positions of codes `(batch, num_codebooks, *grid)`."""
        hidden = torch.where(torch.from_numpy(cells), HIDDEN, torch.from_numpy(codes.astype(np.int64)))
        noise = seeded([seed] * len(codes))
        filled = fill_grid(self.generator, hidden.to(self.device), stream.name, {}, options or DEFAULT_SAMPLING, noise)
        return filled.cpu().numpy().astype(np.int32)

    def _batch(self, codes: Sequence[Codes]) -> Tensor:
        return torch.from_numpy(np.stack(codes).astype(np.int64)).to(self.device)


def generate(
    generator: str | Path,
    count: int = 1,
    *,
    to: StreamName | None = None,
    text: str | None = None,
    source: Source | None = None,
    via: StreamName | None = None,
    options: SamplingOptions | None = None,
    seed: int = 0,
    tokenizers: Sequence[str] = (),
    device: str = "cpu",
) -> list[Media | str]:
    """Generate images, audio or captions. `Generation` also repairs media, and loads the generator only once.

    Args:
        generator: The generator file.
        count: How many.
        to: "image", "audio" or "text"; by default the first that is not given.
        text: A caption that they are to fit.
        source: An image, audio or token file that they are to fit, or `Media` or `Tokens`.
        via: A modality that is generated first, as a further condition: see `Generation.chain`.
        options: Steps, temperature and guidance.
        seed: The seed of the first one; each further one has the next seed.
        tokenizers: As for `Generation`.
        device: Where to compute.

    Raises:
        VqtokError: As the methods of `Generation` do.
    """
    session = Generation(generator, tokenizers, device)
    given: dict[StreamName, Codes] = {}
    if text is not None:
        given |= session.text_condition(text)
    if source is not None:
        given |= session.condition(source)
    to = to or default_target(session, [*given, *([via] if via else [])])
    conditions, seeds = [given] * count, range(seed, seed + count)
    if via is not None:
        conditions = session.chain(via, conditions, seeds)
    codes = session.sample(to, conditions, seeds, options)
    return [session.media(to, item) for item in codes]


def default_target(session: Generation, given: Sequence[StreamName]) -> StreamName:
    """Return the first stream that is not given.

    Raises:
        UsageError: There is none.
    """
    for name in session.generator.streams:
        if name not in given:
            return name
    raise UsageError("all that the generator knows is given; set `to`")


def _mono(tokens: Tokens) -> Codes:
    codes = tokens.codes
    return codes[:, 0] if tokens.modality == "audio" and codes.ndim == 3 else codes


def _read(source: Source, codec: Codec) -> Media:
    """Return media with the number of channels that the tokenizer needs."""
    if isinstance(source, Media):
        return source
    if isinstance(source, Tokens):
        return codec.decode(source)
    path = Path(source)
    with error_context(path):
        if kind_of(path) == "tokens":
            raise MediaError("is a token file; give the image or audio itself")
        if codec.tokenizer.modality == "image":
            return read_image(path, channels=codec.tokenizer.channels)
        from vqtok.media.audio import read_audio

        return read_audio(path)


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else source.modality


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
