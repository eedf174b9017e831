"""`Codec`: media to tokens and back. Resample, cut into windows with context, run the network, join the results."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.codec.inference import NO_SIDE_DATA, Inference
from vqtok.codec.options import CHUNK_SECONDS, DEFAULT_OPTIONS, CodecOptions
from vqtok.codec.threads import ahead, wait
from vqtok.compute.device import check_precision
from vqtok.errors import CorruptFileError, ModelError, UsageError, WrongModelError
from vqtok.media.image import Pixels, StoredPixels, as_bytes, as_deep, as_float
from vqtok.media.media import Media
from vqtok.media.resample import Resampler
from vqtok.media.tiling import chunks, padded, windows
from vqtok.models.tokenizer import Tokenizer
from vqtok.tokens.tokens import BITS, LEVELS, Tokens, pack_side_data

Result = TypeVar("Result")

BLANK_STEPS = 17
"""Grid steps of gray or silence that are encoded to find the codes that stand for lost parts; the middle ones count."""


class Codec:
    """Encode and decode images and audio of any size with one tokenizer.

    Windows lie where the size of the media alone puts them, whether it comes from memory or as a stream, because a
    processor may round convolutions of another shape differently in the last bits and so choose another code once in a
    while. Codes therefore depend neither on what else is encoded nor on the number of threads; only another `tile`
    moves windows. Methods may be called from many threads.

    Args:
        tokenizer: The model; a module must be on `device` already.
    """

    def __init__(
        self, tokenizer: Tokenizer, device: torch.device | str = "cpu", options: CodecOptions = DEFAULT_OPTIONS
    ) -> None:
        check_precision(options.precision, device)
        if options.effort < 1:
            raise UsageError(f"`effort` must be at least 1, not {options.effort}")
        self.tokenizer, self.options = tokenizer, options
        self._inference = Inference(
            tokenizer,
            torch.device(device),
            options.precision,
            options.jobs or torch.get_num_threads(),
            options.effort,
        )

    def encode(self, media: Media, num_codebooks: int | None = None) -> Tokens:
        """Encode media with all codebooks, or with the first `num_codebooks`.

        Raises:
            ModelError: The model is for another modality or another number of color channels.
            UsageError: The model has fewer codebooks.
        """
        if media.modality == "image":
            return self.encode_image(media.data, num_codebooks)
        assert media.sample_rate
        return self.encode_audio([media.data], media.sample_rate, len(media.data), num_codebooks)

    def encode_image(self, pixels: Pixels, num_codebooks: int | None = None) -> Tokens:
        """Encode an image `(channels, height, width)`. Raises as `encode` does."""
        tokenizer, stride = self.tokenizer, self.tokenizer.stride
        self._check_modality("image")
        channels, height, width = pixels.shape
        if channels != tokenizer.channels:
            raise ModelError(f"this model encodes images of {tokenizer.channels} channels, this one has {channels}")
        grid = -(-height // stride), -(-width // stride)
        count = _count(num_codebooks, tokenizer.prefixes)
        length = tokenizer.sequence_length
        codes = np.empty((count, grid[0], grid[1] * length), np.int32)

        def submit(tile: tuple[tuple[slice, slice], ...]) -> Future[NDArray[np.int32]]:
            window = pixels[:, *(_scaled(lies, stride) for lies, _ in tile)]
            return self._inference.encode(padded(as_float(window), stride, tokenizer.padding), count)

        for tile, found in ahead(submit, self._tiles(grid, tokenizer.encoder_context), self._inference.workers):
            (top, rows), (left, columns) = tile
            where = _inner(top, rows), _scaled(_inner(left, columns), length)
            codes[:, *where] = found[:count, rows, _scaled(columns, length)]
        is_deep = pixels.dtype == np.uint16 and channels == 1
        return self.tokens(codes, (width, height), {BITS: 16} if is_deep else {})

    def encode_audio(
        self,
        pieces: Iterable[NDArray[np.float32]],
        sample_rate: int,
        channels: int,
        num_codebooks: int | None = None,
    ) -> Tokens:
        """Encode audio that arrives in pieces `(channels, samples)`. Raises as `encode` does."""
        tokenizer = self.tokenizer
        self._check_modality("audio")
        assert tokenizer.sample_rate
        resampler = Resampler(sample_rate, tokenizer.sample_rate, channels)
        count = _count(num_codebooks, tokenizer.prefixes)
        core, context, side_data = self._core(CHUNK_SECONDS), tokenizer.encoder_context, [NO_SIDE_DATA]
        windows = chunks(resampler.stream(pieces), core, context, tokenizer.stride, tokenizer.padding)

        def groups() -> Iterator[tuple[NDArray[np.float32], slice]]:
            for window, given in windows:
                for group in _grouped(window, tokenizer.channels):
                    side_data.append(self._inference.side_data(group))
                    yield group, slice(None) if context is None else given

        encoded = ahead(lambda group: self._inference.encode(group[0], count), groups(), self._inference.workers)
        codes = [found[:count, given] for (_, given), found in encoded]
        num_groups, size = _num_groups(channels, tokenizer.channels), (resampler.taken, sample_rate, channels)
        planes = [np.concatenate(codes[group::num_groups], axis=1) for group in range(num_groups)]
        joined = np.stack(planes, axis=1) if channels > 1 else planes[0]
        return self.tokens(joined, size, pack_side_data(np.concatenate(side_data)))

    def decode(self, tokens: Tokens, num_codebooks: int | None = None) -> Media:
        """Decode tokens to media of the original size, from all codebooks or from the first `num_codebooks`.

        Raises:
            ModelError: The model only encodes.
            WrongModelError: Another model made the tokens.
            CorruptFileError: This model cannot have made them.
            UsageError: They have fewer codebooks.
        """
        tokens = self._decodable(tokens, num_codebooks)
        if tokens.modality == "image":
            width, height = tokens.size
            data = np.empty((self.tokenizer.channels, height, width), np.float32)
            for where, window in self._decoded_tiles(tokens):
                data[where] = window
            return Media("image", data)
        return Media("audio", np.concatenate(list(self.decode_audio(tokens)), axis=1), tokens.size[1])

    def decode_pixels(self, tokens: Tokens, num_codebooks: int | None = None) -> StoredPixels:
        """Decode tokens to the pixels `(channels, height, width)` of an image. Raises as `decode` does.

        They have 16 bits if the original had more than 8 and the model is for gray images, else 8.
        """
        tokens = self._decodable(tokens, num_codebooks)
        width, height = tokens.size
        convert = as_deep if tokens.metadata.get(BITS) == 16 and self.tokenizer.channels == 1 else as_bytes
        dtype = np.uint16 if convert is as_deep else np.uint8
        pixels = np.empty((self.tokenizer.channels, height, width), dtype)
        for where, window in self._decoded_tiles(tokens):
            pixels[where] = convert(window)
        return pixels

    def decode_audio(self, tokens: Tokens, num_codebooks: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Decode tokens to audio, yielding pieces `(channels, samples)`. Raises as `decode` does."""
        tokens = self._decodable(tokens, num_codebooks)
        samples, sample_rate, channels = tokens.size
        resampler = Resampler(self._output_rate, sample_rate, channels)
        return resampler.stream(self._decoded_chunks(tokens), samples)

    def on_core(self, work: Callable[[], Result]) -> Result:
        """Run other work on one of the processor cores that this codec uses, and wait for its result."""
        return wait(self._inference.on_core(work))

    def check(self, tokens: Tokens) -> None:
        """Raise if this model cannot have made the tokens.

        Raises:
            WrongModelError: Another model made them.
            CorruptFileError: They do not fit this model.
        """
        if not self.tokenizer.can_decode(tokens.model):
            check_model(tokens.model, self.tokenizer.identity)
        _check_fit(tokens, self.tokenizer)

    def blank(self) -> list[int]:
        """Return the codes of gray or silence, one per codebook. They stand for the lost parts of damaged files."""
        tokenizer = self.tokenizer
        sides = [BLANK_STEPS * tokenizer.stride] * (2 if tokenizer.modality == "image" else 1)
        nothing = np.zeros((tokenizer.channels, *sides), np.float32)
        codes = self.encode(Media(tokenizer.modality, nothing, tokenizer.sample_rate)).codes
        blank: list[int] = codes.reshape(len(codes), -1)[:, codes[0].size // 2].tolist()
        return blank

    def _decodable(self, tokens: Tokens, num_codebooks: int | None) -> Tokens:
        """Check that the model can decode tokens, and return the first codebooks of them."""
        self.check(tokens)
        if self.tokenizer.why_encode_only:
            raise ModelError(f"this model only encodes: {self.tokenizer.why_encode_only}")
        if num_codebooks is None or num_codebooks > tokens.num_codebooks:
            _count(num_codebooks, range(1, tokens.num_codebooks + 1))
            num_codebooks = tokens.num_codebooks
        return tokens.prefix(_count(num_codebooks, self.tokenizer.prefixes))

    @property
    def _output_rate(self) -> int:
        """The sample rate of decoded audio."""
        rate = self.tokenizer.output_rate or self.tokenizer.sample_rate
        assert rate
        return rate

    def _check_modality(self, modality: str) -> None:
        if modality != self.tokenizer.modality:
            raise ModelError(f"this model encodes {self.tokenizer.modality}, not {modality}; choose another `model`")

    def tokens(
        self,
        codes: NDArray[np.int32],
        size: tuple[int, ...],
        metadata: dict[str, Any] | None = None,
    ) -> Tokens:
        """Make `Tokens` of codes `(num_codebooks, *grid)` that this model made from media of the given size.

        Raises:
            ValueError: As `Tokens` does.
        """
        tokenizer, options = self.tokenizer, self.options
        return Tokens(
            codes=codes,
            codebook_sizes=tuple(tokenizer.codebook_sizes)[: len(codes)],
            modality=tokenizer.modality,
            size=size,
            stride=tokenizer.stride,
            model=tokenizer.identity[:8],
            metadata=(metadata or {})
            | ({LEVELS: list(tokenizer.levels)} if tokenizer.levels else {})
            | ({} if options.precision == "float32" else {"precision": options.precision})
            | ({} if options.effort == 1 else {"effort": options.effort}),
        )

    def _core(self, seconds: float) -> int:
        """Return the number of grid steps in so many seconds."""
        assert self.tokenizer.sample_rate
        return max(1, round(seconds * self.tokenizer.sample_rate / self.tokenizer.stride))

    def _tiles(self, grid: Sequence[int], context: int | None) -> Iterator[tuple[tuple[slice, slice], ...]]:
        core = max(1, self.options.tile // self.tokenizer.stride)
        return itertools.product(*(windows(length, core, context) for length in grid))

    def _decoded_tiles(self, tokens: Tokens) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float32]]]:
        """Yield decoded tiles of an image, each with the slices of the whole that it fills."""
        stride, length = self.tokenizer.stride, self.tokenizer.sequence_length
        width, height = tokens.size

        def submit(tile: tuple[tuple[slice, slice], ...]) -> Future[NDArray[np.float32]]:
            (rows, _), (columns, _) = tile
            return self._inference.decode(tokens.codes[:, rows, _scaled(columns, length)])

        tiles = self._tiles((tokens.grid[0], tokens.grid[1] // length), self.tokenizer.decoder_context)
        for ((top, rows), (left, columns)), decoded in ahead(submit, tiles, self._inference.workers):
            where = slice(None), _scaled(_inner(top, rows), stride), _scaled(_inner(left, columns), stride)
            given = decoded[:, _scaled(rows, stride), _scaled(columns, stride)]
            yield where, given[:, : height - where[1].start, : width - where[2].start]

    def _decoded_chunks(self, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
        """Yield decoded pieces of audio at the model's output rate."""
        samples, sample_rate, channels = tokens.size
        stride = self.tokenizer.stride * self._output_rate // (self.tokenizer.sample_rate or 1)
        missing = _model_samples(samples, sample_rate, self._output_rate)
        num_groups = _num_groups(channels, self.tokenizer.channels)
        planes = tokens.codes.reshape(tokens.num_codebooks, num_groups, -1).swapaxes(0, 1)
        side_data = np.array_split(tokens.side_data, num_groups)
        core = self._core(self.options.chunk_seconds)
        parts = (
            (plane[:, lies], side, given)
            for lies, given in windows(planes.shape[2], core, self.tokenizer.decoder_context)
            for plane, side in zip(planes, side_data, strict=True)
        )

        def submit(part: tuple[NDArray[np.int32], NDArray[np.float32], slice]) -> Future[NDArray[np.float32]]:
            codes, side, _ = part
            return self._inference.decode(codes, side)

        decoded = (found[:, _scaled(part[2], stride)] for part, found in ahead(submit, parts, self._inference.workers))
        while pieces := list(itertools.islice(decoded, num_groups)):
            piece = np.concatenate(pieces)
            if len(piece) > channels:  # Mono audio that was encoded as several channels.
                piece = piece.mean(axis=0, keepdims=True)
            yield piece[:, :missing]
            missing -= piece.shape[1]


def check_model(made_by: bytes, given: bytes) -> None:
    """Raise if tokens were made by another model than the given one.

    Raises:
        WrongModelError: Naming both.
    """
    if made_by != given[:8]:
        raise WrongModelError(f"made by model {made_by.hex()}, not by {given[:8].hex()}; choose that `model`")


def _check_fit(tokens: Tokens, tokenizer: Tokenizer) -> None:
    """Raise if the codebooks are not those of the model, or the grid does not fit the size of the media."""
    grid = tuple(-(-length // tokenizer.stride) for length in tokens.size[::-1])
    grid = (*grid[:-1], grid[-1] * tokenizer.sequence_length)
    if tokens.modality == tokenizer.modality == "audio":
        samples, sample_rate, channels = tokens.size
        steps = tokenizer.num_steps(_model_samples(samples, sample_rate, tokenizer.sample_rate or 1))
        grid = (_num_groups(channels, tokenizer.channels), steps) if channels > 1 else (steps,)
    sizes = tuple(tokenizer.codebook_sizes)[: tokens.num_codebooks]
    if (tokens.modality, tokens.codebook_sizes, tokens.grid) != (tokenizer.modality, sizes, grid):
        raise CorruptFileError("these tokens do not fit the model that they name; encode again")


def _model_samples(samples: int, sample_rate: int, model_rate: int) -> int:
    """Return the number of samples at the model's rate, rounded up."""
    return -(-samples * model_rate // sample_rate)


def _num_groups(channels: int, together: int) -> int:
    """Return the number of groups of `together` channels that the model encodes separately.

    Raises:
        ModelError: The channels do not divide evenly and the audio is not mono.
    """
    if channels > 1 and channels % together:
        raise ModelError(f"this model encodes {together} channels together, this audio has {channels}; use `mono`")
    return -(-channels // together)


def _grouped(window: NDArray[np.float32], together: int) -> NDArray[np.float32]:
    """Split channels into groups `(groups, together, samples)`. Mono is repeated to fill its group."""
    groups, samples = _num_groups(len(window), together), window.shape[1]
    if len(window) == 1:
        window = np.repeat(window, together, axis=0)
    return window.reshape(groups, together, samples)


def _count(wanted: int | None, available: Sequence[int]) -> int:
    """Return how many codebooks to use: `wanted`, or all, the last of the numbers that are available."""
    most = available[-1]
    if wanted is not None and not 1 <= wanted <= most:
        raise UsageError(f"`num_codebooks` {wanted}: there are {most}")
    if wanted is not None and wanted not in available:
        raise UsageError(f"`num_codebooks` {wanted}: this model has {', '.join(map(str, available))}")
    return most if wanted is None else wanted


def _scaled(steps: slice, stride: int) -> slice:
    """Convert a slice of grid steps to one of pixels or samples."""
    return slice(steps.start * stride, steps.stop * stride)


def _inner(window: slice, part: slice) -> slice:
    """Convert a slice of a window to one of the whole."""
    return slice(window.start + part.start, window.start + part.stop)
