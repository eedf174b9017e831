"""vqtok.tokens.export.layout"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqtok.errors import UsageError
from vqtok.tokens.export.layout import SPECIALS, Vocabulary, to_codes, to_ids

LAYOUTS = ["flat", "coarse-first", "parallel", "delay"]

GRID = np.array([[[0, 1, 2], [3, 4, 5]], [[0, 10, 20], [30, 40, 50]]])  # two codebooks, two rows, three columns
WORDS = Vocabulary((6, 60), offset=100, specials={"begin": 1, "end": 2, "row": 3, "pad": 0})


@pytest.mark.parametrize(
    ("layout", "specials", "expected"),
    [
        ("flat", [], [100, 106, 101, 116, 102, 126, 103, 136, 104, 146, 105, 156]),
        ("coarse-first", [], [100, 101, 102, 103, 104, 105, 106, 116, 126, 136, 146, 156]),
        ("parallel", [], [[100, 106], [101, 116], [102, 126], [103, 136], [104, 146], [105, 156]]),
        ("delay", ["pad"], [[100, 0], [101, 106], [102, 116], [103, 126], [104, 136], [105, 146], [0, 156]]),
        ("flat", ["begin", "end"], [1, 100, 106, 101, 116, 102, 126, 103, 136, 104, 146, 105, 156, 2]),
        ("flat", ["row"], [100, 106, 101, 116, 102, 126, 3, 103, 136, 104, 146, 105, 156, 3]),
        ("coarse-first", ["row"], [100, 101, 102, 3, 103, 104, 105, 3, 106, 116, 126, 3, 136, 146, 156, 3]),
        (
            "parallel",
            ["begin", "row"],
            [[1, 1], [100, 106], [101, 116], [102, 126], [3, 3], [103, 136], [104, 146], [105, 156], [3, 3]],
        ),
        (
            "delay",
            ["end", "row", "pad"],
            [[100, 0], [101, 106], [102, 116], [3, 126], [103, 3], [104, 136], [105, 146], [3, 156], [0, 3], [2, 2]],
        ),
    ],
)
def test_what_stands_where(layout, specials, expected):
    words = Vocabulary((6, 60), 100, specials={name: WORDS.specials[name] for name in specials})
    ids = to_ids(GRID, layout, words)
    assert ids.tolist() == expected
    assert np.array_equal(to_codes(ids, (2, 3), layout, words), GRID)


def test_delay_is_musicgens():
    """The example in audiocraft's DelayedPatternProvider: 3 codebooks, 4 steps, a special token S first."""
    codes = np.tile(np.arange(1, 5), (3, 1))
    words = Vocabulary((5, 5, 5), shared=True, specials={"begin": 5, "pad": 5})
    steps = to_ids(codes, "delay", words).T
    assert steps[:, :5].tolist() == [[5, 1, 2, 3, 4], [5, 5, 1, 2, 3], [5, 5, 5, 1, 2]]
    assert np.array_equal(to_codes(steps.T, (4,), "delay", words), codes)


@st.composite
def items(draw):
    """Draw codes and a vocabulary for them."""
    sizes = tuple(draw(st.lists(st.integers(2, 2000), min_size=1, max_size=5)))
    grid = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=2)))
    seed = draw(st.integers(0, 2**32 - 1))
    planes = [np.random.default_rng(seed).integers(size, size=grid) for size in sizes]
    names = draw(st.sets(st.sampled_from(SPECIALS))) | {"pad"}
    free = st.none() | st.integers(10_000 * len(sizes), 20_000 * len(sizes))
    specials = {name: draw(free) for name in names}
    words = Vocabulary.choose(sizes, draw(st.integers(0, 9000)), draw(st.booleans()), specials)
    return np.stack(planes), words


@given(items(), st.sampled_from(LAYOUTS))
def test_round_trip(item, layout):
    codes, words = item
    ids = to_ids(codes, layout, words)
    assert ids.shape[1:] == ((len(codes),) if layout in ("parallel", "delay") else ())
    assert ids.min() >= 0
    assert ids.max() < words.size
    for sequence in (ids, ids.ravel().astype(np.uint32)):
        assert np.array_equal(to_codes(sequence, codes.shape[1:], layout, words), codes)


@given(items(), st.sampled_from(LAYOUTS), st.data())
def test_wrong_sequences_are_told(item, layout, data):
    """What is read back is exactly what was written, or refused."""
    codes, words = item
    grid = codes.shape[1:]
    ids = to_ids(codes, layout, words).ravel()
    for cut in (ids[:-1], np.append(ids, 0), ids[:0]):
        with pytest.raises(ValueError, match=f"{cut.size} token ids"):
            to_codes(cut, grid, layout, words)
    place = data.draw(st.integers(0, ids.size - 1))
    ids[place] = data.draw(st.integers(0, words.size + 5) | st.integers(-(2**40), 2**40))
    try:
        read = to_codes(ids, grid, layout, words)
    except ValueError as error:
        assert f"{ids[place]} is not possible at place {place}" in str(error)  # noqa: PT017
    else:
        assert np.array_equal(to_ids(read, layout, words).ravel(), ids)


def test_a_grid_too_large_for_its_sequence_allocates_nothing():
    with pytest.raises(ValueError, match="6 token ids for a grid of 1048576 x 1048576"):
        to_codes(np.arange(6), (2**20, 2**20), "flat", Vocabulary((6,)))
    with pytest.raises(ValueError, match="grid"):
        to_codes(np.arange(6), (0, 3), "flat", Vocabulary((6,)))


def test_ids_of_codes_and_special_tokens():
    words = Vocabulary((4, 10, 6), 50)
    assert (words.starts, words.codes_end, words.size) == ([50, 54, 64], 70, 70)
    shared = Vocabulary.choose((4, 10, 6), 50, True, {"pad": None})
    assert (shared.starts, shared.specials, shared.size) == ([50, 50, 50], {"pad": 60}, 61)
    chosen = Vocabulary.choose((8,), 0, False, {"end": None, "row": 9, "begin": None, "pad": 30})
    assert chosen.specials == {"begin": 8, "end": 10, "row": 9, "pad": 30}
    assert chosen.size == 31
    assert Vocabulary.choose((8,), 10, False, {"begin": 1}).size == 18


@pytest.mark.parametrize(
    ("offset", "specials", "message"),
    [
        (0, {"row": 7}, r"row token 7: is the id of a code \(0 to 7\)"),
        (-1, {}, "must lie in 0 to"),
        (0, {"end": -5}, "must lie in 0 to"),
        (0, {"end": 2**31}, "must lie in 0 to"),
        (2**31 - 7, {}, "must lie in 0 to"),
    ],
)
def test_impossible_vocabularies(offset, specials, message):
    with pytest.raises(UsageError, match=message):
        Vocabulary((8,), offset, specials=specials)
    assert Vocabulary((8,), 2**31 - 8).size == 2**31


def test_delay_needs_a_pad_token():
    with pytest.raises(ValueError, match="needs a pad token"):
        to_ids(np.zeros((2, 3), int), "delay", Vocabulary((4, 4)))
