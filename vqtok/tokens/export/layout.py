"""Codes as token ids of a language model: their numbers and their order."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError

Layout = Literal["flat", "coarse-first", "delay", "parallel", "interleave"]
"""The order of the codes of a grid. Positions go row by row, in audio with several channels channel by channel.

flat          position by position, each with the codes of all codebooks, coarse first
coarse-first  all positions of the first codebook, then all of the second, ...
parallel      `(positions, num_codebooks)`: one step per position
delay         the same with codebook k delayed by k steps and padding at both ends: `num_codebooks - 1` more steps
interleave    position by position, each code followed by the finer ones in its time; flat if all rates are equal

Source: delay: Copet et al. 2023, "Simple and controllable music generation", section 2.2.
    interleave: Canopy Labs 2025, Orpheus TTS, whose models generate the codes of SNAC in this order.
"""

SPECIALS = ("begin", "end", "row", "pad")
"""Tokens that are not codes: before and after an item, after each row of its grid, and where a delayed codebook has no
code. In `parallel` and `delay` each of them is a step of its own, with the same id in all codebooks."""

MAX_VOCABULARY_SIZE = 2**31

_BEGIN, _END, _ROW, _PAD = (-1 - index for index in range(len(SPECIALS)))


@dataclass(frozen=True)
class Vocabulary:
    """The ids of codes and special tokens: `offset + code` in the first codebook, followed by those of the next ones.

    Raises:
        UsageError: An id is out of range, or belongs to both a code and a special token.
    """

    codebook_sizes: tuple[int, ...]
    offset: int = 0
    shared: bool = False
    """Whether all codebooks begin at the offset, for models that embed each codebook separately."""
    specials: Mapping[str, int] = field(default_factory=dict)
    """The ids of special tokens by name."""

    def __post_init__(self) -> None:
        for name, special in self.specials.items():
            if self.offset <= special < self.codes_end:
                raise UsageError(f"{name} token {special}: is the id of a code ({self.offset} to {self.codes_end - 1})")
        if min([self.offset, *self.specials.values()]) < 0 or self.size > MAX_VOCABULARY_SIZE:
            raise UsageError(f"a vocabulary up to id {self.size - 1}: ids must lie in 0 to {MAX_VOCABULARY_SIZE - 1}")

    @classmethod
    def choose(
        cls, codebook_sizes: tuple[int, ...], offset: int, shared: bool, specials: Mapping[str, int | None]
    ) -> Vocabulary:
        """Return the vocabulary in which special tokens without an id (None) have the first free ones."""
        codes_end = cls(codebook_sizes, offset, shared).codes_end
        free = (number for number in itertools.count(codes_end) if number not in specials.values())
        chosen = {}
        for name in (name for name in SPECIALS if name in specials):
            special = specials[name]
            chosen[name] = next(free) if special is None else special
        return cls(codebook_sizes, offset, shared, chosen)

    @property
    def starts(self) -> list[int]:
        """The id of code 0 of each codebook."""
        if self.shared:
            return [self.offset] * len(self.codebook_sizes)
        return list(itertools.accumulate(self.codebook_sizes[:-1], initial=self.offset))

    @property
    def codes_end(self) -> int:
        """The greatest id of a code plus one."""
        return max(start + size for start, size in zip(self.starts, self.codebook_sizes, strict=True))

    @property
    def size(self) -> int:
        """The greatest id plus one."""
        return max([self.codes_end, *(special + 1 for special in self.specials.values())])


def interleaved(levels: Sequence[int]) -> list[int]:
    """Return the order of the codes of a position in the layout `interleave`: 0, 1, 3, 4, 2, 5, 6 for (1, 2, 4).

    Args:
        levels: Codes of each codebook per position.

    Raises:
        UsageError: The codebooks do not divide the time of one another.
    """
    if any(finer % coarser for coarser, finer in itertools.pairwise(levels)):
        rates = ", ".join(map(str, levels))
        raise UsageError(f"`layout` interleave: is not possible for codebooks with {rates} codes a step; use flat")
    starts = list(itertools.accumulate(levels, initial=0))

    def within(level: int, position: int) -> Iterator[int]:
        yield starts[level] + position
        if level + 1 < len(levels):
            ratio = levels[level + 1] // levels[level]
            for finer in range(position * ratio, (position + 1) * ratio):
                yield from within(level + 1, finer)

    return [index for position in range(levels[0]) for index in within(0, position)]


def to_ids(codes: NDArray[np.integer], layout: Layout, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the sequence of token ids of the codes of one item.

    Shapes:
        codes: `(num_codebooks, *grid)`. Result: `(steps, num_codebooks)` in `parallel` and `delay`, else `(length,)`.

    Raises:
        ValueError: The layout is `delay` and the vocabulary has no pad token.
    """
    ids = codes.reshape(len(codes), -1) + np.array(vocabulary.starts)[:, None]
    # The ids of special tokens follow those of the codes, so that negative indices select them.
    specials = [vocabulary.specials.get(name, 0) for name in reversed(SPECIALS)]
    sequence: NDArray[np.int64] = np.append(ids, specials)[_order(codes.shape, layout, tuple(vocabulary.specials))]
    return sequence


def to_codes(
    ids: NDArray[np.integer], grid: tuple[int, ...], layout: Layout, vocabulary: Vocabulary
) -> NDArray[np.int32]:
    """Return the codes `(num_codebooks, *grid)` of a sequence of token ids, flattened or not.

    Raises:
        ValueError: The sequence is not that of any codes of this grid.
    """
    shape = (len(vocabulary.codebook_sizes), *grid)
    if not 0 < math.prod(shape) <= ids.size:  # The grid is not trusted: check it before anything is allocated for it.
        raise ValueError(f"{ids.size} token ids for a grid of {' x '.join(map(str, grid))}")
    order = _order(shape, layout, tuple(vocabulary.specials)).ravel()
    if ids.size != order.size:
        raise ValueError(f"{ids.size} token ids where this grid makes {order.size}")
    is_code = order >= 0
    flat = np.empty(math.prod(shape), np.int64)
    flat[order[is_code]] = ids.ravel()[is_code]
    starts, sizes = np.array(vocabulary.starts)[:, None], np.array(vocabulary.codebook_sizes)[:, None]
    codes: NDArray[np.int64] = np.clip(flat.reshape(shape[0], -1) - starts, 0, sizes - 1).reshape(shape)
    # Ids of other codebooks or of special tokens are not reproduced, and so are detected.
    differs = to_ids(codes, layout, vocabulary).ravel() != ids.ravel()
    if differs.any():
        place = int(differs.argmax())
        raise ValueError(f"token id {ids.ravel()[place]} is not possible at place {place}")
    return codes.astype(np.int32)


@functools.lru_cache(maxsize=4)
def _order(shape: tuple[int, ...], layout: Layout, specials: tuple[str, ...]) -> NDArray[np.int64]:
    """Return what each place holds: an index of the flattened codes, or a negative number for a special token."""
    num_codebooks, last = shape[0], shape[0] - 1
    order: NDArray[np.int64] = np.arange(math.prod(shape)).reshape(num_codebooks, -1, shape[-1])
    if layout in ("flat", "interleave"):  # codebooks, rows, columns -> rows, columns and codebooks
        order = np.moveaxis(order, 0, -1).reshape(order.shape[1], -1)
    if "row" in specials:
        order = _extend(order, 0, 1, _ROW)
    order = order.reshape(num_codebooks if layout in ("delay", "parallel") else 1, -1)
    if layout == "delay":
        if "pad" not in specials:
            raise ValueError("the delay layout needs a pad token")
        order = np.stack([_extend(plane, k, last - k, _PAD) for k, plane in enumerate(order)])
    if "begin" in specials:
        order = _extend(order, 1, 0, _BEGIN)
    if "end" in specials:
        order = _extend(order, 0, 1, _END)
    return order.T if layout in ("delay", "parallel") else order[0]


def _extend(order: NDArray[np.int64], before: int, after: int, special: int) -> NDArray[np.int64]:
    """Pad the last axis with a special token at both ends."""
    return np.pad(order, [*[(0, 0)] * (order.ndim - 1), (before, after)], constant_values=special)
