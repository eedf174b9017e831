"""Arguments and options that several verbs share, in the panels of the help."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import typer

from vqtok.errors import UsageError
from vqtok.files.paths import as_path, local_path


def any_path(name: str) -> Path:
    """Parse a local or remote path."""
    try:
        return as_path(name)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def only_local(name: str) -> Path:
    """Parse a path that must be local."""
    try:
        return local_path(name)
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


FilesOption = functools.partial(typer.Option, rich_help_panel="Input and output")
ModelOption = functools.partial(typer.Option, rich_help_panel="Model")
CodingOption = functools.partial(typer.Option, rich_help_panel="Coding")
SharesOption = functools.partial(typer.Option, rich_help_panel="Large runs")
SpeedOption = functools.partial(typer.Option, rich_help_panel="Performance")
MessagesOption = functools.partial(typer.Option, rich_help_panel="Messages")

INPUTS = typer.Argument(metavar="IN", parser=any_path, help="Files or folders; - is stdin.")
Inputs = Annotated[list[Path], INPUTS]
Output = Annotated[str | None, FilesOption("-o", "--output", metavar="OUT", help="File, folder, or - for stdout.")]
Shard = Annotated[
    str | None,
    FilesOption("--shard", metavar="OUT.vqts", help="Write one file for all items; into DIR/, one for each task."),
]
FileList = Annotated[
    Path | None,
    FilesOption(
        "--filelist",
        metavar="FILE",
        help="Encode the listed files, one per line or NUL-terminated; - is stdin. IN is then their folder.",
    ),
]
NumTasks = Annotated[
    int | None,
    SharesOption("--num-tasks", min=1, metavar="N", help="Split the work into N parts; default: as Slurm or torchrun."),
]
TaskIndex = Annotated[int | None, SharesOption("--task-index", min=0, metavar="I", help="Do part I, counted from 0.")]
FailureFile = Annotated[
    str | None,
    SharesOption("--failures", metavar="FILE", help="Write failures to this JSON-lines file; default: in the output."),
]
Model = Annotated[
    str | None,
    ModelOption(
        "-m", "--model", metavar="MODEL", help="Model file, folder or name (see vqtok models); default: bundled."
    ),
]
Revision = Annotated[
    str | None, ModelOption("--revision", metavar="REV", help="Branch, tag or commit of a model hf:ORG/NAME.")
]
Tokenizers = Annotated[
    list[str] | None,
    ModelOption(
        "--tokenizer",
        metavar="MODEL",
        help="A model that made the tokens; default: found by its identity. Repeatable.",
    ),
]
NewModel = Annotated[
    Path, FilesOption("-o", "--output", metavar="MODEL", parser=only_local, help="The model file to write.")
]
Codebooks = Annotated[
    int | None, ModelOption("--codebooks", min=1, metavar="N", help="Use the first N codebooks only.")
]
Device = Annotated[str, SpeedOption(metavar="NAME", help="auto, cpu, cuda or mps.")]
Tile = Annotated[
    int, SpeedOption(min=1, metavar="PIXELS", help="Side of the image part that the network computes at once.")
]
ChunkSeconds = Annotated[float, SpeedOption(min=0.01, metavar="S", help="Seconds of audio held in memory at once.")]
Precision = Annotated[
    Literal["float32", "tf32", "bfloat16"],
    SpeedOption(help="Precision of the network; tf32 (GPUs) and bfloat16 change some codes."),
]
Jobs = Annotated[int | None, SpeedOption("--jobs", min=1, metavar="N", help="Processor cores to use; default: all.")]
Force = Annotated[bool, FilesOption("--force", help="Overwrite existing outputs.")]
Skip = Annotated[bool, FilesOption("--skip-existing", help="Keep existing outputs that are complete and current.")]
Json = Annotated[bool, MessagesOption("--json", help="Print JSON lines on stdout.")]
Quiet = Annotated[bool, MessagesOption("-q", "--quiet", help="Print errors only.")]
Verbose = Annotated[bool, MessagesOption("-v", "--verbose", help="Print more details.")]
