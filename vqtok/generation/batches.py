"""Batches of masked items: which streams a step has, and which of their codes are hidden."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtok.generation.items import Item
from vqtok.generation.streams import HIDDEN, Stream, StreamName

KNOWN_SHARE = 0.5
"""The share of the items in which a stream beside the target is known completely."""
LAYOUT_WEIGHTS = {1: 0.5, 2: 2.0, 3: 1.0}
"""How often sequences of so many streams are drawn. Pairs are the single directions, which are learned fastest."""


@dataclass(frozen=True)
class Masked:
    """The codes of one stream for a batch of items, and what the network sees of them.

    Shapes:
        codes, shown: int64 `(batch, num_codebooks, *grid)`; `shown` has `HIDDEN` codes.
        codebooks: int64 `(batch,)`, the codebook that is predicted; the finer ones are hidden, the coarser ones known.
    """

    codes: Tensor
    shown: Tensor
    codebooks: Tensor

    def to(self, device: torch.device) -> Masked:
        return Masked(self.codes.to(device), self.shown.to(device), self.codebooks.to(device))

    def predicted(self, codebook: int) -> Tensor:
        """Return where codes of a codebook are to be predicted: bool `(batch, positions)`."""
        hidden = self.shown[:, codebook].flatten(1) == HIDDEN
        return hidden & (self.codebooks == codebook)[:, None]


class BatchMaker:
    """Draws the batch of each training step. It depends only on the seed, the step and the position in the batch.

    Args:
        first: The position of this process's first item in the batch of all processes.
    """

    def __init__(
        self, items: Sequence[Item], streams: Sequence[Stream], batch_size: int, seed: int, first: int = 0
    ) -> None:
        self.streams = {stream.name: stream for stream in streams}
        self.batch_size, self.seed, self.first = batch_size, seed, first
        self._codes = {
            name: {index: item.codes(stream) for index, item in enumerate(items) if item.has(stream)}
            for name, stream in self.streams.items()
        }
        signatures = Counter(tuple(n for n in self.streams if i in self._codes[n]) for i in range(len(items)))
        weights: Counter[tuple[StreamName, ...]] = Counter()
        for signature, count in signatures.items():
            for layout in layouts(signature):
                weights[layout] += count * LAYOUT_WEIGHTS[len(layout)]  # type: ignore[assignment]
        self.layouts = sorted(weights)
        """The sets of streams that a sequence can have."""
        self._weights = np.array([weights[layout] for layout in self.layouts], float)
        self._weights /= self._weights.sum()
        self._eligible = {
            layout: sorted(set.intersection(*(set(self._codes[name]) for name in layout))) for layout in self.layouts
        }

    def batch(self, step: int) -> dict[StreamName, Masked]:
        """Return the streams of a step, which are the same for all its items."""
        layout = self.layouts[int(np.random.default_rng([self.seed, step]).choice(len(self.layouts), p=self._weights))]
        rows = []
        for place in range(self.first, self.first + self.batch_size):
            rng = np.random.default_rng([self.seed, step, place])
            eligible = self._eligible[layout]
            index = eligible[int(rng.integers(len(eligible)))]
            target = layout[int(rng.integers(len(layout)))]
            row = {}
            for name in layout:
                codes = crop(self._codes[name][index], self.streams[name].window, rng)
                is_known = name != target and rng.random() < KNOWN_SHARE
                count = 0 if is_known else draw_count(codes[0].size, rng)
                row[name] = hide(codes, count, int(rng.integers(len(codes))), rng)
            rows.append(row)
        return {name: stack([row[name] for row in rows]) for name in layout}


def layouts(signature: Sequence[StreamName]) -> list[tuple[StreamName, ...]]:
    """Return the sets of an item's streams that a sequence can have. Captions do not occur alone."""
    found = itertools.chain.from_iterable(
        itertools.combinations(signature, count) for count in range(1, len(signature) + 1)
    )
    return [layout for layout in found if layout != ("text",)]


def crop(codes: NDArray[np.integer[Any]], window: Sequence[int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a random window of a grid."""
    starts = [int(rng.integers(length - side + 1)) for length, side in zip(codes.shape[1:], window, strict=True)]
    where = tuple(slice(start, start + side) for start, side in zip(starts, window, strict=True))
    return codes[(slice(None), *where)].astype(np.int64)


def draw_count(positions: int, rng: np.random.Generator) -> int:
    """Draw how many positions of a stream are hidden, from 1 to all. All of them are as sampling begins.

    Source: Chang et al. 2022, "MaskGIT", section 3.3 (the cosine).
    """
    return math.ceil(positions * math.cos(math.pi / 2 * rng.random()))


def hide(
    codes: NDArray[np.int64], count: int, codebook: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Hide so many random positions of one codebook, and all of the finer codebooks; nothing if the number is 0.

    Returns:
        The codes, those that are shown, and the codebook.
    """
    shown = codes.copy()
    if count:
        shown[codebook].ravel()[rng.permutation(codes[0].size)[:count]] = HIDDEN
        shown[codebook + 1 :] = HIDDEN
    return codes, shown, codebook


def stack(rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64], int]]) -> Masked:
    """Join the masked codes of items to a batch."""
    codes, shown, codebooks = zip(*rows, strict=True)
    return Masked(
        torch.from_numpy(np.stack(codes)), torch.from_numpy(np.stack(shown)), torch.tensor(codebooks, dtype=torch.int64)
    )
