"""Training media: files are found, decoded once and cut into random crops; a batch depends on seed and step only."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vqtok.config import Config, Modality
from vqtok.errors import MediaError, TrainingError, UsageError
from vqtok.files.sidecars import is_sidecar, read_columns
from vqtok.files.walk import describe_ignored, files_below
from vqtok.media.audio import audio_info, read_audio
from vqtok.media.degrade import Degrader, parse_rules
from vqtok.media.image import StoredPixels, as_float, read_image, read_pixels
from vqtok.media.kinds import modality_of, stem
from vqtok.media.media import Media
from vqtok.media.tiling import padded
from vqtok.media.volume import is_volume, num_slices, slices
from vqtok.training.state import RUN_SUFFIX

logger = logging.getLogger(__name__)

ARRAY_SUFFIXES = (".npy", ".npz")
"""Stacks of uint8 images: gray `(n, height, width)`, or `(n, height, width, channels)` with 1 or 3 channels."""
LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in gray, by ITU-R BT.601 as in Pillow."""
FULL_SCALE = {"uint8": (127.5, 127.5), "uint16": (32767.5, 32767.5), "int16": (32767.0, 0.0)}
"""Scale and offset from [-1, 1] of decoded media in memory: images, images with more than 8 bits, audio."""


NO_PAIR = -1
"""The number in `Batch.pairs` of a place whose image and audio do not belong together."""

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingItem:
    """One image or audio of the training data: a file, one entry of an array file, or one image of a volume."""

    path: Path
    name: str
    """Relative to the data folder."""
    pixels: NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    """The image, if it comes from an array file, which stays in memory (a `.npy` file is mapped)."""
    slice: int | None = None
    """The number of the image in a volume."""
    weight: float = 1.0
    """How often it is drawn: equally often for images, in proportion to its duration for audio."""

    @property
    def unit(self) -> str:
        """What is held out or trained on as a whole: the item, or the volume that it is a slice of."""
        return self.name if self.slice is None else self.name.rpartition("/")[0]

    @property
    def modality(self) -> Modality:
        return "audio" if self.pixels is None and modality_of(self.path) == "audio" else "image"


@dataclass(frozen=True)
class Batch:
    """The crops of a training step.

    Shapes:
        media, inputs: For each modality float32 `(batch, channels, *crop)` in [-1, 1]; `inputs` are what is encoded,
            degraded media if `data.degrade` says so.
        pairs: int64 `(batch,)`: a number for each place where an image and an audio share a stem, the same number for
            the same caption; -1 elsewhere, and for one modality.
        speech: bool `(batch,)`: whether the audio at each place is speech.
        codes: For each modality whose media are encoded already int64 `(batch, num_codebooks, *grid)`; -1 in the
            codebooks that an item is not decoded from.
    """

    media: Mapping[Modality, NDArray[np.float32]]
    inputs: Mapping[Modality, NDArray[np.float32]]
    pairs: NDArray[np.int64]
    speech: NDArray[np.bool_]
    codes: Mapping[Modality, NDArray[np.int64]] = field(default_factory=dict)


def is_speech(config: Config, name: str) -> bool:
    """Return whether the losses for speech act on an item of this name."""
    return fnmatchcase(name, config.data.speech or "*")


def find_files(folder: Path) -> list[Path]:
    """List all files below a folder in a stable order, except what training has written to run folders."""
    names = files_below(folder, lambda path: True)
    return [folder / name for name in names if not _in_run_folder(Path(name)) and (folder / name).is_file()]


def _in_run_folder(path: Path) -> bool:
    return any(parent.suffix == RUN_SUFFIX for parent in path.parents)


def find_items(folder: Path, *modalities: Modality) -> list[TrainingItem]:
    """List all media of some modalities below a folder, in a stable order; log which files are skipped and ignored."""
    items: list[TrainingItem] = []
    ignored = Counter[str]()
    files = find_files(folder)
    names = [path.relative_to(folder).as_posix() for path in files]
    in_order = sorted(names)  # Files are listed folder by folder.
    for path, name in zip(files, names, strict=True):
        try:
            if "image" in modalities and is_volume(path):
                items += [TrainingItem(path, f"{name}/{number}", slice=number) for number in range(num_slices(path))]
            elif (modality := modality_of(path)) in modalities:
                weight = 1.0
                if modality == "audio":
                    samples, sample_rate, _ = audio_info(path)
                    weight = samples / sample_rate
                items.append(TrainingItem(path, name, weight=weight))
            elif "image" in modalities and path.suffix.lower() in ARRAY_SUFFIXES:
                for key, stack in _read_stacks(path).items():
                    items += [TrainingItem(path, f"{name}/{key}/{index}", pixels) for index, pixels in enumerate(stack)]
            elif not path.name.startswith(".") and not is_sidecar(name, in_order, _is_media):
                ignored[path.suffix.lower()] += 1
        except MediaError as error:
            logger.warning("skipped: %s", error)
    if ignored:
        logger.warning("%s: %s", folder, describe_ignored(ignored))
    return items


def _is_media(path: Path) -> bool:
    return modality_of(path) is not None


def _read_stacks(path: Path) -> dict[str, NDArray[np.uint8]]:
    """Read the stacks of images in an array file, by name.

    Raises:
        MediaError: The file is damaged or has no stack of images.
    """
    try:
        if path.suffix.lower() == ".npy":
            arrays = {"": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
                arrays = dict(loaded.items())
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MediaError(f"{path}: cannot be read: {error}") from None
    stacks = {
        key: array
        for key, array in arrays.items()
        if array.dtype == np.uint8 and (array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3)))
    }
    if not stacks:
        raise MediaError(f"{path}: contains no array of uint8 images (n, height, width[, 1 or 3])")
    return stacks


def name_hash(name: str) -> bytes:
    """Return the hash by which items are held out: those with the lowest hashes are."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def held_out_count(total: int, fraction: float) -> int:
    """Return how many of all items are held out: at least one, and not all."""
    return max(0, min(max(1, round(total * fraction)), total - 1))


def split_items(
    items: Sequence[TrainingItem], fraction: float, name: Callable[[TrainingItem], str] = lambda item: item.unit
) -> tuple[list[TrainingItem], list[TrainingItem]]:
    """Split into training and validation items by a hash of each name, which keeps the split if files are added.

    Pairs and single items of each modality are split on their own, so that each modality has validation items.

    Args:
        name: Returns the name of an item; items of one name, such as the `pair_stem` of pairs, stay together.
    """
    kinds: dict[str, set[Modality]] = {}
    for item in items:
        kinds.setdefault(name(item), set()).add(item.modality)
    held_out: set[str] = set()
    for kind in set(map(frozenset, kinds.values())):
        names = sorted((name for name, found in kinds.items() if found == kind), key=name_hash)
        held_out.update(names[: held_out_count(len(names), fraction)])
    training = [item for item in items if name(item) not in held_out]
    return training, [item for item in items if name(item) in held_out]


def pair_stem(item: TrainingItem) -> str:
    """Return what the names of an image and an audio that belong together have in common."""
    return stem(item.name)


class MediaCache:
    """Decodes items on demand and keeps them in memory within a budget. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.unreadable: set[str] = set()
        self._kept: dict[str, NDArray[np.integer[Any]]] = {}
        self._budget = config.data.cache_gb * 1e9
        self._lock = threading.Lock()

    def read(self, item: TrainingItem) -> Media | None:
        """Decode an item in full quality. Return None, with one warning per item, if it cannot be read."""
        model = self.config.model
        if item.pixels is not None:
            return Media("image", _planes(item.pixels, model.channels).astype(np.float32) / np.float32(127.5) - 1)
        if item.slice is not None:
            return None if (stored := self.get(item)) is None else Media("image", as_float(cast(StoredPixels, stored)))
        if item.modality == "image":
            return self._tried(item, lambda: read_image(item.path, channels=model.channels))
        return self._tried(item, lambda: read_audio(item.path, sample_rate=model.sample_rate))

    def _tried(self, item: TrainingItem, read: Callable[[], T]) -> T | None:
        if item.name in self.unreadable:
            return None
        try:
            return read()
        except MediaError as error:
            with self._lock:
                if item.name not in self.unreadable:
                    logger.warning("skipped: %s", error)
                self.unreadable.add(item.name)
            return None

    def get(self, item: TrainingItem) -> NDArray[np.integer[Any]] | None:
        """Return an item as it is kept in memory, or None if it cannot be read."""
        if item.pixels is not None:
            return _planes(item.pixels, self.config.model.channels)
        if item.name in self._kept:
            return self._kept[item.name]
        stored = self._tried(item, lambda: self._stored(item))
        if stored is None:
            return None
        self._keep(item.name, stored)
        return stored

    def _keep(self, name: str, stored: NDArray[np.integer[Any]]) -> None:
        with self._lock:
            if name not in self._kept and stored.nbytes <= self._budget:
                self._budget -= stored.nbytes
                self._kept[name] = stored

    def _stored(self, item: TrainingItem) -> NDArray[np.integer[Any]]:
        """Return audio in 16 bits, and images in 8, or in 16 if they have more than 8.

        Of a volume, all images are kept, since it has to be decoded as a whole.
        """
        model = self.config.model
        if item.slice is not None:
            images = [pixels for pixels, _ in slices(item.path, model.channels)]
            volume = item.name.removesuffix(str(item.slice))
            for number, pixels in enumerate(images):
                self._keep(f"{volume}{number}", pixels)
            return images[item.slice]
        if item.modality == "audio":
            scale, _ = FULL_SCALE["int16"]
            samples = read_audio(item.path, sample_rate=model.sample_rate).data
            return np.rint(samples.clip(-1, 1) * scale).astype(np.int16)
        return read_pixels(item.path, model.channels)


def _planes(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Convert a gray or RGB image `(height, width[, channels])` to `(channels, height, width)`, gray or RGB."""
    planes = np.atleast_3d(pixels).transpose(2, 0, 1)
    if len(planes) == channels:
        return planes
    if channels == 3:
        return np.repeat(planes, 3, axis=0)
    return np.rint(np.tensordot(LUMA, planes, axes=1))[None].astype(np.uint8)


class Loader(ABC):
    """Loads the batches of training steps; a batch depends on the seed and the step only."""

    config: Config

    @abstractmethod
    def batch(self, step: int) -> Batch:
        """Return the crops of a step."""

    @property
    @abstractmethod
    def degraders(self) -> Mapping[Modality, Degrader]:
        """What degrades the inputs of each modality."""

    def batches(self, first_step: int) -> Generator[Batch, None, None]:
        """Yield the batches from a step on, without end, prepared in `data.workers` threads."""
        ahead = max(1, self.config.data.workers) * 2
        pool = ThreadPoolExecutor(max(1, self.config.data.workers), thread_name_prefix="vqtok-data")
        try:
            queue: list[Future[Batch]] = [pool.submit(self.batch, first_step + i) for i in range(ahead)]
            step = first_step + ahead
            while True:
                ready = queue.pop(0)
                queue.append(pool.submit(self.batch, step))
                step += 1
                yield ready.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class BatchLoader(Loader):
    """Cuts random crops in threads, ahead of the training step.

    A crop depends only on the seed, its step and its position in the batch. A resumed run therefore sees the crops of
    an uninterrupted one, and several processes together see those of one process.

    Args:
        config: The training configuration.
        items: The items to draw from.
        cache: Decodes the items.
        seed: The seed of the crops.
        first: The position of this process's first crop in the batch of all processes.

    Raises:
        UsageError: The crop size is not a multiple of the stride, a degradation is not valid, or no item is speech.
    """

    def __init__(
        self, config: Config, items: Sequence[TrainingItem], cache: MediaCache, seed: int, first: int = 0
    ) -> None:
        assert config.model.modality != "fusion"
        self.modality: Modality = config.model.modality
        stride = math.prod(config.model.network.strides)
        if self.modality == "image" and config.data.crop_pixels % stride:
            raise UsageError(f"data.crop_pixels must be a multiple of {stride} (the stride)")
        self.config, self.items, self.cache, self.seed, self.first = config, items, cache, seed, first
        self.degrader = parse_rules(config.data.degrade, self.modality, config.model.sample_rate)
        if config.data.speech and self.modality == "audio" and not any(is_speech(config, item.name) for item in items):
            raise UsageError(f"data.speech={config.data.speech}: no file to train on has such a name")
        weights = np.array([item.weight for item in items])
        self._cumulative = np.cumsum(weights / weights.sum())

    def batch(self, step: int) -> Batch:
        crops, speech = [], []
        for place in range(self.first, self.first + self.config.train.batch_size):
            rng = np.random.default_rng([self.seed, step, place])
            item = self.draw(rng)
            crops.append(self.crop(rng, item))
            speech.append(self.is_speech(item))
        media = self.scaled(crops)
        inputs = self._degraded(media, step) if self.degrader.rules else media
        return Batch({self.modality: media}, {self.modality: inputs}, np.full(len(crops), NO_PAIR), np.array(speech))

    def _degraded(self, crops: NDArray[np.float32], step: int) -> NDArray[np.float32]:
        rate = self.config.model.sample_rate or None
        degraded = [
            self.degrader(Media(self.modality, crop, rate), np.random.default_rng([self.seed, step, place, 1])).data
            for place, crop in enumerate(crops, self.first)
        ]
        return np.stack(degraded)

    @property
    def degraders(self) -> Mapping[Modality, Degrader]:
        return {self.modality: self.degrader}

    def draw(self, rng: np.random.Generator) -> TrainingItem:
        """Draw an item at random."""
        index = int(np.searchsorted(self._cumulative, rng.random()))
        return self.items[min(index, len(self.items) - 1)]

    def crop(self, rng: np.random.Generator, item: TrainingItem) -> NDArray[np.integer[Any]]:
        """Cut a crop from an item, or from another one if it cannot be read."""
        cut = self._cut_image if self.modality == "image" else self._cut_audio
        return cut(self.readable(rng, item)[1], rng)

    def readable(self, rng: np.random.Generator, item: TrainingItem) -> tuple[TrainingItem, NDArray[np.integer[Any]]]:
        """Return an item and what it is in memory; if it cannot be read, draw others until one can.

        Raises:
            TrainingError: None can be read.
        """
        while True:
            stored = self.cache.get(item)
            if stored is not None:
                return item, stored
            if all(item.name in self.cache.unreadable for item in self.items):
                raise TrainingError("none of the training files can be read")
            item = self.draw(rng)

    def is_speech(self, item: TrainingItem) -> bool:
        """Return whether the crop of an item is speech; one that replaces an unreadable item counts as none."""
        return is_speech(self.config, item.name) and item.name not in self.cache.unreadable

    def scaled(self, crops: Sequence[NDArray[np.integer[Any]]]) -> NDArray[np.float32]:
        """Return crops as a batch in [-1, 1]."""
        batch = np.empty((len(crops), *crops[0].shape), np.float32)
        for place, crop in enumerate(crops):
            scale, offset = FULL_SCALE[crop.dtype.name]
            batch[place] = (crop - np.float32(offset)) / np.float32(scale)
        return batch

    def _cut_image(self, image: NDArray[np.integer[Any]], rng: np.random.Generator) -> NDArray[np.integer[Any]]:
        size = self.config.data.crop_pixels
        top, left = (int(rng.integers(max(1, length - size + 1))) for length in image.shape[1:])
        crop = image[:, top : top + size, left : left + size]
        # An image that is smaller than the crop is extended by reflection.
        crop = np.pad(crop, [(0, 0), *((0, size - length) for length in crop.shape[1:])], mode="symmetric")
        return crop[:, :, ::-1] if self.config.data.flip and rng.random() < 0.5 else crop

    def _cut_audio(self, audio: NDArray[np.integer[Any]], rng: np.random.Generator) -> NDArray[np.integer[Any]]:
        size = crop_samples(self.config)
        channel = audio[int(rng.integers(len(audio)))]
        start = int(rng.integers(max(1, len(channel) - size + 1)))
        crop = channel[start : start + size]
        return np.pad(crop, (0, size - len(crop)))[None]


class PairLoader(Loader):
    """Loads batches of images and of audio for a fusion model. An item's partner, if it has one, is at its place.

    At even places the image is drawn at random, at odd places the audio, and its partner with it; without a partner,
    the other item is drawn by itself. Batches depend on seed and step only, as those of `BatchLoader`.

    Args:
        loaders: The loaders of both modalities, with the same seed.
        captions: Whether pairs with the same caption have the same number in batches.
    """

    def __init__(self, loaders: Mapping[Modality, BatchLoader], *, captions: bool) -> None:
        self.loaders, self.config = loaders, loaders["image"].config
        self._partners: dict[Modality, dict[str, TrainingItem]] = {
            modality: {pair_stem(item): item for item in reversed(loader.items)} for modality, loader in loaders.items()
        }
        image, audio = self._partners.values()
        both = {stem: item.path for stem, item in audio.items() if stem in image}
        keys = {stem: read_columns(path).get("caption", path) if captions else path for stem, path in both.items()}
        numbers = {key: number for number, key in enumerate(keys.values())}
        self._pairs = {stem: numbers[key] for stem, key in keys.items()}

    @property
    def num_pairs(self) -> int:
        """The number of stems that both modalities have."""
        return len(self._pairs)

    def batch(self, step: int) -> Batch:
        loader = self.loaders["image"]
        crops: dict[Modality, list[NDArray[np.integer[Any]]]] = {modality: [] for modality in self.loaders}
        pairs, speech = [], []
        for place in range(loader.first, loader.first + loader.config.train.batch_size):
            rng = np.random.default_rng([loader.seed, step, place])
            order: list[Modality] = ["image", "audio"] if place % 2 == 0 else ["audio", "image"]
            first = self.loaders[order[0]].draw(rng)
            partner = self._partners[order[1]].get(pair_stem(first))
            both = first, partner or self.loaders[order[1]].draw(rng)
            for modality, item in zip(order, both, strict=True):
                crops[modality].append(self.loaders[modality].crop(rng, item))
            speech.append(self.loaders["audio"].is_speech(both[order.index("audio")]))
            # An item that cannot be read was replaced by another.
            is_replaced = any(item.name in loader.cache.unreadable for item in both)
            pairs.append(NO_PAIR if is_replaced else self._pairs.get(pair_stem(first), NO_PAIR))
        media = {modality: self.loaders[modality].scaled(found) for modality, found in crops.items()}
        return Batch(media, media, np.array(pairs), np.array(speech))

    @property
    def degraders(self) -> Mapping[Modality, Degrader]:
        return {modality: loader.degrader for modality, loader in self.loaders.items()}


def make_loader(config: Config, items: Sequence[TrainingItem], cache: MediaCache, seed: int, first: int = 0) -> Loader:
    """Return the loader of a model in training; arguments are those of `BatchLoader`."""
    loaders = {
        modality: BatchLoader(config.of(modality), items_of(items, modality), cache, seed, first)
        for modality in config.model.modalities
    }
    if len(loaders) == 1:
        return next(iter(loaders.values()))
    return PairLoader(loaders, captions=config.loss.code_matching > 0)


def items_of(items: Iterable[TrainingItem], modality: str) -> list[TrainingItem]:
    """Return the items of a modality."""
    return [item for item in items if item.modality == modality]


def crop_samples(config: Config) -> int:
    """Return the number of samples of a training crop: `data.crop_seconds`, rounded to whole grid steps."""
    hop_length = math.prod(config.model.network.strides)
    return max(1, round(config.data.crop_seconds * config.model.sample_rate / hop_length)) * hop_length


def validation_crops(
    config: Config, items: Sequence[TrainingItem], read: Callable[[TrainingItem], Media | None]
) -> Iterator[tuple[TrainingItem, NDArray[np.float32]]]:
    """Yield the center of each item for validation: at most 128 pixels per side or 2 s.

    A smaller item is taken as a whole, extended by reflection to a multiple of the stride.
    """
    stride = math.prod(config.model.network.strides)
    longest = 128 if config.model.modality == "image" else 2 * config.model.sample_rate
    for item in items:
        media = read(item)
        if media is None:
            continue
        data = media.data if media.modality == "image" else media.data[:1]
        if 0 in data.shape:
            continue
        sizes = [min(length, longest // stride * stride) for length in data.shape[1:]]
        starts = [(length - size) // 2 for length, size in zip(data.shape[1:], sizes, strict=True)]
        window = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
        yield item, padded(data[(slice(None), *window)], stride)
