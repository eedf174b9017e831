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
from vqtok.tokens.grid import Tokens

TILE_PIXELS = 1024
CHUNK_SECONDS = 10.0
"""Seconds of sound that the network sees at once, less the context about them. When encoding always these."""

BLANK_STEPS = 17
"""Grid steps of grey or silence, of which the codes of the middle one are taken."""


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
            found = self._encode_window(padded(as_float(window), stride))
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
        codes = [
            # One channel at a time: its codes must not depend on the others.
            np.stack([self._encode_window(channel[None])[:, given] for channel in window], axis=1)
            for window, given in chunks(
                resampler.stream(pieces), self._core(CHUNK_SECONDS), tokenizer.encoder_context, tokenizer.stride
            )
        ]
        joined = np.concatenate(codes, axis=2)
        size = resampler.taken, sample_rate, channels
        return self._tokens(joined if channels > 1 else joined[:, 0], size, num_codebooks)

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
        return tokens if num_codebooks is None else _prefix(tokens, num_codebooks)

    def _check_modality(self, modality: str) -> None:
        if modality != self.tokenizer.modality:
            raise ModelError(f"this model codes {self.tokenizer.modality}, not {modality}; choose another --model")

    def _tokens(self, codes: NDArray[np.int32], size: tuple[int, ...], num_codebooks: int | None) -> Tokens:
        tokenizer = self.tokenizer
        tokens = Tokens(
            codes=codes,
            codebook_sizes=tuple(tokenizer.codebook_sizes),
            modality=tokenizer.modality,
            size=size,
            stride=tokenizer.stride,
            model=tokenizer.identity[:8],
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
        planes = tokens.codes.reshape(tokens.num_codebooks, channels, -1)
        for lies, given in windows(planes.shape[2], self._core(self.chunk_seconds), self.tokenizer.decoder_context):
            decoded = [self._decode_window(planes[:, i, lies])[0, _scaled(given, stride)] for i in range(channels)]
            yield np.stack(decoded)[:, :missing]
            missing -= decoded[0].size

    def _encode_window(self, item: NDArray[np.float32]) -> NDArray[np.int32]:
        """Give the codes `(num_codebooks, *grid)` of media `(channels, *size)`."""
        x = torch.from_numpy(np.ascontiguousarray(item))[None].to(self.device)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        codes: NDArray[np.int32] = self.tokenizer.encode(x)[0].to(torch.int32).cpu().numpy()
        return codes

    def _decode_window(self, codes: NDArray[np.int32]) -> NDArray[np.float32]:
        """Give the media `(channels, *size)` of codes `(num_codebooks, *grid)`."""
        media: NDArray[np.float32] = (
            self.tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None].to(self.device))[0].cpu().numpy()
        )
        return media


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
    extent = tokens.size[::-1]
    leading: tuple[int, ...] = ()
    if tokens.modality == "audio":
        samples, sample_rate, channels = tokens.size
        extent = (_model_samples(samples, sample_rate, tokenizer.sample_rate or 1),)
        leading = (channels,) if channels > 1 else ()
    grid = (*leading, *(-(-length // tokenizer.stride) for length in extent))
    sizes = tuple(tokenizer.codebook_sizes)[: tokens.num_codebooks]
    if (tokens.modality, tokens.codebook_sizes, tokens.grid) != (tokenizer.modality, sizes, grid):
        raise CorruptFileError("these tokens do not fit the model that they name; encode again")


def _model_samples(samples: int, sample_rate: int, model_rate: int) -> int:
    """Return how many samples a sound has at the model's rate."""
    return -(-samples * model_rate // sample_rate)


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
