"""Training of the decoder alone: the media are encoded once, and their codes are kept in the run folder."""

from __future__ import annotations

import functools
import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.codec.prefixes import prefix_lengths
from vqtok.config import Config
from vqtok.errors import OutputError
from vqtok.media.media import Media
from vqtok.tokens.vqt.file import dump, load
from vqtok.training.data import NO_PAIR, Batch, BatchLoader, MediaCache, TrainingItem, crop_samples
from vqtok.training.state import CODES_NAME

NOT_DECODED = -1
"""Stands for the codes of the codebooks that an item of a batch is not decoded from."""


class CodeStore:
    """Encodes media that are asked for the first time, and keeps their token files in a SQLite file. Thread-safe.

    Args:
        codec: Encodes the media.
        folder: The run folder. It need not exist before the first use.
    """

    def __init__(self, codec: Codec, folder: Path) -> None:
        self.codec, self._path = codec, folder / CODES_NAME
        self._lock = threading.Lock()

    @functools.cached_property
    def _connection(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=60)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS codes (name BLOB, count INTEGER, file BLOB, UNIQUE (name, count))"
        )
        return connection

    def codes(self, name: str, media: Callable[[], Media], count: int) -> NDArray[np.int32]:
        """Return the codes `(count, *grid)` of media.

        Args:
            name: A name that no other media have.
            media: Returns the media; called if their codes are not known.
            count: The number of codebooks.

        Raises:
            OutputError: The file cannot be written or read.
        """
        key = name.encode(errors="surrogateescape"), count
        found = self._execute("SELECT file FROM codes WHERE (name, count) = (?, ?)", key)
        if found:
            return load(found[0]).codes
        tokens = self.codec.encode(media(), count)
        self._execute("INSERT OR REPLACE INTO codes VALUES (?, ?, ?)", (*key, dump(tokens, coder="packed")))
        return tokens.codes

    def _execute(self, command: str, values: tuple[Any, ...]) -> Any:
        """Run a command and return the first row of its result, if any."""
        try:
            with self._lock:
                return self._connection.execute(command, values).fetchone()
        except sqlite3.Error as error:
            raise OutputError(f"{self._path}: {error}") from None


class CodedLoader(BatchLoader):
    """Loads batches with the codes of their crops, which are those of the whole media there.

    Crops begin at whole grid steps. With probability `model.quantizer.prefix_dropout`, an item is decoded from 1, 2, 4
    and so on of its codebooks, else from all; these are the numbers for which a search has found its codes.

    Args:
        store: Has the codes.
        config, items, cache, seed, first: As for `BatchLoader`.
    """

    def __init__(
        self, store: CodeStore, config: Config, items: Sequence[TrainingItem], cache: MediaCache, seed: int, first: int
    ) -> None:
        super().__init__(config, items, cache, seed, first)
        self.store = store
        prefixes = store.codec.tokenizer.prefixes
        self.counts = [prefixes[length - 1] for length in prefix_lengths(len(prefixes))]

    def batch(self, step: int) -> Batch:
        size = self.config.train.batch_size
        found = [self._coded(np.random.default_rng([self.seed, step, self.first + place])) for place in range(size)]
        crops, codes, speech = zip(*found, strict=True)
        media = {self.modality: self.scaled(crops)}
        return Batch(media, media, np.full(size, NO_PAIR), np.array(speech), {self.modality: np.stack(codes)})

    def _coded(self, rng: np.random.Generator) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], bool]:
        """Return a random crop, its codes `(num_codebooks, *grid)`, and whether it is speech."""
        item, whole = self.readable(rng, self.draw(rng))
        if self.modality == "image":
            size, sides, padding = self.config.data.crop_pixels, 2, "symmetric"
            mirrored = self.config.data.flip and rng.random() < 0.5
            whole, name = (whole[:, :, ::-1], f"{item.name} mirrored") if mirrored else (whole, item.name)
        else:
            size, sides, padding = crop_samples(self.config), 1, "constant"
            channel = int(rng.integers(len(whole)))
            whole, name = whole[channel : channel + 1], f"{item.name} channel {channel}"
        missing = [(0, max(0, size - length)) for length in whole.shape[1:]]
        whole = np.pad(whole, [(0, 0), *missing], mode=padding)  # type: ignore[call-overload]
        stride = self.store.codec.tokenizer.stride
        starts = [int(rng.integers((length - size) // stride + 1)) for length in whole.shape[1:]]
        is_prefix = rng.random() < self.config.model.quantizer.prefix_dropout
        count = self.counts[int(rng.integers(len(self.counts))) if is_prefix else -1]

        def media() -> Media:
            return Media(self.modality, self.scaled([whole])[0], self.config.model.sample_rate or None)

        # Without a search, the codes of the first codebooks are the first ones of all.
        known = self.store.codes(name, media, count if self.config.data.cache_codes > 1 else self.counts[-1])
        codes = np.full((self.counts[-1], *[size // stride] * sides), NOT_DECODED, np.int64)
        codes[:count] = known[:count, *(slice(start, start + size // stride) for start in starts)]
        crop = whole[:, *(slice(stride * start, stride * start + size) for start in starts)]
        return crop, codes, self.is_speech(item)
