"""`vqtok merge`, `export` and `convert`."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import Codebooks, FilesOption, Force, Json, Model, ModelOption, Quiet, Verbose, only_local
from vqtok.cli.outcomes import print_outcomes
from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, local_path

if TYPE_CHECKING:
    from vqtok.jobs.export import TokenSource


@command
def merge(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN.vqts", parser=only_local, help="Shards of one model.")],
    output: Annotated[
        Path, FilesOption("-o", "--output", metavar="OUT.vqts", parser=only_local, help="The shard to write.")
    ],
    salvage: Annotated[
        bool, FilesOption("--salvage", help="Keep the intact items of shards that are damaged or cut off.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Merge shards into one, or salvage a damaged one."""
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


SPECIAL = "a number, or auto for the next free one"
IdsOption = functools.partial(typer.Option, rich_help_panel="Token ids")


@command
def export(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", parser=only_local, help="Token files, shards or folders; - is stdin.")
    ],
    to: Annotated[
        Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"], FilesOption("--to", help="The format.")
    ],
    output: Annotated[
        str | None, FilesOption("-o", "--output", metavar="OUT", help="File; - is stdout, for text and jsonl.")
    ] = None,
    layout: Annotated[
        Literal["flat", "coarse-first", "delay", "parallel", "interleave"],
        IdsOption("--layout", help="Order of the token ids: by position, by codebook, or one step of all codebooks."),
    ] = "flat",
    offset: Annotated[int, IdsOption(min=0, metavar="ID", help="Id of the first code.")] = 0,
    shared_vocabulary: Annotated[
        bool, IdsOption("--shared-vocabulary", help="Give the codes of all codebooks the same ids.")
    ] = False,
    begin_token: Annotated[str | None, IdsOption(metavar="ID", help=f"Id before each item: {SPECIAL}.")] = None,
    end_token: Annotated[str | None, IdsOption(metavar="ID", help="Id after each item.")] = None,
    row_token: Annotated[str | None, IdsOption(metavar="ID", help="Id after each row of a grid.")] = None,
    pad_token: Annotated[str | None, IdsOption(metavar="ID", help="Id where a delayed codebook has no code.")] = None,
    template: Annotated[
        str | None,
        IdsOption(metavar="TEXT", help="Text of a code: <|{modality}_{id}|>; also {codebook} and {code}."),
    ] = None,
    model: Model = None,
    codebooks: Codebooks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export token files to train language models on."""
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import exported_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.files.walk import describe_ignored
    from vqtok.jobs.export import find_items, iterate_tokens
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
        say(describe_ignored(ignored))
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
    output: Annotated[str | None, FilesOption("-o", "--output", metavar="OUT", help="File or folder.")] = None,
    model: Annotated[
        str | None, ModelOption("-m", "--model", metavar="MODEL", help="The model that made the codes.")
    ] = None,
    size: Annotated[
        str | None,
        ModelOption(metavar="SIZE", help="Size of media whose files lack it: WIDTHxHEIGHT, or SAMPLES[@HZ]."),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Convert other tools' token files, or token files to arrays."""
    from vqtok.cli.lines import converted_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.jobs.convert import convert_files, plan_conversions

    conversions = plan_conversions(inputs, output, model)
    outcomes = convert_files(conversions, model, size=size, overwrite=force)
    progress = ItemProgress(len(conversions), quiet)
    counted = (outcome for outcome in progress.count(outcomes))
    print_outcomes(counted, converted_line, progress, total=len(conversions), json=json, quiet=quiet)
