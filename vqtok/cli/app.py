"""The command line application and its verbs, in the order in which `vqtok --help` lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from vqtok.cli.command import PanelCommand
from vqtok.cli.decode import decode
from vqtok.cli.encode import encode
from vqtok.cli.evaluate import evaluate
from vqtok.cli.generate import generate
from vqtok.cli.help import show_topic
from vqtok.cli.inspect import inspect, models
from vqtok.cli.publish import publish
from vqtok.cli.tokens import convert, export, merge
from vqtok.cli.train import import_checkpoint, train

app = typer.Typer(
    name="vqtok",
    help="Train vector-quantized tokenizers on images or audio, and turn media into compact token files and back.",
    epilog="vqtok VERB --help describes a verb, vqtok help TOPIC a topic (vqtok help lists them).",
    no_args_is_help=True,
    add_completion=True,
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


VERBS: dict[str, tuple[Callable[..., None], str]] = {
    "train": (train, "vqtok train photos/ -o mine.safetensors --minutes 60"),
    "import": (import_checkpoint, "vqtok import last.ckpt --config model.yaml -o imported.safetensors"),
    "encode": (encode, "vqtok encode photos/ -o tokens/"),
    "decode": (decode, "vqtok decode tokens/ -o media/"),
    "generate": (generate, 'vqtok generate -m generator.safetensors --text "seven" -n 16 -o out/'),
    "merge": (merge, "vqtok merge a.vqts b.vqts -o all.vqts"),
    "export": (export, "vqtok export tokens/ --to parquet -o train.parquet"),
    "convert": (convert, "vqtok convert codes.npy --model image --size 640x480 -o photo.vqt"),
    "evaluate": (evaluate, "vqtok evaluate photos/ --against jpeg,webp -o report/"),
    "inspect": (inspect, "vqtok inspect --usage tokens/"),
    "publish": (publish, "vqtok publish mine.safetensors -o mine/ --license apache-2.0"),
    "models": (models, "vqtok models"),
    "help": (show_topic, "vqtok help training"),
}
"""Each verb and an example of it."""
for name, (verb, example) in VERBS.items():
    app.command(name, cls=PanelCommand, epilog=f"Example: {example}")(verb)
