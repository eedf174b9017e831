"""Media to tokens and back through a tokenizer: resample, pad, run the network, crop."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError, ModelError, UsageError, WrongModelError
from vqtok.media.base import Media
from vqtok.media.resample import resample
from vqtok.models.tokenizer import Tokenizer
from vqtok.tokens.grid import Tokens


class Codec:
    """Encode and decode whole pictures and sounds with one tokenizer.

    The network runs in float32 on one item at a time, so that codes do not depend on what else is encoded.

    Args:
        tokenizer: The model; a module must be on `device` already.
    """

    def __init__(self, tokenizer: Tokenizer, device: torch.device | str = "cpu") -> None:
        self.tokenizer = tokenizer
        self.device = torch.device(device)

    def encode(self, media: Media, num_codebooks: int | None = None) -> Tokens:
        """Turn media into tokens, with all codebooks or the first `num_codebooks`.

        Raises:
            ModelError: the model is for another modality or number of colours. UsageError: it has fewer codebooks.
        """
        tokenizer = self.tokenizer
        if media.modality != tokenizer.modality:
            raise ModelError(f"this model codes {tokenizer.modality}, not {media.modality}; choose another --model")
        size: tuple[int, ...]
        if media.modality == "image":
            channels, height, width = media.data.shape
            if channels != tokenizer.channels:
                raise ModelError(f"this model codes pictures of {tokenizer.channels} channels, this one has {channels}")
            size = (width, height)
            batch = media.data[None]
        else:
            assert media.sample_rate
            assert tokenizer.sample_rate
            channels, samples = media.data.shape
            size = (samples, media.sample_rate, channels)
            batch = resample(media.data, media.sample_rate, tokenizer.sample_rate)[:, None]
        # One item at a time: a channel's codes must not depend on the others.
        codes = [tokenizer.encode(self._tensor(_padded(item, tokenizer.stride)))[0].cpu().numpy() for item in batch]
        stacked = np.stack(codes, axis=1) if len(codes) > 1 else codes[0]
        tokens = Tokens(
            codes=stacked,
            codebook_sizes=tuple(tokenizer.codebook_sizes),
            modality=media.modality,
            size=size,
            stride=tokenizer.stride,
            model=tokenizer.identity[:8],
        )
        return tokens if num_codebooks is None else _prefix(tokens, num_codebooks)

    def decode(self, tokens: Tokens, num_codebooks: int | None = None) -> Media:
        """Turn tokens back into media of the original size, from all codebooks or the first `num_codebooks`.

        Raises:
            WrongModelError: another model made the tokens. CorruptFileError: this model cannot have made them.
            UsageError: they have fewer codebooks.
        """
        tokenizer = self.tokenizer
        check_model(tokens.model, tokenizer.identity)
        _check_fit(tokens, tokenizer)
        if num_codebooks is not None:
            tokens = _prefix(tokens, num_codebooks)
        codes = torch.from_numpy(tokens.codes.astype(np.int64)).to(self.device)
        if tokens.modality == "image":
            width, height = tokens.size
            data = tokenizer.decode(codes[None])[0, :, :height, :width].cpu().numpy()
            return Media("image", data)
        assert tokenizer.sample_rate
        samples, sample_rate, channels = tokens.size
        planes = codes[:, None] if channels == 1 else codes
        decoded = [tokenizer.decode(planes[None, :, i])[0, 0].cpu().numpy() for i in range(channels)]
        known = _model_samples(samples, sample_rate, tokenizer.sample_rate)
        data = resample(np.stack(decoded)[:, :known], tokenizer.sample_rate, sample_rate, samples)
        return Media("audio", data, sample_rate)

    def _tensor(self, item: NDArray[np.float32]) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(item))[None].to(self.device)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


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


def _padded(item: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Mirror the end of each axis of `(channels, *size)` up to a multiple of the stride."""
    missing = [(0, -length % stride) for length in item.shape[1:]]
    return np.pad(item, [(0, 0), *missing], mode="symmetric")
