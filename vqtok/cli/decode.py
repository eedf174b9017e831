"""`vqtok decode`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vqtok.cli.command import command
from vqtok.cli.options import (
    ChunkSeconds,
    Codebooks,
    Device,
    FailureFile,
    FilesOption,
    Force,
    Inputs,
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
    only_local,
)
from vqtok.cli.outcomes import print_outcomes, refuse_terminal
from vqtok.errors import UsageError
from vqtok.files.paths import as_path

if TYPE_CHECKING:
    from vqtok.tokens.tokens import Tokens
    from vqtok.tokens.vqt.header import Parts


@command
def decode(
    inputs: Inputs,
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
    """Decode token files, shards and exports to images and audio."""
    if fill and not salvage:
        raise UsageError("--fill needs --salvage, without which damaged files are refused")
    from vqtok.jobs.planning import plan_decoding

    work = plan_decoding(inputs, output, keys=keys or (), salvage=salvage)
    if work.total == 1:  # Only one output can go to stdout.
        refuse_terminal(work.jobs, json)
    from vqtok.cli.lines import decoded_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.codec.files import Codecs
    from vqtok.codec.options import CodecOptions
    from vqtok.compute.device import choose_device
    from vqtok.jobs.decode import decode_files
    from vqtok.jobs.job import Existing
    from vqtok.models.hub import at_revision

    model = at_revision(model, revision)
    codecs = Codecs(model, str(choose_device(device)), CodecOptions(tile, chunk_seconds, precision, num_jobs))
    existing = Existing(overwrite=force, skip=skip_existing)
    progress = ItemProgress(work.total, quiet)
    outcomes = decode_files(
        work.jobs,
        codecs,
        num_codebooks=codebooks,
        salvage=salvage,
        conceal=_conceal(fill, model),
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
