from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vqtok.generation.sampling import MOST_LIKELY, SamplingOptions, fill, fill_grid, next_window, seeded
from vqtok.generation.streams import HIDDEN, Stream

SIZE = 8


class Oracle:
    """Stands for a generator: the code of a position is its number, plus one if audio is given."""

    def __init__(self, window=(4, 4), num_codebooks=1, certainty=30.0):
        self.streams = {
            "image": Stream("image", (SIZE,) * num_codebooks, window),
            "audio": Stream("audio", (SIZE,), (2,)),
        }
        self.certainty = certainty
        self.seen: list[torch.Tensor] = []

    def __call__(self, codes):
        shown = codes["image"]
        self.seen.append(shown.clone())
        numbers = torch.arange(shown[0, 0].numel()) + ("audio" in codes)
        return {"image": numbers.expand(len(shown), -1)[..., None].float()}

    def logits(self, name, codebook, features):
        wanted = (features[..., 0].long() + codebook) % SIZE
        return self.certainty * torch.nn.functional.one_hot(wanted, SIZE).float()


def hidden(*shape: int) -> torch.Tensor:
    return torch.full(shape, HIDDEN)


def test_fills_all_codebooks_with_what_is_likely():
    found = fill(Oracle(num_codebooks=2), {"image": hidden(3, 2, 4, 4)}, "image", SamplingOptions(steps=4))
    numbers = torch.arange(16).view(4, 4)
    assert (found == torch.stack([numbers % SIZE, (numbers + 1) % SIZE])).all()


def test_known_codes_stay():
    codes = hidden(1, 1, 4, 4)
    codes[0, 0, 1] = 7
    found = fill(Oracle(), {"image": codes}, "image", SamplingOptions(steps=3))
    assert found[0, 0, 1].tolist() == [7] * 4
    assert (found[0, 0, 0] == torch.arange(4)).all()


def test_finer_codebooks_are_hidden_while_a_coarser_one_is_sampled():
    oracle = Oracle(num_codebooks=2)
    codes = hidden(1, 2, 4, 4)
    codes[:, :, 0] = 5
    fill(oracle, {"image": codes}, "image", SamplingOptions(steps=4))
    first, last = oracle.seen[0], oracle.seen[-1]
    assert (first[0, 1] == HIDDEN).all()
    assert (last[0, 0] != HIDDEN).all()
    assert (last[0, 1, 0] == 5).all()


def test_a_cosine_says_how_many_codes_each_step_fills():
    oracle = Oracle()
    fill(oracle, {"image": hidden(1, 1, 4, 4)}, "image", SamplingOptions(steps=4))
    left = [int((seen == HIDDEN).sum()) for seen in oracle.seen]
    assert left == [16, *(math.floor(16 * math.cos(math.pi / 2 * step / 4)) for step in (1, 2, 3))]


@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 1), (1.5, 1)])
def test_guidance_leads_away_from_what_is_likely_without_the_condition(guidance, expected):
    codes = {"image": hidden(1, 1, 1, 1), "audio": torch.zeros(1, 1, 2, dtype=torch.long)}
    oracle = Oracle(certainty=1.0)
    found = fill(oracle, codes, "image", SamplingOptions(1, 0.0, guidance))
    assert found.item() == expected
    assert len(oracle.seen) == (1 if guidance == 0 else 2)


def test_guidance_adds_the_difference_that_the_condition_makes():
    """The condition makes code 1 likely, its absence code 0: guided logits are 1 + g for code 1 and -g for code 0."""
    codes = {"image": hidden(2000, 1, 1, 1), "audio": torch.zeros(2000, 1, 2, dtype=torch.long)}
    found = fill(Oracle(certainty=1.0), codes, "image", SamplingOptions(1, 1.0, 2.0)).flatten()
    weights = torch.tensor([math.exp(-2.0), math.exp(3.0), *[1.0] * (SIZE - 2)])
    share = (found == 1).float().mean()
    assert share == pytest.approx((weights / weights.sum())[1].item(), abs=0.05)


def test_the_seed_of_an_item_decides_whatever_else_is_in_the_batch():
    oracle = Oracle(certainty=0.0)
    options = SamplingOptions(steps=3)
    alone = fill(oracle, {"image": hidden(1, 1, 4, 4)}, "image", options, seeded([5]))
    among = fill(oracle, {"image": hidden(3, 1, 4, 4)}, "image", options, seeded([4, 5, 6]))
    assert (among[1] == alone[0]).all()
    assert (among[0] != among[1]).any()


def test_a_temperature_of_zero_needs_no_luck():
    oracle = Oracle(certainty=0.1)
    a, b = (fill(oracle, {"image": hidden(1, 1, 4, 4)}, "image", MOST_LIKELY, seeded([s])) for s in (1, 2))
    assert (a == b).all()


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=2),
    st.integers(0, 2**32),
)
def test_windows_lie_in_the_grid_and_have_something_to_fill(axes, seed):
    shape = [length for length, _ in axes]
    rate = 0.2
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate
    mask.view(-1)[0] = True
    where = next_window(mask, [side for _, side in axes])
    for part, (length, side) in zip(where, axes, strict=True):
        assert 0 <= part.start < part.stop <= length
        assert part.stop - part.start == min(length, side)
    assert mask[where].any()


def test_a_large_grid_is_filled_by_windows_that_overlap():
    oracle = Oracle(window=(4, 4))
    found = fill_grid(oracle, hidden(1, 1, 4, 10), "image", {}, SamplingOptions(steps=1))
    assert (found != HIDDEN).all()
    # Each window but the first has half of its columns filled before.
    assert [(seen[0, 0] == HIDDEN).any(0).tolist() for seen in oracle.seen] == [
        [True] * 4,
        *[[False] * 2 + [True] * 2] * 3,
    ]


def test_a_small_hole_is_in_the_middle_of_one_window():
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[9:11, 4:6] = True
    assert next_window(mask, (8, 8)) == (slice(6, 14), slice(1, 9))
