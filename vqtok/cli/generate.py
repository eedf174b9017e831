"""`vqtok generate`."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vqtok.cli.command import command
from vqtok.cli.options import Device, FilesOption, Force, Json, Quiet, Skip, Tokenizers, Verbose, any_path, only_local
from vqtok.cli.outcomes import print_outcomes
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from vqtok.generation.generate import Generation
    from vqtok.generation.sampling import SamplingOptions

ConditionOption = functools.partial(typer.Option, rich_help_panel="What to generate")
SamplingOption = functools.partial(typer.Option, rich_help_panel="Sampling")


@command
def generate(
    model: Annotated[
        Path, FilesOption("-m", "--model", metavar="GENERATOR", parser=only_local, help="The generator file.")
    ],
    output: Annotated[
        str | None,
        FilesOption("-o", "--output", metavar="OUT", help="File, or folder for several; captions need none."),
    ] = None,
    count: Annotated[int, ConditionOption("-n", "--count", min=1, metavar="N", help="How many, of each input.")] = 1,
    to: Annotated[
        Literal["image", "audio", "text"] | None, ConditionOption(help="What; default: the first that is not given.")
    ] = None,
    text: Annotated[str | None, ConditionOption(metavar="TEXT", help="A caption that they are to fit.")] = None,
    sources: Annotated[
        list[Path] | None,
        ConditionOption(
            "--from",
            metavar="IN",
            parser=any_path,
            help="Image, audio, token file or folder to start from; repeatable.",
        ),
    ] = None,
    via: Annotated[
        Literal["image", "audio", "text"] | None,
        ConditionOption(help="Generate this of --from first, and then the output from both."),
    ] = None,
    mask: Annotated[
        Path | None,
        ConditionOption(metavar="IMAGE", parser=only_local, help="Regenerate what is white in this image."),
    ] = None,
    replace: Annotated[
        str | None, ConditionOption(metavar="A-B", help="Regenerate audio from A to B seconds, for example 1.2-1.5.")
    ] = None,
    extend: Annotated[float | None, ConditionOption(min=0.01, metavar="S", help="Continue audio by S seconds.")] = None,
    size: Annotated[
        str | None, ConditionOption(metavar="WxH", help="Size of new images; default: as in training.")
    ] = None,
    seconds: Annotated[
        float | None, ConditionOption(min=0.01, metavar="S", help="Length of new audio; default: as in training.")
    ] = None,
    tokens: Annotated[bool, FilesOption("--tokens", help="Write token files into the folder, not media.")] = False,
    steps: Annotated[
        int | None, SamplingOption(min=1, metavar="N", help="Passes of the network.  [default: 12]")
    ] = None,
    temperature: Annotated[
        float | None, SamplingOption(min=0, metavar="T", help="Variety; 0: the most likely.  [default: 1, text 0]")
    ] = None,
    guidance: Annotated[
        float | None, SamplingOption(min=0, metavar="G", help="How much the input counts.  [default: 2, text 0]")
    ] = None,
    seed: Annotated[int, SamplingOption(min=0, metavar="N", help="Seed of the first; others count up.")] = 0,
    tokenizers: Tokenizers = None,
    device: Device = "cpu",
    force: Force = False,
    skip_existing: Skip = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate images, audio or captions, or repair media."""
    edits = [name for name, value in (("--mask", mask), ("--replace", replace), ("--extend", extend)) if value]
    if len(edits) > 1:
        raise UsageError(f"{' and '.join(edits)}: give one of them")
    if edits and (not sources or text is not None or to or via or size or seconds):
        raise UsageError(f"{edits[0]} repairs what --from names; without --text, --to, --via, --size and --seconds")
    if via and (via == to or (via == "text" and text is not None) or not (sources or text)):
        raise UsageError(f"--via {via}: must be neither given nor the output; give what to start from with --from")
    part = _parse_part(replace)
    from vqtok.cli.lines import generated_line
    from vqtok.cli.progress import ItemProgress
    from vqtok.generation.generate import Generation
    from vqtok.generation.outputs import Plan, plan_requests, run
    from vqtok.jobs.job import Existing

    target, requests, folder = plan_requests(
        model, sources or (), output, count, seed, to=to, text=text, via=via, as_tokens=tokens, edits=bool(edits)
    )
    from vqtok.compute.device import choose_device

    session = Generation(model, tokenizers or (), str(choose_device(device)))
    plan = Plan(
        target,
        requests,
        folder,
        text,
        via,
        mask,
        part,
        extend,
        _new_size(session, target, size, seconds),
        _options(target, steps, temperature, guidance),
        {"generator": session.identity[:16]} | ({} if text is None else {"caption": text}),
    )
    if text is not None:
        session.text_condition(text)  # An error in the caption is one error, not one for each output.
    if via is not None:
        session.stream(via)
    progress = ItemProgress(len(requests), quiet)
    outcomes = run(session, plan, Existing(force, skip_existing), progress.finish)
    print_outcomes(
        outcomes,
        generated_line if len(requests) > 1 or target != "text" else lambda facts: str(facts["caption"]),
        progress,
        total=len(requests),
        on_stdout=target == "text" and output is None,
        json=json,
        quiet=quiet,
    )


def _parse_part(replace: str | None) -> tuple[float, float] | None:
    if replace is None:
        return None
    try:
        begin, end = map(float, replace.split("-"))
        return begin, end
    except ValueError:
        raise UsageError(f"--replace {replace}: must be two times in seconds, for example 1.2-1.5") from None


def _new_size(session: Generation, target: str, size: str | None, seconds: float | None) -> tuple[int, ...]:
    """Return the size of new media: `(width, height)` or `(samples, sample_rate)`; empty for that of the training."""
    if (size and target != "image") or (seconds and target != "audio"):
        raise UsageError("--size is for images, --seconds for audio")
    if size:
        try:
            width, height = map(int, size.lower().split("x"))
            if min(width, height) < 1:
                raise ValueError
        except ValueError:
            raise UsageError(f"--size {size}: must be WIDTHxHEIGHT in pixels, for example 640x480") from None
        return width, height
    if seconds:
        stream = session.stream("audio")
        rate = stream.size[1] if stream.size else session.codec(stream).tokenizer.sample_rate or 1
        return max(1, round(seconds * rate)), rate
    return ()


def _options(
    target: str, steps: int | None, temperature: float | None, guidance: float | None
) -> SamplingOptions | None:
    """Return the sampling options that differ from the default of the target."""
    from dataclasses import replace

    from vqtok.generation.sampling import DEFAULT_SAMPLING, MOST_LIKELY

    given = {"steps": steps, "temperature": temperature, "guidance": guidance}
    changes = {name: value for name, value in given.items() if value is not None}
    return replace(MOST_LIKELY if target == "text" else DEFAULT_SAMPLING, **changes)  # type: ignore[arg-type]
