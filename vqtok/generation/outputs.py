"""Generate into files: plan the outputs, sample in batches, write, and report each as an outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.errors import UsageError, VqtokError
from vqtok.files.atomic import atomic_write, make_folder
from vqtok.files.paths import as_path
from vqtok.generation.generate import BATCH, Generation
from vqtok.generation.media import contact_sheet, to_tokens
from vqtok.generation.sampling import SamplingOptions
from vqtok.generation.streams import StreamName, text_of
from vqtok.jobs.job import Existing, Job, Outcome, done, failed, skipped
from vqtok.jobs.mapping import plan_jobs
from vqtok.media.audio import write_audio
from vqtok.media.image import write_image
from vqtok.media.kinds import modality_of
from vqtok.media.media import Media
from vqtok.models.card import read_generator_card
from vqtok.tokens.vqt.file import dump
from vqtok.tokens.vqt.header import read_header

Codes = NDArray[np.integer[Any]]

SUFFIXES: dict[str, str] = {"image": ".png", "audio": ".wav", "text": ".txt"}
SHEET_NAME = "contact-sheet.png"
NOWHERE = Path()
"""The target of a caption that is only reported."""


@dataclass(frozen=True)
class Request:
    """What to generate, and where to write it."""

    job: Job
    """Its source is the file that is given, `NOWHERE` if there is none."""
    seed: int


@dataclass(frozen=True)
class Plan:
    """All that is to be generated."""

    to: StreamName
    requests: Sequence[Request]
    folder: Path | None = None
    """The folder of several outputs."""
    text: str | None = None
    via: StreamName | None = None
    """What is generated first, as a further condition."""
    mask: Path | None = None
    replace: tuple[float, float] | None = None
    extend: float | None = None
    size: tuple[int, ...] = ()
    """The size of new media: `(width, height)`, or `(samples, sample_rate)`; by default that of the training media."""
    options: SamplingOptions | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def plan_requests(
    generator: Path,
    sources: Sequence[Path],
    output: str | None,
    count: int,
    seed: int,
    *,
    to: str | None = None,
    text: str | None = None,
    via: str | None = None,
    as_tokens: bool = False,
    edits: bool = False,
) -> tuple[StreamName, list[Request], Path | None]:
    """Decide what is generated and the output of each: the stream, the requests, and the folder of several outputs.

    Args:
        edits: Whether the sources are repaired, so that the outputs are of their own modality.

    Raises:
        UsageError: The generator does not know what is asked for, or the output is missing or does not fit.
        ModelError: The generator cannot be read.
    """
    streams: list[StreamName] = [stream["name"] for stream in read_generator_card(generator).streams]
    given = {_kind(path) for path in sources} | ({"text"} if text is not None else set()) | {via}
    target: str
    if edits:
        target = next((name for name in streams if name in given), streams[0])
    else:
        target = to or next((name for name in streams if name not in given), streams[0])
    if target not in streams:
        raise UsageError(f"{generator}: was not trained on {target}; it generates {', '.join(streams)}")
    name: StreamName = next(stream for stream in streams if stream == target)
    suffix = ".vqt" if as_tokens else SUFFIXES[name]
    if as_tokens and name == "text":
        raise UsageError("--tokens: a caption has no token file")
    seeds = range(seed, seed + count)
    is_only_shown = name == "text" and output is None
    if not sources:
        if is_only_shown:
            return name, [Request(Job(NOWHERE, NOWHERE), s) for s in seeds], None
        if output is None:
            raise UsageError("-o FILE, or -o DIR/ for several, says where to write")
        if count == 1 and not output.endswith("/") and not as_path(output).is_dir():
            return name, [Request(Job(NOWHERE, as_path(output)), seed)], None
        folder = as_path(output)
        return name, [Request(Job(NOWHERE, folder / f"{s - seed + 1:04d}{suffix}"), s) for s in seeds], folder

    def accepts(path: Path) -> bool:
        found = modality_of(path)
        return path.suffix == ".vqt" or (found in streams and (edits or found != name))

    planned = "captions/" if is_only_shown else output
    jobs = plan_jobs(sources, planned, suffix=suffix, accepts=accepts, what="media or token files")
    if is_only_shown:
        return name, [Request(Job(job.source, NOWHERE), s) for job in jobs for s in seeds], None
    several = as_path(output) if output and len(jobs) * count > 1 else None
    if count == 1:
        return name, [Request(job, seed) for job in jobs], several
    numbered = [
        Request(dataclasses.replace(job, target=job.target.with_stem(f"{job.target.stem}-{s - seed + 1:04d}")), s)
        for job in jobs
        for s in seeds
    ]
    return name, numbered, several


def _kind(path: Path) -> str | None:
    """Return the modality of a source; None for a folder, or a file that cannot be used, as its job will report."""
    if path.suffix.lower() == ".vqt":
        with suppress(VqtokError, OSError):
            return read_header(path).modality
    return "text" if path.suffix.lower() == ".txt" else modality_of(path)


def run(
    session: Generation, plan: Plan, existing: Existing, on_finished: Callable[[Outcome], None]
) -> Generator[Outcome, None, None]:
    """Generate all that is planned; yield an outcome for each, in order. A source that cannot be used fails alone."""
    shown: list[Media] = []
    for start in range(0, len(plan.requests), BATCH):
        for outcome, result in _run_batch(session, plan, plan.requests[start : start + BATCH], existing):
            if isinstance(result, Media) and result.modality == "image":
                shown.append(result)
            on_finished(outcome)
            yield outcome
    if plan.folder and len(shown) > 1:
        write_image(contact_sheet(shown, max(1, round(len(shown) ** 0.5))), plan.folder / SHEET_NAME)


def _run_batch(
    session: Generation, plan: Plan, requests: Sequence[Request], existing: Existing
) -> Iterator[tuple[Outcome, Media | str | None]]:
    outcomes: dict[int, Outcome] = {}
    conditions: dict[int, dict[StreamName, Codes]] = {}
    for index, request in enumerate(requests):
        job = request.job
        try:
            if job.target != NOWHERE and existing.check(job.target):
                outcomes[index] = skipped(job)
            elif not _edits(plan):
                conditions[index] = _condition(session, plan, job.source)
        except VqtokError as error:
            outcomes[index] = failed(job, error)
    found: dict[int, Codes] = {}
    for group in _alike(conditions):
        seeds, given = [requests[index].seed for index in group], [conditions[index] for index in group]
        if plan.via is not None:
            given = session.chain(plan.via, given, seeds)
            conditions |= zip(group, given, strict=True)
        sampled = session.sample(plan.to, given, seeds, plan.options, _grid(session, plan))
        found |= dict(zip(group, sampled, strict=True))
    for index, request in enumerate(requests):
        if index in outcomes:
            yield outcomes[index], None
            continue
        try:
            if _edits(plan):
                result: Media | str = _edit(session, plan, request)
            else:
                result = session.media(plan.to, found[index], plan.size)
            facts = _write(session, plan, request, result, found.get(index))
            if plan.via == "text":
                facts["caption"] = text_of(conditions[index]["text"])
            is_written = request.job.target != NOWHERE
            yield done(request.job, facts) if is_written else Outcome(request.job, facts), result
        except VqtokError as error:
            yield failed(request.job, error), None


def _edits(plan: Plan) -> bool:
    return plan.mask is not None or plan.replace is not None or plan.extend is not None


def _condition(session: Generation, plan: Plan, source: Path) -> dict[StreamName, Codes]:
    condition = {} if plan.text is None else session.text_condition(plan.text)
    return condition if source == NOWHERE else condition | session.condition(source)


def _alike(conditions: dict[int, dict[StreamName, Codes]]) -> list[list[int]]:
    """Group conditions of the same streams and grids, which can be sampled together."""
    groups: dict[Any, list[int]] = {}
    for index, condition in conditions.items():
        groups.setdefault(tuple((name, codes.shape) for name, codes in condition.items()), []).append(index)
    return list(groups.values())


def _grid(session: Generation, plan: Plan) -> tuple[int, ...]:
    """Return the grid of media of the planned size; empty for the default."""
    if not plan.size:
        return ()
    stream = session.stream(plan.to)
    if plan.to == "image":
        return tuple(-(-length // stream.stride) for length in reversed(plan.size))
    samples, sample_rate = plan.size
    tokenizer = session.codec(stream).tokenizer
    return (tokenizer.num_steps(-(-samples * (tokenizer.sample_rate or 1) // sample_rate)),)


def _edit(session: Generation, plan: Plan, request: Request) -> Media:
    source, seed = request.job.source, request.seed
    if plan.mask is not None:
        return session.inpaint(source, plan.mask, seed, plan.options)
    if plan.replace is not None:
        return session.replace(source, *plan.replace, seed, plan.options)
    return session.extend(source, plan.extend or 0.0, seed, plan.options)


def _write(
    session: Generation, plan: Plan, request: Request, result: Media | str, codes: Codes | None
) -> dict[str, Any]:
    """Write a result, and return what `--json` prints of it."""
    target = request.job.target
    facts = {"kind": "generated", "modality": plan.to, "seed": request.seed}
    if request.job.source != NOWHERE:
        facts["file"] = str(request.job.source)
    if plan.text is not None:
        facts["text"] = plan.text
    if target != NOWHERE:
        make_folder(target.parent)
    if isinstance(result, str):
        if target != NOWHERE:
            atomic_write(target, f"{result}\n".encode())
        return facts | {"caption": result}
    if target.suffix.lower() == ".vqt":
        stream = session.stream(plan.to)
        if codes is None:
            tokens = session.tokens(result)
        else:
            tokens = to_tokens(codes, stream, session.tokenizers, plan.size, plan.metadata | {"seed": request.seed})
        atomic_write(target, dump(tokens, session.codec(stream).tokenizer.entropy_model))
    elif result.modality == "image":
        write_image(result, target)
    else:
        write_audio(result, target)
    if result.modality == "image":
        return facts | {"width": result.data.shape[2], "height": result.data.shape[1]}
    channels, samples = result.data.shape
    rate = result.sample_rate or 1
    return facts | {"duration_seconds": samples / rate, "sample_rate": rate, "channels": channels}
