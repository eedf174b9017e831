"""Write tokens to files for training language models, and read them back.

Next to the data is a JSON file with the same name plus `.json`, hidden by a dot beside tables and text: readers of data
sets take all files of a folder. It describes how the data are written (`ExportSpec`) and, for formats that do not store
them, the items.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import MediaError, UsageError, WrongModelError
from vqtok.files.atomic import atomic_open, make_folder, refuse_existing
from vqtok.files.paths import STDIO
from vqtok.tokens.export.formats import Add, ExportRow, open_rows, open_writer
from vqtok.tokens.export.layout import to_codes, to_ids
from vqtok.tokens.export.options import ARRAYS, TABLES, ExportFormat, ExportOptions, ExportSpec
from vqtok.tokens.export.sidecar import (
    FORMAT,
    MIXTURE_VERSION,
    VERSION,
    export_facts_of,
    remove_other_sidecar,
    sidecar_name,
)
from vqtok.tokens.shape import Modality, size_dims
from vqtok.tokens.stored import StoredTokens
from vqtok.tokens.tokens import Tokens

if TYPE_CHECKING:
    from vqtok.tokens.export.mixture_reader import MixtureExport

OTHER: dict[Modality, Modality] = {"image": "audio", "audio": "image"}


def write_export(
    items: Iterable[tuple[str, Tokens]], path: Path, recipe: ExportOptions, *, overwrite: bool = False
) -> dict[str, Any]:
    """Write items with their keys to an export, one at a time. Its files appear when all of them are complete.

    Args:
        path: STDIO for text and jsonl, which then have no JSON file.

    Returns:
        What was written: the content of the JSON file without the items.

    Raises:
        OutputError: A file exists and is not to be overwritten, or cannot be written.
        WrongModelError: The tokens are of several models; those of both modalities of a fusion model are of one.
        UsageError: The items have different codebooks, or do not fit the options.
        MediaError: There are no items.
    """
    if path == STDIO and recipe.to not in ("jsonl", "text"):
        raise UsageError(f"`output` -: {recipe.to} cannot be written to standard output; give a file")
    if path.is_dir() or path.suffix.lower() == ".vqt":
        raise UsageError(
            f"`output` {path}: is a {'folder' if path.is_dir() else 'token file'}; give the name of a new file"
        )
    files = output_files(path, recipe.to)
    if not overwrite:
        for file in files:
            refuse_existing(file)
    items = iter(items)
    first = next(items, None)
    if first is None:
        raise MediaError(f"{path}: not written, because there is nothing to export")
    form = recipe.form(first[1])
    if path != STDIO:
        make_folder(path.parent)
    written: dict[str, Any] = {"num_items": 0, "num_ids": 0}
    strides = {first[1].modality: first[1].stride}
    # The JSON file gets its name last. If it exists, the data are complete.
    with _note_items(files[-1], form, written) as note, open_writer(files[0], form, written) as add:
        for key, tokens in chain([first], items):
            _check_alike(key, tokens, form, strides)
            if len(strides) > 1:
                written["strides"] = strides
            ids = to_ids(tokens.codes[form.order], form.layout, form.vocabulary)
            item: ExportRow = {"key": key, "size": list(tokens.size), "grid": list(tokens.grid)}
            if tokens.metadata:
                item["metadata"] = tokens.metadata
            add(item, ids)
            note(item, ids)
            written["num_items"] += 1
            written["num_ids"] += ids.size
    if path != STDIO:
        remove_other_sidecar(files[0], form.to)
    facts = form.facts() | written | {"files": list(map(str, files))}
    return facts if path == STDIO else facts | {"file_bytes": sum(file.stat().st_size for file in files[:-1])}


class Export(StoredTokens):
    """The tokens of an export by key, each read on access.

    Args:
        path: The data; the JSON file is next to them.

    Raises:
        CorruptFileError: The data and the JSON file contradict each other, or are damaged.
        MediaError: The data cannot be read.
        UnsupportedVersionError: A newer vqtok wrote them.
        UsageError: Parquet needs pyarrow, which is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        facts = export_facts_of(self.path)
        with self._damaged():
            self.form = ExportSpec.from_facts(facts)
            self._rows = open_rows(self.path, self.form, facts.get("items", []))
            self._places = {key: index for index, key in enumerate(self._rows.keys)}
            if len(self._places) < len(self._rows.keys):
                raise ValueError("two items have the same key")

    @property
    def modality(self) -> Modality:
        return self.form.modality

    def modality_of(self, key: str) -> Modality:
        """Return the modality of an item; an export of a fusion model has items of both.

        Raises:
            CorruptFileError: The data are damaged.
        """
        if not self.form.strides:
            return self.modality
        with self._damaged(f"{key}: "):
            return self._modality(self._rows[self._places[key]][0])

    def _modality(self, item: ExportRow) -> Modality:
        """Return the modality of an item by the form of its size."""
        is_other = len(item["size"]) != size_dims(self.form.modality)
        return OTHER[self.form.modality] if is_other else self.form.modality

    def __getitem__(self, key: str) -> Tokens:
        place = self._places[key]
        with self._damaged(f"{key}: "):
            item, ids = self._rows[place]
            if not np.issubdtype(ids.dtype, np.integer):
                raise ValueError("token ids are not integers")
            modality = self._modality(item)
            codes = to_codes(ids, tuple(item["grid"]), self.form.layout, self.form.vocabulary)
            places = np.argsort(self.form.order)
            return Tokens(
                codes=codes[places],
                codebook_sizes=tuple(self.form.vocabulary.codebook_sizes[place] for place in places),
                modality=modality,
                size=tuple(item["size"]),
                stride=self.form.stride if modality == self.form.modality else self.form.strides[modality],
                model=self.form.model,
                metadata=item.get("metadata") or {},
            )


def read_export(path: str | Path) -> Export | MixtureExport:
    """Open an export as a mapping of keys to `Tokens`.

    Raises:
        VqtokError: As `Export` and `MixtureExport` do.
    """
    if export_facts_of(Path(path))["version"] != MIXTURE_VERSION:
        return Export(path)
    from vqtok.tokens.export.mixture_reader import MixtureExport

    return MixtureExport(path)


def output_files(path: Path, to: ExportFormat) -> list[Path]:
    """Return the files of an export, its data first, its JSON file last."""
    if path == STDIO:
        return [STDIO]
    if to == "megatron":
        data = path if path.suffix == ".bin" else path.with_name(path.name + ".bin")
        return [data, data.with_suffix(".idx"), sidecar_name(data, to)]
    return [path, sidecar_name(path, to)]


def _check_alike(key: str, tokens: Tokens, form: ExportSpec, strides: dict[Modality, int]) -> None:
    """Raise if tokens do not belong in an export. Those of the other modality of a fusion model do.

    Args:
        strides: The stride of each modality, to which a new one is added.
    """
    if tokens.model != form.model:
        models = f"made by model {tokens.model.hex()}, those before by {form.model.hex()}"
        raise WrongModelError(f"{key}: {models}; export the tokens of each model separately")
    before = len(form.vocabulary.codebook_sizes)
    if tokens.num_codebooks != before:
        raise UsageError(
            f"{key}: has {tokens.num_codebooks} codebooks, the items before {before}; "
            f"set `num_codebooks` to {min(tokens.num_codebooks, before)} or fewer"
        )
    sizes = tuple(tokens.codebook_sizes[index] for index in form.order)
    known = form.vocabulary.codebook_sizes, strides.setdefault(tokens.modality, tokens.stride)
    if (sizes, tokens.stride) != known:
        raise UsageError(f"{key}: another codebook size or stride than the items before; export them separately")
    if len(strides) > 1 and any("{modality}" in text for text in form.texts.values()):
        raise UsageError(
            f"{key}: {tokens.modality}, while items before are {form.modality}: in text both need the same words; set "
            "`template` to one without the modality, such as '<|{id}|>', and name the special tokens"
        )


@contextmanager
def _note_items(path: Path, form: ExportSpec, written: Mapping[str, int]) -> Iterator[Add]:
    """Write the JSON file: how the data are written, the items unless the data store them, and what was `written`."""
    if path == STDIO:
        yield lambda item, ids: None
        return
    with atomic_open(path) as file:
        head = json.dumps({"format": FORMAT, "version": VERSION, **form.facts()}, indent=2)
        file.write(head.removesuffix("\n}").encode())

        def note(item: ExportRow, ids: NDArray[np.int64]) -> None:
            if form.to in ARRAYS:
                item = item | {"start": written["num_ids"], "length": ids.size}
            if form.to not in TABLES:
                before = ",\n    " if written["num_items"] else ',\n  "items": [\n    '
                file.write((before + json.dumps(item)).encode())

        yield note
        end = "" if form.to in TABLES else "\n  ]"
        tail = json.dumps(written, indent=2).removeprefix("{")
        file.write(f"{end},{tail}\n".encode())
