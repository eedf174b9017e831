"""`vqtok merge`, `export` and `convert`."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import FilesOption, Force, Json, ModelOption, Quiet, Verbose, only_local
from vqtok.cli.outcomes import print_outcomes
from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, local_path

if TYPE_CHECKING:
    from vqtok.jobs.token_sources import TokenSource


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
RowsOption = functools.partial(typer.Option, rich_help_panel="Rows and columns")


@command
def export(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", parser=only_local, help="Token files, shards or folders; - is stdin.")
    ],
    to: Annotated[
        Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"] | None, FilesOption("--to", help="The format.")
    ] = None,
    output: Annotated[
        str | None,
        FilesOption("-o", "--output", metavar="OUT", help="File or folder; - is stdout, for text and jsonl."),
    ] = None,
    layout: Annotated[
        Literal["flat", "coarse-first", "delay", "parallel", "interleave"],
        IdsOption("--layout", help="Order of the token ids: by position, by codebook, or one step of all codebooks."),
    ] = "flat",
    offset: Annotated[
        int | None, IdsOption(min=0, metavar="ID", help="Id of the first code; default: 0, or after the text.")
    ] = None,
    shared_vocabulary: Annotated[
        bool, IdsOption("--shared-vocabulary", help="Give the codes of all codebooks the same ids.")
    ] = False,
    begin_token: Annotated[str | None, IdsOption(metavar="ID", help=f"Id before each item or row: {SPECIAL}.")] = None,
    end_token: Annotated[str | None, IdsOption(metavar="ID", help="Id after each item or row.")] = None,
    row_token: Annotated[str | None, IdsOption(metavar="ID", help="Id after each row of a grid.")] = None,
    pad_token: Annotated[str | None, IdsOption(metavar="ID", help="Id where a delayed codebook has no code.")] = None,
    template: Annotated[
        str | None,
        IdsOption(metavar="TEXT", help="Text of a code: <|{modality}_{id}|>; also {codebook} and {code}."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        RowsOption("--tokenizer", metavar="NAME", help="Tokenizer of captions: a folder of transformers, or bytes."),
    ] = None,
    row: Annotated[
        list[str] | None,
        RowsOption("--row", metavar="TEMPLATE", help="What a row is: {caption}{image}; repeatable, with =WEIGHT."),
    ] = None,
    special_tokens: Annotated[
        str | None,
        RowsOption("--special-tokens", metavar="A,B", help="Some of image,audio,text,row,size; default: image,audio."),
    ] = None,
    split: Annotated[
        str | None, RowsOption("--split", metavar="SPLITS", help="Such as train=0.98,validation=0.02, by the keys.")
    ] = None,
    shuffle: Annotated[int | None, RowsOption("--shuffle", metavar="SEED", help="Shuffle the rows.")] = None,
    pack: Annotated[
        int | None, RowsOption("--pack", metavar="N", help="Fill sequences of N ids whole, for parquet and jsonl.")
    ] = None,
    rows_per_file: Annotated[
        int | None, RowsOption("--rows-per-file", metavar="N", help="Write several files, each of N rows.")
    ] = None,
    extended: Annotated[
        str | None,
        RowsOption(
            "--extend-tokenizer", metavar="NAME", help="Only write this tokenizer with all tokens added, to -o DIR."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        ModelOption(
            "-m", "--model", metavar="MODEL", help="A model that made the tokens; default: bundled. Repeatable."
        ),
    ] = None,
    codebooks: Annotated[
        str | None,
        ModelOption("--codebooks", metavar="N", help="Use the first N codebooks only; or image=N,audio=N."),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Export token files to train language models on.

    Tokens of several models, or of one with any option of the panel "Rows and columns", become rows in one vocabulary:
    text, then the codes of each model, then special tokens.
    """
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import exported_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.files.walk import describe_ignored
    from vqtok.jobs.export import plan_export

    options = {
        "layout": layout,
        "offset": offset,
        "shared_vocabulary": shared_vocabulary,
        "begin_token": begin_token,
        "end_token": end_token,
        "row_token": row_token,
        "pad_token": pad_token,
        "template": template,
        "tokenizer": tokenizer,
        "row": row or None,
        "special_tokens": None if special_tokens is None else [name for name in special_tokens.split(",") if name],
        "split": split,
        "shuffle": shuffle,
        "pack": pack,
        "rows_per_file": rows_per_file,
    }
    if extended is not None:
        _extend_tokenizer(inputs, output, extended, codebooks, options, force, json, quiet)
        return
    if to is None:
        raise UsageError("Missing option '--to': npy, bin, megatron, jsonl, parquet or text")
    if output is None and to != "text":
        raise UsageError(f"--to {to}: give -o FILE")
    target = STDIO if output is None else local_path(output)
    if json and target == STDIO:
        raise UsageError("-o -: stdout cannot take both the tokens and --json")
    ignored = Counter[str]()
    planned = plan_export(inputs, output or "-", to, codebooks, ignored=ignored, **options)
    failed = 0

    def on_error(item: TokenSource, error: VqtokError) -> None:
        nonlocal failed
        failed += 1
        print_error(str(error))
        if json:
            print_json(item.facts() | {"error": str(error), "exit_code": error.exit_code})

    with ItemProgress(planned.num_items, quiet or target == STDIO) as progress:
        facts = planned.run(
            model=tuple(model) if model else None,
            overwrite=force,
            on_error=on_error if planned.num_items > 1 else None,
            on_item=progress.finish,
        )
    facts |= {"failed": failed} | ({"ignored": dict(ignored)} if ignored else {})
    if ignored and not quiet:
        say(describe_ignored(ignored))
    if json:
        print_json(facts)
    elif not quiet and target != STDIO:
        say(exported_line(facts))
        for what, count in facts.get("skipped", {}).items():
            say(f"skipped {count} rows {what}")
    if failed:
        raise typer.Exit(1)


def _extend_tokenizer(
    inputs: list[Path],
    output: str | None,
    tokenizer: str,
    codebooks: str | None,
    options: dict[str, Any],
    force: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Write a tokenizer with the tokens of an export."""
    from vqtok.cli.console import print_json, say
    from vqtok.jobs.mixture import find_rows, parse_codebooks, write_extended_tokenizer
    from vqtok.jobs.mixture_files import MixtureOptions

    if output is None:
        raise UsageError("--extend-tokenizer: give -o DIR for the new tokenizer")
    names = ("layout", "offset", "special_tokens", "begin_token", "end_token")
    given = {name: options[name] for name in names if options[name] is not None}
    facts = write_extended_tokenizer(
        find_rows(inputs),
        output,
        MixtureOptions("parquet", tokenizer=tokenizer, **given),
        parse_codebooks(codebooks),
        overwrite=force,
    )
    first, last = facts["new_embedding_rows"]
    if json:
        print_json(facts)
    elif not quiet:
        say(f"{output}: {facts['embedding_rows']} tokens; new rows of the embedding: {first} to {last}")


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
