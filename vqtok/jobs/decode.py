"""Decode many token files."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Mapping, Sequence

from vqtok.codec.files import Codecs, _decode_tokens, _load_tokens, _losses
from vqtok.codec.threads import Room
from vqtok.errors import MediaError
from vqtok.files.paths import STDIO, read_bytes
from vqtok.inspection import grid_facts, losses, token_facts
from vqtok.jobs.encode import BYTES_PER_PIXEL
from vqtok.jobs.job import REFUSED, Existing, Job, Outcome
from vqtok.jobs.runner import _at_once, _named, _output, _settled, _skipped
from vqtok.models.token_reader import open_items
from vqtok.tokens.tokens import Tokens


def decode_files(
    jobs: Sequence[Job],
    codecs: Codecs,
    *,
    num_codebooks: int | None = None,
    salvage: bool = False,
    existing: Existing = REFUSED,
) -> Generator[Outcome, None, None]:
    """Decode token files, and items of shards and exports, to media files; an outcome a job, in order.

    Args:
        salvage: Also decode what is whole of damaged token files; the outcome has the output and an error both.
    """
    opened = functools.lru_cache(maxsize=1)(functools.partial(open_items, model=codecs.model))

    def decode(job: Job, room: Room) -> Outcome:
        # Outputs are written atomically, so one that exists is whole.
        if _settled(job, existing, lambda target: target.stat().st_size > 0):
            return _skipped(job)
        error = None
        items = opened(job.source)
        if items is None:
            data = read_bytes(job.source)
            codec, tokens, parts = _load_tokens(data, codecs, num_codebooks, salvage)
            facts = token_facts(job.source, parts.header)
            if parts.damage:
                error = MediaError(f"{job.name}: {_losses(parts)} in {'stdout' if job.target == STDIO else job.target}")
                facts |= losses(*parts[:2]) | {"error": str(error), "exit_code": error.exit_code}
        else:
            tokens = _item(items, job.key)
            codec = codecs.get(tokens.modality)
            facts = _named(job) | {"kind": "tokens"} | grid_facts(tokens)
        pixels = math.prod(tokens.size) if tokens.modality == "image" else 0
        with room.take(BYTES_PER_PIXEL * pixels), _output(job.target) as file:
            _decode_tokens(tokens, codec, num_codebooks, file, job.target)
        used = num_codebooks or tokens.num_codebooks
        return Outcome(job, facts | {"output": str(job.target), "decoded_codebooks": used}, error)

    return _at_once(jobs, lambda job: job, decode)


def _item(items: Mapping[str, Tokens], key: str | None) -> Tokens:
    try:
        # Without a key its keys could not be listed before, and listing them says why.
        return items[list(items)[-1] if key is None else key]
    except KeyError:
        raise MediaError("holds no item of this key; of a shard, vqtok inspect --items lists all") from None
