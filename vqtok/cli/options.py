"""Arguments and options that several verbs share."""

from __future__ import annotations

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


INPUTS = typer.Argument(metavar="IN", parser=any_path, help="Files or folders; - is stdin.")
Inputs = Annotated[list[Path], INPUTS]
Output = Annotated[str | None, typer.Option("-o", "--output", metavar="OUT", help="File, folder, or - for stdout.")]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="OUT.vqts", help="Write all to one file instead; to DIR/: one a task."),
]
FileList = Annotated[
    Path | None,
    typer.Option(
        "--filelist", metavar="FILE", help="Files to encode, one a line or ended by NUL; - is stdin. IN: their folder."
    ),
]
NumTasks = Annotated[
    int | None,
    typer.Option("--num-tasks", min=1, metavar="N", help="Divide the work into N parts; default: Slurm's, torchrun's."),
]
TaskIndex = Annotated[int | None, typer.Option("--task-index", min=0, metavar="I", help="Do part I, from 0.")]
FailureFile = Annotated[
    str | None,
    typer.Option("--failures", metavar="FILE", help="Where failures are noted; default: beside several outputs."),
]
Model = Annotated[
    str | None,
    typer.Option("-m", "--model", metavar="MODEL", help="File, folder or name (see vqtok models); else a bundled one."),
]
Revision = Annotated[
    str | None, typer.Option("--revision", metavar="REV", help="Branch, tag or commit of a model hf:ORG/NAME.")
]
NewModel = Annotated[
    Path, typer.Option("-o", "--output", metavar="MODEL", parser=only_local, help="The model file to write.")
]
Codebooks = Annotated[int | None, typer.Option("--codebooks", min=1, metavar="N", help="Only the first N codebooks.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or mps.")]
Tile = Annotated[int, typer.Option(min=1, metavar="PIXELS", help="Side of the part of an image computed at once.")]
ChunkSeconds = Annotated[float, typer.Option(min=0.01, metavar="S", help="Seconds of sound held at once.")]
Precision = Annotated[
    Literal["float32", "tf32", "bfloat16"],
    typer.Option(help="What the network computes in; tf32 (GPUs) and bfloat16 change some codes."),
]
Jobs = Annotated[int | None, typer.Option("--jobs", min=1, metavar="N", help="Processor cores to use; default: all.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Skip = Annotated[bool, typer.Option("--skip-existing", help="Keep whole outputs of the same model.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines on stdout.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="More of what happens.")]
