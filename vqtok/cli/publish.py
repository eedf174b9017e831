"""`vqtok publish`."""

from __future__ import annotations

from typing import Annotated

import typer

from vqtok.cli.command import command
from vqtok.cli.options import FilesOption, Force, Json, Quiet, Verbose


@command
def publish(
    source: Annotated[
        str, typer.Argument(metavar="IN", help="A model, an export, shards, or a folder of exports or shards.")
    ],
    output: Annotated[
        str, FilesOption("-o", "--output", metavar="OUT", help="A new folder, or hf:ORG/NAME to upload it.")
    ],
    license: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Such as apache-2.0 or cc-by-4.0, for the card.")
    ] = None,
    data_license: Annotated[
        str | None, typer.Option("--data-license", metavar="TEXT", help="The licence of the data, in words.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a model, an export or shards with a card, in the form of the Hugging Face Hub."""
    from vqtok.cli.console import print_json, say
    from vqtok.jobs.publish import publish as publish_source

    facts = publish_source(source, output, license=license, data_license=data_license, overwrite=force, private=private)
    if json:
        print_json(facts)
    elif not quiet:
        say(f"{source} -> {output}: {facts['kind']}, {', '.join(facts['files'])}")
