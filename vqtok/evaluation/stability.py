"""How the codes of a tokenizer change when its input hardly does."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vqtok.codec.codec import Codec
from vqtok.media.image import as_bytes, as_float
from vqtok.media.media import Media
from vqtok.media.resample import resample

JPEG_QUALITY = 90
NOISE_LEVEL = 2 / 255
"""Standard deviation of the noise in images, of the range from black to white."""
NOISE_DB = 40.0
"""Signal-to-noise ratio of the noise in audio."""
CHANGES = {
    "image": {
        "repeat": "the same image again",
        "shift": "shifted by one stride in both directions",
        "jpeg": f"after JPEG of quality {JPEG_QUALITY}",
        "noise": "with Gaussian noise of 2/255",
    },
    "audio": {
        "repeat": "the same audio again",
        "shift": "shifted by one stride",
        "noise": f"with Gaussian noise {NOISE_DB:.0f} dB below it",
    },
}
"""The changes whose effect on codes is measured, by modality."""
SEED = 0


def count_agreeing(codec: Codec, media: Media) -> dict[str, tuple[list[int], int]]:
    """Return for each change how many codes of each codebook stay the same, and of how many positions.

    Audio is resampled to the model's rate first, so that a stride is a whole number of samples.
    """
    rate = codec.tokenizer.sample_rate
    if rate and media.sample_rate != rate:
        media = Media("audio", resample(media.data, media.sample_rate or rate, rate), rate)
    codes = codec.encode(media).codes
    found = {}
    for name, changed, offset in _changed(media, codec.tokenizer.stride):
        other = codec.encode(changed).codes
        columns = offset * codec.tokenizer.sequence_length
        shared = codes[:, offset:, columns:] if media.modality == "image" else codes[..., offset:]
        if media.modality == "audio":  # Some models pad to several grid steps.
            length = min(shared.shape[-1], other.shape[-1])
            shared, other = shared[..., :length], other[..., :length]
        equal = (shared == other).reshape(len(codes), -1).sum(axis=1)
        found[name] = equal.tolist(), shared[0].size
    return found


def _changed(media: Media, stride: int) -> Iterator[tuple[str, Media, int]]:
    """Yield each change, the changed media, and the first grid step of the original that they begin with."""
    rng = np.random.default_rng(SEED)
    data, rate = media.data, media.sample_rate
    yield "repeat", media, 0
    if media.modality == "image":
        if min(data.shape[1:]) > stride:
            yield "shift", Media("image", np.ascontiguousarray(data[:, stride:, stride:])), 1
        yield "jpeg", Media("image", _jpeg(data)), 0
        noise = 2 * NOISE_LEVEL * rng.standard_normal(data.shape)
        yield "noise", Media("image", (data + noise).clip(-1, 1).astype(np.float32)), 0
        return
    if data.shape[1] > stride:
        yield "shift", Media("audio", np.ascontiguousarray(data[:, stride:]), rate), 1
    level = np.sqrt(np.square(data, dtype=np.float64).mean()) * 10 ** (-NOISE_DB / 20)
    yield "noise", Media("audio", (data + level * rng.standard_normal(data.shape)).astype(np.float32), rate), 0


def _jpeg(data: NDArray[np.float32]) -> NDArray[np.float32]:
    file = BytesIO()
    rows = as_bytes(data).transpose(1, 2, 0)
    Image.fromarray(rows.squeeze(2) if rows.shape[2] == 1 else np.ascontiguousarray(rows)).save(
        file, "JPEG", quality=JPEG_QUALITY
    )
    with Image.open(file) as image:
        return as_float(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))
