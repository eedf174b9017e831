"""Decode bare lists of token ids, as a language model has generated them, to media files."""

from __future__ import annotations

import functools
import io
import json
import logging
import re
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqtok.codec.codec import Codec
from vqtok.codec.files import MEDIA_SUFFIX, Codecs, write_media
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import MediaError, UsageError, VqtokError
from vqtok.files.paths import as_path, error_context, read_bytes
from vqtok.inspection import grid_facts
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, failed, skipped
from vqtok.jobs.runner import OnFinished, ignore, is_settled, open_output, run_jobs
from vqtok.models.registry import bundled_models, find_identity
from vqtok.tokens.export.id_words import IdsIn, ids_in_text
from vqtok.tokens.export.mend import Mended, tokens_from_ids

logger = logging.getLogger(__name__)

IDS_COLUMNS = ("input_ids", "ids", "tokens", "token_ids")
"""Names under which JSON lines hold the ids, the likeliest first."""
TEXT_COLUMNS = ("text", "generated_text")
"""Names under which they hold text with words such as `<|image_17|>`."""


class IdList(NamedTuple):
    """The ids of one sequence."""

    key: str
    ids: Sequence[int]
    error: str = ""


def read_ids(path: Path, facts: Mapping[str, Any]) -> list[IdList]:
    """Read lists of ids: `.npy` (one sequence, or one a row), JSON lines, or text with one list a line; - is stdin.

    Ids may be words such as `<|image_17|>`, as a tokenizer with the added tokens decodes them.

    Args:
        facts: Those of the export that the ids are like.

    Raises:
        MediaError: The file cannot be read or has no ids.
    """
    with error_context(path):
        data = read_bytes(path)
        if data.startswith(b"\x93NUMPY"):
            found = list(_arrays(data))
        else:
            lines = data.decode("utf-8-sig", "replace").splitlines()
            ids_in = ids_in_text(facts)
            found = [_parsed(line, number, ids_in) for number, line in enumerate(lines) if line.strip()]
        if not found:
            raise MediaError("has no ids")
        return found


def _arrays(data: bytes) -> Iterator[IdList]:
    try:
        ids = np.load(io.BytesIO(data))
    except ValueError as error:
        raise MediaError(f"is not a readable npy file: {error}") from None
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise MediaError(f"an array of {ids.dtype} and shape {ids.shape}; expected integers, one sequence a row")
    for number, row in enumerate(np.atleast_2d(ids)):
        yield IdList(f"{number:06}", row.tolist())


def _parsed(line: str, number: int, ids_in: IdsIn) -> IdList:
    """Return the ids of a line: a JSON object or list, numbers with anything between them, or words of tokens."""
    key = f"{number:06}"
    if not line.lstrip().startswith(("{", "[")):
        words = re.split(r"[\s,;]+", line.strip())
        wrong = next((word for word in words if not re.fullmatch(r"-?\d+", word)), None)
        if wrong is None:
            return IdList(key, list(map(int, words)))
        ids = ids_in(line)
        return IdList(key, ids, "" if ids else f"{wrong[:40]!r} is neither an id nor a token of the export")
    try:
        value: Any = json.loads(line)
        if isinstance(value, Mapping):
            key = str(value.get("key") or key)
            value = next(value[name] for name in (*IDS_COLUMNS, *TEXT_COLUMNS) if name in value)
        if isinstance(value, str):
            ids = ids_in(value)
            return IdList(key, ids, "" if ids else "its text has no tokens of the export")
        array = np.array(value)
        if array.dtype.kind not in "iu":
            raise ValueError
        return IdList(key, array.ravel().tolist())
    except (ValueError, StopIteration, RecursionError, OverflowError):
        return IdList(key, [], "is not a JSON list of ids, nor an object with input_ids or text")


def decode_ids(
    lists: Sequence[IdList],
    source: Path,
    output: str | None,
    facts: Mapping[str, Any],
    codecs: Codecs,
    *,
    grid: tuple[int, ...] | None = None,
    strict: bool = False,
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Decode lists of ids; yield an outcome for each image and audio found in them, in order.

    What had to be mended is a warning for each item, and `mended` in its facts.

    Args:
        source: The file of the lists, for messages.
        output: A folder, or the name of the file if there is one item.
        facts: Those of the export that the ids are like.
        codecs: With a model, or by default the one that the facts name.
        grid, strict: As for `tokens_from_ids`.

    Raises:
        UsageError: There is no output, or one file for several items.
    """
    if output is None or output == "-":
        raise UsageError("`output`: give a folder for what is decoded")
    target = as_path(output)
    is_file = target.suffix != "" and not target.is_dir() and not output.endswith("/")
    if is_file and len(lists) > 1:
        raise UsageError(f"`output` {output}: {source} has {len(lists)} sequences, which need a folder")

    @functools.cache
    def codec_of(model: bytes, modality: str) -> Codec:
        name = codecs.model or find_identity(model)
        if name is None:
            raise UsageError(f"the model {model.hex()} of the export is not found; set `model` to it")
        own = codecs if name in (codecs.model, *bundled_models()) else Codecs(name, codecs.device, codecs.options)
        return own.get(modality)

    def decode(found: IdList, budget: MemoryBudget) -> list[Outcome]:
        if found.error:
            raise MediaError(found.error)
        outcomes = []
        mended = tokens_from_ids(found.ids, facts, grid=grid, sample_rate=_rate(facts, codec_of), strict=strict)
        for number, item in enumerate(mended):
            name = found.key if len(mended) == 1 else f"{found.key}-{number}"
            path = target if is_file else target / f"{name}{MEDIA_SUFFIX[item.tokens.modality]}"
            outcomes.append(_decoded(Job(source, path, name), item, codec_of, existing))
        return outcomes

    def job_of(found: IdList) -> Job:
        return Job(source, target, found.key)

    for result in run_jobs(lists, job_of, decode, on_finished):
        yield from result if isinstance(result, list) else [result]


def _rate(facts: Mapping[str, Any], codec_of: Any) -> int | None:
    """Return the sample rate of the model of audio among the facts."""
    own = {"model": facts.get("model"), "strides": {facts.get("modality"): 0, **facts.get("strides", {})}}
    models = facts.get("models") or [own]
    for model in models:
        if "audio" in model["strides"]:
            rate: int | None = codec_of(bytes.fromhex(model["model"]), "audio").tokenizer.sample_rate
            return rate
    return None


def _decoded(job: Job, item: Mended, codec_of: Any, existing: Existing) -> Outcome:
    try:
        if is_settled(job, existing, lambda target: target.stat().st_size > 0):
            return skipped(job)
        tokens = item.tokens
        codec = codec_of(tokens.model, tokens.modality)
        if tokens.modality == "audio":
            # So many samples that the model itself makes as many steps of them.
            samples = next(
                (n for n in range(tokens.size[0], 0, -1) if codec.tokenizer.num_steps(n) <= tokens.grid[-1]), 1
            )
            tokens = replace(tokens, size=(samples, *tokens.size[1:]))
        with open_output(job.target) as file:
            write_media(tokens, codec, None, file, job.target)
    except VqtokError as error:
        return failed(job, error if job.name in str(error) else type(error)(f"{job.name}: {error}"))
    if item.notes:
        logger.warning("%s: %s", job.name, "; ".join(item.notes))
    facts = {"file": str(job.source), "kind": "tokens", **grid_facts(tokens)}
    return done(job, facts | {"decoded_codebooks": tokens.num_codebooks, "mended": item.notes})


def parse_grid(text: str | None) -> tuple[int, ...] | None:
    """Parse a grid such as `32x32` (rows and columns) or `750` (time).

    Raises:
        UsageError: It is none.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5})?", text):
        raise UsageError(f"`grid` {text}: give ROWSxCOLUMNS, or the number of steps of audio")
    return tuple(map(int, text.split("x")))
