"""`vqtok merge`, `export` and `convert`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import Codebooks, Force, Json, Model, Quiet, Verbose, only_local
from vqtok.cli.outcomes import print_outcomes
from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, local_path

if TYPE_CHECKING:
    from vqtok.jobs.export import TokenSource


@command
def merge(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN.vqts", parser=only_local, help="Shards of one model.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.vqts", parser=only_local, help="The shard to write.")
    ],
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Take what is whole of shards that are damaged or cut off.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join shards into one, or salvage a damaged one."""
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import merged_line
    from vqtok.tokens.shard.writer import merge as merge_shards

    merged = merge_shards(inputs, output, salvage=salvage, overwrite=force)
    for loss in merged.losses:
        print_error(str(loss))
    if json:
        losses = [loss._asdict() for loss in merged.losses]
        print_json({"output": str(output), "num_items": merged.num_items, "losses": losses})
    elif not quiet:
        say(merged_line(output, merged))
    if merged.losses:
        raise typer.Exit(1)


SPECIAL = "ID, auto (the next behind the codes) or none"


@command
def export(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", parser=only_local, help="Token files, shards or folders; - is stdin.")
    ],
    to: Annotated[
        Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"], typer.Option("--to", help="The kind of file.")
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="OUT", help="File; - is stdout, for text and jsonl.")
    ] = None,
    layout: Annotated[
        Literal["flat", "coarse-first", "delay", "parallel"],
        typer.Option("--layout", help="By position, by codebook, or a step of all codebooks for each position."),
    ] = "flat",
    offset: Annotated[int, typer.Option(min=0, metavar="ID", help="Id of the first code.")] = 0,
    shared_vocabulary: Annotated[
        bool, typer.Option("--shared-vocabulary", help="The codes of all codebooks have the same ids.")
    ] = False,
    begin_token: Annotated[str | None, typer.Option(metavar="ID", help=f"Before each item: {SPECIAL}.")] = None,
    end_token: Annotated[str | None, typer.Option(metavar="ID", help="After each item.")] = None,
    row_token: Annotated[str | None, typer.Option(metavar="ID", help="After each row of a grid.")] = None,
    pad_token: Annotated[str | None, typer.Option(metavar="ID", help="Where a delayed codebook pauses.")] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of a code in text: <|{modality}_{id}|>; also {codebook}, {code}."),
    ] = None,
    model: Model = None,
    codebooks: Codebooks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write token files and shards to one file for a trainer of language models."""
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import exported_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.files.walk import describe_ignored
    from vqtok.jobs.export import find_items, iterate_tokens
    from vqtok.jobs.planning import TOKEN_FILES
    from vqtok.tokens.export.export import write_export
    from vqtok.tokens.export.options import ExportOptions

    if output is None and to != "text":
        raise UsageError(f"--to {to}: give -o FILE")
    if output is not None and output.endswith("/"):
        raise UsageError(f"-o {output}: is a folder; give the name of a new file")
    target = STDIO if output is None else local_path(output)
    if json and target == STDIO:
        raise UsageError("-o -: stdout cannot take both the tokens and --json")
    recipe = ExportOptions(
        to=to,
        layout=layout,
        offset=offset,
        shared_vocabulary=shared_vocabulary,
        begin_token=begin_token,
        end_token=end_token,
        row_token=row_token,
        pad_token=pad_token,
        template=template,
    )
    ignored = Counter[str]()
    found = find_items(inputs, ignored)
    failed = 0

    def on_error(item: TokenSource, error: VqtokError) -> None:
        nonlocal failed
        failed += 1
        print_error(str(error))
        if json:
            print_json(item.facts() | {"error": str(error), "exit_code": error.exit_code})

    with ItemProgress(len(found), quiet or target == STDIO) as progress:
        turns = iterate_tokens(progress.count(found), model, codebooks, on_error if len(found) > 1 else None)
        facts = write_export(turns, target, recipe, overwrite=force) | {"failed": failed}
    facts |= {"ignored": dict(ignored)} if ignored else {}
    if ignored and not quiet:
        say(describe_ignored(ignored, TOKEN_FILES))
    if json:
        print_json(facts)
    elif not quiet and target != STDIO:
        say(exported_line(facts))
    if failed:
        raise typer.Exit(1)


@command
def convert(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN", parser=only_local, help=".ecdc, .dac, .npy or .jsonl to .vqt; .vqt or a shard to .npy."
        ),
    ],
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="OUT", help="File or folder.")] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="MODEL", help="The model that made the codes.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Where codes come without: WIDTHxHEIGHT, or SAMPLES[@HZ].")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn other tools' token files into token files, and token files into arrays."""
    from vqtok.cli.lines import converted_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.jobs.convert import convert_files, plan_conversions

    conversions = plan_conversions(inputs, output, model)
    outcomes = convert_files(conversions, model, size=size, overwrite=force)
    progress = ItemProgress(len(conversions), quiet)
    counted = (outcome for outcome in progress.count(outcomes))
    print_outcomes(counted, converted_line, progress, total=len(conversions), json=json, quiet=quiet)
