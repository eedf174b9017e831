"""`vqtok help`: the documentation that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli.command import command
from vqtok.cli.options import Quiet, Verbose
from vqtok.errors import UsageError

PACKAGE = Path(__file__).parent.parent
TOPICS = {
    "bundled": ("bundled/README.md", "the bundled models: what they are, how they were trained, how good they are"),
    "training": ("presets/README.md", "presets, settings, alarms, fine-tuning, discriminators"),
    "evaluation": ("evaluation/README.md", "comparing tokenizers and classical codecs, metrics, reports"),
    "generation": ("generation/README.md", "generators: new images and audio from tokens, captions, repair"),
    "models": ("models/README.md", "models of other libraries and of your own, importing checkpoints"),
    "large-runs": ("jobs/README.md", "folders of millions, Slurm, torchrun, Ray, remote files"),
    "export": ("tokens/export/README.md", "formats and layouts for training language models"),
    "format": ("tokens/FORMAT.md", "the specification of token files and shards"),
}


@command
def show_topic(
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help=", ".join(TOPICS))] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show the documentation of a topic, or list the topics."""
    from vqtok.cli.console import out

    if topic is None:
        for name, (_, summary) in TOPICS.items():
            out.print(f"{name:12}{summary}", soft_wrap=True, markup=False)
        return
    if topic not in TOPICS:
        raise UsageError(f"no topic {topic!r}; there are {', '.join(TOPICS)}")
    text = (PACKAGE / TOPICS[topic][0]).read_text(encoding="utf-8")
    if not out.is_terminal:
        out.file.write(text)
        return
    from rich.markdown import Markdown

    with out.pager(styles=True):
        out.print(Markdown(text))
