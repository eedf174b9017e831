"""The command line application and its verbs, in the order in which `vqtok --help` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vqtok.cli.decode import decode
from vqtok.cli.encode import encode
from vqtok.cli.inspect import inspect, models
from vqtok.cli.tokens import convert, export, merge
from vqtok.cli.train import import_checkpoint, train

app = typer.Typer(
    name="vqtok",
    help="Train vector-quantised tokenizers on images or sound, and turn media into compact token files and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from vqtok import __version__

        typer.echo(f"vqtok {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


VERBS: dict[str, Callable[..., None]] = {
    "train": train,
    "import": import_checkpoint,
    "encode": encode,
    "decode": decode,
    "merge": merge,
    "export": export,
    "convert": convert,
    "inspect": inspect,
    "models": models,
}
for name, verb in VERBS.items():
    app.command(name)(verb)
