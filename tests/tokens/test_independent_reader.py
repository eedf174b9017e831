"""The specification: a reader that was written from it, and its example."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import independent_reader
import numpy as np
import pytest
from conftest import GOLDEN, MODELS, NEWER, SHARDS, TOKEN_FILES, codes_of
from independent_reader import read_file, read_model, read_shard

from vqtok.models.token_reader import read_entropy_model
from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.shard.writer import write_shard
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.file import dump

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "vqtok/tokens/FORMAT.md").read_text(encoding="utf-8")


def model_of(name: str) -> Path:
    return GOLDEN / MODELS["image" if name.startswith("image") else "audio"]


def test_it_is_independent():
    tree = ast.parse(Path(independent_reader.__file__).read_text(encoding="utf-8"))
    imports = {
        name
        for node in ast.walk(tree)
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imports == {"__future__", "itertools", "json", "math", "zlib", "numpy"}


@pytest.mark.parametrize("name", [*TOKEN_FILES, NEWER])
def test_golden_token_files(name):
    codes = read_file((GOLDEN / name).read_bytes(), read_model(model_of(name).read_bytes()))
    assert np.array_equal(codes, codes_of(name)["codes"])


@pytest.mark.parametrize("name", SHARDS)
def test_golden_shards(name):
    items = read_shard((GOLDEN / name).read_bytes(), read_model(model_of(name).read_bytes()))
    expected = codes_of(name)
    assert list(items) == list(expected)
    assert all(np.array_equal(items[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["image", "audio"])
def test_files_of_a_bundled_model(name, tmp_path):
    from vqtok.models.registry import bundled_models

    path = bundled_models()[name]
    model, own = read_entropy_model(path), read_model(path.read_bytes())
    rng = np.random.default_rng(0)
    shapes = [(12, 13), (7, 5)] if name == "image" else [(70,), (3, 20)]
    sizes = [(90, 90), (90, 90)] if name == "image" else [(9999, 24_000, 1), (9999, 24_000, 3)]
    stride = 8 if name == "image" else 320
    (tokens, other) = (
        Tokens(
            rng.integers(0, 1024, (3, *shape)),
            codebook_sizes=(1024,) * 3,
            modality=name,
            size=size,
            stride=stride,
            model=b"identity",
            metadata={"n": 1},
        )
        for shape, size in zip(shapes, sizes, strict=True)
    )
    for coder in ("packed", "static", "prior"):
        for each in (tokens, other):
            assert np.array_equal(read_file(dump(each, model, coder), own), each.codes)
    write_shard(tmp_path / "x.vqts", [("a", tokens), ("é" * 99, other)], model)
    items = read_shard((tmp_path / "x.vqts").read_bytes(), own)
    assert [np.array_equal(a, b.codes) for a, b in zip(items.values(), (tokens, other), strict=True)] == [True] * 2


def test_damage_is_refused():
    for name in ("image-packed.vqt", "image-segments-packed.vqt"):
        data = (GOLDEN / name).read_bytes()
        for bit in [*range(0, 8 * len(data), 13), *range(8 * len(data) - 64, 8 * len(data))]:
            flipped = (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")
            with pytest.raises((AssertionError, ValueError)):
                read_file(flipped, {})


def test_the_example_of_the_specification():
    block = re.search(r"## An example.*?```text\n(.*?)```", FORMAT, re.DOTALL)
    assert block
    data = bytes.fromhex("".join(re.split(r"   +", line)[0] for line in block[1].splitlines()))
    codes = np.array([[[0, 0, 1], [2, 0, 3]]])
    tokens = Tokens(
        codes, codebook_sizes=(4,), modality="image", size=(45, 30), stride=16, model=bytes.fromhex("0123456789ABCDEF")
    )
    frequencies = np.array([8192, 4096, 2048, 2048])
    assert dump(tokens, EntropyModel([frequencies]), "static") == data
    assert dump(tokens)[-6:-4] == bytes.fromhex("900C")
    assert np.array_equal(read_file(data, {"entropy.0": frequencies}), codes)
