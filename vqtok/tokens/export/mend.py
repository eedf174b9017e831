"""Read tokens from ids that a model has generated, which may be cut off, too short, or have ids out of place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError, UsageError
from vqtok.tokens.export.layout import Layout, Vocabulary
from vqtok.tokens.export.mixture import Mixture
from vqtok.tokens.export.options import ExportSpec
from vqtok.tokens.export.sidecar import FOLDER_FILE, checked, export_facts_of, read_facts
from vqtok.tokens.shape import MODALITIES, Modality
from vqtok.tokens.tokens import Tokens

MISSING = -1
"""Stands for a code that is not there."""


class Mended(NamedTuple):
    """Tokens that were found among ids."""

    tokens: Tokens
    notes: list[str]
    """What was mended, in words; empty if nothing was."""


@dataclass(frozen=True)
class Form:
    """How the ids of the items of one model are written."""

    model: bytes
    vocabulary: Vocabulary
    layout: Layout
    strides: Mapping[Modality, int]
    grids: Mapping[str, tuple[int, ...]]
    """The grid that all items of a modality have, where they all have one."""


@dataclass(frozen=True)
class Grammar:
    """What the ids of an export mean."""

    forms: Sequence[Form]
    begins: Mapping[int, Modality | None]
    """Ids that begin an item; None where the id does not tell its modality."""
    ends: frozenset[int]
    rows: frozenset[int]
    sizes: Mapping[int, int]
    """Ids that stand for a side of a grid."""

    def form_of(self, number: int) -> Form | None:
        """Return the form that a code with this id belongs to."""
        for form in self.forms:
            if form.vocabulary.offset <= number < form.vocabulary.codes_end:
                return form
        return None


def tokens_from_ids(
    ids: Sequence[int] | NDArray[Any],
    like: str | Path | Mapping[str, Any],
    *,
    grid: tuple[int, ...] | None = None,
    sample_rate: int | None = None,
    strict: bool = False,
) -> list[Mended]:
    """Return the images and audio among the ids that a model has generated.

    Ids of text are passed over. An item ends at its end token, at the begin of another, or with the ids. Its grid is
    that of its size tokens, of its row tokens, `grid`, the one that all items of the export have, or a square.
    Codes that are missing get the value of the position before; ids that no code can have there are passed over.

    Args:
        ids: The ids of one sequence, in any shape.
        like: An export with the vocabulary, or the facts in its JSON file.
        grid: The grid of items that do not tell theirs: `(height, width)`, or `(time,)`.
        sample_rate: The sample rate of the model, in Hz; by default that of the export's items, if it says so.
        strict: Raise an error instead of mending.

    Raises:
        MediaError: There is nothing to be decoded, the grid of an item is not known, or with `strict` something would
            have to be mended.
        UsageError: `like` is no export.
    """
    facts = like if isinstance(like, Mapping) else facts_of(Path(like))
    grammar = grammar_of(facts)
    found = []
    for item in _segments(np.asarray(ids).ravel().tolist(), grammar):
        mended = _tokens(item, grammar, grid, sample_rate or facts.get("sample_rate"))
        if strict and mended.notes:
            raise MediaError("; ".join(mended.notes))
        found.append(mended)
    if not found:
        raise MediaError("there are no codes of images or audio among the ids")
    return found


def facts_of(path: Path) -> dict[str, Any]:
    """Return the facts of an export, given by its data, its folder or its JSON file.

    Raises:
        VqtokError: It is none.
    """
    if path.is_dir():
        return read_facts(path / FOLDER_FILE)
    return read_facts(path) if path.suffix == ".json" else export_facts_of(path)


def grammar_of(facts: Mapping[str, Any]) -> Grammar:
    """Return what the ids of an export mean.

    Raises:
        UsageError: The facts are not those of an export.
    """
    checked(facts, Path("like"))
    grids = {name: tuple(grid) for name, grid in facts.get("grids", {}).items()}
    try:
        if facts.get("kind") == "mixture":
            return _of_mixture(Mixture.from_facts(facts), grids)
        return _of_spec(ExportSpec.from_facts(facts), grids, facts.get("items", []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"`like`: these are not the facts of an export: {error}") from None


def _of_mixture(mixture: Mixture, grids: Mapping[str, tuple[int, ...]]) -> Grammar:
    specials = mixture.specials
    rows = {"row": specials["row"]} if "row" in specials else {}
    return Grammar(
        [Form(one.model, one.vocabulary(rows), mixture.layout, one.strides, grids) for one in mixture.ranges],
        {specials[name]: name for name in MODALITIES if name in specials},
        frozenset(specials[name] for name in ("/image", "/audio", "end") if name in specials),
        frozenset(rows.values()),
        {number: int(name.removeprefix("size_")) for name, number in specials.items() if name.startswith("size_")},
    )


def _of_spec(spec: ExportSpec, grids: Mapping[str, tuple[int, ...]], items: Sequence[Mapping[str, Any]]) -> Grammar:
    strides: dict[Modality, int] = {spec.modality: spec.stride}
    strides |= dict(spec.strides)  # type: ignore[arg-type]
    specials = spec.vocabulary.specials
    known = {tuple(item["grid"]) for item in items}
    if len(known) == 1 and not grids:
        grids = {spec.modality: known.pop()}
    pads = {specials["pad"]} if "pad" in specials else set()
    begin = {specials["begin"]} if "begin" in specials else set()
    return Grammar(
        [Form(spec.model, spec.vocabulary, spec.layout, strides, grids)],
        # With one id for both, as in MusicGen's pattern, a begin token cannot be told from padding.
        {number: spec.modality if len(strides) == 1 else None for number in begin - pads},
        frozenset([specials["end"]] if "end" in specials else []),
        frozenset([specials["row"]] if "row" in specials else []),
        {},
    )


@dataclass
class _Item:
    """The ids of one item, without those around it."""

    modality: Modality | None
    form: Form | None = None
    ids: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    passed: int = 0
    """Ids that are no codes since the last one."""
    out_of_place: int = 0
    after_end: int = 0


def _segments(ids: Iterable[int], grammar: Grammar) -> list[_Item]:
    """Divide ids into items, which begin with their token, or with a code where no such token is, or came before."""
    found: list[_Item] = []
    is_open = False
    for number in ids:
        if number in grammar.begins:
            found.append(_Item(grammar.begins[number]))
            is_open = True
            continue
        if number in grammar.ends:
            is_open = False
            continue
        form = grammar.form_of(number)
        if not is_open:
            if form is None:
                continue
            if found and grammar.begins:
                found[-1].after_end += 1
                continue
            found.append(_Item(None))
            is_open = True
        item = found[-1]
        if number in grammar.sizes and not item.ids:
            item.sizes.append(grammar.sizes[number])
        elif form is not None and item.form in (None, form):
            item.form = form
            item.ids.append(number)
            item.out_of_place, item.passed = item.out_of_place + item.passed, 0
        elif form is None and (number in grammar.rows or _is_pad(number, grammar)):
            item.ids.append(number)
        else:
            item.passed += 1  # Text that follows an item is not out of place.
    return [item for item in found if item.form is not None]


def _is_pad(number: int, grammar: Grammar) -> bool:
    return any(number == form.vocabulary.specials.get("pad") for form in grammar.forms)


def _tokens(item: _Item, grammar: Grammar, grid: tuple[int, ...] | None, sample_rate: int | None) -> Mended:
    """Return the tokens of an item."""
    form, ids = item.form, item.ids
    assert form is not None
    modality: Modality = next(iter(form.strides)) if item.modality is None else item.modality
    notes = []
    if item.out_of_place:
        notes.append(f"{item.out_of_place} ids out of place passed over")
    if item.after_end:
        notes.append(f"{item.after_end} ids after the end token passed over")
    count = len(form.vocabulary.codebook_sizes)
    codes, row_lengths, clamped = _by_codebook(ids, form, grammar.rows)
    row_lengths = _split_rows(row_lengths)
    num_positions = max(len(plane) for plane in codes)
    shape = _grid(item, form, modality, grid, num_positions, row_lengths)
    total = math.prod(shape)
    if modality == "image" and row_lengths:
        codes = _aligned(codes, row_lengths, shape)
    planes = np.full((count, total), MISSING, np.int64)
    for number, plane in enumerate(codes):
        kept = plane[:total]
        planes[number, : len(kept)] = kept
    too_many = sum(max(0, len(plane) - total) for plane in codes)
    missing = int((planes == MISSING).sum())
    if clamped:
        notes.append(f"{clamped} ids of no code there replaced")
    if too_many:
        notes.append(f"{too_many} codes beyond the grid left out")
    if missing:
        notes.append(f"{missing} of {planes.size} codes missing and filled in")
    _fill(planes)
    stride = form.strides[modality]
    if modality == "image":
        size: tuple[int, ...] = (shape[1] * stride, shape[0] * stride)
    else:
        if sample_rate is None:
            raise UsageError("audio needs the `sample_rate` of its model")
        size = (total * stride, sample_rate, 1)
    tokens = Tokens(
        planes.reshape(count, *shape).astype(np.int32),
        codebook_sizes=form.vocabulary.codebook_sizes,
        modality=modality,
        size=size,
        stride=stride,
        model=form.model,
    )
    return Mended(tokens, notes)


def _by_codebook(ids: Sequence[int], form: Form, rows: frozenset[int]) -> tuple[list[list[int]], list[int], int]:
    """Return the codes of each codebook in order, with `MISSING` for those that are not there.

    Returns:
        The codes, the number of positions of each row that a row token ends, and the number of ids that were replaced.
    """
    vocabulary = form.vocabulary
    starts, sizes, count = vocabulary.starts, vocabulary.codebook_sizes, len(vocabulary.codebook_sizes)
    codes: list[list[int]] = [[] for _ in range(count)]
    row_lengths: list[int] = []
    clamped = 0
    if form.layout in ("parallel", "delay"):
        return _by_step(ids, form, rows)
    begun = 0
    for number in ids:
        if number in rows:
            if form.layout == "flat":
                length = max(map(len, codes))
                for plane in codes:
                    plane += [MISSING] * (length - len(plane))
                row_lengths.append(length - begun)
                begun = length
            continue
        if vocabulary.shared:
            book = min(range(count), key=lambda index: len(codes[index])) if form.layout == "flat" else 0
        else:
            book = next(i for i in range(count) if starts[i] <= number < starts[i] + sizes[i])
        if form.layout == "flat":
            # The codebook of an id is known: what is missing before it, in this position or at its end, is filled in.
            place = max(map(len, codes))
            at = place - 1 if len(codes[book]) < place else place
            for index, plane in enumerate(codes):
                plane += [MISSING] * ((at if index >= book else at + 1 if at < place else at) - len(plane))
        code = number - starts[book]
        if code >= sizes[book]:
            clamped, code = clamped + 1, sizes[book] - 1
        codes[book].append(code)
    length = max(map(len, codes))
    if form.layout == "flat":
        for plane in codes:
            plane += [MISSING] * (length - len(plane))
    return codes, row_lengths, clamped


def _by_step(ids: Sequence[int], form: Form, rows: frozenset[int]) -> tuple[list[list[int]], list[int], int]:
    """Return what `_by_codebook` does of layouts that have steps of all codebooks."""
    starts, sizes = form.vocabulary.starts, form.vocabulary.codebook_sizes
    count, pad = len(sizes), form.vocabulary.specials.get("pad")
    planes = [ids[book::count] for book in range(count)]
    if form.layout == "delay":
        planes = [plane[book:] for book, plane in enumerate(planes)]
    codes: list[list[int]] = [[] for _ in range(count)]
    row_lengths: list[int] = []
    replaced = begun = 0
    for step in zip(*planes, strict=False):  # Steps that have begun, but lack a codebook, are left out.
        if rows.intersection(step):
            row_lengths.append(len(codes[0]) - begun)
            begun = len(codes[0])
            continue
        for book, number in enumerate(step):
            is_code = 0 <= number - starts[book] < sizes[book]
            replaced += not is_code and number != pad
            codes[book].append(number - starts[book] if is_code else MISSING)
    return codes, row_lengths, replaced


def _grid(
    item: _Item,
    form: Form,
    modality: Modality,
    given: tuple[int, ...] | None,
    num_positions: int,
    row_lengths: Sequence[int],
) -> tuple[int, ...]:
    """Return the grid of an item.

    Raises:
        MediaError: It is not known.
    """
    if modality == "audio":
        return given if given is not None and len(given) == 1 else (num_positions,)
    if len(item.sizes) >= 2:
        return item.sizes[0], item.sizes[1]
    if given is not None and len(given) == 2:
        return given
    if row_lengths:
        width = Counter(row_lengths).most_common(1)[0][0]
        unfinished = num_positions > sum(row_lengths)
        return len(row_lengths) + unfinished, max(1, width)
    if modality in form.grids:
        return form.grids[modality]
    side = math.isqrt(num_positions)
    if side * side != num_positions or not side:
        raise MediaError(f"{num_positions} positions are no square, and nothing tells their grid; give `grid`")
    return side, side


def _split_rows(lengths: Sequence[int]) -> list[int]:
    """Return the lengths of rows after those between which the row token is missing have been split."""
    if not lengths:
        return []
    width = max(1, Counter(lengths).most_common(1)[0][0])
    found = []
    for length in lengths:
        count = max(1, round(length / width))
        found += [*[width] * (count - 1), length - width * (count - 1)]
    return found


def _aligned(codes: list[list[int]], row_lengths: Sequence[int], grid: tuple[int, ...]) -> list[list[int]]:
    """Return codes whose rows all have the width of the grid: longer ones are cut, shorter ones filled."""
    aligned = []
    for plane in codes:
        rows, begin = [], 0
        for length in [*row_lengths, max(0, len(plane) - sum(row_lengths))]:
            row = plane[begin : begin + length][: grid[1]]
            rows.append(row + [MISSING] * (grid[1] - len(row)) if length else [])
            begin += length
        aligned.append([code for row in rows for code in row])
    return aligned


def _fill(planes: NDArray[np.int64]) -> None:
    """Give codes that are missing the value of the last one before them, or the first one after."""
    for plane in planes:
        there = np.flatnonzero(plane != MISSING)
        if not there.size:
            plane[:] = 0
            continue
        places = np.maximum.accumulate(np.where(plane != MISSING, np.arange(plane.size), -1))
        plane[:] = plane[np.where(places < 0, there[0], places)]
