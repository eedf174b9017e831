"""`vqtok inspect` and `vqtok models`."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import Json, Model, Quiet, Verbose, only_local
from vqtok.errors import UsageError, VqtokError

ITEMS_SHOWN = 10
"""Items of a shard that are listed without --items."""


@command
def inspect(
    inputs: Annotated[
        list[str], typer.Argument(metavar="FILE|DIR|MODEL", help="Files, folders of token files, or models.")
    ],
    model: Model = None,
    usage: Annotated[
        bool, typer.Option("--usage", help="Show how the codes of all token files use the codebooks.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="PNG", parser=only_local, help="Draw --usage to this image.")
    ] = None,
    items: Annotated[bool, typer.Option("--items", help="List all items of shards.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Describe token files, shards, models, images and audio."""
    from vqtok.cli.console import print_json, say
    from vqtok.cli.tables import plot_usage, show_facts, show_files, show_usage
    from vqtok.files.walk import describe_ignored
    from vqtok.inspection import inspect as inspect_file
    from vqtok.inspection import usage as count_usage
    from vqtok.jobs.job import error_facts
    from vqtok.models.registry import is_adapted
    from vqtok.tokens.find import token_files

    if plot is not None and not usage:
        raise UsageError("--plot draws what --usage counts; give both")
    if usage:
        facts = count_usage(inputs, model)
        if plot is not None:
            plot_usage(facts, plot)
        print_json(facts) if json else show_usage(facts)
        return
    exit_codes = []
    for name in inputs:
        is_folder = Path(name).is_dir() and not is_adapted(name)
        found, ignored = [], Counter[str]()
        for file in token_files([name], ignored) if is_folder else [name]:
            try:
                facts = inspect_file(file, model)
            except VqtokError as error:
                print_error(str(error))
                exit_codes.append(error.exit_code)
                facts = {"file": str(file)} | error_facts(error)
            if json:
                print_json(facts)
            elif "error" in facts:
                continue
            elif is_folder:
                found.append(facts)
            else:
                show_facts(facts)
            if facts.get("kind") == "shard":
                _show_items(file, facts, all_of_them=items, as_json=json, none=is_folder and not items)
        if found:
            show_files(found)
        if ignored and not quiet:
            say(describe_ignored(ignored))
    if exit_codes:
        raise typer.Exit(exit_codes[0] if len(inputs) == 1 and not is_folder else 1)


def _show_items(file: str | Path, facts: dict[str, Any], *, all_of_them: bool, as_json: bool, none: bool) -> None:
    from vqtok.cli.console import print_json, say
    from vqtok.cli.tables import show_item
    from vqtok.inspection import shard_items

    if none or (as_json and not all_of_them):
        return
    for item in islice(shard_items(file), None if all_of_them else ITEMS_SHOWN):
        print_json(item) if as_json else show_item(item)
    if not all_of_them and facts["num_items"] > ITEMS_SHOWN:
        say(f"  and {facts['num_items'] - ITEMS_SHOWN} more; --items lists all")


@command
def models(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List available models."""
    from vqtok.cli.console import print_json
    from vqtok.cli.tables import show_models
    from vqtok.models.catalogue import list_models

    if json:
        for facts in list_models():
            print_json(facts)
    else:
        show_models(list_models())
