"""`vqtok inspect` and `vqtok models`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import Json, Model, Quiet, Verbose
from vqtok.errors import UsageError, VqtokError

ITEMS_SHOWN = 10
"""Of a shard, unless all are asked for."""


@command
def inspect(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE|DIR|MODEL", help="What to look at.")],
    model: Model = None,
    usage: Annotated[bool, typer.Option("--usage", help="Count the codes of all the token files.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw --usage as a picture.")] = None,
    items: Annotated[bool, typer.Option("--items", help="List all items of shards.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what token files, shards, models, images or sounds are."""
    from vqtok.cli.console import print_json, say
    from vqtok.cli.tables import plot_usage, show_facts, show_item, show_usage
    from vqtok.inspection import inspect as inspect_file
    from vqtok.inspection import shard_items
    from vqtok.inspection import usage as count_usage
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
    exit_code = 0
    files: list[str] = []
    for name in inputs:
        files += map(str, token_files([name])) if Path(name).is_dir() and not is_adapted(name) else [name]
    for name in files:
        try:
            facts = inspect_file(name, model)
        except VqtokError as error:
            print_error(str(error))
            exit_code = error.exit_code if len(files) == 1 else 1
            facts = {"file": name, "error": str(error), "exit_code": error.exit_code}
        if json:
            print_json(facts)
        elif "error" not in facts:
            show_facts(facts)
        if facts.get("kind") == "shard":
            listed = shard_items(name) if items else () if json else islice(shard_items(name), ITEMS_SHOWN)
            for item in listed:
                print_json(item) if json else show_item(item)
            if not json and not items and facts["num_items"] > ITEMS_SHOWN:
                say(f"  and {facts['num_items'] - ITEMS_SHOWN} more; --items lists all")
    if exit_code:
        raise typer.Exit(exit_code)


@command
def models(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List the models that go by name: bundled, in the Hugging Face cache, of packages, on the Hub."""
    from vqtok.cli.console import print_json
    from vqtok.cli.tables import show_models
    from vqtok.models.catalogue import list_models

    if json:
        for facts in list_models():
            print_json(facts)
    else:
        show_models(list_models())
