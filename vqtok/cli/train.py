"""`vqtok train` and `vqtok import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli.command import IS_SECONDARY_RANK, command, print_error
from vqtok.cli.options import Device, Force, Json, NewModel, Quiet, Verbose, only_local
from vqtok.errors import UsageError


@command
def train(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", parser=only_local, help="Images or sounds, searched recursively.")
    ],
    output: NewModel,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="image, audio, digits, or a TOML file.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.01, metavar="N", help="Length of the run.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="N", help="Length of the run.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change one setting of the preset."),
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Start from this model: its architecture, weights, codebooks.")
    ] = None,
    prior_only: Annotated[
        bool, typer.Option("--prior-only", help="Only fit the prior of --init MODEL anew; its codes stay the same.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write TensorBoard files to the run folder, too.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, crops and prefixes.")] = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on a folder of images or sounds."""
    from vqtok.cli.console import print_json
    from vqtok.cli.progress import TrainingDisplay
    from vqtok.cli.tables import show_facts
    from vqtok.inspection import inspect as inspect_model
    from vqtok.training.train import train as run_training
    from vqtok.training.train import train_prior

    if prior_only and (init is None or resume or preset or steps or minutes):
        raise UsageError("--prior-only needs --init, and no --preset, --steps, --minutes or --resume")
    try:
        with TrainingDisplay(quiet) as display:
            if prior_only:
                assert init
                result = train_prior(
                    folder,
                    output,
                    init,
                    settings=settings or (),
                    force=force,
                    seed=seed,
                    on_prior=display.prior,
                )
            else:
                result = run_training(
                    folder,
                    output,
                    preset=preset,
                    settings=settings or (),
                    init=init,
                    steps=steps,
                    minutes=minutes,
                    resume=resume,
                    force=force,
                    tensorboard=tensorboard,
                    device=device,
                    seed=seed,
                    on_start=display.start,
                    on_progress=display.progress,
                    on_evaluate=display.evaluate,
                    on_prior=display.prior,
                )
    except KeyboardInterrupt:
        print_error(f"stopped; go on with the same command and --resume (--force starts over): {folder} -> {output}")
        raise
    facts = inspect_model(result.model)
    if json and not IS_SECONDARY_RANK:
        print_json(facts)
    elif not quiet:
        show_facts(facts)


@command
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", parser=only_local, help="A .ckpt, .pt or .safetensors file.")
    ],
    output: NewModel,
    config: Annotated[
        Path | None, typer.Option(metavar="YAML", parser=only_local, help="The config that belongs to it.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="vqgan, gumbel, llamagen, magvit2 or ibq, if not by itself.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn a checkpoint of another project into a model."""
    from vqtok.cli.console import print_json
    from vqtok.cli.tables import show_facts
    from vqtok.inspection import inspect as inspect_model
    from vqtok.models.importers import import_checkpoint as run_import

    facts = inspect_model(run_import(checkpoint, output, config=config, family=family, force=force).model)
    if json:
        print_json(facts)
    elif not quiet:
        show_facts(facts)
