"""`vqtok train` and `vqtok import`."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import (
    Device,
    FilesOption,
    Force,
    Json,
    MessagesOption,
    NewModel,
    Quiet,
    Tokenizers,
    Verbose,
    only_local,
)
from vqtok.compute.torchrun import is_secondary
from vqtok.errors import UsageError

RunOption = functools.partial(typer.Option, rich_help_panel="Training")


@command
def train(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="IN",
            parser=only_local,
            help="Folder of images or audio, searched recursively; for a generator token files, shards and folders.",
        ),
    ],
    output: NewModel,
    preset: Annotated[
        str | None,
        RunOption(
            metavar="NAME",
            help="image, audio, fusion, digits, image-gan, audio-gan, restore-image, restore-audio, generator, or a "
            "TOML file.",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        RunOption(min=0.01, metavar="N", help="Time for the whole command, instead of the steps of the preset."),
    ] = None,
    steps: Annotated[int | None, RunOption(min=1, metavar="N", help="Number of training steps.")] = None,
    settings: Annotated[
        list[str] | None,
        RunOption("--set", metavar="PATH=VALUE", help="Change a setting of the preset; repeatable."),
    ] = None,
    init: Annotated[
        str | None,
        RunOption(metavar="MODEL", help="Fine-tune this model: start from its architecture, weights and codebooks."),
    ] = None,
    prior_only: Annotated[
        bool, RunOption("--prior-only", help="Fit only the prior of --init MODEL; codes stay the same.")
    ] = False,
    tokenizers: Tokenizers = None,
    resume: Annotated[bool, RunOption("--resume", help="Continue from the last checkpoint.")] = False,
    tensorboard: Annotated[
        bool, MessagesOption("--tensorboard", help="Also write TensorBoard files to the run folder.")
    ] = False,
    device: Device = "auto",
    seed: Annotated[int, RunOption(metavar="N", help="Seed of weights, crops and prefixes.")] = 0,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a tokenizer on a folder of images or audio, or a generator on tokens."""
    began = time.monotonic()
    if _is_for_generator(inputs, preset, init):
        if init or prior_only or tensorboard:
            raise UsageError("--init, --prior-only and --tensorboard are for tokenizers, not for a generator")
        _train_generator(
            inputs,
            output,
            preset,
            settings,
            tokenizers,
            steps,
            minutes,
            resume,
            force,
            device,
            seed,
            began,
            json,
            quiet,
        )
        return
    if len(inputs) > 1 or tokenizers:
        raise UsageError("a tokenizer is trained on one folder; several inputs and --tokenizer are for a generator")
    (folder,) = inputs
    from vqtok.cli.progress import TrainingDisplay

    if prior_only and (init is None or resume or preset or steps or minutes):
        raise UsageError("--prior-only needs --init, and no --preset, --steps, --minutes or --resume")
    try:
        with TrainingDisplay(quiet) as display:
            display.stage("loading PyTorch")
            from vqtok.training.train import train as run_training
            from vqtok.training.train import train_prior

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
                    began=began,
                    on_stage=display.stage,
                    on_start=display.start,
                    on_step=display.step,
                    on_progress=display.progress,
                    on_evaluate=display.evaluate,
                    on_prior=display.prior,
                )
    except KeyboardInterrupt:
        _print_stopped(inputs, output)
        raise
    _show_model(result.model, json, quiet)


def _is_for_generator(inputs: Sequence[Path], preset: str | None, init: str | None) -> bool:
    """Return whether a generator is to be trained: its preset is given, or none is and the inputs are tokens."""
    if preset:
        from vqtok.generation.config import is_generator_preset

        return is_generator_preset(preset)
    from vqtok.tokens.find import holds_tokens

    return init is None and any(map(holds_tokens, inputs))


def _train_generator(
    inputs: Sequence[Path],
    output: Path,
    preset: str | None,
    settings: Sequence[str] | None,
    tokenizers: Sequence[str] | None,
    steps: int | None,
    minutes: float | None,
    resume: bool,
    force: bool,
    device: str,
    seed: int,
    began: float,
    json: bool,
    quiet: bool,
) -> None:
    from vqtok.cli.progress import GeneratorDisplay

    try:
        with GeneratorDisplay(quiet) as display:
            display.stage("loading PyTorch")
            from vqtok.generation.train import train_generator

            result = train_generator(
                inputs,
                output,
                preset=preset,
                settings=settings or (),
                tokenizers=tokenizers or (),
                steps=steps,
                minutes=minutes,
                resume=resume,
                force=force,
                device=device,
                seed=seed,
                began=began,
                on_stage=display.stage,
                on_start=display.start_generator,
                on_step=display.step,
                on_progress=display.generator_progress,
            )
    except KeyboardInterrupt:
        _print_stopped(inputs, output)
        raise
    _show_model(result.model, json, quiet)


def _print_stopped(inputs: Sequence[Path], output: Path) -> None:
    names = " ".join(map(str, inputs))
    print_error(f"stopped; the same command with --resume continues, with --force starts over: {names} -> {output}")


def _show_model(model: Path, json: bool, quiet: bool) -> None:
    """Describe a new model, in the first of several processes."""
    from vqtok.cli.console import print_json
    from vqtok.cli.tables import show_facts
    from vqtok.inspection import inspect

    if json and not is_secondary():
        print_json(inspect(model))
    elif not quiet:
        show_facts(inspect(model))


@command
def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", parser=only_local, help="A .ckpt, .pt, .jit or .safetensors file.")
    ],
    output: Annotated[
        Path,
        FilesOption("-o", "--output", metavar="MODEL", parser=only_local, help="The model file or folder to write."),
    ],
    config: Annotated[
        Path | None, FilesOption(metavar="YAML", parser=only_local, help="The config of the checkpoint.")
    ] = None,
    family: Annotated[
        str | None,
        FilesOption(
            metavar="NAME",
            help="vqgan, gumbel, llamagen, magvit2, ibq, dac, wavtokenizer, speechtokenizer, bigcodec, neucodec, "
            "cosmos, titok or var; default: detect it.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        FilesOption(metavar="MODEL", help="For neucodec its speech model, such as hf:facebook/w2v-bert-2.0."),
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Import a checkpoint of another project as a model."""
    from vqtok.models.importers import import_checkpoint as run_import

    imported = run_import(checkpoint, output, config=config, family=family, base=base, force=force)
    _show_model(imported.model, json, quiet)
