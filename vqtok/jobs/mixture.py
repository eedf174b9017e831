"""Export rows of tokens of several models, with their captions, in one vocabulary."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vqtok.errors import CorruptFileError, MediaError, UsageError, VqtokError
from vqtok.files.atomic import atomic_write, make_folder, refuse_existing
from vqtok.files.paths import error_context, local_path
from vqtok.jobs.mixture_files import MixtureFiles, MixtureOptions
from vqtok.jobs.token_sources import OnError, TokenSource, check_key, name_of
from vqtok.media.kinds import is_shard, stem
from vqtok.models.token_reader import Models, TokenReader
from vqtok.tokens.export.mixture import DOCUMENT, Mixture, MixtureLayout, choose_mixture
from vqtok.tokens.export.row_templates import RowTemplate, choose_template
from vqtok.tokens.export.sequences import Sequence as Ids
from vqtok.tokens.export.sidecar import FOLDER_FILE, FORMAT, MIXTURE_VERSION
from vqtok.tokens.export.text_ids import Characters, TextIds, extend_tokenizer, text_ids
from vqtok.tokens.find import token_files
from vqtok.tokens.shape import MODALITIES, Layout, Modality
from vqtok.tokens.shard.format import parse_shard_header
from vqtok.tokens.shard.index import map_file
from vqtok.tokens.token_table import TokenTable, is_token_table
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import read_header

Codebooks = Mapping[str, int]
"""The number of codebooks to export by modality; `all` stands for both."""
NUM_ROWS = "rows"


@dataclass(frozen=True)
class RowSource:
    """One row: the sources of its tokens, which have one stem."""

    key: str
    sources: Sequence[TokenSource]


def find_rows(inputs: Sequence[str | Path], ignored: Counter[str] | None = None) -> list[RowSource]:
    """Find token files and items of shards, and join those with the same stem: `7.png` and `7.ogg` are one row.

    The key of a row is the stem, from the given folder on or in the shard.

    Args:
        ignored: Counts the other files in folders by their suffix.

    Raises:
        UsageError: An input does not exist.
        MediaError: A folder without token files.
    """
    found: dict[str, list[TokenSource]] = {}
    reader = TokenReader()
    for path in map(local_path, inputs):
        if len(inputs) == 1 and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        for file in token_files([path], ignored) if path.is_dir() else [path]:
            name = file.relative_to(path).as_posix() if path.is_dir() else name_of(file).as_posix()
            for inside in reader.keys(file):
                key = stem(name.removesuffix(".vqt") if inside is None else inside)
                found.setdefault(key, []).append(TokenSource(key, file, inside))
    return [RowSource(key, sources) for key, sources in found.items()]


def layouts_of(rows: Sequence[RowSource], codebooks: Codebooks | None = None) -> list[Layout]:
    """Return what the tokens of each model and modality have in common, in the order of the rows' files.

    Files that are damaged are passed over: reading them reports the reason.

    Raises:
        UsageError: There is one number of codebooks for several models.
    """
    found: dict[tuple[bytes, str, tuple[int, ...]], Layout] = {}
    for file in dict.fromkeys(source.file for row in rows for source in row.sources):
        for layout in _layouts_in(file):
            count = _count(codebooks, layout.modality)
            sizes = layout.codebook_sizes[:count]
            found.setdefault(
                (layout.model, layout.modality, sizes),
                Layout(modality=layout.modality, model=layout.model, codebook_sizes=sizes, stride=layout.stride),
            )
    models = {model for model, _, _ in found}
    if len(models) > 1 and "all" in (codebooks or {}):
        raise UsageError(
            "`num_codebooks`: there are tokens of several models; give a number for each, such as image=4,audio=2"
        )
    return list(found.values())


def _layouts_in(file: Path) -> Sequence[Layout]:
    try:
        if is_token_table(file):
            return TokenTable(file).layouts()
        return [parse_shard_header(map_file(file))[0] if is_shard(file) else read_header(file)]
    except (VqtokError, OSError):
        return []


def several_models(layouts: Sequence[Layout]) -> bool:
    return len({layout.model for layout in layouts}) > 1


def parse_codebooks(text: str | int | None) -> Codebooks | None:
    """Parse a number of codebooks, or one for each modality such as `image=4,audio=2`.

    Raises:
        UsageError: It is neither.
    """
    if text is None:
        return None
    try:
        if "=" not in str(text):
            parsed = {"all": int(text)}
        else:
            parsed = {name.strip(): int(value) for name, value in (part.split("=") for part in str(text).split(","))}
    except ValueError:
        parsed = {"": 0}
    if not set(parsed) <= {"all", *MODALITIES} or min(parsed.values()) < 1:
        raise UsageError(f"`num_codebooks` {text}: give a number, or one for each modality such as image=4,audio=2")
    return parsed


def _count(codebooks: Codebooks | None, modality: str) -> int | None:
    return None if codebooks is None else codebooks.get(modality, codebooks.get("all"))


def export_mixture(
    rows: Sequence[RowSource],
    output: str,
    options: MixtureOptions,
    *,
    model: str | Models | None = None,
    codebooks: Codebooks | None = None,
    overwrite: bool = False,
    on_error: OnError | None = None,
    on_row: Callable[[object], object] = lambda row: None,
) -> dict[str, Any]:
    """Export rows to a file, or to a folder with a file for each split and part.

    Args:
        output: A file, or a folder if it ends in a slash, is one, or there are splits or parts.
        model: The model that made the tokens; by default found by its identity. Bit-packed files need none.
        on_error: Called with a source that cannot be read; its row is left out. By default the error is raised.
        on_row: Called with each row when it is done.

    Returns:
        What was written, as `vqtok export --json` prints it.

    Raises:
        VqtokError: The options contradict each other or the tokens, the output exists, or there is nothing to export.
    """
    mixture, text = plan_mixture(rows, options, codebooks)
    if options.to == "text":
        text = Characters()
    templates = options.templates
    named = {field for template in templates for field in template.fields}
    if text is None and (named - set(MODALITIES) or any(part for t in templates for part, _ in t.parts)):
        raise UsageError("`row`: text needs ids; give a `tokenizer`, a folder of transformers or bytes")
    unknown = [name for name in named & set(MODALITIES) if name not in mixture.modalities]
    if unknown:
        raise UsageError(f"`row`: there are no {unknown[0]} tokens among the inputs")
    if options.shuffle is not None:
        rows = random.Random(options.shuffle).sample(rows, len(rows))
    facts: dict[str, Any] = {"format": FORMAT, "version": MIXTURE_VERSION, "to": options.to, **mixture.facts()}
    facts |= {"rows": list(options.row), "dtype": mixture.dtype} | ({"pack": options.pack} if options.pack else {})
    outputs = MixtureFiles(output, options, mixture, facts, overwrite)
    skipped: Counter[str] = Counter()
    grids: dict[Modality, set[tuple[int, ...]]] = {}
    reader = TokenReader(model)
    with outputs:
        for row in rows:
            found = _read(row, reader, codebooks, on_error)
            if found is None:
                on_row(row)
                continue
            tokens, columns = found
            template = _template(templates, tokens, columns, row.key, text is not None)
            if template is None:
                skipped["without " + " or ".join(sorted({", ".join(sorted(t.fields)) for t in templates}))] += 1
            else:
                outputs.add(_sequence(row.key, template, tokens, columns, mixture, text))
                for modality in template.fields & set(tokens):
                    grids.setdefault(modality, set()).add(tokens[modality].grid)  # type: ignore[arg-type]
            on_row(row)
        # One grid for all images tells how to read what a model generates without sizes.
        facts["grids"] = {name: list(*found) for name, found in grids.items() if len(found) == 1}
        facts |= {"skipped": dict(skipped)} if skipped else {}
        outputs.finish()
    return outputs.facts()


def plan_mixture(
    rows: Sequence[RowSource], options: MixtureOptions, codebooks: Codebooks | None
) -> tuple[Mixture, TextIds | None]:
    """Return the vocabulary of rows, and what encodes their text.

    Raises:
        UsageError: As `choose_mixture` does, or the tokenizer cannot be opened.
    """
    layouts = layouts_of(rows, codebooks)
    if not layouts:
        raise MediaError("nothing to export: no input is a token file or shard that can be read")
    text = text_ids(options.tokenizer)
    layout: MixtureLayout = "coarse-first" if options.layout == "coarse-first" else "flat"
    mixture = choose_mixture(
        layouts,
        layout=layout,
        offset=options.offset,
        text_size=text.size if text else 0,
        tokenizer=options.tokenizer or "",
        kinds=options.special_tokens,
        begin=options.begin_token,
        end=options.end_token,
        text_end=text.end if text else None,
    )
    of_text = [name for name in DOCUMENT if mixture.specials.get(name, mixture.text_size) < mixture.text_size]
    if text and of_text:
        mixture = replace(mixture, texts={name: text.word(mixture.specials[name]) for name in of_text})
    return mixture, text


def write_extended_tokenizer(
    rows: Sequence[RowSource],
    folder: str,
    options: MixtureOptions,
    codebooks: Codebooks | None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Save the tokenizer of the options with a token for each id of the vocabulary of rows, and the same ids.

    Returns:
        The facts of the vocabulary, which are written beside it, with `embedding_rows`, the size of the embedding that
        a model then needs, and `new_embedding_rows`, those of it that the model does not have.

    Raises:
        OutputError: The folder has a tokenizer.
        UsageError: As `plan_mixture` does.
    """
    if options.tokenizer in (None, "bytes"):
        raise UsageError("`extend_tokenizer` needs a tokenizer of transformers: its folder or name")
    target = Path(folder)
    if not overwrite:
        refuse_existing(target / "tokenizer_config.json")
    mixture, text = plan_mixture(rows, options, codebooks)
    assert options.tokenizer
    assert text
    make_folder(target)
    num_rows = extend_tokenizer(options.tokenizer, mixture.names(), str(target))
    facts = {"format": FORMAT, "version": MIXTURE_VERSION, **mixture.facts()}
    facts |= {
        "embedding_rows": num_rows,
        "new_embedding_rows": list(range(text.size, num_rows))[:: num_rows - text.size - 1],
    }
    atomic_write(target / FOLDER_FILE, json.dumps(facts, indent=2).encode())
    return facts | {"files": [str(target)]}


def _read(
    row: RowSource, reader: TokenReader, codebooks: Codebooks | None, on_error: OnError | None
) -> tuple[dict[str, Tokens], dict[str, Any]] | None:
    """Return the tokens of a row by modality, and its columns; None if they cannot be read."""
    found: dict[str, Tokens] = {}
    columns: dict[str, Any] = {}
    for source in row.sources:
        try:
            with error_context(source.name):
                check_key(source.key)
                tokens = reader.read(source.file, source.inside)
                count = _count(codebooks, tokens.modality)
                if count is not None:
                    tokens = tokens.prefix(min(count, tokens.num_codebooks))
                if tokens.modality in found:
                    raise UsageError(f"there are two {tokens.modality} items with the key {row.key}; export one")
        except (VqtokError, ValueError) as error:
            if on_error is None:
                raise
            on_error(source, error if isinstance(error, VqtokError) else CorruptFileError(str(error)))
            return None
        found[tokens.modality] = tokens
        columns = {**tokens.metadata, **columns}
    return found, columns


def _template(
    templates: Sequence[RowTemplate],
    tokens: Mapping[str, Tokens],
    columns: Mapping[str, Any],
    key: str,
    has_text: bool,
) -> RowTemplate | None:
    if templates:
        return choose_template(templates, {*tokens, *columns}, key)
    caption = "{caption}" if has_text and "caption" in columns else ""
    return RowTemplate(caption + "".join(f"{{{modality}}}" for modality in MODALITIES if modality in tokens))


def _sequence(
    key: str,
    template: RowTemplate,
    tokens: Mapping[str, Tokens],
    columns: Mapping[str, Any],
    mixture: Mixture,
    text: TextIds | None,
) -> Ids:
    """Return the sequence of a row."""
    parts: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    segments: list[dict[str, Any]] = []
    length = 0

    def add(ids: Sequence[int] | np.ndarray[Any, np.dtype[np.int64]]) -> None:
        nonlocal length
        parts.append(np.asarray(ids, np.int64))
        length += len(ids)

    def special(name: str) -> None:
        if name in mixture.specials:
            add([mixture.specials[name]])

    special("begin")
    for literal, name in template.parts:
        if literal and text:
            add(text.encode(literal))
        if name is not None and name in tokens:
            ids, (start, end) = mixture.segment(tokens[name])
            item = tokens[name]
            segments.append(
                {
                    "modality": name,
                    "start": length + start,
                    "length": end - start,
                    "size": list(item.size),
                    "grid": list(item.grid),
                }
            )
            add(ids)
        elif name is not None and text:
            special("text")
            add(text.encode(columns[name] if isinstance(columns[name], str) else json.dumps(columns[name])))
            special("/text")
    special("end")
    return Ids(key, np.concatenate(parts), segments, columns)
