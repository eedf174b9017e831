"""Media to tokens and back through a tokenizer: resample, cut into windows, run the network, join."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.codec.batches import Batches
from vqtok.codec.threads import ahead, wait
from vqtok.compute.device import Precision, check_precision, tf32
from vqtok.errors import CorruptFileError, ModelError, UsageError, WrongModelError
from vqtok.media.image import Pixels, as_bytes, as_float
from vqtok.media.media import Media
from vqtok.media.resample import Resampler
from vqtok.media.tiling import chunks, padded, windows
from vqtok.models.tokenizer import Tokenizer
from vqtok.tokens.tokens import Tokens, pack_side_data

TILE_PIXELS = 1024
NO_SIDE_DATA: NDArray[np.float32] = np.zeros(0, np.float32)
CHUNK_SECONDS = 10.0
"""Seconds of sound that the network sees at once, less the context about them. When encoding always these."""
BATCH_POSITIONS = {"cpu": 1 << 14, "cuda": 1 << 18}
"""Pixels or samples that the network gets at once, where windows are that small: larger ones are no faster together."""
Result = TypeVar("Result")

_using_gpu = threading.Lock()
"""Held by whoever needs flags that torch has only once for the whole process."""

BLANK_STEPS = 17
"""Grid steps of grey or silence, of which the codes of the middle one are taken."""


class Codec:
    """Encode and decode pictures and sounds of any size with one tokenizer.

    A processor may round convolutions of other shapes otherwise, in the last bits, and once in a while the nearest
    codebook vector is another then. So windows lie where the size of the medium alone puts them, whether it is encoded
    from memory or as a stream, and go to the network in `Batches`, so that codes depend neither on what else is encoded
    nor on the number of threads. Only another `tile` moves windows. All methods may be called from many threads.

    Args:
        tokenizer: The model; a module must be on `device` already.
        tile: Side of the part of a picture that is computed at once, less the context about it.
        chunk_seconds: As much of a sound is decoded at once.
        precision: What the network computes in; in bfloat16, and in tf32 on GPUs, codes differ from those in float32.
        jobs: Processor cores to use; by default those that torch uses.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        *,
        tile: int = TILE_PIXELS,
        chunk_seconds: float = CHUNK_SECONDS,
        precision: Precision = "float32",
        jobs: int | None = None,
    ) -> None:
        check_precision(precision, device)
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.tile, self.chunk_seconds, self.precision = tile, chunk_seconds, precision
        self._cores = Batches(jobs or torch.get_num_threads(), BATCH_POSITIONS["cpu"])
        self._batches = self._cores if self.device.type == "cpu" else Batches(1, BATCH_POSITIONS["cuda"])

    def encode(self, media: Media, num_codebooks: int | None = None) -> Tokens:
        """Turn media into tokens, with all codebooks or the first `num_codebooks`.

        Raises:
            ModelError: the model is for another modality or number of colours. UsageError: it has fewer codebooks.
        """
        if media.modality == "image":
            return self.encode_image(media.data, num_codebooks)
        assert media.sample_rate
        return self.encode_audio([media.data], media.sample_rate, len(media.data), num_codebooks)

    def encode_image(self, pixels: Pixels, num_codebooks: int | None = None) -> Tokens:
        """Turn a picture `(channels, height, width)` into tokens; raises as `encode`."""
        tokenizer, stride = self.tokenizer, self.tokenizer.stride
        self._check_modality("image")
        channels, height, width = pixels.shape
        if channels != tokenizer.channels:
            raise ModelError(f"this model codes pictures of {tokenizer.channels} channels, this one has {channels}")
        grid = -(-height // stride), -(-width // stride)
        count = _count(num_codebooks, len(tokenizer.codebook_sizes))
        codes = np.empty((count, *grid), np.int32)

        def submit(tile: tuple[tuple[slice, slice], ...]) -> Future[NDArray[np.int32]]:
            window = pixels[:, *(_scaled(lies, stride) for lies, _ in tile)]
            return self._encode_window(padded(as_float(window), stride, tokenizer.padding), count)

        for tile, found in ahead(submit, self._tiles(grid, tokenizer.encoder_context), self._batches.workers):
            (top, rows), (left, columns) = tile
            codes[:, _inner(top, rows), _inner(left, columns)] = found[:count, rows, columns]
        return self.tokens(codes, (width, height))

    def encode_audio(
        self,
        pieces: Iterable[NDArray[np.float32]],
        sample_rate: int,
        channels: int,
        num_codebooks: int | None = None,
    ) -> Tokens:
        """Turn a sound that comes in pieces `(channels, samples)` into tokens; raises as `encode`."""
        tokenizer = self.tokenizer
        self._check_modality("audio")
        assert tokenizer.sample_rate
        resampler = Resampler(sample_rate, tokenizer.sample_rate, channels)
        count = _count(num_codebooks, len(tokenizer.codebook_sizes))
        core, context, side_data = self._core(CHUNK_SECONDS), tokenizer.encoder_context, [NO_SIDE_DATA]
        windows = chunks(resampler.stream(pieces), core, context, tokenizer.stride, tokenizer.padding)

        def groups() -> Iterator[tuple[NDArray[np.float32], slice]]:
            for window, given in windows:
                for group in _grouped(window, tokenizer.channels):
                    side_data.append(self._side_data(group))
                    yield group, slice(None) if context is None else given

        encoded = ahead(lambda group: self._encode_window(group[0], count), groups(), self._batches.workers)
        codes = [found[:count, given] for (_, given), found in encoded]
        num_groups, size = _num_groups(channels, tokenizer.channels), (resampler.taken, sample_rate, channels)
        planes = [np.concatenate(codes[group::num_groups], axis=1) for group in range(num_groups)]
        joined = np.stack(planes, axis=1) if channels > 1 else planes[0]
        return self.tokens(joined, size, pack_side_data(np.concatenate(side_data)))

    def decode(self, tokens: Tokens, num_codebooks: int | None = None) -> Media:
        """Turn tokens back into media of the original size, from all codebooks or the first `num_codebooks`.

        Raises:
            WrongModelError: another model made the tokens. CorruptFileError: this model cannot have made them.
            UsageError: they have fewer codebooks.
        """
        tokens = self._checked(tokens, num_codebooks)
        if tokens.modality == "image":
            width, height = tokens.size
            data = np.empty((self.tokenizer.channels, height, width), np.float32)
            for where, window in self._decoded_tiles(tokens):
                data[where] = window
            return Media("image", data)
        return Media("audio", np.concatenate(list(self.decode_audio(tokens)), axis=1), tokens.size[1])

    def decode_pixels(self, tokens: Tokens, num_codebooks: int | None = None) -> NDArray[np.uint8]:
        """Turn tokens into the pixels of a picture, rounded; raises as `decode`."""
        tokens = self._checked(tokens, num_codebooks)
        width, height = tokens.size
        pixels = np.empty((self.tokenizer.channels, height, width), np.uint8)
        for where, window in self._decoded_tiles(tokens):
            pixels[where] = as_bytes(window)
        return pixels

    def decode_audio(self, tokens: Tokens, num_codebooks: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Turn tokens into the pieces `(channels, samples)` of a sound; raises as `decode`."""
        tokens = self._checked(tokens, num_codebooks)
        samples, sample_rate, channels = tokens.size
        assert self.tokenizer.sample_rate
        resampler = Resampler(self.tokenizer.sample_rate, sample_rate, channels)
        return resampler.stream(self._decoded_chunks(tokens), samples)

    def on_core(self, work: Callable[[], Result]) -> Result:
        """Do other work on one of the processor cores that this codec keeps busy, when its turn comes."""
        return wait(self._cores.alone(work))

    def check(self, tokens: Tokens) -> None:
        """Refuse tokens that this model cannot have made.

        Raises:
            WrongModelError, CorruptFileError: as `decode`.
        """
        self._checked(tokens)

    def blank(self) -> list[int]:
        """Give the codes, one a codebook, of grey or of silence: what stands for a lost part to be seen as such."""
        tokenizer = self.tokenizer
        sides = [BLANK_STEPS * tokenizer.stride] * (2 if tokenizer.modality == "image" else 1)
        nothing = np.zeros((tokenizer.channels, *sides), np.float32)
        codes = self.encode(Media(tokenizer.modality, nothing, tokenizer.sample_rate)).codes
        blank: list[int] = codes.reshape(len(codes), -1)[:, codes[0].size // 2].tolist()
        return blank

    def _checked(self, tokens: Tokens, num_codebooks: int | None = None) -> Tokens:
        check_model(tokens.model, self.tokenizer.identity)
        _check_fit(tokens, self.tokenizer)
        return tokens if num_codebooks is None else tokens.prefix(_count(num_codebooks, tokens.num_codebooks))

    def _check_modality(self, modality: str) -> None:
        if modality != self.tokenizer.modality:
            raise ModelError(f"this model codes {self.tokenizer.modality}, not {modality}; choose another --model")

    def tokens(
        self,
        codes: NDArray[np.int32],
        size: tuple[int, ...],
        metadata: dict[str, str] | None = None,
    ) -> Tokens:
        """Name what codes `(num_codebooks, *grid)` of this model were made of, and which model it is.

        Raises:
            ValueError: as `Tokens`.
        """
        tokenizer = self.tokenizer
        return Tokens(
            codes=codes,
            codebook_sizes=tuple(tokenizer.codebook_sizes)[: len(codes)],
            modality=tokenizer.modality,
            size=size,
            stride=tokenizer.stride,
            model=tokenizer.identity[:8],
            metadata=(metadata or {}) | ({} if self.precision == "float32" else {"precision": self.precision}),
        )

    def _core(self, seconds: float) -> int:
        """Give the grid steps of a chunk."""
        assert self.tokenizer.sample_rate
        return max(1, round(seconds * self.tokenizer.sample_rate / self.tokenizer.stride))

    def _tiles(self, grid: Sequence[int], context: int | None) -> Iterator[tuple[tuple[slice, slice], ...]]:
        core = max(1, self.tile // self.tokenizer.stride)
        return itertools.product(*(windows(length, core, context) for length in grid))

    def _decoded_tiles(self, tokens: Tokens) -> Iterator[tuple[tuple[slice, slice, slice], NDArray[np.float32]]]:
        """Give the tiles of a picture and where they belong."""
        stride = self.tokenizer.stride
        width, height = tokens.size

        def submit(tile: tuple[tuple[slice, slice], ...]) -> Future[NDArray[np.float32]]:
            return self._decode_window(tokens.codes[:, *(lies for lies, _ in tile)])

        tiles = self._tiles(tokens.grid, self.tokenizer.decoder_context)
        for ((top, rows), (left, columns)), decoded in ahead(submit, tiles, self._batches.workers):
            where = slice(None), _scaled(_inner(top, rows), stride), _scaled(_inner(left, columns), stride)
            given = decoded[:, _scaled(rows, stride), _scaled(columns, stride)]
            yield where, given[:, : height - where[1].start, : width - where[2].start]

    def _decoded_chunks(self, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
        """Give the pieces of a sound at the model's rate."""
        stride = self.tokenizer.stride
        samples, sample_rate, channels = tokens.size
        missing = _model_samples(samples, sample_rate, self.tokenizer.sample_rate or 1)
        num_groups = _num_groups(channels, self.tokenizer.channels)
        planes = tokens.codes.reshape(tokens.num_codebooks, num_groups, -1).swapaxes(0, 1)
        side_data = np.array_split(tokens.side_data, num_groups)
        parts = (
            (plane[:, lies], side, given)
            for lies, given in windows(planes.shape[2], self._core(self.chunk_seconds), self.tokenizer.decoder_context)
            for plane, side in zip(planes, side_data, strict=True)
        )

        def submit(part: tuple[NDArray[np.int32], NDArray[np.float32], slice]) -> Future[NDArray[np.float32]]:
            codes, side, _ = part
            return self._decode_window(codes, side)

        decoded = (found[:, _scaled(part[2], stride)] for part, found in ahead(submit, parts, self._batches.workers))
        while pieces := list(itertools.islice(decoded, num_groups)):
            piece = np.concatenate(pieces)
            if len(piece) > channels:  # A mono sound that was coded as several channels.
                piece = piece.mean(axis=0, keepdims=True)
            yield piece[:, :missing]
            missing -= piece.shape[1]

    def _encode_window(self, item: NDArray[np.float32], num_codebooks: int) -> Future[NDArray[np.int32]]:
        """Compute the codes `(num_codebooks, *grid)` of media `(channels, *size)`, perhaps of more codebooks."""
        if self.tokenizer.one_by_one:
            return self._batches.alone(lambda: self._encode(item[None], num_codebooks)[0])
        return self._batches.submit(self._encode, item, math.prod(item.shape[1:]))

    def _decode_window(
        self, codes: NDArray[np.int32], side_data: NDArray[np.float32] = NO_SIDE_DATA
    ) -> Future[NDArray[np.float32]]:
        """Compute the media `(channels, *size)` of codes `(num_codebooks, *grid)`."""
        if self.tokenizer.one_by_one:
            return self._batches.alone(lambda: self._decode(codes[None], side_data[None])[0])
        steps = codes.shape[1:]
        return self._batches.submit(self._decode, codes, math.prod(steps) * self.tokenizer.stride ** len(steps))

    def _encode(self, batch: NDArray[np.float32], num_codebooks: int | None = None) -> NDArray[np.int32]:
        x = self._on_device(batch)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        with self._computing():
            found = self.tokenizer.encode_first(x, num_codebooks) if num_codebooks else self.tokenizer.encode(x)
            codes: NDArray[np.int32] = found.to(torch.int32).cpu().numpy()
        return codes

    def _decode(self, batch: NDArray[np.int32], side_data: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        codes = self._on_device(batch).long()
        with self._computing():
            if side_data is None:
                decoded = self.tokenizer.decode(codes)
            else:
                decoded = self.tokenizer.decode_with(codes, self._on_device(side_data))
            media: NDArray[np.float32] = decoded.float().cpu().numpy()
        return media

    def _side_data(self, item: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give what decoding needs of media `(channels, *size)` beside their codes."""
        with torch.inference_mode():
            side_data: NDArray[np.float32] = self.tokenizer.side_data(self._on_device(item[None]))[0].cpu().numpy()
        return side_data

    def _on_device(self, batch: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(batch)
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x.to(self.device)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Let the network compute in the precision asked for, on GPUs without TF32 unless that is it."""
        with ExitStack() as how:
            how.enter_context(torch.inference_mode())
            how.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"))
            if self.device.type == "cuda":
                how.enter_context(_using_gpu)
                how.enter_context(tf32(self.precision == "tf32"))
            yield


def check_model(made_by: bytes, given: bytes) -> None:
    """Refuse to use a model on tokens that another one made.

    Raises:
        WrongModelError: naming both.
    """
    if made_by != given[:8]:
        raise WrongModelError(
            f"made by model {made_by.hex()}, you gave {given[:8].hex()}; give the right one with --model"
        )


def _check_fit(tokens: Tokens, tokenizer: Tokenizer) -> None:
    """Refuse tokens whose codebooks are not the model's, or whose grid does not fit their size."""
    grid = tuple(-(-length // tokenizer.stride) for length in tokens.size[::-1])
    if tokens.modality == tokenizer.modality == "audio":
        samples, sample_rate, channels = tokens.size
        steps = tokenizer.num_steps(_model_samples(samples, sample_rate, tokenizer.sample_rate or 1))
        grid = (_num_groups(channels, tokenizer.channels), steps) if channels > 1 else (steps,)
    sizes = tuple(tokenizer.codebook_sizes)[: tokens.num_codebooks]
    if (tokens.modality, tokens.codebook_sizes, tokens.grid) != (tokenizer.modality, sizes, grid):
        raise CorruptFileError("these tokens do not fit the model that they name; encode again")


def _model_samples(samples: int, sample_rate: int, model_rate: int) -> int:
    """Return how many samples a sound has at the model's rate."""
    return -(-samples * model_rate // sample_rate)


def _num_groups(channels: int, together: int) -> int:
    """Return how many groups of channels a sound has that are coded together.

    Raises:
        ModelError: they do not come out even, and it is not mono either.
    """
    if channels > 1 and channels % together:
        raise ModelError(f"this model codes {together} channels together, this sound has {channels}; give --mono")
    return -(-channels // together)


def _grouped(window: NDArray[np.float32], together: int) -> NDArray[np.float32]:
    """Give the channels of each group, `(groups, together, samples)`; mono is repeated in all of them."""
    groups, samples = _num_groups(len(window), together), window.shape[1]
    if len(window) == 1:
        window = np.repeat(window, together, axis=0)
    return window.reshape(groups, together, samples)


def _count(wanted: int | None, there: int) -> int:
    """Return how many codebooks to use."""
    if wanted is not None and not 1 <= wanted <= there:
        raise UsageError(f"--codebooks {wanted}: there are {there}")
    return there if wanted is None else wanted


def _scaled(steps: slice, stride: int) -> slice:
    """Give the pixels or samples of grid steps."""
    return slice(steps.start * stride, steps.stop * stride)


def _inner(window: slice, part: slice) -> slice:
    """Give where a part of a window lies in the whole."""
    return slice(window.start + part.start, window.start + part.stop)
