"""What the tests of this room share."""

from __future__ import annotations

import dataclasses

import numpy as np

from vqtok.tokens.coding.coders import EntropyModel
from vqtok.tokens.coding.frequencies import frequencies
from vqtok.tokens.coding.rans import TOTAL
from vqtok.tokens.tokens import Tokens


def same(a: Tokens, b: Tokens) -> bool:
    fields = [field.name for field in dataclasses.fields(Tokens) if field.name != "codes"]
    return np.array_equal(a.codes, b.codes) and all(getattr(a, name) == getattr(b, name) for name in fields)


def model_of(tokens: Tokens) -> EntropyModel:
    tables = [
        frequencies(np.bincount(plane.ravel(), minlength=size)) if size <= TOTAL else None
        for plane, size in zip(tokens.codes, tokens.codebook_sizes, strict=True)
    ]
    return EntropyModel(tables)
