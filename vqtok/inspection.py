"""Describe token files, shards, exports, models and media; all but media without torch or numpy."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok.errors import CorruptFileError, MediaError, ModelError
from vqtok.files.paths import error_context, local_path, spooled
from vqtok.media.kinds import kind_of
from vqtok.models.card import ModelCard, is_generator, read_card, read_generator_card
from vqtok.models.catalogue import token_rate
from vqtok.models.registry import bundled_models, find_model, is_adapted, open_tokenizer
from vqtok.tokens.export.sidecar import MIXTURE_VERSION, export_facts_of, is_export, json_file
from vqtok.tokens.find import token_files
from vqtok.tokens.shard.format import Record, ShardHeader, parse_shard_header
from vqtok.tokens.shard.index import map_file, parse_index, walk
from vqtok.tokens.vqt.header import Header, read_header

if TYPE_CHECKING:
    from vqtok.models.tokenizer import Tokenizer
    from vqtok.tokens.statistics import CodeStatistics
    from vqtok.tokens.tokens import Tokens


Facts = dict[str, Any]

EXPORT_ENTRIES: dict[str, type] = {
    "to": str,
    "layout": str,
    "modality": str,
    "model": str,
    "stride": int,
    "codebook_sizes": list,
    "offset": int,
    "shared_vocabulary": bool,
    "special_tokens": dict,
    "vocabulary_size": int,
    "num_items": int,
    "num_ids": int,
}
"""Entries of the JSON file of every export of one model, and their types."""
MIXTURE_ENTRIES = ("to", "layout", "offset", "special_tokens", "vocabulary_size", "num_items", "num_ids")
"""Those of exports of rows."""
ROW_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".parquet", ".zip")
"""Names of data sets of media."""
ROWS_SHOWN = 3


def inspect(path: str | Path, model: str | None = None) -> Facts:
    """Describe a token file, a shard, an export, a model (by path or name), an image or audio.

    Args:
        model: The model that would encode media; by default the bundled model of their modality.

    Returns:
        A JSON-like dict with `file` and `kind` ("tokens", "shard", "table", "rows", "export", "model", "generator",
        "image" or "audio").

    Raises:
        VqtokError: The file cannot be read, is damaged, or is none of these.
    """
    if is_adapted(str(path)):
        return tokenizer_facts(str(path), open_tokenizer(str(path)))
    path = bundled_models().get(str(path)) or spooled(local_path(path))
    if _is_token_table(path):
        return table_facts(path)
    if is_export(path) or _data_of(path):
        return export_facts(path)
    if path.is_file() and path.name.lower().endswith(ROW_SUFFIXES):
        return rows_facts(path)
    kind = kind_of(path)
    if kind == "tokens":
        return token_facts(path, read_header(path))
    if kind == "shard":
        return shard_facts(path)
    if kind == "model":
        return generator_facts(path) if is_generator(path) else model_facts(path, read_card(path))
    if kind is None:
        raise MediaError(f"{path}: not a token file, shard, export, model, image or audio file")
    return media_facts(path, kind, model)


def token_facts(path: Path, header: Header) -> Facts:
    """Describe a token file."""
    rate = {"bpp": header.bpp} if header.modality == "image" else {"kbps": header.kbps}
    facts: Facts = {
        "file": str(path),
        "kind": "tokens",
        "version": header.version,
        "coder": header.coder,
        "num_segments": header.num_segments,
        **grid_facts(header),
        "coded_bits": header.coded_bits,
        "file_bytes": header.file_bytes,
        **rate,
    }
    if header.metadata:
        facts["metadata"] = header.metadata
    return facts


def grid_facts(tokens: Header | Tokens) -> Facts:
    """Describe the tokens of a file, a shard or an export."""
    facts: Facts = {
        "modality": tokens.modality,
        "model": tokens.model.hex(),
        "num_codebooks": tokens.num_codebooks,
        "codebook_sizes": list(tokens.codebook_sizes),
        "stride": tokens.stride,
        "grid": list(tokens.grid),
        "num_tokens": tokens.num_tokens,
        "raw_bits": tokens.raw_bits,
    }
    if tokens.sequence_length > 1:
        facts["sequence_length"] = tokens.sequence_length
    if tokens.modality == "image":
        return facts | {"width": tokens.size[0], "height": tokens.size[1]}
    samples, sample_rate, channels = tokens.size
    return facts | {"duration_seconds": samples / sample_rate, "sample_rate": sample_rate, "channels": channels}


def losses(header: Header, starts: Sequence[int | None]) -> Facts:
    """Describe the lost parts of a token file: rows of an image or seconds of audio, and their fraction."""
    end, unit = (header.size[1], "rows") if header.modality == "image" else (header.duration_seconds or 0, "seconds")
    steps = header.grid[0 if header.modality == "image" else -1]
    scale = header.stride if header.modality == "image" else end / steps
    stretches: list[list[float]] = []
    for number, start in enumerate(starts):
        if start is None:
            begin = number * header.segment_steps
            if not stretches or stretches[-1][1] != begin:
                stretches.append([begin, begin])
            stretches[-1][1] = min(begin + header.segment_steps, steps)
    lost = sum(stop - begin for begin, stop in stretches) / steps
    found = [[min(begin * scale, end), min(stop * scale, end)] for begin, stop in stretches]
    return {f"lost_{unit}": found, "lost_fraction": lost}


def shard_facts(path: Path) -> Facts:
    """Read a shard, check that each item is intact, and describe it."""
    coders: Counter[str] = Counter()
    num_tokens = payload_bytes = 0
    extent = 0.0  # pixels, or seconds
    shard = None
    for shard, record in _records(path):
        coders[record.coder] += 1
        num_tokens += math.prod(record.grid) * shard.num_codebooks
        payload_bytes += record.payload_bytes
        extent += math.prod(record.size[:2]) if shard.modality == "image" else record.size[0] / record.size[1]
    assert shard
    file_bytes = path.stat().st_size
    facts: Facts = {
        "file": str(path),
        "kind": "shard",
        "version": shard.version,
        "modality": shard.modality,
        "model": shard.model.hex(),
        "coders": dict(coders),
        "num_codebooks": shard.num_codebooks,
        "codebook_sizes": list(shard.codebook_sizes),
        "stride": shard.stride,
        "num_items": coders.total(),
        "num_tokens": num_tokens,
        "raw_bits": num_tokens / shard.num_codebooks * shard.bits_per_position,
        "coded_bits": 8 * payload_bytes,
        "file_bytes": file_bytes,
    }
    if shard.modality == "image":
        return facts | {"bpp": 8 * file_bytes / extent}
    return facts | {"kbps": 0.008 * file_bytes / extent, "duration_seconds": extent}


def shard_items(path: str | Path) -> Iterator[Facts]:
    """Describe each item of a shard as if it were a token file, with its `key`."""
    for shard, record in _records(Path(path)):
        yield {"file": str(path), "key": record.key} | token_facts(Path(path), record.header(shard))


def _records(path: Path) -> Iterator[tuple[ShardHeader, Record]]:
    with error_context(path):
        data = map_file(path)
        shard, start = parse_shard_header(data)
        for record in walk(shard, data, start, parse_index(data, start)):
            yield shard, record


def _is_token_table(path: Path) -> bool:
    if path.suffix.lower() not in (".parquet", ".tar"):
        return False  # Known without the packages that read them.
    from vqtok.tokens.token_table import is_token_table

    return is_token_table(path)


def table_facts(path: Path) -> Facts:
    """Describe a table or tar of tokens."""
    from vqtok.tokens.token_table import TokenTable

    table = TokenTable(path)
    return {
        "file": str(path),
        "kind": "table",
        "num_items": len(table),
        "models": [
            {
                "model": layout.model.hex(),
                "modality": layout.modality,
                "codebook_sizes": list(layout.codebook_sizes),
                "stride": layout.stride,
            }
            for layout in table.layouts()
        ],
        "file_bytes": path.stat().st_size,
    }


def rows_facts(path: Path) -> Facts:
    """Describe a data set of media: a tar, a Parquet table or a zip archive."""
    from vqtok.rows.row import ColumnChoice
    from vqtok.rows.sources import Source

    choice, source = ColumnChoice(), Source(path)
    count, first = source.count(choice), list(islice(source.rows(choice), ROWS_SHOWN))
    fault = next((row.fault for row in first if not row.key), "" if count is not None else "cut off or damaged")
    if fault:
        raise CorruptFileError(f"{path}: {fault}")
    return {
        "file": str(path),
        "kind": "rows",
        "num_rows": count,
        "columns": list(dict.fromkeys(name for row in first for name in row.columns)),
        "first_keys": [row.key for row in first],
        "file_bytes": path.stat().st_size,
    }


def export_facts(path: Path) -> Facts:
    """Describe an export, given by its data or by its JSON file."""
    data = _data_of(path) or path
    facts = export_facts_of(data)
    is_mixture = facts["version"] == MIXTURE_VERSION
    for name, kind in EXPORT_ENTRIES.items():
        if not isinstance(facts.get(name), kind) and not (is_mixture and name not in MIXTURE_ENTRIES):
            raise CorruptFileError(f"{json_file(data)}: has no valid {name}; export again")
    told = {name: value for name, value in facts.items() if name not in ("format", "version", "items", "texts")}
    try:
        file_bytes = data.stat().st_size
    except OSError as error:
        raise MediaError(f"{data}: cannot be read: {error.strerror}") from error
    return {"file": str(data), **told, "kind": "export", "version": facts["version"], "file_bytes": file_bytes}


def _data_of(path: Path) -> Path | None:
    """Return the data that a JSON file describes; None if it is not the JSON file of an export."""
    if path.suffix != ".json":
        return None
    data = path.with_name(path.name.removeprefix(".").removesuffix(".json"))
    return data if data.is_file() and json_file(data) == path else None


def model_facts(path: Path, card: ModelCard) -> Facts:
    model = card.config["model"]
    facts = {
        "file": str(path),
        "kind": "model",
        "identity": card.identity,
        "modalities": list(card.strides),
        "num_parameters": card.num_parameters,
        "num_codebooks": len(card.codebook_sizes),
        "codebook_sizes": list(card.codebook_sizes),
        "stride": card.stride,
        "sample_rate": model["sample_rate"] or None,
        "file_bytes": card.file_bytes,
        "prior": card.has_prior,
        "bit_value": card.bit_value,
        "config": card.config,
        "training": card.training,
    }
    if card.decodes:
        facts["decodes"] = list(card.decodes)
    return facts | ({"strides": card.strides} if len(card.strides) > 1 else {})


def generator_facts(path: Path) -> Facts:
    """Describe a generator, a model of tokens."""
    card = read_generator_card(path)
    return {
        "file": str(path),
        "kind": "generator",
        "identity": card.identity,
        "modalities": [stream["name"] for stream in card.streams],
        "streams": card.streams,
        "num_parameters": card.num_parameters,
        "file_bytes": card.file_bytes,
        "config": card.config,
        "training": card.training,
    }


def tokenizer_facts(name: str, tokenizer: Tokenizer) -> Facts:
    """Describe a model of another library or package."""
    return {
        "file": name,
        "kind": "model",
        "identity": tokenizer.identity.hex(),
        "modalities": list(tokenizer.modalities),
        "num_parameters": None,
        "num_codebooks": len(tokenizer.codebook_sizes),
        "codebook_sizes": list(tokenizer.codebook_sizes),
        "levels": list(tokenizer.levels),
        "sequence_length": tokenizer.sequence_length,
        "stride": tokenizer.stride,
        "sample_rate": tokenizer.sample_rate,
        "output_rate": tokenizer.output_rate or tokenizer.sample_rate,
        **token_rate(
            len(tokenizer.codebook_sizes) * tokenizer.sequence_length, tokenizer.stride, tokenizer.sample_rate
        ),
        "channels": tokenizer.channels,
        "encoder_context": tokenizer.encoder_context,
        "decoder_context": tokenizer.decoder_context,
        "why_whole": tokenizer.why_whole,
        "why_encode_only": tokenizer.why_encode_only,
        "file_bytes": None,
        "prior": tokenizer.entropy_model.prior is not None,
        "config": {},
        "training": {},
        **tokenizer.facts(),
    }


def media_facts(path: Path, modality: str, model: str | None) -> Facts:
    """Describe an image or audio, and the tokens it would become, before entropy coding."""
    size = _image_facts(path) if modality == "image" else _audio_facts(path)
    facts: Facts = {"file": str(path), "kind": modality, "file_bytes": path.stat().st_size, **size}
    tokenizer = open_tokenizer(model) if model is not None and is_adapted(model) else None
    try:
        coded = tokenizer_facts(str(model), tokenizer) if tokenizer else inspect(find_model(model or modality))
    except ModelError:
        if model is not None:
            raise
        return facts
    if modality not in coded["modalities"]:
        raise ModelError(f"{path}: is {modality}, but model {model} encodes {coded['modalities'][0]}")
    stride = coded.get("strides", {}).get(modality, coded["stride"])
    if modality == "image":
        grid = [math.ceil(size[axis] / stride) for axis in ("height", "width")]
        grid[1] *= coded.get("sequence_length", 1)
    else:
        samples = math.ceil(size["samples"] * coded["sample_rate"] / size["sample_rate"])
        time = tokenizer.num_steps(samples) if tokenizer else math.ceil(samples / stride)
        grid = [time] if size["channels"] == 1 else [size["channels"] // coded.get("channels", 1), time]
    facts["would_become"] = {
        "model": coded["identity"][:16],
        "grid": grid,
        "num_codebooks": coded["num_codebooks"],
        "num_tokens": math.prod(grid) * coded["num_codebooks"],
        "raw_bits": math.prod(grid) * sum(map(math.log2, coded["codebook_sizes"])),
    }
    return facts


def _image_facts(path: Path) -> Facts:
    from vqtok.media.image import image_size

    width, height = image_size(path)
    return {"width": width, "height": height}


def _audio_facts(path: Path) -> Facts:
    from vqtok.media.audio import audio_info

    samples, sample_rate, channels = audio_info(path)
    return {
        "samples": samples,
        "sample_rate": sample_rate,
        "channels": channels,
        "duration_seconds": samples / sample_rate,
    }


def usage(paths: Sequence[str | Path], model: str | None = None) -> Facts:
    """Count the codes of token files and shards, and of those in folders, over all of them.

    Args:
        model: The model that made them; by default a bundled one. Bit-packed files need none.

    Returns:
        `usage`, `perplexity`, `entropy_bits` and `dead_codes` with one entry per codebook, `num_files` (items of shards
        count as files), `num_tokens`, and `counts`: the histogram of each codebook, most frequent code first.
        For tokens of both modalities of a fusion model also `modalities` with these facts of each, and how much they
        have in common, per codebook: `shared_fraction`, of the used codes those that both use, and `divergence_bits`,
        the Jensen-Shannon divergence of their histograms (1 if no code is in both).
    """
    from vqtok.models.token_reader import TokenReader
    from vqtok.tokens.statistics import CodeStatistics, jensen_shannon_bits, shared_fraction

    statistics = CodeStatistics()
    of_modality: defaultdict[str, CodeStatistics] = defaultdict(CodeStatistics)
    reader = TokenReader(model)
    for file in token_files(paths):
        with error_context(file):
            for key in reader.keys(file):
                tokens = reader.read(file, key)
                statistics.add(tokens)
                of_modality[tokens.modality].add(tokens)
    facts = {"kind": "usage", "model": tokens.model.hex(), **_use(statistics)}
    if len(of_modality) == 2:
        both = list(zip(*(each.counts for each in of_modality.values()), strict=True))
        facts["modalities"] = {modality: _use(each) for modality, each in of_modality.items()}
        facts["shared_fraction"] = [shared_fraction(*counts) for counts in both]
        facts["divergence_bits"] = [jensen_shannon_bits(*counts) for counts in both]
    return facts


def _use(statistics: CodeStatistics) -> Facts:
    """Describe how codes are used."""
    return {
        "num_files": statistics.num_files,
        "num_tokens": statistics.num_tokens,
        "codebook_sizes": [count.size for count in statistics.counts],
        "usage": statistics.usage,
        "perplexity": statistics.perplexity,
        "entropy_bits": statistics.entropy_bits,
        "dead_codes": statistics.dead_codes,
        "counts": [sorted(count.tolist(), reverse=True) for count in statistics.counts],
    }
