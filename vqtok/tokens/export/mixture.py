"""One vocabulary for text and the tokens of several models: a range of ids for each, and special tokens by name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError
from vqtok.tokens.export.layout import MAX_VOCABULARY_SIZE, Vocabulary, to_ids
from vqtok.tokens.shape import MODALITIES, Layout, Modality
from vqtok.tokens.tokens import Tokens

MixtureLayout = Literal["flat", "coarse-first"]
"""Layouts that are one sequence; the others have a step of all codebooks of one model."""
Kind = Literal["image", "audio", "text", "row", "size"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What special tokens are for: `image`, `audio` and `text` stand for a token before and one after, `row` follows each
row of an image, `size` are numbers for the rows and columns of an image, which follow its begin."""
DOCUMENT = ("begin", "end")
"""Special tokens before and after a whole row of the data set."""
DEFAULT_KINDS: tuple[Kind, ...] = ("image", "audio")
MAX_SIDE = 256
"""The largest side of a grid that has a size token."""


@dataclass(frozen=True)
class Range:
    """The ids of the codes of one model."""

    model: bytes
    start: int
    codebook_sizes: tuple[int, ...]
    strides: Mapping[Modality, int]
    """The stride of each modality; only a fusion model has two."""

    @property
    def end(self) -> int:
        """The greatest id plus one."""
        return self.start + sum(self.codebook_sizes)

    def vocabulary(self, specials: Mapping[str, int] | None = None) -> Vocabulary:
        """Return the ids of its codes as the vocabulary of an export of one model."""
        return Vocabulary(self.codebook_sizes, self.start, specials=specials or {})


@dataclass(frozen=True)
class Mixture:
    """The ids of everything in an export of rows.

    Raises:
        UsageError: Ids overlap, or there are too many.
    """

    ranges: tuple[Range, ...]
    specials: Mapping[str, int]
    """Ids by name: `image`, `/image`, `row`, `size_1` and so on, and `begin` and `end` of a document."""
    layout: MixtureLayout = "flat"
    offset: int = 0
    text_size: int = 0
    """The number of ids for text, which come first; 0 without text."""
    tokenizer: str = ""
    """The tokenizer of the text: the name that the user gave, or `bytes`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """The words of special tokens that the text vocabulary has, such as `end`."""

    def __post_init__(self) -> None:
        if self.text_size > self.offset:
            raise UsageError(
                f"`offset` {self.offset}: lies inside the text vocabulary of {self.text_size} ids; give at least that"
            )
        for name, number in self.specials.items():
            if any(found.start <= number < found.end for found in self.ranges):
                raise UsageError(f"{name} token {number}: is the id of a code")
            if name not in DOCUMENT and number < self.text_size:
                raise UsageError(f"{name} token {number}: is an id of the text vocabulary")
        if self.size > MAX_VOCABULARY_SIZE or min(self.specials.values(), default=0) < 0:
            raise UsageError(f"a vocabulary of {self.size} ids: ids must lie in 0 to {MAX_VOCABULARY_SIZE - 1}")

    @property
    def size(self) -> int:
        """The greatest id plus one."""
        return max([self.offset, *(found.end for found in self.ranges), *(i + 1 for i in self.specials.values())])

    @property
    def dtype(self) -> str:
        return "uint16" if self.size < 65_500 else "int32"

    @property
    def modalities(self) -> list[Modality]:
        """The modalities of all models, in the order of their ids."""
        return list(dict.fromkeys(modality for found in self.ranges for modality in found.strides))

    def range_of(self, model: bytes) -> Range | None:
        """Return the range of a model."""
        return next((found for found in self.ranges if found.model == model), None)

    def segment(self, tokens: Tokens) -> tuple[NDArray[np.int64], tuple[int, int]]:
        """Return the ids of an item with the special tokens around it, and where those of its codes and rows lie.

        Raises:
            UsageError: Its model has no range, its codebooks are others, or its grid has no size token.
        """
        found = self.range_of(tokens.model)
        if found is None or tokens.codebook_sizes != found.codebook_sizes:
            known = "another model" if found is None else f"other codebooks than the first ({found.codebook_sizes})"
            raise UsageError(f"{tokens.modality} tokens of {known}; give their number of codebooks as `num_codebooks`")
        rows = {"row": self.specials["row"]} if "row" in self.specials and tokens.modality == "image" else {}
        ids = to_ids(tokens.codes, self.layout, found.vocabulary(rows))
        before = [self.specials[tokens.modality]] if tokens.modality in self.specials else []
        if "size_1" in self.specials and tokens.modality == "image":
            for side in tokens.grid:
                if f"size_{side}" not in self.specials:
                    raise UsageError(f"a grid of {' x '.join(map(str, tokens.grid))}: size tokens end at {MAX_SIDE}")
                before.append(self.specials[f"size_{side}"])
        after = [self.specials[f"/{tokens.modality}"]] if f"/{tokens.modality}" in self.specials else []
        place = len(before), len(before) + ids.size
        return np.concatenate([np.array(before, np.int64), ids, np.array(after, np.int64)]), place

    def names(self) -> list[str]:
        """Return the names of all ids from the end of the text vocabulary on, in order, as tokens of a tokenizer."""
        names = [f"<|unused_{number}|>" for number in range(self.text_size, self.size)]
        for found in self.ranges:
            label = "_".join(found.strides)
            names[found.start - self.text_size : found.end - self.text_size] = [
                f"<|{label}_{number}|>" for number in range(found.start, found.end)
            ]
        for name, number in self.specials.items():
            if number >= self.text_size:
                names[number - self.text_size] = f"<|{name}|>"
        return names

    def words(self) -> dict[int, str]:
        """Return the word of each id that is not of text."""
        own = dict(enumerate(self.names(), self.text_size))
        return own | {self.specials[name]: word for name, word in self.texts.items() if name in self.specials}

    def facts(self) -> dict[str, Any]:
        """Return this as a JSON-like dict."""
        return {
            "kind": "mixture",
            "layout": self.layout,
            "offset": self.offset,
            "text_size": self.text_size,
            "tokenizer": self.tokenizer,
            "models": [
                {
                    "model": found.model.hex(),
                    "start": found.start,
                    "codebook_sizes": list(found.codebook_sizes),
                    "strides": dict(found.strides),
                }
                for found in self.ranges
            ],
            "special_tokens": dict(self.specials),
            "vocabulary_size": self.size,
            **({"texts": dict(self.texts)} if self.texts else {}),
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Mixture:
        """Return the mixture of what `facts` has returned.

        Raises:
            ValueError, KeyError, TypeError: `facts` cannot have returned it.
        """
        if facts["layout"] not in get_args(MixtureLayout):
            raise ValueError(f"unknown layout {facts['layout']}")
        try:
            return cls(
                tuple(
                    Range(bytes.fromhex(one["model"]), one["start"], tuple(one["codebook_sizes"]), one["strides"])
                    for one in facts["models"]
                ),
                facts["special_tokens"],
                facts["layout"],
                facts["offset"],
                facts["text_size"],
                facts["tokenizer"],
                facts.get("texts", {}),
            )
        except UsageError as error:
            raise ValueError(str(error)) from None


def choose_mixture(
    layouts: Sequence[Layout],
    *,
    layout: MixtureLayout = "flat",
    offset: int | None = None,
    text_size: int = 0,
    tokenizer: str = "",
    kinds: Sequence[str] = DEFAULT_KINDS,
    begin: int | str | None = None,
    end: int | str | None = None,
    text_end: int | None = None,
) -> Mixture:
    """Return the vocabulary in which text comes first, then the codes of each model in order, then special tokens.

    Args:
        layouts: The models, by what their tokens have in common.
        offset: The id of the first code; by default the first after the text.
        kinds: The kinds of special tokens.
        begin, end: The ids of the special tokens of a document: a number, "auto" for the next free one, or None.
        text_end: The id that a tokenizer of text uses for the end of a document, which is taken for "auto".

    Raises:
        UsageError: Ids overlap, or a kind is not known.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise UsageError(f"`special_tokens` {unknown[0]}: give some of {', '.join(KINDS)}")
    first = start = text_size if offset is None else offset
    ranges: dict[bytes, Range] = {}
    for found in layouts:
        known = ranges.get(found.model)
        if known is None:
            ranges[found.model] = Range(found.model, start, found.codebook_sizes, {found.modality: found.stride})
            start = ranges[found.model].end
        elif found.codebook_sizes != known.codebook_sizes:
            raise UsageError(
                f"model {found.model.hex()}: tokens of {found.num_codebooks} and of {len(known.codebook_sizes)} "
                "codebooks; set `num_codebooks` to the smaller number"
            )
        else:
            strides = {**known.strides, found.modality: found.stride}
            ranges[found.model] = Range(known.model, known.start, known.codebook_sizes, strides)
    present = {modality for found in ranges.values() for modality in found.strides}
    names: list[str] = []
    for kind in KINDS:
        if kind not in kinds or (kind in MODALITIES and kind not in present) or (kind == "text" and not text_size):
            continue
        if kind in ("row", "size") and "image" not in present:
            continue
        names += {
            "row": ["row"],
            "size": [f"size_{side}" for side in range(1, MAX_SIDE + 1)],
        }.get(kind, [kind, f"/{kind}"])
    specials: dict[str, int] = {}
    taken = {int(number) for number in (begin, end) if number not in (None, "auto", "none") and _is_id(number)}
    free = (number for number in itertools.count(start) if number not in taken)
    for name, asked in zip(DOCUMENT, (begin, end), strict=True):
        if asked in (None, "none"):
            continue
        if asked == "auto":
            specials[name] = text_end if name == "end" and text_end is not None else next(free)
        elif _is_id(asked):
            specials[name] = int(asked)
        else:
            raise UsageError(f"`{name}_token` {asked}: must be an id, auto or none")
    specials |= {name: next(free) for name in names}
    return Mixture(tuple(ranges.values()), specials, layout, first, text_size, tokenizer)


def _is_id(value: int | str | None) -> bool:
    return isinstance(value, int) or (isinstance(value, str) and value.isdecimal())
