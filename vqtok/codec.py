"""Media to tokens and back through a tokenizer: resample, cut into windows, run the network, join."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UsageError, WrongModelError
from vqtok.media.base import Media
from vqtok.media.image import Pixels, as_bytes, as_float
from vqtok.media.resample import Resampler
from vqtok.models.tokenizer import Tokenizer
from vqtok.tiling import chunks, padded, windows
from vqtok.tokens.grid import Tokens, pack_side_data

TILE_PIXELS = 1024
NO_SIDE_DATA: NDArray[np.float32] = np.zeros(0, np.float32)
CHUNK_SECONDS = 10.0
"""Seconds of sound that the network sees at once, less the context about them. When encoding always these."""


class Codec:
    """Encode and decode pictures and sounds of any size with one tokenizer.

    The network runs in float32 on one window of one item at a time, so that codes do not depend on what else is
    encoded. A processor may round convolutions of other shapes otherwise, in the last bits, and once in a while the
    nearest codebook vector is another then. So windows lie where the size of the medium alone puts them, whether it
    is encoded from memory or as a stream. Only another `tile` moves them.

    Args:
        tokenizer: The model; a module must be on `device` already.
        tile: Side of the part of a picture that is computed at once, less the context about it.
        chunk_seconds: As much of a sound is decoded at once.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        *,
        tile: int = TILE_PIXELS,
        chunk_seconds: float = CHUNK_SECONDS,
    ) -> None:
        self.tokenizer = tokenizer
        self.device = torch.device(device)
        self.tile, self.chunk_seconds = tile, chunk_seconds

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
        codes = np.empty((len(tokenizer.codebook_sizes), *grid), np.int32)
        for (top, rows), (left, columns) in self._tiles(grid, tokenizer.encoder_context):
            window = pixels[:, _scaled(top, stride), _scaled(left, stride)]
            found = self._encode_window(padded(as_float(window), stride, tokenizer.padding))
            codes[:, _inner(top, rows), _inner(left, columns)] = found[:, rows, columns]
        return self._tokens(codes, (width, height), num_codebooks)

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
        codes, side_data = [], []
        for window, given in chunks(
            resampler.stream(pieces),
            self._core(CHUNK_SECONDS),
            tokenizer.encoder_context,
            tokenizer.stride,
            tokenizer.padding,
        ):
            groups = _grouped(window, tokenizer.channels)
            side_data += [self._side_data(group) for group in groups]
            found = np.stack([self._encode_window(group) for group in groups], axis=1)
            codes.append(found if tokenizer.encoder_context is None else found[:, :, given])
        joined = np.concatenate(codes, axis=2)
        size = resampler.taken, sample_rate, channels
        return self._tokens(
            joined if channels > 1 else joined[:, 0], size, num_codebooks, pack_side_data(np.concatenate(side_data))
        )

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

    def _checked(self, tokens: Tokens, num_codebooks: int | None = None) -> Tokens:
        check_model(tokens.model, self.tokenizer.identity)
        _check_fit(tokens, self.tokenizer)
        return tokens if num_codebooks is None else _prefix(tokens, num_codebooks)

    def _check_modality(self, modality: str) -> None:
        if modality != self.tokenizer.modality:
            raise ModelError(f"this model codes {self.tokenizer.modality}, not {modality}; choose another --model")

    def _tokens(
        self,
        codes: NDArray[np.int32],
        size: tuple[int, ...],
        num_codebooks: int | None,
        metadata: dict[str, str] | None = None,
    ) -> Tokens:
        tokenizer = self.tokenizer
        tokens = Tokens(
            codes=codes,
            codebook_sizes=tuple(tokenizer.codebook_sizes),
            modality=tokenizer.modality,
            size=size,
            stride=tokenizer.stride,
            model=tokenizer.identity[:8],
            metadata=metadata or {},
        )
        return tokens if num_codebooks is None else _prefix(tokens, num_codebooks)

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
        for (top, rows), (left, columns) in self._tiles(tokens.grid, self.tokenizer.decoder_context):
            tile = self._decode_window(tokens.codes[:, top, left])[:, _scaled(rows, stride), _scaled(columns, stride)]
            where = slice(None), _scaled(_inner(top, rows), stride), _scaled(_inner(left, columns), stride)
            width, height = tokens.size
            yield where, tile[:, : height - where[1].start, : width - where[2].start]

    def _decoded_chunks(self, tokens: Tokens) -> Iterator[NDArray[np.float32]]:
        """Give the pieces of a sound at the model's rate."""
        stride = self.tokenizer.stride
        samples, sample_rate, channels = tokens.size
        missing = _model_samples(samples, sample_rate, self.tokenizer.sample_rate or 1)
        groups = _num_groups(channels, self.tokenizer.channels)
        planes = tokens.codes.reshape(tokens.num_codebooks, groups, -1).swapaxes(0, 1)
        side_data = np.array_split(tokens.side_data, groups)
        for lies, given in windows(planes.shape[2], self._core(self.chunk_seconds), self.tokenizer.decoder_context):
            decoded = np.concatenate(
                [
                    self._decode_window(plane[:, lies], side)[:, _scaled(given, stride)]
                    for plane, side in zip(planes, side_data, strict=True)
                ]
            )
            if len(decoded) > channels:  # A mono sound that was coded as several channels.
                decoded = decoded.mean(axis=0, keepdims=True)
            yield decoded[:, :missing]
            missing -= decoded.shape[1]

    def _encode_window(self, item: NDArray[np.float32]) -> NDArray[np.int32]:
        """Give the codes `(num_codebooks, *grid)` of media `(channels, *size)`."""
        x = torch.from_numpy(np.ascontiguousarray(item))[None].to(self.device)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        codes: NDArray[np.int32] = self.tokenizer.encode(x)[0].to(torch.int32).cpu().numpy()
        return codes

    def _side_data(self, item: NDArray[np.float32]) -> NDArray[np.float32]:
        """Give what decoding needs of media `(channels, *size)` beside their codes."""
        x = torch.from_numpy(np.ascontiguousarray(item))[None].to(self.device)
        side_data: NDArray[np.float32] = self.tokenizer.side_data(x)[0].cpu().numpy()
        return side_data

    def _decode_window(
        self, codes: NDArray[np.int32], side_data: NDArray[np.float32] = NO_SIDE_DATA
    ) -> NDArray[np.float32]:
        """Give the media `(channels, *size)` of codes `(num_codebooks, *grid)`."""
        given = torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(side_data)
        media = self.tokenizer.decode_with(*(x[None].to(self.device) for x in given))
        item: NDArray[np.float32] = media[0].cpu().numpy()
        return item


def choose_device(name: str) -> torch.device:
    """Resolve "auto" to the best device there is.

    Raises:
        UsageError: the device named is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available.get(name, False):
        raise UsageError(f"--device {name}: not available; there is {', '.join(k for k, v in available.items() if v)}")
    return torch.device(name)


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


def _prefix(tokens: Tokens, num_codebooks: int) -> Tokens:
    if not 1 <= num_codebooks <= tokens.num_codebooks:
        raise UsageError(f"--codebooks {num_codebooks}: there are {tokens.num_codebooks}")
    return tokens.prefix(num_codebooks)


def _scaled(steps: slice, stride: int) -> slice:
    """Give the pixels or samples of grid steps."""
    return slice(steps.start * stride, steps.stop * stride)


def _inner(window: slice, part: slice) -> slice:
    """Give where a part of a window lies in the whole."""
    return slice(window.start + part.start, window.start + part.stop)
