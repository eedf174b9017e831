"""vqtok.tokens.coding.prior and vqtok.training.prior"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokens.conftest import same
from vqtok.config import PriorConfig
from vqtok.errors import CorruptFileError, ModelError
from vqtok.tokens.coding import prior as prior_module
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.fixed_point import EXPONENTIALS
from vqtok.tokens.coding.prior import PREFIX, Prior, from_arrays
from vqtok.tokens.coding.rans import TOTAL, IntervalDecoder, encode_intervals
from vqtok.tokens.shard.payload import dump_joint
from vqtok.tokens.shard.reader import Shard
from vqtok.tokens.shard.writer import merge, write_shard
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump, load
from vqtok.tokens.vqt.header import parse_header
from vqtok.training import prior as fitting
from vqtok.training.prior import fit_prior

SIZES = (30, 7)
SMALL = PriorConfig(dim=8, hidden=24, learning_rate=2e-2)


def walks(rng: np.random.Generator, *grid: int) -> NDArray[np.int32]:
    """Return codes that are correlated with their neighbors: a sloping plane, and its remainder."""
    slope = sum(np.indices(grid)) + rng.integers(20) + rng.integers(0, 2, grid)
    return np.stack([slope % 30, slope % 30 // 5]).astype(np.int32)


@pytest.fixture(scope="module", params=["image", "audio"])
def fitted(request) -> tuple[str, Prior, dict[str, NDArray]]:
    rng = np.random.default_rng(0)
    codes = [walks(rng, *((12, 13) if request.param == "image" else (90,))) for _ in range(20)]
    vectors = [torch.arange(size, dtype=torch.float32)[:, None] for size in SIZES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "STEP_POSITIONS", 1000)
        arrays = fit_prior(codes, vectors, request.param, SMALL, 200)
    prior = from_arrays(arrays, 2)
    assert prior
    return request.param, prior, arrays


def grid_of(modality: str, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(1, 14, 2)) if modality == "image" or rng.random() < 0.3 else (int(rng.integers(1, 80)),)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_any_codes_round_trip(fitted, seed):
    modality, prior, _ = fitted
    rng = np.random.default_rng(seed)
    grid = grid_of(modality, rng)
    codes = np.stack([rng.integers(0, size, grid, dtype=np.int32) for size in SIZES])
    streams = prior.encode(codes)
    assert np.array_equal(prior.decode(streams, grid), codes)
    assert np.array_equal(prior.decode(streams[:1], grid), codes[:1])
    assert prior.encode(codes[:1]) == streams[:1]


def test_what_was_learnt_takes_fewer_bits(fitted):
    modality, prior, _ = fitted
    codes = walks(np.random.default_rng(1), *((40, 40) if modality == "image" else (1600,)))
    bits = [8 * len(stream) / 1600 for stream in prior.encode(codes)]
    # The noise of a position is one bit, independent of the neighbors; the second codebook follows from the first.
    assert bits[0] < 0.6 * math.log2(30)
    assert bits[1] < 0.6 * math.log2(7)


def test_equals_plain_integer_arithmetic(fitted, monkeypatch):
    """The same streams from a re-statement in Python's integers, position by position."""
    modality, prior, arrays = fitted
    rng = np.random.default_rng(2)
    grid = (5, 6) if modality == "image" else (11,)
    codes = np.stack([rng.integers(0, size, grid, dtype=np.int32) for size in SIZES])
    assert prior.encode(codes) == [in_integers(arrays, codes, index) for index in range(2)]


def in_integers(arrays: dict[str, NDArray], codes: NDArray[np.int32], index: int) -> bytes:
    own = {
        name: arrays[f"{PREFIX}{index}.{name}"].astype(object) for name in prior_module.CodebookPrior.__annotations__
    }
    planes = codes if codes.ndim == 3 else codes[:, None]
    _, height, width = planes.shape
    high, wide = map(int, arrays[f"{PREFIX}kernel"])
    dim = own["embedding"].shape[1]

    def stage(y: int, x: int) -> int:
        if high > 1:
            return y % 2 if (y + x) % 2 == 0 else 2
        return x % 4 // 2 if x % 2 == 0 else 2

    def inputs(y: int, x: int, before: int) -> list[int]:
        if not (0 <= y < height and 0 <= x < width):
            return [0] * (2 * dim)
        below = [
            sum(int(arrays[f"{PREFIX}{j}.embedding"][planes[j, y, x], d]) for j in range(index)) for d in range(dim)
        ]
        known = own["embedding"][planes[index, y, x]] if stage(y, x) < before else [0] * dim
        return [max(-127, min(127, value)) for value in below] + [int(value) for value in known]

    def layer(weight: NDArray, bias: NDArray, x: list[int]) -> list[int]:
        sums = [
            int(b) + sum(int(w) * v for w, v in zip(column, x, strict=True))
            for column, b in zip(weight.T, bias, strict=True)
        ]
        return [(total + 64) >> 7 for total in sums]

    def interval(logits: list[int], symbol: int) -> tuple[int, int]:
        shares = [int(EXPONENTIALS[min(255, max(logits) - logit)]) for logit in logits]
        ends = [0, *(sum(shares[: i + 1]) * (TOTAL - len(shares)) // sum(shares) + i + 1 for i in range(len(shares)))]
        return ends[symbol + 1] - ends[symbol], ends[symbol]

    intervals = []
    for now in range(3):
        here = [(y, x) for y in range(height) for x in range(width) if stage(y, x) == now]
        groups, members = [], []
        for y, x in here:
            around = [inputs(y + j - high // 2, x + i - wide // 2, now) for j in range(high) for i in range(wide)]
            act = layer(own["context"], own["context_bias"][now], list(itertools.chain(*around)))
            act = layer(own["hidden"], own["hidden_bias"], [max(0, min(127, value)) for value in act])
            act = [max(0, min(127, value)) for value in act]
            group, member = divmod(int(own["rank"][planes[index, y, x]]), own["member"].shape[2])
            groups.append(interval(layer(own["group"], own["group_bias"], act), group))
            members.append(interval(layer(own["member"][group], own["member_bias"][group], act), member))
        intervals += groups + members
    frequency, start = np.array(intervals).T
    return encode_intervals(frequency, start)


def test_batches_do_not_matter(fitted, monkeypatch):
    modality, prior, _ = fitted
    codes = walks(np.random.default_rng(3), *((17, 9) if modality == "image" else (150,)))
    whole = prior.encode(codes)
    monkeypatch.setattr(prior_module, "MAX_POSITIONS", 7)
    assert np.array_equal(prior.decode(prior.encode(codes), codes.shape[1:]), codes)
    # Groups and members take turns batch by batch, so the streams differ, but their lengths hardly do.
    assert [abs(len(a) - len(b)) <= 1 for a, b in zip(whole, prior.encode(codes), strict=True)] == [True, True]


def test_large_grids_are_cut_into_segments(fitted, monkeypatch):
    modality, prior, _ = fitted
    codes = walks(np.random.default_rng(3), *((17, 9) if modality == "image" else (150,)))
    monkeypatch.setattr(prior_module, "SEGMENT_POSITIONS", 40)
    assert np.array_equal(prior.decode(prior.encode(codes), codes.shape[1:]), codes)
    step = 4 if modality == "image" else 40
    parts = [codes[:1, begin : begin + step] for begin in range(0, codes.shape[1], step)]
    found: list[NDArray] = []
    cumulative = prior_module._cumulative
    monkeypatch.setattr(prior_module, "_cumulative", lambda logits: found.append(cumulative(logits)) or found[-1])
    prior.encode(codes[:1])
    whole = list(found)
    found.clear()
    for part in parts:
        prior.encode(part)
    assert all(np.array_equal(a, b) for a, b in zip(whole, found, strict=True))


def test_exponentials_are_those_of_the_formula():
    assert EXPONENTIALS.tolist() == [math.floor(2**18 * math.exp(-d / 16) + 1e-6) for d in range(256)]


@pytest.mark.parametrize("count", [0, 1, 400])
def test_intervals_round_trip(count):
    rng = np.random.default_rng(count)
    inner = np.sort(rng.permuted(np.tile(np.arange(1, TOTAL, dtype=np.uint16), (count, 1)), axis=1)[:, :3], axis=1)
    cumulative = np.concatenate([np.zeros((count, 1), np.uint16), inner, np.full((count, 1), TOTAL, np.uint16)], axis=1)
    symbols, row = rng.integers(0, 4, count), np.arange(count)
    start, end = cumulative[row, symbols], cumulative[row, symbols + 1]
    decoder = IntervalDecoder(encode_intervals(end - start, start))
    assert decoder.take(cumulative).tolist() == symbols.tolist()
    decoder.finish()


def test_token_files_with_a_prior(fitted):
    modality, prior, _ = fitted
    grid = (30, 30) if modality == "image" else (900,)
    tokens = Tokens(
        codes=walks(np.random.default_rng(4), *grid),
        codebook_sizes=SIZES,
        modality=modality,
        size=(240, 240) if modality == "image" else (9000, 8000, 1),
        stride=8,
        model=bytes(8),
    )
    model = EntropyModel(prior=prior)
    data = dump(tokens, model)
    assert parse_header(data)[0].coder == "prior"
    assert len(data) < 0.75 * len(dump(tokens))
    assert np.array_equal(load(data, model).codes, tokens.codes)
    assert np.array_equal(load(data, model, 1).codes, tokens.codes[:1])
    with pytest.raises(ModelError, match="0000000000000000"):
        load(data)
    with pytest.raises(ModelError, match="prior"):
        dump(tokens, coder="prior")


def test_shards_with_a_prior(fitted, tmp_path):
    modality, prior, _ = fitted
    rng = np.random.default_rng(7)
    items = {}
    for number in range(12):
        # The last of the three is independent of its neighbors, so that no prior helps.
        grid = tuple(rng.integers(8, 30, 2)) if modality == "image" else (int(rng.integers(100, 900)),)
        codes = walks(rng, *grid) if number % 3 else np.stack([rng.integers(0, size, grid) for size in SIZES])
        size = (8 * grid[-1], 8 * grid[0]) if modality == "image" else (8 * grid[0], 8000, 1)
        items[f"{number}"] = Tokens(codes, codebook_sizes=SIZES, modality=modality, size=size, stride=8, model=bytes(8))
    model, path = EntropyModel(prior=prior), tmp_path / "x.vqts"
    write_shard(path, items.items(), model)
    with Shard(path, lambda _: model) as shard:
        for number, (key, tokens) in enumerate(items.items()):
            record = shard.find(key)
            assert record.coder == ("prior" if number % 3 else "packed")
            assert same(shard.load(record), tokens)
            assert same(shard.load(record, 1), tokens.prefix(1))
    with Shard(path) as shard, pytest.raises(ModelError, match="0000000000000000"):
        shard["1"]
    with Shard(path, lambda _: EntropyModel(prior=Prior(prior.kernel, prior.codebooks[:1]))) as shard:
        assert same(shard.load(shard.find("1"), 1), items["1"].prefix(1))
        with pytest.raises(ModelError, match="prior"):
            shard["1"]
    merge([path], tmp_path / "again.vqts", salvage=True)
    assert (tmp_path / "again.vqts").read_bytes() == path.read_bytes()


def test_lengths_of_a_joint_payload_count(fitted):
    """Packed codes are taken where the lengths of the streams make the prior longer."""
    modality, prior, _ = fitted
    grid = (1, 1) if modality == "image" else (1,)
    size = (8, 8) if modality == "image" else (8, 8000, 1)
    for seed in range(30):
        tokens = Tokens(
            walks(np.random.default_rng(seed), *grid),
            codebook_sizes=SIZES,
            modality=modality,
            size=size,
            stride=8,
            model=bytes(8),
        )
        coder, payload = dump_joint(tokens, EntropyModel(prior=prior), "prior")
        assert (coder, len(payload)) == ("packed", 2)


def test_damaged_streams_are_refused(fitted):
    modality, prior, _ = fitted
    codes = walks(np.random.default_rng(5), *((30, 30) if modality == "image" else (900,)))
    streams = prior.encode(codes)
    for first in (streams[0][:-1], streams[0] + b"x", b"\0" + streams[0]):
        with pytest.raises(CorruptFileError):
            prior.decode([first, streams[1]], codes.shape[1:])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("rank", lambda x: x * 0, "ranks"),
        ("rank", lambda x: x + 1000, "ranks"),
        ("rank", lambda x: x - 1, "ranks"),
        ("embedding", lambda x: x[:-1], "fit together"),
        ("embedding", lambda x: x + np.int16(200), "embeddings beyond bounds"),
        ("context", lambda x: x[:-1], "fit the weights"),
        ("hidden", lambda x: x[:-1], "fit together"),
        ("hidden_bias", lambda x: x + 0.5, "of integers"),
        ("hidden_bias", lambda x: x + 2**23, "too large"),
        ("member", lambda x: x[0], "damaged prior"),
        ("group_bias", lambda x: x[:, None], "fit together"),
    ],
)
def test_damaged_arrays_are_refused(fitted, name, change, message):
    arrays = fitted[2]
    assert from_arrays(arrays, 2)
    with pytest.raises(CorruptFileError, match=message):
        from_arrays(arrays | {f"{PREFIX}1.{name}": change(arrays[f"{PREFIX}1.{name}"])}, 2)
    for kernel in ([2, 3], [1], [-1, 3], [5, 5]):
        with pytest.raises(CorruptFileError, match="damaged prior"):
            from_arrays(arrays | {f"{PREFIX}kernel": np.array(kernel)}, 2)


@pytest.mark.parametrize("damage", [lambda stream: stream[:-1] + bytes([stream[-1] ^ 1]), lambda stream: stream + b"x"])
def test_a_writer_whose_streams_do_not_decode_falls_back(fitted, monkeypatch, caplog, damage):
    modality, prior, _ = fitted
    codes = walks(np.random.default_rng(6), *((30, 30) if modality == "image" else (900,)))
    size = (240, 240) if modality == "image" else (9000, 8000, 1)
    tokens = Tokens(codes, codebook_sizes=SIZES, modality=modality, size=size, stride=8, model=bytes(8))
    monkeypatch.setattr(prior_module, "encode_intervals", lambda *intervals: damage(encode_intervals(*intervals)))
    assert parse_header(dump(tokens, EntropyModel(prior=prior)))[0].coder == "packed"
    assert "does not reproduce" in caplog.text
    with pytest.raises(ModelError, match="does not reproduce"):
        dump(tokens, EntropyModel(prior=prior), "prior")


def test_what_a_prior_takes_is_bounded(fitted, monkeypatch):
    _, prior, arrays = fitted
    needed = prior.codebooks[0].context_of_codes.size
    monkeypatch.setattr(prior_module, "MAX_CONTEXTS", needed)
    assert from_arrays(arrays, 2)
    monkeypatch.setattr(prior_module, "MAX_CONTEXTS", needed - 1)
    with pytest.raises(CorruptFileError, match="neighborhood"):
        from_arrays(arrays, 2)


def test_weights_beyond_exactness_and_damage_are_refused(fitted):
    _, _, arrays = fitted
    large = arrays | {f"{PREFIX}0.hidden_bias": np.full(SMALL.hidden, 2**23, np.int32)}
    with pytest.raises(CorruptFileError, match="too large"):
        from_arrays(large, 2)
    missing = {name: values for name, values in arrays.items() if not name.endswith("0.rank")}
    with pytest.raises(CorruptFileError, match="rank"):
        from_arrays(missing, 2)
    assert from_arrays({}, 2) is None
