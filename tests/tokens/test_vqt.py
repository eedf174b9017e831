"""vqtok.tokens.vqt.file"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokens.conftest import model_of, same
from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError, UsageError
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.rans import LANES_FROM
from vqtok.tokens.fields import checksum
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump, load
from vqtok.tokens.vqt.header import parse_header

MODEL = bytes.fromhex("3f9a000102030405")
TOKENS = Tokens(
    codes=np.array([[[5, 0, 9], [5, 5, 1]], [[0, 1, 2], [2, 0, 0]]], np.int32),
    codebook_sizes=(10, 3),
    modality="image",
    size=(45, 30),
    stride=16,
    model=MODEL,
    metadata={"name": "é"},
)
TABLES = [frequencies(np.array([9, 3, 1, 0, 0, 30, 0, 0, 0, 5])), frequencies(np.array([5, 1, 1]))]
ENTROPY = EntropyModel(TABLES)

HEAD = (
    "895651 0a 10 {flags} 3f9a000102030405"
    "02 0a03"  # codebook sizes
    "10 2d1e 0203"  # stride, size, grid
    "{lengths}"
    "0d 7b226e616d65223a22c3a9227d"  # {"name":"é"}
)
GOLDEN = {
    "packed": HEAD.format(flags="10", lengths="0302") + "055915 a400" + "f7e07b89",
    "static": HEAD.format(flags="11", lengths="0303") + "13273c 0b0b3c" + "689be970",
}


@st.composite
def token_files(draw: st.DrawFn) -> Tokens:
    codebook_sizes = draw(st.lists(st.integers(2, 50) | st.integers(2, 2**31), min_size=1, max_size=3))
    modality = draw(st.sampled_from(["image", "audio"]))
    channels = draw(st.integers(1, 2)) if modality == "audio" else None
    grid = draw(st.tuples(*[st.integers(1, 6)] * (1 if channels == 1 else 2)))
    count = int(np.prod(grid))
    codes = [draw(st.lists(st.integers(0, size - 1), min_size=count, max_size=count)) for size in codebook_sizes]
    return Tokens(
        codes=np.array(codes).reshape(-1, *grid),
        codebook_sizes=tuple(codebook_sizes),
        modality=modality,
        size=(100, 100) if modality == "image" else (100, 44_100, channels),
        stride=draw(st.integers(1, 2048)),
        model=draw(st.binary(min_size=8, max_size=8)),
        metadata=draw(st.sampled_from([{}, {"scale": [0.25]}])),
    )


@given(token_files())
def test_round_trip(tokens):
    model = model_of(tokens)
    assert same(load(dump(tokens)), tokens)
    assert same(load(dump(tokens, model), model), tokens)
    if all(table is not None for table in model.tables):
        assert same(load(dump(tokens, model, "static"), model), tokens)
    for num_codebooks in range(1, tokens.num_codebooks + 1):
        prefix = load(dump(tokens, model), model, num_codebooks)
        assert same(prefix, tokens.prefix(num_codebooks))
        assert same(load(dump(prefix, model), model), prefix)


@pytest.mark.parametrize("coder", ["packed", "static"])
def test_golden_bytes(coder):
    assert dump(TOKENS, ENTROPY, coder) == bytes.fromhex(GOLDEN[coder])
    assert same(load(bytes.fromhex(GOLDEN[coder]), ENTROPY), TOKENS)


@pytest.mark.parametrize("coder", ["packed", "static"])
def test_every_truncation_and_every_flipped_bit_is_refused(coder):
    data = dump(TOKENS, ENTROPY, coder)
    damaged = [data[:length] for length in range(len(data))]
    for bit in range(8 * len(data)):
        number = int.from_bytes(data, "little") ^ 1 << bit
        damaged.append(number.to_bytes(len(data), "little"))
    for each in damaged:
        with pytest.raises((CorruptFileError, UnsupportedVersionError)):
            load(each, ENTROPY)


def test_auto_takes_the_smaller_coder():
    frequent = dataclasses.replace(TOKENS, codes=np.array([[[5] * 3] * 2, [[0] * 3] * 2]))
    rare = dataclasses.replace(TOKENS, codes=np.full((2, 2, 3), 2))
    for tokens, coder in ((frequent, "static"), (rare, "packed")):
        data = dump(tokens, ENTROPY)
        assert parse_header(data)[0].coder == coder
        assert len(data) == min(len(dump(tokens, ENTROPY, "static")), len(dump(tokens, ENTROPY, "packed")))
    assert parse_header(dump(frequent))[0].coder == "packed"
    assert parse_header(dump(frequent, EntropyModel([TABLES[0], None])))[0].coder == "packed"


def test_overhead_of_a_small_image_is_small():
    tokens = dataclasses.replace(TOKENS, codes=TOKENS.codes[:1], codebook_sizes=(1024,), size=(256, 256), metadata={})
    header = parse_header(dump(tokens))[0]
    assert header.file_bytes - header.coded_bits // 8 <= 30


def test_long_file():
    codes = np.random.default_rng(0).binomial(999, 0.3, (2, LANES_FROM + 100))
    tokens = Tokens(
        codes, codebook_sizes=(1000, 1000), modality="audio", size=(10**7, 16_000, 1), stride=160, model=MODEL
    )
    model = model_of(tokens)
    data = dump(tokens, model)
    assert parse_header(data)[0].coder == "static"
    assert same(load(data, model), tokens)


@pytest.mark.parametrize("tables", [[], [TABLES[0]], [TABLES[0], None], TABLES[::-1]])
def test_static_without_fitting_tables_names_the_model(tables):
    with pytest.raises(ModelError, match="3f9a000102030405"):
        load(dump(TOKENS, ENTROPY, "static"), EntropyModel(tables))
    with pytest.raises(ModelError, match="3f9a000102030405"):
        dump(TOKENS, EntropyModel(tables), "static")


def test_prefix_needs_only_its_own_tables():
    assert same(load(dump(TOKENS, ENTROPY, "static"), EntropyModel(TABLES[:1]), 1), TOKENS.prefix(1))


def test_tables_of_another_model_are_refused():
    with pytest.raises(CorruptFileError, match="these frequencies"):
        load(dump(TOKENS, ENTROPY, "static"), EntropyModel([frequencies(np.arange(10)), TABLES[1]]))


@pytest.mark.parametrize("num_codebooks", [0, 3, -1])
def test_codebooks_that_the_file_lacks(num_codebooks):
    with pytest.raises(UsageError, match="has 2"):
        load(dump(TOKENS), num_codebooks=num_codebooks)


def test_prior_needs_its_model():
    body = bytearray(dump(TOKENS))[:-4]
    body[5] |= 2
    data = bytes(body) + checksum(bytes(body))
    assert parse_header(data)[0].coder == "prior"
    with pytest.raises(ModelError, match="3f9a000102030405"):
        load(data)


def test_codes_out_of_range_under_a_right_checksum():
    body = bytearray(dump(TOKENS))[:-4]
    body[-2] = 0b11
    with pytest.raises(CorruptFileError, match="codebook size 3"):
        load(bytes(body) + checksum(bytes(body)))
