"""The command line: parse, call one library function, print."""

from __future__ import annotations

import functools
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from vqtok.errors import UsageError, VqtokError
from vqtok.files import STDIO, Job, plan_jobs
from vqtok.remote import as_path

if TYPE_CHECKING:
    from vqtok.dataset import Item
    from vqtok.transcode import Outcome

INTERRUPTED = 130
FOLLOWER = os.environ.get("RANK", "0") != "0"
"""Whether torchrun started this process to train with another, which does the talking."""
ITEMS_SHOWN = 10
"""Of a shard, unless all are asked for."""

app = typer.Typer(
    name="vqtok",
    help="Train vector-quantised tokenizers on images or sound, and turn media into compact token files and back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INPUTS = typer.Argument(metavar="IN", parser=as_path, help="Files or folders; - is stdin.")
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
NewModel = Annotated[Path, typer.Option("-o", "--output", metavar="MODEL", help="The model file to write.")]
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

Command = TypeVar("Command", bound=Callable[..., None])


def command(function: Command) -> Command:
    """Register a verb whose errors become one line and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> None:
        quiet = quiet or FOLLOWER
        try:
            _start_logging(quiet, verbose)
            function(*args, quiet=quiet, verbose=verbose, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            _complain("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of stdout went away; so that Python does not complain at exit, nothing more is flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("VQTOK_DEBUG"):
                raise
            if isinstance(error, VqtokError):
                _complain(str(error))
                raise typer.Exit(error.exit_code) from None
            if isinstance(error, OSError):
                _complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            else:
                _complain(f"unexpected {type(error).__name__}, VQTOK_DEBUG=1 shows where: {error}")
            raise typer.Exit(1) from None

    app.command(function.__name__.removesuffix("_checkpoint"))(run)  # `import` is a word of Python
    return function


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


@command
def train(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Images or sounds, searched recursively.")],
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
    from vqtok import report
    from vqtok.facts import inspect as inspect_model
    from vqtok.training.run import train as run_training
    from vqtok.training.run import train_prior

    if prior_only and (init is None or resume or preset or steps or minutes):
        raise UsageError("--prior-only needs --init, and no --preset, --steps, --minutes or --resume")
    try:
        with report.TrainingDisplay(quiet) as display:
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
        _complain(f"stopped; go on with the same command and --resume (or --force to start anew): {folder} -> {output}")
        raise
    facts = inspect_model(result.model)
    if json and not FOLLOWER:
        report.print_json(facts)
    elif not quiet:
        report.show_facts(facts)


@command
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="A .ckpt, .pt or .safetensors file.")],
    output: NewModel,
    config: Annotated[Path | None, typer.Option(metavar="YAML", help="The config that belongs to it.")] = None,
    family: Annotated[
        str | None, typer.Option(metavar="NAME", help="vqgan, gumbel, llamagen, magvit2 or ibq, if not by itself.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn a checkpoint of another project into a model."""
    from vqtok import report
    from vqtok.facts import inspect as inspect_model
    from vqtok.models.importers import import_checkpoint as run_import

    facts = inspect_model(run_import(checkpoint, output, config=config, family=family, force=force).model)
    if json:
        report.print_json(facts)
    elif not quiet:
        report.show_facts(facts)


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
    mono: Annotated[bool, typer.Option("--mono", help="Mix the channels of sound down to one.")] = False,
    coder: Annotated[str, typer.Option(metavar="NAME", help="auto (the smallest), prior, static or packed.")] = "auto",
    max_megapixels: Annotated[
        float | None,
        typer.Option(
            "--max-megapixels", min=0.000001, metavar="N", help="Refuse larger images; default: 89, as Pillow does."
        ),
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Work in this process, or on a cluster of Ray.")
    ] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="ADDRESS", help="auto or that of a cluster; default: a new one."),
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
    """Turn images and sounds into token files."""
    from vqtok.planning import plan_encoding

    on_cluster = engine == "ray"
    work = plan_encoding(
        inputs or [],
        output,
        shard=shard,
        filelist=filelist,
        num_tasks=num_tasks,
        task_index=task_index,
        on_cluster=on_cluster,
    )
    if STDIO in (inputs or []) or output == "-":
        _refuse_terminal(work.jobs, json)
    from vqtok import report
    from vqtok.codec import choose_device
    from vqtok.media.image import set_max_pixels
    from vqtok.models.adapters.hub import at_revision
    from vqtok.outputs import Existing
    from vqtok.tokens.vqt import chosen_coder
    from vqtok.transcode import Codecs, encode_files, encode_shards

    if work.share and not quiet:
        report.say(work.share)
    max_pixels = None if max_megapixels is None else round(1e6 * max_megapixels)
    if max_pixels:
        set_max_pixels(max_pixels)
    model = at_revision(model, revision)
    how: dict[str, Any] = {
        "num_codebooks": codebooks,
        "mono": mono,
        "coder": chosen_coder(coder),
        "existing": Existing(overwrite=force, skip=skip_existing),
    }
    network: dict[str, Any] = {"tile": tile, "chunk_seconds": chunk_seconds, "precision": precision, "jobs": num_jobs}
    if on_cluster:
        from vqtok.cluster import encode_on_ray

        outcomes = encode_on_ray(
            work.shards, model, address=ray_address, device=device, max_pixels=max_pixels, **network, **how
        )
    else:
        codecs = Codecs(model, str(choose_device(device)), **network)
        outcomes = (
            encode_files(work.jobs, codecs, **how) if shard is None else encode_shards(work.shards, codecs, **how)
        )
    manifest = as_path(failures) if failures else work.failures

    def at_end() -> None:
        if work.is_of_torchrun:
            from vqtok.training.distributed import wait_for_others

            wait_for_others()

    with report.stdout_for_json() if on_cluster else nullcontext():
        _tell(outcomes, work.total, report.encoded_line, manifest, json=json, quiet=quiet, at_end=at_end)


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
    from vqtok.models.reader import open_items
    from vqtok.tokens.header import read_header

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
        _refuse_terminal(jobs, json)
    from vqtok import report
    from vqtok.codec import choose_device
    from vqtok.failures import failures_beside
    from vqtok.models.adapters.hub import at_revision
    from vqtok.outputs import Existing
    from vqtok.transcode import Codecs, decode_files

    model = at_revision(model, revision)
    codecs = Codecs(
        model, str(choose_device(device)), tile=tile, chunk_seconds=chunk_seconds, precision=precision, jobs=num_jobs
    )
    existing = Existing(overwrite=force, skip=skip_existing)
    outcomes = decode_files(jobs, codecs, num_codebooks=codebooks, salvage=salvage, existing=existing)
    manifest = as_path(failures) if failures else failures_beside(output, len(jobs))
    _tell(outcomes, len(jobs), report.decoded_line, manifest, json=json, quiet=quiet)


@command
def merge(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN.vqts", help="Shards of one model.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.vqts", help="The shard to write.")],
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Take what is whole of shards that are damaged or cut off.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Join shards into one, or salvage a damaged one."""
    from vqtok import report
    from vqtok.tokens.shard_writer import merge as merge_shards

    merged = merge_shards(inputs, output, salvage=salvage, overwrite=force)
    for loss in merged.losses:
        _complain(str(loss))
    if json:
        losses = [loss._asdict() for loss in merged.losses]
        report.print_json({"output": str(output), "num_items": merged.num_items, "losses": losses})
    elif not quiet:
        report.say(report.merged_line(output, merged))
    if merged.losses:
        raise typer.Exit(1)


SPECIAL = "ID, auto (the next behind the codes) or none"


@command
def export(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN", help="Token files, shards or folders; - is stdin.")],
    to: Annotated[
        Literal["npy", "bin", "megatron", "jsonl", "parquet", "text"], typer.Option("--to", help="The kind of file.")
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="OUT", help="File; - is stdout, for text and jsonl.")
    ] = None,
    layout: Annotated[
        Literal["flat", "coarse-first", "delay", "parallel"],
        typer.Option("--layout", help="By position, by codebook, or a step of all codebooks for each position."),
    ] = "flat",
    offset: Annotated[int, typer.Option(min=0, metavar="ID", help="Id of the first code.")] = 0,
    shared_vocabulary: Annotated[
        bool, typer.Option("--shared-vocabulary", help="The codes of all codebooks have the same ids.")
    ] = False,
    begin_token: Annotated[str | None, typer.Option(metavar="ID", help=f"Before each item: {SPECIAL}.")] = None,
    end_token: Annotated[str | None, typer.Option(metavar="ID", help="After each item.")] = None,
    row_token: Annotated[str | None, typer.Option(metavar="ID", help="After each row of a grid.")] = None,
    pad_token: Annotated[str | None, typer.Option(metavar="ID", help="Where a delayed codebook pauses.")] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Of a code in text: <|{modality}_{id}|>; also {codebook}, {code}."),
    ] = None,
    model: Model = None,
    codebooks: Codebooks = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write token files and shards to one file for a trainer of language models."""
    from vqtok import report
    from vqtok.dataset import find_items, iterate_tokens
    from vqtok.tokens.export import write_export
    from vqtok.tokens.recipe import Recipe

    if output is None and to != "text":
        raise UsageError(f"--to {to}: give -o FILE")
    if output is not None and output.endswith("/"):
        raise UsageError(f"-o {output}: is a folder; give the name of a new file")
    target = STDIO if output is None else Path(output)
    if json and target == STDIO:
        raise UsageError("-o -: stdout cannot take both the tokens and --json")
    recipe = Recipe(
        to=to,
        layout=layout,
        offset=offset,
        shared_vocabulary=shared_vocabulary,
        begin_token=begin_token,
        end_token=end_token,
        row_token=row_token,
        pad_token=pad_token,
        template=template,
    )
    found = find_items(inputs)
    failed = 0

    def on_error(item: Item, error: VqtokError) -> None:
        nonlocal failed
        failed += 1
        _complain(str(error))
        if json:
            report.print_json(item.facts() | {"error": str(error), "exit_code": error.exit_code})

    turns = report.with_progress(found, len(found), quiet or target == STDIO)
    items = iterate_tokens(turns, model, codebooks, on_error if len(found) > 1 else None)
    facts = write_export(items, target, recipe, overwrite=force) | {"failed": failed}
    if json:
        report.print_json(facts)
    elif not quiet and target != STDIO:
        report.say(report.exported_line(facts))
    if failed:
        raise typer.Exit(1)


@command
def convert(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN", help=".ecdc, .dac, .npy or .jsonl to .vqt; .vqt or a shard to .npy.")
    ],
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="OUT", help="File or folder.")] = None,
    model: Annotated[
        str | None, typer.Option("-m", "--model", metavar="MODEL", help="The model that made the codes.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Where codes come without: WIDTHxHEIGHT, or SAMPLES[@HZ].")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn other tools' token files into token files, and token files into arrays."""
    from vqtok import report
    from vqtok.conversion import convert_files, plan_conversions

    conversions = plan_conversions(inputs, output, model)
    outcomes = convert_files(conversions, model, size=size, overwrite=force)
    _tell(outcomes, len(conversions), report.converted_line, json=json, quiet=quiet)


@command
def inspect(
    inputs: Annotated[list[str], typer.Argument(metavar="FILE|DIR|MODEL", help="What to look at.")],
    model: Model = None,
    usage: Annotated[bool, typer.Option("--usage", help="Count the codes of all the token files.")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw --usage as a picture.")] = None,
    items: Annotated[bool, typer.Option("--items", help="List all items of shards.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show what token files, shards, models, images or sounds are."""
    from vqtok import report
    from vqtok.facts import inspect as inspect_file
    from vqtok.facts import shard_items, token_files
    from vqtok.facts import usage as count_usage
    from vqtok.models.zoo import is_adapted

    if plot is not None and not usage:
        raise UsageError("--plot draws what --usage counts; give both")
    if usage:
        facts = count_usage(inputs, model)
        if plot is not None:
            report.plot_usage(facts, plot)
        report.print_json(facts) if json else report.show_usage(facts)
        return
    exit_code = 0
    files: list[str] = []
    for name in inputs:
        files += map(str, token_files([name])) if Path(name).is_dir() and not is_adapted(name) else [name]
    for name in files:
        try:
            facts = inspect_file(name, model)
        except VqtokError as error:
            _complain(str(error))
            exit_code = error.exit_code if len(files) == 1 else 1
            facts = {"file": name, "error": str(error), "exit_code": error.exit_code}
        if json:
            report.print_json(facts)
        elif "error" not in facts:
            report.show_facts(facts)
        if facts.get("kind") == "shard":
            listed = shard_items(name) if items else () if json else islice(shard_items(name), ITEMS_SHOWN)
            for item in listed:
                report.print_json(item) if json else report.show_item(item)
            if not json and not items and facts["num_items"] > ITEMS_SHOWN:
                report.say(f"  and {facts['num_items'] - ITEMS_SHOWN} more; --items lists all")
    if exit_code:
        raise typer.Exit(exit_code)


@command
def models(json: Json = False, quiet: Quiet = False, verbose: Verbose = False) -> None:
    """List the models that go by name: bundled, in the Hugging Face cache, of packages, on the Hub."""
    from vqtok import report
    from vqtok.models.catalogue import list_models

    if json:
        for facts in list_models():
            report.print_json(facts)
    else:
        report.show_models(list_models())


def _tell(
    outcomes: Generator[Outcome, None, None],
    total: int,
    line: Callable[[dict[str, Any]], str],
    manifest: Path | None = None,
    *,
    json: bool,
    quiet: bool,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Print each outcome as it comes, a summary of several, and exit as the worst of them asks."""
    from vqtok import report
    from vqtok.failures import failure_log

    tally = report.Tally()
    exit_code = 0
    # Closed at once, so that on Ctrl-C nothing goes on behind.
    with failure_log(manifest) as note_failure, closing(outcomes):
        for outcome in report.with_progress(outcomes, total, quiet):
            tally.add(outcome.facts)
            if outcome.error:
                exit_code = outcome.error.exit_code if total == 1 else 1
                _complain(str(outcome.error))
                note_failure(outcome.facts)
            elif not outcome.skipped and not quiet and not json:
                report.say(line(outcome.facts))
            if json:
                report.print_json(outcome.facts)
    if (total > 1 or tally.skipped) and not quiet:
        report.say(str(tally))
    at_end()
    if exit_code:
        raise typer.Exit(exit_code)


def _refuse_terminal(jobs: Iterable[Job], json: bool) -> None:
    """Keep binary data off the terminal, and off a stdout that JSON goes to."""
    if any(job.target == STDIO for job in jobs):
        if json:
            raise UsageError("-o -: stdout cannot take both the file and --json")
        if sys.stdout.isatty():
            raise UsageError("-o -: binary data is not written to a terminal; redirect it, or give -o FILE")


class _ConsoleHandler(logging.Handler):
    """Show the library's warnings as lines on stderr, above any progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        from vqtok.report import say

        say(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")


def _start_logging(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[_ConsoleHandler()], force=True)


def _complain(message: str) -> None:
    from vqtok.report import say

    say(f"error: {message}", style="bold red")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Of mallopt, in malloc.h."""


def set_up_process() -> None:
    """Make this process one that runs networks in threads of its own."""
    import ctypes

    from vqtok.media.quiet import separate_stderr

    separate_stderr()
    # The products that are left to numpy are small: its threads would mostly wait for each other, at full speed.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What glibc gives back to the system, the next map of features gets cleared anew, page by page.
    with suppress(AttributeError, OSError, TypeError):  # where there is no glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, 1 << 25)
        mallopt(_TRIM_THRESHOLD, 1 << 28)


def main() -> None:
    """Run the command line."""
    try:
        set_up_process()
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # Not every stdout can show every name or the histograms.
        app()
    except KeyboardInterrupt:  # while typer made its commands
        _complain("interrupted")
        sys.exit(130)
    except SystemExit as end:
        # Typer is silent about interrupts outside of a command: while it reads the arguments, say.
        if end.__context__ and isinstance(end.__context__.__cause__, KeyboardInterrupt):
            _complain("interrupted")
        raise
    finally:  # All is said and done: an interrupt of what Python still tidies up would only look like a crash.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
