"""`vqtok encode`."""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vqtok.cli.command import command
from vqtok.cli.options import (
    INPUTS,
    ChunkSeconds,
    Codebooks,
    CodingOption,
    Device,
    FailureFile,
    FileList,
    Force,
    Jobs,
    Json,
    Model,
    NumTasks,
    Output,
    Precision,
    Quiet,
    Revision,
    Shard,
    SharesOption,
    Skip,
    TaskIndex,
    Tile,
    Verbose,
)
from vqtok.cli.outcomes import print_outcomes, refuse_terminal
from vqtok.errors import UsageError
from vqtok.files.paths import as_path

ColumnsOption = functools.partial(typer.Option, rich_help_panel="Rows and columns")
BeforeOption = functools.partial(typer.Option, rich_help_panel="Before encoding")
RateOption = functools.partial(typer.Option, rich_help_panel="Rate control")


@command
def encode(
    inputs: Annotated[list[Path] | None, INPUTS] = None,
    output: Output = None,
    filelist: FileList = None,
    num_tasks: NumTasks = None,
    task_index: TaskIndex = None,
    model: Model = None,
    revision: Revision = None,
    codebooks: Codebooks = None,
    shard: Shard = None,
    columns: Annotated[
        str | None,
        ColumnsOption("--columns", metavar="A,B", help="Keep these columns of rows, lists and sidecars; default: all."),
    ] = None,
    media_column: Annotated[
        str | None,
        ColumnsOption("--media-column", metavar="NAME", help="The column (in tars the suffix) that holds the media."),
    ] = None,
    key_column: Annotated[
        str | None,
        ColumnsOption("--key-column", metavar="NAME", help="The column with the key; default: key, else row numbers."),
    ] = None,
    label_folders: Annotated[
        bool, ColumnsOption("--label-folders", help="Keep the name of the folder of an item as its column label.")
    ] = False,
    resize: Annotated[
        int | None, BeforeOption("--resize", metavar="PIXELS", help="Scale the shorter side of images to this.")
    ] = None,
    crop: Annotated[
        int | None, BeforeOption("--crop", metavar="PIXELS", help="Keep a square of this side at the center.")
    ] = None,
    max_pixels: Annotated[
        int | None, BeforeOption("--max-pixels", metavar="N", help="Scale larger images down to N pixels.")
    ] = None,
    min_pixels: Annotated[
        int | None, BeforeOption("--min-pixels", metavar="N", help="Leave out images of fewer pixels.")
    ] = None,
    flip: Annotated[
        Literal["none", "horizontal", "both"],
        BeforeOption("--flip", help="Flip images; both makes a second item of each."),
    ] = "none",
    max_seconds: Annotated[
        float | None, BeforeOption("--max-seconds", metavar="S", help="Cut audio off after this time.")
    ] = None,
    segment_seconds: Annotated[
        float | None, BeforeOption("--segment-seconds", metavar="S", help="Cut audio into items of this length.")
    ] = None,
    rows_per_file: Annotated[
        int | None,
        ColumnsOption("--rows-per-file", min=1, metavar="N", help="Items in each file of -o X.parquet and X.tar."),
    ] = None,
    mono: Annotated[bool, CodingOption("--mono", help="Mix audio channels down to one.")] = False,
    coder: Annotated[
        str, CodingOption(metavar="NAME", help="Entropy coder: auto (the smallest), prior, static or packed.")
    ] = "auto",
    effort: Annotated[
        int,
        CodingOption("--effort", min=1, metavar="N", help="Follow N paths through the codebooks: less error, slower."),
    ] = 1,
    target_psnr: Annotated[
        float | None,
        RateOption("--target-psnr", metavar="DB", help="The fewest codebooks that reach this PSNR, for each image."),
    ] = None,
    target_ssimulacra2: Annotated[
        float | None, RateOption("--target-ssimulacra2", metavar="X", help="The fewest that reach this SSIMULACRA2.")
    ] = None,
    target_stoi: Annotated[
        float | None, RateOption("--target-stoi", metavar="X", help="The fewest that reach this STOI, for audio.")
    ] = None,
    max_bytes: Annotated[
        str | None, RateOption("--max-bytes", metavar="SIZE", help="The most that fit into SIZE bytes, such as 4k.")
    ] = None,
    target_bpp: Annotated[
        float | None, RateOption("--target-bpp", metavar="X", help="The most that fit into X bits per pixel.")
    ] = None,
    target_kbps: Annotated[
        float | None, RateOption("--target-kbps", metavar="X", help="The most that fit into X kbps, for audio.")
    ] = None,
    max_megapixels: Annotated[
        float | None,
        CodingOption(
            "--max-megapixels", min=0.000001, metavar="N", help="Refuse larger images; default: 89, as Pillow does."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], SharesOption("--engine", help="Run in this process, or on a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        SharesOption("--ray-address", metavar="ADDRESS", help="A running cluster, or auto; default: start one."),
    ] = None,
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
    """Encode images and audio to token files.

    IN may also be data sets: WebDataset tars, Parquet tables, zip archives, patterns of these such as
    'train-{0000..0099}.tar', and hf-dataset:ORG/NAME.
    """
    from vqtok.jobs.planning import plan_encoding
    from vqtok.media.transforms import Transforms
    from vqtok.rows.row import ColumnChoice, describe_limit

    quality = {"psnr": target_psnr, "ssimulacra2": target_ssimulacra2, "stoi": target_stoi}
    rate = {"bpp": target_bpp, "kbps": target_kbps}
    has_target = max_bytes is not None or any(value is not None for value in (quality | rate).values())
    if has_target and shard is not None:
        raise UsageError("a shard has one number of codebooks for all items: give --codebooks N instead of a target")
    on_cluster = engine == "ray"
    transforms = Transforms(
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resize=resize,
        crop=crop,
        flip=flip,
        max_seconds=max_seconds,
        segment_seconds=segment_seconds,
    )
    if has_target and (transforms != Transforms() or (output or "").lower().endswith((".parquet", ".tar"))):
        raise UsageError("targets of rate and quality are for token files of media as they are")
    choice = ColumnChoice(
        None if columns is None else [name for name in columns.split(",") if name],
        label_folders=label_folders,
        media=media_column,
        key=key_column,
    )
    work = plan_encoding(
        inputs or [],
        output,
        shard=shard,
        filelist=filelist,
        num_tasks=num_tasks,
        task_index=task_index,
        on_cluster=on_cluster,
        choice=choice,
        transforms=transforms,
        rows_per_file=rows_per_file,
    )
    refuse_terminal(work.only_jobs, json)  # Only one output can go to stdout.
    from vqtok.cli.console import say, stdout_for_json
    from vqtok.cli.lines import encoded_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.codec.files import Codecs
    from vqtok.codec.options import CodecOptions
    from vqtok.codec.rate_control import Target, parse_bytes
    from vqtok.compute.device import choose_device
    from vqtok.jobs.encode import encode_files
    from vqtok.jobs.job import Existing
    from vqtok.jobs.shards import encode_shards
    from vqtok.jobs.tables import encode_table
    from vqtok.media.image import set_max_pixels
    from vqtok.models.hub import at_revision
    from vqtok.tokens.coding.coders import chosen_coder

    largest = None if max_megapixels is None else round(1e6 * max_megapixels)
    if largest:
        set_max_pixels(largest)
    if work.share and not quiet:
        say(work.share)
    if work.is_of_rows and not quiet:
        say(f"columns: {columns or 'all'}, {describe_limit()}")
    model = at_revision(model, revision)
    how: dict[str, Any] = {
        "num_codebooks": codebooks,
        "mono": mono,
        "coder": chosen_coder(coder),
        "columns": work.columns,
        "existing": Existing(overwrite=force, skip=skip_existing),
    }
    target = None
    if has_target:
        target = Target(
            {name: value for name, value in quality.items() if value is not None},
            None if max_bytes is None else parse_bytes(max_bytes),
            {name: value for name, value in rate.items() if value is not None},
        )
        target.check()
    options = CodecOptions(tile, chunk_seconds, precision, effort, num_jobs)
    progress = ItemProgress(work.total, quiet)
    if on_cluster:
        from vqtok.jobs.ray_cluster import encode_on_ray

        outcomes = encode_on_ray(
            work.shards_on_cluster,
            model,
            address=ray_address,
            device=device,
            options=options,
            max_pixels=max_pixels,
            **how,
        )
    else:
        codecs, how["on_finished"] = Codecs(model, str(choose_device(device)), options), progress.finish
        if work.table is not None:
            del how["coder"]
            outcomes = encode_table(work.jobs, work.table, codecs, **how)
        else:
            outcomes = (
                encode_files(work.jobs, codecs, target=target, **how)
                if shard is None
                else encode_shards(work.shards, codecs, **how)
            )

    def at_end() -> None:
        if choice.not_found:
            logging.getLogger("vqtok").warning("no item has a column %s", ", ".join(choice.not_found))
        if work.is_of_torchrun:
            from vqtok.compute.distributed import barrier

            barrier()

    with stdout_for_json() if on_cluster else nullcontext():
        print_outcomes(
            outcomes,
            encoded_line,
            progress,
            total=work.total,
            manifest=as_path(failures) if failures else work.failures,
            ignored=work.ignored,
            json=json,
            quiet=quiet,
            at_end=at_end,
        )
