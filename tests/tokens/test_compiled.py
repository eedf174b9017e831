"""vqtok.tokens.coding.compiled"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from vqtok.tokens.coding import prior as loops
from vqtok.tokens.coding import rans
from vqtok.tokens.coding.compiled import compiled


def total(values):
    result = 0
    for value in values:
        result += value
    return result


def test_compiles_once_and_keeps_name_and_docstring(monkeypatch):
    made = []
    njit = numba.njit
    monkeypatch.setattr(numba, "njit", lambda function=None, **how: made.append(function) or njit(function, **how))
    quick = compiled(total)
    assert total not in made
    assert quick.__name__ == "total"
    assert [quick(np.arange(n)) for n in (5, 6)] == [10, 15]
    assert made.count(total) == 1  # Others are numba's own functions.


def test_works_where_nothing_can_be_kept(monkeypatch):
    njit = numba.njit

    def without_a_folder(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    assert compiled(total)(np.arange(5)) == 10


def test_packed_tokens_need_no_compiler():
    code = (
        "import sys, numpy as np\n"
        "from vqtok.tokens.tokens import Tokens\n"
        "from vqtok.tokens.vqt.file import dump, load\n"
        "tokens = Tokens(np.zeros((1, 2, 3), np.int32), codebook_sizes=(16,), modality='image', "
        "size=(24, 16), stride=8, model=bytes(8))\n"
        "assert load(dump(tokens)).codes.shape == (1, 2, 3)\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Without numba.


def arguments(name: str, rng: np.random.Generator) -> list:
    """Return random arguments of a compiled loop, like those that the prior passes."""
    high, wide = [(3, 3), (1, 7), (5, 1)][rng.integers(3)]
    height, width, dim, hidden = (int(n) for n in rng.integers(1, 9, 4))
    positions = rng.permutation(height * width)[: rng.integers(1, height * width + 1)]

    def whole(limit: int, *shape: int) -> np.ndarray:
        return rng.integers(-limit, limit + 1, shape).astype(np.float32)

    if name == "_surroundings":
        return [whole(300, height, width, dim), positions, high, wide]
    if name == "_add_known":
        size = 6
        x, codes = whole(9000, len(positions), hidden), rng.integers(0, size, (height, width), dtype=np.int32)
        stages = rng.integers(0, 3, (height, width))
        return [x, whole(20_000, high * wide, size, hidden), codes, stages, int(rng.integers(3)), positions, high, wide]
    if name == "_requantize":
        return [whole(1 << 20, len(positions), hidden), whole(1 << 16, hidden)]
    if name == "_of_group":
        group = rng.integers(0, 4, len(positions))
        x = rng.integers(0, 128, (len(positions), hidden)).astype(np.float32)
        return [x, whole(127, 4, 5, hidden), whole(1 << 20, 4, 5), group]
    return [whole(1 << 22, len(positions), int(rng.integers(1, 70)))]


@pytest.mark.parametrize("name", ["_surroundings", "_add_known", "_requantize", "_of_group", "_cumulative"])
def test_operations_on_arrays_equal_the_loops(name):
    quick, plain = getattr(loops, name), getattr(loops.fixed_point, name.removeprefix("_"))
    for seed in range(30):
        results = []
        for function in (quick, plain):
            given = arguments(name, np.random.default_rng(seed))
            returned = function(*given)
            # Some functions change their first argument in place.
            results.append(given[0] if returned is None else returned)
        assert results[0].dtype == results[1].dtype
        assert np.array_equal(*results), (name, seed)


def test_without_numba_the_bytes_are_the_same_and_it_is_said_once(tmp_path):
    """Check all coders, streams with and without lanes, and decoding."""
    rng = np.random.default_rng(0)
    frequencies = np.array([rans.TOTAL - 300, 100, 200])
    codes = [rng.choice(3, size, p=frequencies / rans.TOTAL).astype(np.int32) for size in (0, 1, 1000, 70_000)]
    np.savez(tmp_path / "codes.npz", *codes)
    script = """
import hashlib, json, logging, sys
if sys.argv[2] == "without":
    sys.modules["numba"] = None
logging.basicConfig(format="%(message)s")
import numpy as np
from vqtok.tokens.coding import rans
from vqtok.tokens.coding.prior import from_arrays
sys.path.insert(0, sys.argv[3])
from conftest import GOLDEN, codes_of
from safetensors.numpy import load_file
frequencies = np.array([rans.TOTAL - 300, 100, 200])
found = []
with np.load(sys.argv[1]) as arrays:
    for codes in arrays.values():
        stream = rans.encode(codes, frequencies)
        assert np.array_equal(rans.decode(stream, frequencies, len(codes)), codes)
        found.append(hashlib.sha256(stream).hexdigest())
for name, count in (("image", 4), ("audio", 3)):
    prior = from_arrays(load_file(GOLDEN / f"{name}.safetensors"), count)
    codes = codes_of({"image": "image-prior.vqt", "audio": "mono-prior.vqt"}[name])["codes"]
    streams = prior.encode(codes)
    assert np.array_equal(prior.decode(streams, codes.shape[1:]), codes)
    found += [hashlib.sha256(stream).hexdigest() for stream in streams]
print(json.dumps(found))
"""
    results = {}
    for numba_is in ("with", "without"):
        command = [sys.executable, "-c", script, str(tmp_path / "codes.npz"), numba_is, str(Path(__file__).parents[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results[numba_is] = json.loads(done.stdout)
        said = done.stderr.splitlines()
        if numba_is == "without":
            assert len(said) == 1
            assert said[0].startswith("numba cannot be imported, so entropy coding will be many times slower: ")
        else:
            assert not said
    assert len(results["with"]) == 4 + 4 + 3
    assert results["with"] == results["without"]
