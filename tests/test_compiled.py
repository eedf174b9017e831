"""vqtok.tokens.coding.compiled"""

from __future__ import annotations

import subprocess
import sys

import numba
import numpy as np

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
    assert made.count(total) == 1  # among those of numba's own


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
        "tokens = Tokens(np.zeros((1, 2, 3), np.int32), (16,), 'image', (24, 16), 8, bytes(8))\n"
        "assert load(dump(tokens)).codes.shape == (1, 2, 3)\n"
        "assert 'numba' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
