"""`vqtok decode`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vqtok.cli.command import command
from vqtok.cli.options import (
    INPUTS,
    ChunkSeconds,
    Codebooks,
    Device,
    FailureFile,
    FilesOption,
    Force,
    Jobs,
    Json,
    Model,
    Output,
    Precision,
    Quiet,
    Revision,
    Skip,
    Tile,
    Verbose,
    any_path,
    only_local,
)
from vqtok.cli.outcomes import print_outcomes, refuse_terminal
from vqtok.errors import UsageError
from vqtok.files.paths import as_path

if TYPE_CHECKING:
    from vqtok.tokens.tokens import Tokens
    from vqtok.tokens.vqt.header import Parts


IdsOption = functools.partial(typer.Option, rich_help_panel="Token ids")


@command
def decode(
    inputs: Annotated[list[Path] | None, INPUTS] = None,
    output: Output = None,
    keys: Annotated[
        list[str] | None,
        FilesOption("--key", metavar="KEY", help="Decode only this item of a shard or export; repeatable."),
    ] = None,
    model: Model = None,
    revision: Revision = None,
    codebooks: Codebooks = None,
    salvage: Annotated[bool, FilesOption("--salvage", help="Decode the intact parts of damaged files.")] = False,
    fill: Annotated[
        Path | None,
        FilesOption(
            "--fill",
            metavar="GENERATOR",
            parser=only_local,
            help="With --salvage, fill in what is lost by a generator.",
        ),
    ] = None,
    subtype: Annotated[
        Literal["pcm_16", "pcm_24", "pcm_32", "float"] | None,
        FilesOption("--subtype", help="How samples of audio are stored; default: as in the original, where known."),
    ] = None,
    ids: Annotated[
        Path | None,
        IdsOption(
            "--ids",
            metavar="FILE",
            parser=any_path,
            help="Decode ids or words of tokens: text, JSONL or npy; - is stdin.",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        IdsOption("--like", metavar="EXPORT", parser=only_local, help="The export, or its JSON file, with their ids."),
    ] = None,
    grid: Annotated[
        str | None, IdsOption("--grid", metavar="ROWSxCOLUMNS", help="Grid of what does not tell its own; or steps.")
    ] = None,
    strict: Annotated[
        bool, IdsOption("--strict", help="Refuse what is cut off or out of place instead of mending it.")
    ] = False,
    device: Device = "cpu",
    tile: Tile = 1024,
    chunk_seconds: ChunkSeconds = 10.0,
    precision: Precision = "float32",
    num_jobs: Jobs = None,
    force: Force = False,
    skip_existing: Skip = False,
    failures: FailureFile = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decode token files, shards and exports to images and audio; with --ids what a language model has generated."""
    if fill and not salvage:
        raise UsageError("--fill needs --salvage, without which damaged files are refused")
    if ids is None and not inputs:
        raise UsageError("Missing argument 'IN': files, folders, or --ids")
    if (ids is None) != (like is None) or (ids is not None and inputs):
        raise UsageError("--ids FILE and --like EXPORT go together, without other inputs")
    from vqtok.jobs.planning import plan_decoding

    work = plan_decoding(inputs or [], output, keys=keys or (), salvage=salvage) if ids is None else None
    if work and work.total == 1:  # Only one output can go to stdout.
        refuse_terminal(work.files, json)
    from vqtok.cli.lines import decoded_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.codec.files import Codecs
    from vqtok.codec.options import CodecOptions
    from vqtok.compute.device import choose_device
    from vqtok.jobs.decode import decode_files
    from vqtok.jobs.failures import failures_beside
    from vqtok.jobs.job import Existing
    from vqtok.models.hub import at_revision

    model = at_revision(model, revision)
    codecs = Codecs(model, str(choose_device(device)), CodecOptions(tile, chunk_seconds, precision, jobs=num_jobs))
    existing = Existing(overwrite=force, skip=skip_existing)
    if work is None:
        assert ids is not None
        assert like is not None
        from vqtok.jobs.decode_ids import decode_ids, parse_grid, read_ids
        from vqtok.tokens.export.mend import facts_of

        facts = facts_of(like)
        lists = read_ids(ids, facts)
        progress = ItemProgress(len(lists), quiet)
        print_outcomes(
            decode_ids(
                lists,
                ids,
                output,
                facts,
                codecs,
                grid=parse_grid(grid),
                strict=strict,
                existing=existing,
                on_finished=progress.finish,
            ),
            decoded_line,
            progress,
            total=len(lists),
            manifest=as_path(failures) if failures else failures_beside(output, len(lists)),
            json=json,
            quiet=quiet,
        )
        return
    progress = ItemProgress(work.total, quiet)
    outcomes = decode_files(
        work.files,
        codecs,
        num_codebooks=codebooks,
        salvage=salvage,
        conceal=_conceal(fill, model),
        subtype=subtype.upper() if subtype else None,
        existing=existing,
        on_finished=progress.finish,
    )
    print_outcomes(
        outcomes,
        decoded_line,
        progress,
        total=work.total,
        manifest=as_path(failures) if failures else work.failures,
        ignored=work.ignored,
        json=json,
        quiet=quiet,
    )


def _conceal(generator: Path | None, model: str | None) -> Callable[[Tokens, Parts], Tokens] | None:
    """Return the function that fills in what damaged files have lost, if a generator is given."""
    if generator is None:
        return None
    from vqtok.generation.generate import Generation

    return Generation(generator, [model] if model else ()).conceal
