"""The context prior: the probability of each code given its neighbors, equal to the last bit on every machine.

A small network reads the codes that are known so far. Codebooks are coded coarse first, and the positions of each in
three stages that see the stages before: in an image the even rows and columns, then the odd rows and columns, then the
rest; in audio every fourth position, then every second, then the rest. Thus a few large matrix products replace one
step per token.

A code is coded as a group and then as a member of the group: two small distributions instead of a large one. Similar
codes are adjacent (`rank`), so that a group says much about what its members share.

All numbers are integers in floats: weights in units of 1/128, activations in 1/16 from 0 to 127, logits in 1/16 nat.
The partial sums of every product stay below 2^24 (checked when a prior is read), where float32 is exact in any order of
summation, and scaling is by powers of two. Neither machine, library nor batch can therefore change a frequency, as they
do with networks in floating point.

Source: Mentzer et al. 2019, "Practical Full Resolution Learned Lossless Image Compression" (coarse to fine, in
    parallel); He et al. 2021, "Checkerboard Context Model for Efficient Learned Image Compression", section 3; Ballé et
    al. 2019, "Integer Networks for Data Compression with Latent-Variable Models", section 3; Goodman 2001, "Classes for
    Fast Maximum Entropy Training" (groups).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import CorruptFileError
from vqtok.tokens.coding import fixed_point
from vqtok.tokens.coding.compiled import compiled
from vqtok.tokens.coding.fixed_point import EXPONENTIALS, HALF, MAX_ACTIVATION, WEIGHT_BITS
from vqtok.tokens.coding.rans import TOTAL, IntervalDecoder, encode_intervals

STAGES = 3
ACTIVATION_BITS = 4
MAX_SUM = 1 << 23
"""Bound of a product: half of the integers that float32 represents exactly."""
SEGMENT_POSITIONS = 1 << 16
"""The most positions in a piece of a grid, unless a row is longer. Larger grids are cut into pieces."""
MAX_POSITIONS = 1 << 14
"""Positions that are processed at once, which bounds the memory."""
MAX_CONTEXTS = 1 << 26
"""The most numbers in the table of what each code contributes to its neighbors."""

Float = NDArray[np.float32]


@dataclass(frozen=True)
class CodebookPrior:
    """The network of one codebook; integers in float32.

    Shapes:
        rank: `(size,)` int64, the place of each code in the order of groups and members.
        embedding: `(size, dim)`. context: `(kernel * 2 dim, hidden)`, for the codebooks before and this one.
        context_bias: `(3, hidden)`. hidden: `(hidden, hidden)`. group: `(hidden, groups)`.
        member: `(groups, hidden, members)`; biases have the shape of the sums that they are added to.
    """

    rank: NDArray[np.int64]
    embedding: Float
    context: Float
    context_bias: Float
    hidden: Float
    hidden_bias: Float
    group: Float
    group_bias: Float
    member: Float
    member_bias: Float

    def __post_init__(self) -> None:
        size, hidden, (groups, _, members) = len(self.rank), self.hidden.shape[0], self.member.shape
        shapes = {
            "rank": (size,),
            "embedding": (size, self.embedding.shape[1]),
            "context": (self.context.shape[0], hidden),
            "context_bias": (STAGES, hidden),
            "hidden": (hidden, hidden),
            "hidden_bias": (hidden,),
            "group": (hidden, groups),
            "group_bias": (groups,),
            "member": (groups, hidden, members),
            "member_bias": (groups, members),
        }
        if any(getattr(self, name).shape != shape for name, shape in shapes.items()) or not 0 < size <= TOTAL:
            raise ValueError("arrays that do not fit together")
        ranks = np.sort(self.rank)
        if ranks[0] < 0 or ranks[-1] >= groups * members or (np.diff(ranks) == 0).any() or max(groups, members) > TOTAL:
            raise ValueError("ranks that are not positions of codes")
        if self.context.size // (2 * self.embedding.shape[1]) * size > MAX_CONTEXTS:
            raise ValueError("a neighborhood beyond bounds")
        if np.abs(self.embedding).max() > MAX_ACTIVATION:
            raise ValueError("embeddings beyond bounds")
        for weight, bias in (
            (self.context, self.context_bias),
            (self.hidden, self.hidden_bias),
            (self.group, self.group_bias),
            (self.member, self.member_bias),
        ):
            if (np.abs(weight).sum(-2) * MAX_ACTIVATION + np.abs(bias)).max() >= MAX_SUM:
                raise CorruptFileError("the prior's weights are too large to be exact; train it again")

    @property
    def members(self) -> int:
        return int(self.member.shape[2])

    @cached_property
    def context_of_below(self) -> Float:
        """The rows of `context` for the codebooks before, `(kernel * dim, hidden)`."""
        return self._contexts[:, 0].reshape(-1, self.context.shape[1])

    @cached_property
    def context_of_codes(self) -> Float:
        """The contribution of each code of this codebook at each place, `(kernel, size, hidden)`."""
        return self.embedding @ self._contexts[:, 1]

    @property
    def _contexts(self) -> Float:
        return self.context.reshape(-1, 2, self.embedding.shape[1], self.context.shape[1])

    @cached_property
    def member_rows(self) -> Float:
        return np.ascontiguousarray(self.member.swapaxes(1, 2))

    @cached_property
    def code_at(self) -> NDArray[np.int32]:
        """The code of each rank; -1 if there is none."""
        codes = np.full(self.member_bias.size, -1, np.int32)
        codes[self.rank] = np.arange(len(self.rank))
        return codes


class _Coder(Protocol):
    def code(self, cumulative: NDArray[np.uint16], symbols: NDArray[np.int64] | None) -> NDArray[np.int64]:
        """Code one symbol per row of cumulative frequencies, and return the symbols."""


class _Encoder:
    def __init__(self) -> None:
        self._starts: list[NDArray[np.uint16]] = []
        self._ends: list[NDArray[np.uint16]] = []

    def code(self, cumulative: NDArray[np.uint16], symbols: NDArray[np.int64] | None) -> NDArray[np.int64]:
        assert symbols is not None
        row = np.arange(len(symbols))
        self._starts.append(cumulative[row, symbols])
        self._ends.append(cumulative[row, symbols + 1])
        return symbols

    def finish(self) -> bytes:
        """Return the stream, after decoding it as a check: it may become the only copy of someone's tokens."""
        start, end = np.concatenate(self._starts), np.concatenate(self._ends)
        stream = encode_intervals(end - start, start)
        decoder = IntervalDecoder(stream)
        symbols = decoder.take(np.stack([np.zeros_like(start), start, end, np.full_like(end, TOTAL)], axis=1))
        if (symbols != 1).any():
            raise CorruptFileError("decoding the stream does not reproduce its codes")
        decoder.finish()
        return stream


class _Decoder(IntervalDecoder):
    def code(self, cumulative: NDArray[np.uint16], symbols: NDArray[np.int64] | None) -> NDArray[np.int64]:
        return self.take(cumulative)


class Prior:
    """The priors of all codebooks of a model.

    Args:
        kernel: Height and width of the neighborhood, both odd; the height is 1 for audio.
        codebooks: Coarse first.
    """

    def __init__(self, kernel: tuple[int, int], codebooks: list[CodebookPrior]) -> None:
        self.kernel, self.codebooks = kernel, codebooks
        self.codebook_sizes = tuple(len(codebook.rank) for codebook in codebooks)
        dim = codebooks[0].embedding.shape[1]
        if not all(size % 2 and size > 0 for size in kernel) or any(
            codebook.embedding.shape[1] != dim or len(codebook.context) != 2 * dim * kernel[0] * kernel[1]
            for codebook in codebooks
        ):
            raise ValueError("a neighborhood that does not fit the weights")

    def encode(self, codes: NDArray[np.integer[Any]]) -> list[bytes]:
        """Encode `(num_codebooks, *grid)`, of all codebooks or the first ones, to one stream per codebook.

        Raises:
            CorruptFileError: Decoding a stream does not reproduce its codes.
        """
        planes = codes.reshape(len(codes), *_plane(codes.shape[1:]))
        coders = [_Encoder() for _ in planes]
        for part in self._segments(*planes.shape[1:]):
            self._code_segment(coders, np.ascontiguousarray(planes[:, *part], np.int32), known=True)
        return [coder.finish() for coder in coders]

    def decode(self, streams: Sequence[bytes], grid: tuple[int, ...]) -> NDArray[np.int32]:
        """Decode the streams of the first codebooks to codes `(len(streams), *grid)`.

        Raises:
            CorruptFileError: The streams were not made with this prior.
        """
        planes = np.empty((len(streams), *_plane(grid)), np.int32)
        coders = [_Decoder(stream) for stream in streams]
        for part in self._segments(*planes.shape[1:]):
            segment = np.full_like(planes[:, *part], -1, order="C")
            self._code_segment(coders, segment, known=False)
            planes[:, *part] = segment
        for coder in coders:
            coder.finish()
        return planes.reshape(len(streams), *grid)

    def _segments(self, height: int, width: int) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of independent pieces of bounded size."""
        if self.kernel[0] > 1:
            step = max(1, SEGMENT_POSITIONS // width)
            yield from ((slice(begin, begin + step), slice(None)) for begin in range(0, height, step))
        else:
            step = max(1, SEGMENT_POSITIONS // height)
            yield from ((slice(None), slice(begin, begin + step)) for begin in range(0, width, step))

    def _code_segment(self, coders: Sequence[_Coder], planes: NDArray[np.int32], *, known: bool) -> None:
        """Encode the planes `(num_codebooks, height, width)` of a piece, or decode into them."""
        _, height, width = planes.shape
        stages = stage_of(height, width, self.kernel)
        below = np.zeros((height, width, self.codebooks[0].embedding.shape[1]), np.float32)
        for codebook, coder, plane in zip(self.codebooks, coders, planes, strict=False):
            self._code(codebook, below, coder, plane, stages, known=known)
            below += codebook.embedding[plane]

    def _code(
        self,
        codebook: CodebookPrior,
        below: Float,
        coder: _Coder,
        plane: NDArray[np.int32],
        stages: NDArray[np.int64],
        *,
        known: bool,
    ) -> None:
        """Encode the positions of one codebook, or decode them, stage by stage.

        Args:
            below: The sum of the embeddings of the codebooks before, `(height, width, dim)`.
        """
        codes = plane.reshape(-1)  # the same memory
        any_below = below.any()
        for stage in range(STAGES):
            positions = np.flatnonzero(stages == stage)
            for begin in range(0, len(positions), MAX_POSITIONS):
                part = positions[begin : begin + MAX_POSITIONS]
                x: Float = np.zeros((len(part), len(codebook.hidden)), np.float32)
                if any_below:
                    x = _surroundings(below, part, *self.kernel).reshape(len(part), -1) @ codebook.context_of_below
                _add_known(x, codebook.context_of_codes, plane, stages, stage, part, *self.kernel)
                _requantize(x, codebook.context_bias[stage])
                x = x @ codebook.hidden
                _requantize(x, codebook.hidden_bias)
                wanted = codebook.rank[codes[part]] if known else None
                found = codebook.code_at[self._code_ranks(codebook, x, coder, wanted)]
                if found.min(initial=0) < 0:
                    raise CorruptFileError("codes beyond the codebook; give the model that made them")
                codes[part] = found

    def _code_ranks(
        self, codebook: CodebookPrior, x: Float, coder: _Coder, ranks: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """Code the ranks at positions with hidden activations `x`: their groups, then their members."""
        groups, members = (None, None) if ranks is None else np.divmod(ranks, codebook.members)
        group = coder.code(_cumulative(x @ codebook.group + codebook.group_bias), groups)
        logits = _of_group(x, codebook.member_rows, codebook.member_bias, group)
        return group * codebook.members + coder.code(_cumulative(logits), members)


def stage_of(height: int, width: int, kernel: tuple[int, int]) -> NDArray[np.int64]:
    """Return the stage in which each position of a piece is coded, `(height, width)`."""
    rows, columns = np.indices((height, width))
    if kernel[0] > 1:
        return np.where((rows + columns) % 2 == 0, rows % 2, 2)
    return np.where(columns % 2 == 0, columns % 4 // 2, 2)


def _plane(grid: tuple[int, ...]) -> tuple[int, int]:
    """Return a grid as rows and columns; each channel of audio is a row."""
    return (grid[0], grid[1]) if len(grid) == 2 else (1, grid[0])


@partial(compiled, without_numba=fixed_point.surroundings)
def _surroundings(below: Float, positions: NDArray[np.int64], high: int, wide: int) -> Float:
    """Return the neighborhood of each position, `(n, high * wide, dim)`, limited, with zeros beyond the border."""
    height, width, dim = below.shape
    around = np.zeros((len(positions), high * wide, dim), np.float32)
    for n in range(len(positions)):
        top, left = positions[n] // width - high // 2, positions[n] % width - wide // 2
        for row in range(max(top, 0), min(top + high, height)):
            for column in range(max(left, 0), min(left + wide, width)):
                seen, own = below[row, column], around[n, (row - top) * wide + column - left]
                for d in range(dim):
                    own[d] = min(max(seen[d], -MAX_ACTIVATION), MAX_ACTIVATION)
    return around


@partial(compiled, without_numba=fixed_point.add_known)
def _add_known(
    x: Float,
    context_of_codes: Float,
    codes: NDArray[np.int32],
    stages: NDArray[np.int64],
    stage: int,
    positions: NDArray[np.int64],
    high: int,
    wide: int,
) -> None:
    """Add to the sums `(n, hidden)` the contributions of the neighbors that were coded in earlier stages."""
    height, width = codes.shape
    for n in range(len(positions)):
        own = x[n]
        top, left = positions[n] // width - high // 2, positions[n] % width - wide // 2
        for row in range(max(top, 0), min(top + high, height)):
            for column in range(max(left, 0), min(left + wide, width)):
                if stages[row, column] < stage:
                    contribution = context_of_codes[(row - top) * wide + column - left, codes[row, column]]
                    for h in range(len(own)):
                        own[h] += contribution[h]


@partial(compiled, without_numba=fixed_point.requantize)
def _requantize(x: Float, bias: Float) -> None:
    """Turn sums `(n, hidden)` and a bias into activations, in place: scaled down, rounded and limited."""
    for n in range(x.shape[0]):
        for h in range(x.shape[1]):
            scaled = (int(x[n, h] + bias[h]) + HALF) >> WEIGHT_BITS
            x[n, h] = min(max(scaled, 0), MAX_ACTIVATION)


@partial(compiled, without_numba=fixed_point.of_group)
def _of_group(x: Float, weight: Float, bias: Float, group: NDArray[np.int64]) -> Float:
    """Return the products `(n, members)` of activations with the weights of each position's group, plus the bias."""
    logits = np.empty((len(x), weight.shape[1]), np.float32)
    for n in range(len(x)):
        own, of_group = x[n], weight[group[n]]
        for member in range(len(of_group)):
            row = of_group[member]
            total = np.float32(0)
            for h in range(len(own)):
                total += own[h] * row[h]
            logits[n, member] = total + bias[group[n], member]
    return logits


@partial(compiled, without_numba=fixed_point.cumulative)
def _cumulative(logits: Float) -> NDArray[np.uint16]:
    """Turn logits `(n, symbols)` into cumulative frequencies `(n, symbols + 1)` from 0 to 2^14.

    Every symbol gets 1 and its share of the rest. Rounding the cumulative sums keeps the total exact.
    """
    count, symbols = logits.shape
    cumulative = np.zeros((count, symbols + 1), np.uint16)
    steps, shares = np.empty(symbols, np.int64), np.empty(symbols, np.int64)
    for n in range(count):
        best, total = -MAX_SUM, 0
        for symbol in range(symbols):
            steps[symbol] = (int(logits[n, symbol]) + HALF) >> WEIGHT_BITS
            best = max(best, steps[symbol])
        for symbol in range(symbols):
            total += EXPONENTIALS[min(best - steps[symbol], 255)]
            shares[symbol] = total
        for symbol in range(symbols):
            # Integers below 2^41 are divided by one below 2^27: rounding in float64 cannot carry the quotient across an
            # integer.
            # an integer.
            share = np.floor(np.float64(shares[symbol] * (TOTAL - symbols)) / np.float64(total))
            cumulative[n, symbol + 1] = np.int64(share) + symbol + 1
    return cumulative


PREFIX = "prior."
"""Prefix of the names of a prior's arrays in a model file."""


def from_arrays(arrays: Mapping[str, NDArray[Any]], num_codebooks: int) -> Prior | None:
    """Return the prior among the arrays of a model file; None if there is none.

    Raises:
        CorruptFileError: It is incomplete, or its arrays contradict each other.
    """
    if f"{PREFIX}kernel" not in arrays:
        return None
    try:
        high, wide = map(int, arrays[f"{PREFIX}kernel"])
        codebooks = []
        for index in range(num_codebooks):
            own: dict[str, Any] = {}
            for name in CodebookPrior.__dataclass_fields__:
                array = arrays[f"{PREFIX}{index}.{name}"]
                if array.dtype.kind != "i":
                    raise ValueError(f"{name} is not of integers")
                own[name] = array.astype(np.int64 if name == "rank" else np.float32)
            codebooks.append(CodebookPrior(**own))
        return Prior((high, wide), codebooks)
    except (LookupError, TypeError, ValueError) as error:
        raise CorruptFileError(f"damaged prior: {error}; copy the model again") from None
