"""Codes as the token ids of a language model: which number each becomes, and in which order they stand."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError

Layout = Literal["flat", "coarse-first", "delay", "parallel"]
"""The order of a grid's codes; positions are taken row by row, of sound with several channels channel by channel.

flat          position by position, at each the codes of all codebooks, coarse first
coarse-first  all positions of the first codebook, then all of the second, ...
parallel      `(positions, num_codebooks)`: a step for each position
delay         the same with codebook k delayed by k steps, and padding at both ends: `num_codebooks - 1` steps more

Source: delay: Copet et al. 2023, "Simple and controllable music generation", section 2.2.
"""

SPECIALS = ("begin", "end", "row", "pad")
"""Tokens that are no codes: before and after an item, after each row of its grid, and where a delayed codebook has
nothing to say. In `parallel` and `delay` each of them is a step of its own, the same in all codebooks."""

MAX_VOCABULARY_SIZE = 2**31

_BEGIN, _END, _ROW, _PAD = (-1 - index for index in range(len(SPECIALS)))


@dataclass(frozen=True)
class Vocabulary:
    """The ids of codes and special tokens: `offset + code` in the first codebook, each next one's after those before.

    Raises:
        UsageError: an id that is out of range, or is that of a code and a special token both.
    """

    codebook_sizes: tuple[int, ...]
    offset: int = 0
    shared: bool = False
    """All codebooks begin at the offset: for models that embed each codebook by itself."""
    specials: Mapping[str, int] = field(default_factory=dict)
    """Ids of those special tokens that there are, by name."""

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
        """Give those special tokens that have no id (None) the first free ones behind the codes."""
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
        """One more than the greatest id of a code."""
        return max(start + size for start, size in zip(self.starts, self.codebook_sizes, strict=True))

    @property
    def size(self) -> int:
        """One more than the greatest id of all."""
        return max([self.codes_end, *(special + 1 for special in self.specials.values())])


def to_ids(codes: NDArray[np.integer], layout: Layout, vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Turn the codes of one item into a sequence of token ids.

    Shapes:
        codes: `(num_codebooks, *grid)`. Result: `(steps, num_codebooks)` in `parallel` and `delay`, else `(length,)`.

    Raises:
        ValueError: `delay` with a vocabulary that has no pad token.
    """
    ids = codes.reshape(len(codes), -1) + np.array(vocabulary.starts)[:, None]
    # Behind the ids of the codes stand those of the special tokens, where negative indices find them.
    specials = [vocabulary.specials.get(name, 0) for name in reversed(SPECIALS)]
    sequence: NDArray[np.int64] = np.append(ids, specials)[_order(codes.shape, layout, tuple(vocabulary.specials))]
    return sequence


def to_codes(
    ids: NDArray[np.integer], grid: tuple[int, ...], layout: Layout, vocabulary: Vocabulary
) -> NDArray[np.int32]:
    """Turn a sequence of token ids, flattened or not, back into the codes `(num_codebooks, *grid)`.

    Raises:
        ValueError: no codes of this grid make this sequence.
    """
    shape = (len(vocabulary.codebook_sizes), *grid)
    if not 0 < math.prod(shape) <= ids.size:  # The grid may be anybody's: nothing is allocated for it before.
        raise ValueError(f"{ids.size} token ids for a grid of {' x '.join(map(str, grid))}")
    order = _order(shape, layout, tuple(vocabulary.specials)).ravel()
    if ids.size != order.size:
        raise ValueError(f"{ids.size} token ids where this grid makes {order.size}")
    is_code = order >= 0
    flat = np.empty(math.prod(shape), np.int64)
    flat[order[is_code]] = ids.ravel()[is_code]
    starts, sizes = np.array(vocabulary.starts)[:, None], np.array(vocabulary.codebook_sizes)[:, None]
    codes: NDArray[np.int64] = np.clip(flat.reshape(shape[0], -1) - starts, 0, sizes - 1).reshape(shape)
    # Ids of other codebooks or special tokens than belong there do not come back.
    differs = to_ids(codes, layout, vocabulary).ravel() != ids.ravel()
    if differs.any():
        place = int(differs.argmax())
        raise ValueError(f"token id {ids.ravel()[place]} cannot stand at place {place}")
    return codes.astype(np.int32)


@functools.lru_cache(maxsize=4)
def _order(shape: tuple[int, ...], layout: Layout, specials: tuple[str, ...]) -> NDArray[np.int64]:
    """Tell what stands where: an index of the flattened codes, or a negative number for a special token."""
    num_codebooks, last = shape[0], shape[0] - 1
    order: NDArray[np.int64] = np.arange(math.prod(shape)).reshape(num_codebooks, -1, shape[-1])
    if layout == "flat":  # codebooks, rows, columns -> rows, columns and codebooks
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
    """Put a special token at the ends of the last axis, so many times."""
    return np.pad(order, [*[(0, 0)] * (order.ndim - 1), (before, after)], constant_values=special)
