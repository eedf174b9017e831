"""`vqtok decode`."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli.command import command
from vqtok.cli.options import (
    ChunkSeconds,
    Codebooks,
    Device,
    FailureFile,
    Force,
    Inputs,
    Jobs,
    Json,
    Model,
    Output,
    Precision,
    Quiet,
    Revision,
    Skip,
    Tile,
    Verbose,
)
from vqtok.cli.outcomes import print_outcomes, refuse_terminal
from vqtok.errors import UsageError, VqtokError
from vqtok.files.paths import STDIO, as_path
from vqtok.jobs.mapping import plan_jobs


@command
def decode(
    inputs: Inputs,
    output: Output = None,
    keys: Annotated[
        list[str] | None, typer.Option("--key", metavar="KEY", help="Only the item of this key in a shard or export.")
    ] = None,
    model: Model = None,
    revision: Revision = None,
    codebooks: Codebooks = None,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Decode what is whole of long files that are damaged.")
    ] = False,
    device: Device = "cpu",
    tile: Tile = 1024,
    chunk_seconds: ChunkSeconds = 10.0,
    precision: Precision = "float32",
    num_jobs: Jobs = None,
    force: Force = False,
    skip_existing: Skip = False,
    failures: FailureFile = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn token files, or the items of shards and of what was exported, back into images and sounds."""
    from vqtok.media.kinds import stem
    from vqtok.models.token_reader import open_items
    from vqtok.tokens.vqt.header import read_header

    opened = functools.lru_cache(maxsize=1)(open_items)

    # What is wrong with an input, its own job will say.
    def items(path: Path) -> Iterable[str] | None:
        if path.suffix.lower() == ".vqt":
            return None
        try:
            found = opened(path)
            return found and (keys or list(found))
        except VqtokError:
            return None

    def suffix(path: Path) -> str:
        if path == STDIO:
            raise UsageError("-: what standard input holds is not known yet; give -o FILE, not a folder")
        try:
            made_of = opened(path) or read_header(path, salvage)
            return ".wav" if made_of.modality == "audio" else ".png"
        except (VqtokError, OSError):
            return ".png"

    if keys and not (len(inputs) == 1 and (items(inputs[0]) or not inputs[0].exists())):
        raise UsageError("--key chooses items of a shard or export; give one shard or export")
    if keys and len(keys) == 1 and output is None:
        output = str(inputs[0].with_name(Path(stem(keys[0])).name + suffix(inputs[0])))
    jobs = plan_jobs(
        inputs,
        output,
        suffix=suffix,
        accepts=lambda path: path.suffix.lower() in (".vqt", ".vqts"),
        what=".vqt or .vqts files",
        items=items,
        stem=stem,
    )
    if STDIO in inputs or output == "-":
        refuse_terminal(jobs, json)
    from vqtok.cli.lines import decoded_line
    from vqtok.codec.files import Codecs
    from vqtok.codec.options import CodecOptions
    from vqtok.compute.device import choose_device
    from vqtok.jobs.decode import decode_files
    from vqtok.jobs.failures import failures_beside
    from vqtok.jobs.job import Existing
    from vqtok.models.hub import at_revision

    model = at_revision(model, revision)
    codecs = Codecs(model, str(choose_device(device)), CodecOptions(tile, chunk_seconds, precision, num_jobs))
    existing = Existing(overwrite=force, skip=skip_existing)
    outcomes = decode_files(jobs, codecs, num_codebooks=codebooks, salvage=salvage, existing=existing)
    manifest = as_path(failures) if failures else failures_beside(output, len(jobs))
    print_outcomes(outcomes, len(jobs), decoded_line, manifest, json=json, quiet=quiet)
