"""Training media: files found, decoded once, cut into random crops; every batch is a function of (seed, step)."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.config import Config
from vqtok.errors import MediaError, TrainingError
from vqtok.media.audio import audio_info, read_audio
from vqtok.media.base import Media
from vqtok.media.image import read_image
from vqtok.media.kinds import modality_of

logger = logging.getLogger(__name__)

ARRAY_SUFFIXES = (".npy", ".npz")
"""Stacks of uint8 pictures `(n, height, width[, channels])`."""
FULL_SCALE: dict[str, tuple[type[np.integer[Any]], float, float]] = {
    "image": (np.uint8, 127.5, 127.5),
    "audio": (np.int16, 32767.0, 0.0),
}
"""How decoded media rest in memory: type, scale and offset from [-1, 1]."""


@dataclass(frozen=True)
class Item:
    """One picture or sound of the data: a file, or one entry of an array file."""

    path: Path
    name: str
    """Relative to the data folder."""
    entry: tuple[str, int] | None = None
    """Array name and position in an array file."""
    weight: float = 1.0
    """How often it is drawn: pictures alike, sounds by duration."""


def find_items(folder: Path, modality: str) -> list[Item]:
    """Find all media of a kind below a folder, in a stable order; what cannot be opened is reported and left out."""
    items: list[Item] = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        try:
            if modality_of(path) == modality:
                weight = 1.0
                if modality == "audio":
                    samples, sample_rate, _ = audio_info(path)
                    weight = samples / sample_rate
                items.append(Item(path, name, weight=weight))
            elif modality == "image" and path.suffix.lower() in ARRAY_SUFFIXES:
                items += _array_items(path, name)
        except (MediaError, OSError, ValueError) as error:
            logger.warning("skipped: %s", error)
    return items


def _array_items(path: Path, name: str) -> Iterator[Item]:
    for key, array in _load_arrays(path).items():
        if array.dtype == np.uint8 and array.ndim in (3, 4):
            for index in range(len(array)):
                yield Item(path, f"{name}/{key}/{index}", (key, index))


def _load_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    arrays = np.load(path, allow_pickle=False)
    return {"": arrays} if isinstance(arrays, np.ndarray) else dict(arrays.items())


def split_items(items: Sequence[Item], fraction: float) -> tuple[list[Item], list[Item]]:
    """Split into training and validation items by a hash of each name, so that the split survives added files."""
    ranked = sorted(items, key=lambda item: hashlib.sha256(item.name.encode(errors="surrogateescape")).digest())
    count = min(max(1, round(len(items) * fraction)), len(items) - 1)
    held_out = {item.name for item in ranked[:count]} if count > 0 else set()
    training = [item for item in items if item.name not in held_out]
    return training, [item for item in items if item.name in held_out]


class MediaCache:
    """Decode items on demand and keep them in memory, as far as the budget goes."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._kept: dict[str, NDArray[np.generic]] = {}
        self._arrays: dict[Path, dict[str, NDArray[np.generic]]] = {}
        self._budget = config.data.cache_gb * 1e9
        self._lock = threading.Lock()
        self.unreadable: set[str] = set()

    def read(self, item: Item) -> Media:
        """Decode one item in full quality.

        Raises:
            MediaError: it cannot be read.
        """
        model = self.config.model
        if item.entry is not None:
            return self._read_entry(item)
        if model.modality == "image":
            return read_image(item.path, channels=model.channels)
        return read_audio(item.path, sample_rate=model.sample_rate)

    def _read_entry(self, item: Item) -> Media:
        assert item.entry is not None
        key, index = item.entry
        with self._lock:
            if item.path not in self._arrays:
                self._arrays[item.path] = _load_arrays(item.path)
        picture = np.asarray(self._arrays[item.path][key][index], dtype=np.float32) / 127.5 - 1
        picture = picture[None] if picture.ndim == 2 else picture.transpose(2, 0, 1)
        channels = self.config.model.channels
        if len(picture) != channels:
            picture = picture.mean(0, keepdims=True) if channels == 1 else np.repeat(picture[:1], channels, 0)
        return Media("image", picture)

    def get(self, item: Item) -> NDArray[np.generic] | None:
        """Give the stored form of an item, or None (reported once) where it cannot be read."""
        kept = self._kept.get(item.name)
        if kept is not None or item.name in self.unreadable:
            return kept
        try:
            data = self.read(item).data
        except (MediaError, OSError) as error:
            logger.warning("skipped: %s", error)
            self.unreadable.add(item.name)
            return None
        dtype, scale, offset = FULL_SCALE[self.config.model.modality]
        limits = np.iinfo(dtype)
        stored = np.rint(np.clip(data * scale + offset, limits.min, limits.max)).astype(dtype)
        with self._lock:
            if stored.nbytes <= self._budget:
                self._budget -= stored.nbytes
                self._kept[item.name] = stored
        return stored


class BatchLoader:
    """Cut random crops ahead of the training step, in threads.

    A batch depends on the seed and its step alone, so that a resumed run sees what an undisturbed one would.
    """

    def __init__(self, config: Config, items: Sequence[Item], cache: MediaCache, seed: int) -> None:
        self.config, self.items, self.cache, self.seed = config, items, cache, seed
        weights = np.array([item.weight for item in items])
        self._cumulative = np.cumsum(weights / weights.sum())

    def batch(self, step: int) -> NDArray[np.float32]:
        """Give the crops of a step: float32 `(batch, channels, *crop)`."""
        rng = np.random.default_rng([self.seed, step])
        _, scale, offset = FULL_SCALE[self.config.model.modality]
        crops: list[NDArray[np.generic]] = []
        while len(crops) < self.config.train.batch_size:
            # The generator is used alike for readable and unreadable files.
            index = int(np.searchsorted(self._cumulative, rng.random()))
            cut = self._cut_image if self.config.model.modality == "image" else self._cut_audio
            stored = self.cache.get(self.items[min(index, len(self.items) - 1)])
            if stored is not None:
                crops.append(cut(stored, rng))
            elif len(self.cache.unreadable) >= len(self.items):
                raise TrainingError("none of the training files can be read")
        return (np.stack(crops).astype(np.float32) - np.float32(offset)) / np.float32(scale)

    def _cut_image(self, picture: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
        size = self.config.data.crop_pixels
        missing = [(0, 0), *((0, max(0, size - length)) for length in picture.shape[1:])]
        picture = np.pad(picture, missing, mode="symmetric")
        top, left = (int(rng.integers(length - size + 1)) for length in picture.shape[1:])
        crop = picture[:, top : top + size, left : left + size]
        return crop[:, :, ::-1] if self.config.data.flip and rng.random() < 0.5 else crop

    def _cut_audio(self, sound: NDArray[np.generic], rng: np.random.Generator) -> NDArray[np.generic]:
        size = crop_samples(self.config)
        channel = sound[int(rng.integers(len(sound)))]
        start = int(rng.integers(max(1, len(channel) - size + 1)))
        crop = channel[start : start + size]
        return np.pad(crop, (0, size - len(crop)))[None]

    def batches(self, first_step: int) -> Generator[NDArray[np.float32], None, None]:
        """Yield the batches from a step on, for ever, prepared in `data.workers` threads."""
        ahead = max(1, self.config.data.workers) * 2
        pool = ThreadPoolExecutor(max(1, self.config.data.workers), thread_name_prefix="vqtok-data")
        try:
            queue: list[Future[NDArray[np.float32]]] = [pool.submit(self.batch, first_step + i) for i in range(ahead)]
            step = first_step + ahead
            while True:
                ready = queue.pop(0)
                queue.append(pool.submit(self.batch, step))
                step += 1
                yield ready.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def crop_samples(config: Config) -> int:
    """Give the samples of a training crop: `data.crop_seconds`, rounded to whole grid steps."""
    hop_length = int(np.prod(config.model.network.strides))
    return max(1, round(config.data.crop_seconds * config.model.sample_rate / hop_length)) * hop_length


def validation_crops(
    config: Config, items: Sequence[Item], read: Callable[[Item], Media]
) -> Iterator[tuple[Item, NDArray[np.float32]]]:
    """Yield the fixed middle part of each item that every validation uses: at most 128 pixels or 2 s."""
    stride = int(np.prod(config.model.network.strides))
    longest = 128 if config.model.modality == "image" else 2 * config.model.sample_rate
    for item in items:
        try:
            data = read(item).data
        except (MediaError, OSError) as error:
            logger.warning("skipped: %s", error)
            continue
        if config.model.modality == "audio":
            data = data[:1]
        sizes = [min(length, longest) // stride * stride for length in data.shape[1:]]
        if 0 in sizes:
            continue
        starts = [(length - size) // 2 for length, size in zip(data.shape[1:], sizes, strict=True)]
        window = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        yield item, np.ascontiguousarray(data[(slice(None), *window)])
