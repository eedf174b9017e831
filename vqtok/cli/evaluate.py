"""`vqtok evaluate`."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtok.cli.command import command, print_error
from vqtok.cli.options import (
    Device,
    FilesOption,
    Force,
    Jobs,
    Json,
    ModelOption,
    Precision,
    Quiet,
    Revision,
    Verbose,
    only_local,
)
from vqtok.errors import MediaError, ModelError, UsageError

if TYPE_CHECKING:
    from vqtok.evaluation.candidates import Model, Plan
    from vqtok.evaluation.items import Item

EvaluationOption = functools.partial(typer.Option, rich_help_panel="Evaluation")


@command
def evaluate(
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="MEDIA", parser=only_local, help="Images and audio, or folders.")
    ] = None,
    output: Annotated[
        Path | None, FilesOption("-o", "--output", metavar="DIR", parser=only_local, help="Folder of the report.")
    ] = None,
    models: Annotated[
        list[str] | None,
        ModelOption("-m", "--model", metavar="MODEL", help="A model to evaluate; repeatable; default: bundled."),
    ] = None,
    revision: Revision = None,
    codebooks: Annotated[
        str | None,
        ModelOption("--codebooks", metavar="N,N,...", help="Numbers of codebooks; default: powers of two, and all."),
    ] = None,
    against: Annotated[
        str | None,
        EvaluationOption(
            metavar="NAME,...", help="Classical codecs, or none; default: jpeg,webp,avif,jxl,opus,mp3 where installed."
        ),
    ] = None,
    metrics: Annotated[
        str | None, EvaluationOption(metavar="NAME,...", help="Metrics; default: all that are installed.")
    ] = None,
    limit: Annotated[
        int | None, EvaluationOption(min=1, metavar="N", help="Evaluate N items of each modality, evenly spaced.")
    ] = None,
    sample_rate: Annotated[
        int | None, EvaluationOption("--sample-rate", min=1, metavar="HZ", help="Resample audio to this rate first.")
    ] = None,
    mono: Annotated[bool, EvaluationOption("--mono", help="Mix audio channels down to one first.")] = False,
    degrade: Annotated[
        str | None,
        EvaluationOption(metavar="RULE,...", help="Degrade what is encoded, as noise:25; compare with the original."),
    ] = None,
    effort: Annotated[
        int, EvaluationOption(min=1, metavar="N", help="Follow N paths through the codebooks, as encode does.")
    ] = 1,
    learnability: Annotated[
        str | None,
        EvaluationOption(metavar="TIME", help="Train a generator on each model's tokens for TIME, such as 5m."),
    ] = None,
    stability: Annotated[bool, EvaluationOption(help="Measure how codes change when the input hardly does.")] = True,
    curves: Annotated[bool, EvaluationOption(help="Run classical codecs over their whole range.")] = True,
    update_card: Annotated[
        bool, EvaluationOption("--update-card", help="Write the results into the card of each model file.")
    ] = False,
    redraw: Annotated[
        Path | None,
        EvaluationOption(
            "--from", metavar="RESULTS", parser=only_local, help="Draw a report again, from results.json."
        ),
    ] = None,
    compared: Annotated[
        tuple[Path, Path] | None,
        EvaluationOption(
            "--compare", metavar="OLD NEW", help="Compare two reports; exit code 1 if something became worse."
        ),
    ] = None,
    tolerance: Annotated[
        str | None,
        EvaluationOption(
            metavar="X", help="How much worse --compare allows: a fraction (default: 0.01), METRIC=AMOUNT, or both."
        ),
    ] = None,
    device: Device = "cpu",
    precision: Precision = "float32",
    num_jobs: Jobs = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare tokenizers with each other and with classical codecs."""
    if tolerance is not None and compared is None:
        raise UsageError("--tolerance is for --compare OLD NEW")
    if update_card and (compared is not None or redraw is not None):
        raise UsageError("--update-card needs an evaluation, not --compare or --from")
    if compared is not None:
        if inputs or output is not None or redraw is not None:
            raise UsageError("--compare takes two reports, and neither MEDIA nor -o nor --from")
        _compare(*compared, tolerance, json, quiet)
        return
    if redraw is not None:
        _redraw(redraw, inputs, output, json, quiet)
        return
    if not inputs:
        raise UsageError("Missing argument 'MEDIA': images, audio or folders")
    if output is None:
        raise UsageError("Missing option '-o': the folder of the report")
    if not force and (output / "results.json").exists():
        from vqtok.files.atomic import refuse_existing

        refuse_existing(output / "results.json")
    ignored = Counter[str]()
    files, unreadable = _find_items(inputs, limit, ignored)
    from vqtok.cli.console import print_json, say
    from vqtok.cli.progress import ItemProgress
    from vqtok.cli.scores import show_results
    from vqtok.compute.device import choose_device
    from vqtok.evaluation.candidates import make_plan, open_models
    from vqtok.evaluation.cards import check_cards, update_cards
    from vqtok.evaluation.report import make_report
    from vqtok.files.walk import describe_ignored
    from vqtok.media.degrade import parse_rules

    counts = _numbers(codebooks)
    minutes = None if learnability is None else _minutes(learnability)
    opened = open_models(models or [name for name in files if files[name]], counts, revision)
    if update_card:
        check_cards(opened)
    how: dict[str, Any] = {
        "degrade": tuple(_names(degrade) or ()),
        "effort": effort,
        "stability": stability,
        "curves": curves,
        "device": str(choose_device(device)),
        "precision": precision,
    }
    plans: list[Plan] = []
    for modality in _modalities(opened, files):
        audio = {"sample_rate": sample_rate, "mono": mono} if modality == "audio" else {}
        plan = make_plan(modality, opened, _names(against), _names(metrics), **audio, **how)
        parse_rules(plan.degrade, modality, plan.sample_rate or 0)
        plans.append(plan)
    for plan in plans:
        for name, why in plan.missing.items():
            if not quiet:
                say(f"{name} is left out: {why}", style="yellow")
    total = sum(len(files[plan.modality]) for plan in plans)
    progress = ItemProgress(total, quiet)
    failed = len(unreadable)

    def on_finished(record: dict[str, Any]) -> None:
        nonlocal failed
        if "error" in record:
            failed += 1
            print_error(record["error"])
        progress.finish(_Finished("skipped" in record))

    for error in unreadable:
        print_error(error)
    with progress:
        results = make_report(
            plans,
            files,
            output,
            jobs=num_jobs or _cores(),
            overwrite=force,
            learnability=minutes,
            on_finished=on_finished,
        )
    updated = update_cards(plans, results) if update_card else []
    if json:
        print_json({"kind": "evaluation", "output": str(output)} | results)
    else:
        show_results(results)
    if not quiet:
        if ignored:
            say(describe_ignored(ignored))
        say(f"{total + len(unreadable)} items, {failed} failed -> {output}")
        for path in updated:
            say(f"card updated -> {path}")
    if failed:
        raise typer.Exit(1)


def _compare(old: Path, new: Path, tolerance: str | None, json: bool, quiet: bool) -> None:
    """Print what changed between two reports, and exit with 1 on a regression."""
    from dataclasses import asdict

    from vqtok.cli.console import print_json, say
    from vqtok.cli.scores import show_changes
    from vqtok.evaluation.compare import compare
    from vqtok.evaluation.results import read_results, to_json

    changes = compare(read_results(old), read_results(new), tolerance)
    if json:
        for change in changes:
            print_json({"kind": "change"} | to_json(asdict(change)))
    else:
        show_changes(changes)
    count = sum(change.verdict == "regression" for change in changes)
    if not quiet:
        say(f"{count or 'no'} regression{'s' * (count != 1)} beyond the tolerance", style="bold red" if count else "")
    if count:
        raise typer.Exit(1)


def _redraw(source: Path, inputs: list[Path] | None, output: Path | None, json: bool, quiet: bool) -> None:
    """Draw a report again, in its folder."""
    if inputs or output is not None:
        raise UsageError("--from draws the report in its own folder; give neither MEDIA nor -o")
    from vqtok.cli.console import print_json, say
    from vqtok.cli.scores import show_results
    from vqtok.evaluation.report import draw_report
    from vqtok.evaluation.results import read_results

    results = read_results(source)
    folder = source if source.is_dir() else source.parent
    draw_report(folder, results)
    if json:
        print_json({"kind": "evaluation", "output": str(folder)} | results)
    else:
        show_results(results)
    if not quiet:
        say(f"drawn again -> {folder}")


class _Finished:
    """What the progress display needs to know of a finished item."""

    def __init__(self, skipped: bool) -> None:
        self.skipped = skipped


def _find_items(
    inputs: list[Path], limit: int | None, ignored: Counter[str]
) -> tuple[dict[str, list[Item]], list[str]]:
    """Return the items of each modality, and the errors of files that are neither images nor audio."""
    from vqtok.evaluation.items import Item
    from vqtok.jobs.mapping import plan_items
    from vqtok.media.kinds import kind_of, modality_of

    found: dict[str, list[Item]] = {"image": [], "audio": []}
    errors = []
    listed = plan_items(
        inputs, accepts=lambda path: modality_of(path) is not None, what="images or audio files", ignored=ignored
    )
    for key, path in listed:
        try:
            kind = modality_of(path) or kind_of(path)
        except MediaError as error:
            errors.append(str(error))
            continue
        if kind in found:
            found[kind].append(Item(key, path))
        else:
            errors.append(f"{path}: neither an image nor audio")
    if not any(found.values()):
        raise MediaError(errors[0] if len(errors) == 1 else f"{inputs[0]}: no images or audio files")
    return {modality: _spaced(items, limit) for modality, items in found.items()}, errors


def _spaced(items: list[Item], limit: int | None) -> list[Item]:
    if limit is None or len(items) <= limit:
        return items
    return [items[index * len(items) // limit] for index in range(limit)]


def _modalities(models: list[Model], files: dict[str, list[Item]]) -> list[Any]:
    """Return the modalities that have both a model and items.

    Raises:
        ModelError: A model has no items.
    """
    from vqtok.cli.console import say

    for model in models:
        if not any(files[other.modality] for other in models if other.name == model.name):
            kind = "images" if model.modality == "image" else "audio"
            raise ModelError(f"`model` {model.name}: encodes {kind}, but there are none among the given media")
    modalities = [modality for modality in files if any(model.modality == modality for model in models)]
    for modality, items in files.items():
        if items and modality not in modalities:
            say(f"{len(items)} {modality} files are left out: no --model encodes {modality}", style="yellow")
    return modalities


def _names(listed: str | None) -> list[str] | None:
    if listed is None:
        return None
    return [] if listed == "none" else [name.strip() for name in listed.split(",") if name.strip()]


def _numbers(listed: str | None) -> list[int] | None:
    try:
        numbers = None if listed is None else [int(number) for number in listed.split(",")]
    except ValueError:
        numbers = [0]
    if numbers is not None and min(numbers) < 1:
        raise UsageError(f"`num_codebooks` {listed}: give numbers such as 1,2,4,8")
    return numbers


def _minutes(text: str) -> float:
    """Parse a time such as `5m`, `90s` or `1h`."""
    unit = {"s": 1 / 60, "m": 1.0, "h": 60.0}.get(text[-1:], 0.0)
    try:
        minutes = unit * float(text[:-1])
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < 1e6:
        raise UsageError(f"--learnability {text}: give a time such as 5m, 90s or 1h")
    return minutes


def _cores() -> int:
    import torch

    return torch.get_num_threads()
