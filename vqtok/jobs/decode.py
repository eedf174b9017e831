"""Decode many token files, and the items of shards and exports, to media files."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence

from vqtok.codec.files import Codecs, describe_losses, load_tokens, write_media
from vqtok.codec.threads import MemoryBudget
from vqtok.errors import MediaError
from vqtok.files.paths import STDIO, read_bytes
from vqtok.inspection import grid_facts, losses, token_facts
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome, done, skipped
from vqtok.jobs.runner import BYTES_PER_PIXEL, OnFinished, ignore, is_settled, open_output, run_jobs
from vqtok.models.token_reader import open_items
from vqtok.tokens.tokens import Tokens
from vqtok.tokens.vqt.header import Parts


def decode_files(
    jobs: Sequence[Job],
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    salvage: bool = False,
    conceal: Callable[[Tokens, Parts], Tokens] | None = None,
    subtype: str | None = None,
    existing: Existing = REFUSED,
    on_finished: OnFinished = ignore,
) -> Generator[Outcome, None, None]:
    """Decode token files, and items of shards and exports; yield an outcome per job, in order.

    Args:
        salvage: Also decode the intact parts of damaged token files; the outcome then has both output and error.
        conceal: Fills in what a damaged file has lost, given its tokens and its intact parts.
        subtype: How samples of audio are stored, as `write_media` takes it.
    """
    opened = functools.lru_cache(maxsize=1)(functools.partial(open_items, model=codecs.model))

    def decode(job: Job, budget: MemoryBudget) -> Outcome:
        # Outputs are written atomically, so an existing one is complete.
        if is_settled(job, existing, lambda target: target.stat().st_size > 0):
            return skipped(job)
        error = None
        items = opened(job.source)
        if items is None:
            codec, tokens, parts = load_tokens(
                read_bytes(job.source), codecs, num_codebooks, salvage, beside=job.source.parent
            )
            facts = token_facts(job.source, parts.header)
            facts["decoded_bytes"] = parts.header.bytes_of(num_codebooks)
            if parts.whole_codebooks is not None:
                facts |= {"whole_codebooks": parts.whole_codebooks, "decoded_bytes": parts.header.file_bytes}
            if parts.damage:
                filled = conceal(tokens, parts) if conceal else tokens
                is_filled, tokens = filled is not tokens, filled  # It returns the same tokens if it changes none.
                target = "stdout" if job.target == STDIO else job.target
                error = MediaError(f"{job.name}: {describe_losses(parts, is_filled)} in {target}")
                facts |= losses(parts.header, parts.starts) | ({"filled": True} if is_filled else {})
        else:
            tokens = _item(items, job.key)
            codec = codecs.get(tokens.modality)
            facts = job.facts() | {"kind": "tokens"} | grid_facts(tokens)
        if tokens.model != codec.tokenizer.identity[:8]:
            facts["decoder"] = codec.tokenizer.identity[:8].hex()
        count = min(num_codebooks or tokens.num_codebooks, tokens.num_codebooks)
        facts["decoded_codebooks"] = count
        num_pixels = math.prod(tokens.size) if tokens.modality == "image" else 0
        with budget.reserve(BYTES_PER_PIXEL * num_pixels), open_output(job.target) as file:
            write_media(tokens, codec, count, file, job.target, subtype)
        return done(job, facts, error)

    return run_jobs(jobs, lambda job: job, decode, on_finished)


def _item(items: Mapping[str, Tokens], key: str | None) -> Tokens:
    try:
        # No key means that the keys could not be listed when the work was planned; listing them now raises the reason.
        return items[list(items)[-1] if key is None else key]
    except KeyError:
        raise MediaError("contains no item with this key; vqtok inspect --items lists the keys of a shard") from None
