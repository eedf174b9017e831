"""What people see: lines, tables and progress by Rich on stderr; what scripts see: JSON lines on stdout."""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.live import Live

    from vqtok.config import Config
    from vqtok.tokens.shard.writer import Merged
    from vqtok.training.monitor import Progress as TrainingProgress

out = Console(soft_wrap=False, highlight=False)
"""Results that were asked for: tables of `inspect`."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""Everything said along the way."""

T = TypeVar("T")

BARS = " ▁▂▃▄▅▆▇█"
HISTOGRAM_COLUMNS = 20, 64
"""Narrowest and widest histogram; between them it takes what the terminal has."""


def say(message: str, style: str = "") -> None:
    """Print one line on stderr; file names in it are never read as markup."""
    err.print(_line(message, style=style))


def _line(text: str, style: str = "") -> Text:
    """Make one line, with escapes for what would break it or steer the terminal: file names may hold any bytes."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), style=style)


_kept_stdout: list[TextIO] = []


@contextmanager
def stdout_for_json() -> Iterator[None]:
    """Send to stderr what libraries print, for they will: Ray what the log of a node says that died."""
    _kept_stdout.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _kept_stdout.pop()


def print_json(facts: Mapping[str, Any]) -> None:
    stdout = _kept_stdout[-1] if _kept_stdout else sys.stdout
    # In ASCII, which every stdout can hold and which keeps names that are no UTF-8.
    stdout.write(json.dumps(facts) + "\n")
    stdout.flush()


def encoded_line(facts: Mapping[str, Any]) -> str:
    """Sum up one encoded file: `cat.png 768x512 -> cat.vqt 3.1 kB (6144 tokens, 0.063 bpp, 380x smaller than raw)`."""
    if facts["modality"] == "image":
        raw_bytes = facts["width"] * facts["height"] * 3
        rate = f"{facts['bpp']:.3f} bpp"
    else:
        raw_bytes = facts["duration_seconds"] * facts["sample_rate"] * facts["channels"] * 2
        rate = f"{facts['kbps']:.2f} kbps"
    smaller = raw_bytes / facts["file_bytes"]
    return (
        f"{facts['file']} {media_size(facts)} -> {facts['output']} {file_size(facts['file_bytes'])} "
        f"({facts['num_tokens']} tokens, {rate}, {smaller:.{0 if smaller >= 10 else 1}f}x smaller than raw)"
    )


def decoded_line(facts: Mapping[str, Any]) -> str:
    """Sum up one decoded file."""
    used, there = facts["decoded_codebooks"], facts["num_codebooks"]
    source = f"{facts['file']}: {facts['key']}" if "key" in facts else facts["file"]
    return f"{source} -> {facts['output']} {media_size(facts)} ({used} of {there} codebooks)"


class Tally:
    """Count what became of many inputs, and how fast."""

    def __init__(self) -> None:
        self.done = self.skipped = self.failed = 0
        self._bits = {"bpp": 0, "kbps": 0}
        self._extent = {"bpp": 0.0, "kbps": 0.0}  # pixels, and milliseconds
        self._started = time.monotonic()

    def add(self, facts: Mapping[str, Any]) -> None:
        """Count one by its facts, as `--json` prints them."""
        if "error" in facts:
            self.failed += 1
        elif "skipped" in facts:
            self.skipped += 1
        else:
            self.done += 1
        for rate in facts.keys() & self._bits:
            self._bits[rate] += 8 * facts["file_bytes"]
            self._extent[rate] += (
                facts["width"] * facts["height"] if rate == "bpp" else 1000 * facts["duration_seconds"]
            )

    def __str__(self) -> str:
        """Sum up: `31.5 items/s, 0.063 bpp: 200 done, 3 skipped, 1 failed`."""
        counts = f"{self.done} done, {self.skipped} skipped, {self.failed} failed"
        if not self.done:
            return counts
        speed = f"{self.done / (time.monotonic() - self._started):.3g} items/s"
        rates = [f"{self._bits[rate] / extent:.3f} {rate}" for rate, extent in self._extent.items() if extent]
        return f"{', '.join([speed, *rates])}: {counts}"


def converted_line(facts: Mapping[str, Any]) -> str:
    """Sum up one converted item."""
    if facts["kind"] == "array":
        return f"{facts['file']} -> {facts['output']} (shape {_times(facts['shape'])})"
    return (
        f"{facts['file']} -> {facts['output']} {file_size(facts['file_bytes'])} "
        f"({facts['num_tokens']} tokens of {media_size(facts)})"
    )


def exported_line(facts: Mapping[str, Any]) -> str:
    """Sum up an export."""
    items = f"{facts['num_items']} item" + ("s" if facts["num_items"] > 1 else "")
    failed = f", {facts['failed']} left out" if facts["failed"] else ""
    return (
        f"{items} -> {facts['files'][0]} {file_size(facts['file_bytes'])} "
        f"({facts['num_ids']} token ids, {facts['layout']}, vocabulary of {facts['vocabulary_size']}){failed}"
    )


def media_size(facts: Mapping[str, Any]) -> str:
    if "width" in facts:
        return f"{facts['width']}x{facts['height']}"
    channels = {1: "mono", 2: "stereo"}.get(facts["channels"], f"{facts['channels']} channels")
    return f"{facts['duration_seconds']:.2f} s {facts['sample_rate']} Hz {channels}"


def file_size(num_bytes: float) -> str:
    if num_bytes < 1000:
        return f"{num_bytes:.0f} bytes"
    unit, scale = ("kB", 1e3) if num_bytes < 1e6 else ("MB", 1e6)
    return f"{num_bytes / scale:.1f} {unit}"


def show_facts(facts: Mapping[str, Any]) -> None:
    """Print what `inspect` found, as a table."""
    shown = {"tokens": _show_tokens, "shard": _show_shard, "export": _show_export, "model": _show_model}
    shown.get(facts["kind"], _show_media)(facts)


def _facts_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    out.print(_line(title, style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, _line(value))
    out.print(table)


def _show_tokens(facts: Mapping[str, Any]) -> None:
    rate = f"{facts['bpp']:.4f} bpp" if "bpp" in facts else f"{facts['kbps']:.3f} kbps"
    saved = 1 - facts["coded_bits"] / facts["raw_bits"]
    segments = f", {facts['num_segments']} segments" if facts["num_segments"] > 1 else ""
    rows = [
        ("format", f"vqt {facts['version']}, {facts['coder']}{segments}"),
        ("medium", f"{facts['modality']} {media_size(facts)}"),
        ("model", facts["model"]),
        ("codebooks", _codebooks(facts["codebook_sizes"])),
        ("grid", f"{_times(facts['grid'])} at stride {facts['stride']}, {facts['num_tokens']} tokens"),
        ("raw bits", f"{facts['raw_bits']:.0f}"),
        ("coded bits", f"{facts['coded_bits']} ({saved:.1%} saved)"),
        ("file", f"{facts['file_bytes']} bytes, {rate}"),
    ]
    if "metadata" in facts:
        rows.append(("metadata", json.dumps(facts["metadata"], ensure_ascii=False)))
    _facts_table(facts["file"], rows)


def _show_shard(facts: Mapping[str, Any]) -> None:
    if "bpp" in facts:
        rate, medium = f"{facts['bpp']:.4f} bpp", facts["modality"]
    else:
        rate, medium = f"{facts['kbps']:.3f} kbps", f"{facts['modality']} {facts['duration_seconds']:.2f} s"
    saved = 1 - facts["coded_bits"] / facts["raw_bits"]
    rows = [
        ("format", f"vqts {facts['version']}, {', '.join(f'{n} {coder}' for coder, n in facts['coders'].items())}"),
        ("medium", medium),
        ("model", facts["model"]),
        ("codebooks", f"{_codebooks(facts['codebook_sizes'])} at stride {facts['stride']}"),
        ("items", f"{facts['num_items']}, {facts['num_tokens']} tokens"),
        ("raw bits", f"{facts['raw_bits']:.0f}"),
        ("coded bits", f"{facts['coded_bits']} ({saved:.1%} saved)"),
        ("file", f"{facts['file_bytes']} bytes, {rate}"),
    ]
    _facts_table(facts["file"], rows)


def _show_export(facts: Mapping[str, Any]) -> None:
    specials = ", ".join(f"{name} {number}" for name, number in facts["special_tokens"].items())
    first = "all from the same" if facts["shared_vocabulary"] else "one after another"
    rows = [
        ("format", f"{facts['to']}, {facts['layout']}" + (f", {facts['dtype']}" if "dtype" in facts else "")),
        ("medium", facts["modality"]),
        ("model", facts["model"]),
        ("codebooks", f"{_codebooks(facts['codebook_sizes'])} at stride {facts['stride']}"),
        ("vocabulary", f"{facts['vocabulary_size']}, codes from {facts['offset']} on, {first}"),
        ("specials", specials or "none"),
        ("items", f"{facts['num_items']}, {facts['num_ids']} token ids"),
        ("file", f"{facts['file_bytes']} bytes"),
    ]
    _facts_table(facts["file"], rows)


def show_item(facts: Mapping[str, Any]) -> None:
    """Print a line on an item of a shard."""
    size = f"{media_size(facts)}, {facts['num_tokens']} tokens, {file_size(facts['file_bytes'])}"
    out.print(_line(f"  {facts['key']} {size}"), soft_wrap=True)


def merged_line(output: Path, merged: Merged) -> str:
    """Sum up what became one shard."""
    return f"{output}: {merged.num_items} items, {file_size(output.stat().st_size)}"


def _show_media(facts: Mapping[str, Any]) -> None:
    rows = [(facts["kind"], f"{media_size(facts)}, {file_size(facts['file_bytes'])}")]
    if "would_become" in facts:
        future = facts["would_become"]
        rows.append(
            (
                "would become",
                f"{future['num_tokens']} tokens ({future['num_codebooks']} codebooks on a grid of "
                f"{_times(future['grid'])}), about {file_size(future['raw_bits'] / 8)}, with model {future['model']}",
            )
        )
    _facts_table(facts["file"], rows)


def _import_rows(imported: Mapping[str, Any]) -> list[tuple[str, str]]:
    config = f", {imported['config']['file']}" if imported["config"] else ""
    dropped = [f"{count} of {rule}" for rule, count in imported["dropped"].items()]
    averaged = " averaged" if imported["averaged"] else ""
    return [
        ("imported", f"from {imported['file']}{config}, family {imported['family']}"),
        ("taken", f"{imported['taken']}{averaged} weights"),
        ("dropped", "; ".join(dropped) or "none"),
    ]


def _show_model(facts: Mapping[str, Any]) -> None:
    training = facts["training"]
    rate = f", {facts['sample_rate']} Hz" if facts["sample_rate"] else ""
    rows = [
        ("identity", facts["identity"]),
        ("codes", f"{facts['modalities'][0]}{rate}"),
        ("codebooks", _codebooks(facts["codebook_sizes"]) + (", with a prior" if facts["prior"] else "")),
        ("stride", str(facts["stride"])),
    ]
    if facts["num_parameters"] is not None:
        rows.insert(2, ("parameters", f"{facts['num_parameters'] / 1e6:.2f} M, {file_size(facts['file_bytes'])}"))
    if "imported" in training:
        rows += _import_rows(training["imported"])
    if "steps" in training:
        rows.append(
            (
                "trained",
                f"preset {training['preset']}, {training['steps']} steps, {training['items_seen']} crops, "
                f"{training['hours']:.2f} h on {training['device']} in {training['precision']}, "
                f"seed {training['seed']}",
            )
        )
        rows.append(("data", f"{training['files']} files, {training['held_out_files']} held out"))
    if "parent" in training:
        rows.append(("parent", training["parent"]))
        rows.append(("kept", ", ".join(training.get("kept", facts["config"]["train"]["freeze"])) or "nothing"))
    if note := facts["config"].get("data", {}).get("note"):
        rows.append(("", note))
    if facts.get("family"):
        rows.append(("family", facts["family"]))
    if facts.get("why_whole"):
        rows.append(("at once", f"all of a medium: {facts['why_whole']}"))
    for alarm in training.get("alarms", []):
        rows.append(("alarm", alarm))
    _facts_table(facts["file"], rows)
    if "evaluation" in training:
        _show_evaluation(training["evaluation"])


def show_models(models: Iterable[Mapping[str, Any]]) -> None:
    """Print the models that go by name, a line each, under where they are."""
    for where, group in itertools.groupby(models, key=lambda model: model["where"]):
        listed = list(group)
        width = max(len(model["name"]) for model in listed)
        out.print(_line(where, style="bold"))
        for model in listed:
            out.print(_line(f"  {model['name']:{width}}  {_model_in_brief(model)}"), soft_wrap=True)


def _model_in_brief(model: Mapping[str, Any]) -> str:
    if "stride" not in model:
        return f"{model['family']}" + (f", {file_size(model['file_bytes'])}" if "file_bytes" in model else "")
    rate = f" {model['sample_rate']} Hz" if model["sample_rate"] else ""
    return (
        f"{model['modality']}{rate}, {_codebooks(model['codebook_sizes'])} codes a step of {model['stride']}, "
        f"{model['num_parameters'] / 1e6:.1f} M parameters, {model['licence']}"
    )


METRICS = {
    "psnr": ("PSNR dB", 2),
    "ssim": ("SSIM", 3),
    "mel_distance": ("mel distance", 3),
    "si_sdr": ("SI-SDR dB", 2),
    "stoi": ("STOI", 3),
}
"""Heading and decimals of each metric in a model's card."""


def _show_evaluation(evaluation: Mapping[str, Any]) -> None:
    groups = {"": evaluation, **evaluation.get("by_folder", {})}
    metrics = [name for name in METRICS if name in evaluation]
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out files")
    table.add_column("codebooks", justify="right")
    for name in metrics:
        table.add_column(METRICS[name][0], justify="right")
    for group, values in groups.items():
        for row, length in enumerate(evaluation["prefixes"]):
            label = f"{group or 'all'} ({values['files']})" if row == 0 else ""
            figures = [f"{values[n][row]:.{METRICS[n][1]}f}" if n in values else "-" for n in metrics]
            table.add_row(_line(label), str(length), *figures)
    out.print(table)
    out.print(_line(evaluation["protocol"], style="dim"))
    _show_codebooks(evaluation)


def show_usage(facts: Mapping[str, Any]) -> None:
    """Print how the codes of files use their codebooks, with a histogram of each."""
    out.print(Text(f"{facts['num_files']} files, {facts['num_tokens']} tokens, model {facts['model']}", style="bold"))
    _show_codebooks(facts)


def _show_codebooks(facts: Mapping[str, Any]) -> None:
    counts = facts.get("counts")
    table = Table(box=None, pad_edge=False)
    headings = ("codebook", "usage", "perplexity", "entropy bits", "dead codes")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    narrowest, widest = HISTOGRAM_COLUMNS
    columns = min(widest, max(narrowest, out.width - sum(len(heading) + 2 for heading in headings)))
    if counts:
        table.add_column("codes by frequency", no_wrap=True, overflow="crop")
    for index, used in enumerate(facts["usage"]):
        figures = [
            str(index + 1),
            f"{used:.1%}",
            f"{facts['perplexity'][index]:.1f}",
            f"{facts['entropy_bits'][index]:.2f}",
            str(facts["dead_codes"][index]),
        ]
        table.add_row(*figures, *([histogram(counts[index], columns)] if counts else []))
    out.print(table)


def histogram(counts: Sequence[int], columns: int) -> str:
    """Draw counts, sorted, as one line of bars; a used code never vanishes."""
    columns = min(columns, len(counts))
    edges = [round(i * len(counts) / columns) for i in range(columns + 1)]
    means = [sum(counts[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    top = max(means) or 1
    return "".join(BARS[math.ceil(mean / top * (len(BARS) - 1))] for mean in means)


def plot_usage(facts: Mapping[str, Any], path: Path) -> None:
    """Draw the sorted code frequencies of each codebook to a picture.

    Raises:
        UsageError: matplotlib is not installed.
    """
    from vqtok.errors import OutputError, UsageError

    try:
        import matplotlib
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'vqtok[plot]'") from None
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for index, counts in enumerate(facts["counts"]):
        label = f"{index + 1}: {facts['usage'][index]:.1%} used, perplexity {facts['perplexity'][index]:.0f}"
        axes.step([(i + 0.5) / len(counts) for i in range(len(counts))], counts, where="mid", label=label)
    axes.set(
        xlabel="codes, most frequent first (fraction of the codebook)",
        ylabel="times used",
        yscale="symlog",
        title=f"{facts['num_files']} files, {facts['num_tokens']} tokens, model {facts['model']}",
    )
    axes.legend(title="codebook", fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be written: {error}") from None
    finally:
        plt.close(figure)


def _codebooks(sizes: Sequence[int]) -> str:
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return ", ".join(map(str, sizes))


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


class TrainingDisplay:
    """Show training as it goes: a live panel on a terminal, a line at each validation elsewhere."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Live | None = None
        self.quality = ""
        if err.is_terminal and not quiet:
            from rich.live import Live

            self.live = Live(console=err, refresh_per_second=4, transient=True)

    def __enter__(self) -> TrainingDisplay:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def start(self, config: Config, training: int, held_out: int, run_folder: Path) -> None:
        if not self.quiet:
            say(f"{config.model.modality}: {training} files to train on, {held_out} held out; run folder {run_folder}")

    def progress(self, progress: TrainingProgress) -> None:
        if progress.validation:
            found = progress.validation
            figures = ", ".join(
                f"{quality:.2f} at {length}" for quality, length in zip(found.quality, found.prefixes, strict=True)
            )
            name, unit = ("PSNR", " dB") if found.quality_name == "psnr" else ("mel distance", "")
            self.quality = f"{name}{unit} {figures}"
            if not self.quiet:
                say(
                    f"step {progress.step}, {_clock(progress.seconds)}: validation {self.quality}; "
                    f"usage {_each(found.usage, '.0%')}; perplexity {_each(found.perplexity, '.0f')}"
                )
        if self.live:
            self.live.update(self._panel(progress))

    def _panel(self, progress: TrainingProgress) -> Table:
        left = progress.seconds * (1 / max(progress.fraction, 1e-9) - 1)
        done = round(progress.fraction * 30)
        panel = Table.grid(padding=(0, 2))
        panel.add_column(style="cyan")
        panel.add_column()
        panel.add_row(
            "progress",
            f"{'━' * done}{'╌' * (30 - done)} {progress.fraction:.1%}, step {progress.step}, {_clock(left)} left",
        )
        panel.add_row(
            "speed",
            f"{progress.items_per_second:.1f} items/s, {progress.waiting:.1%} of the time waiting for data",
        )
        panel.add_row("losses", "  ".join(f"{name} {value:.4g}" for name, value in progress.losses.items()))
        for name, values in progress.codebooks.items():
            panel.add_row(name, _each(values, ".0%" if name == "usage" else ".0f"))
        if self.quality:
            panel.add_row("validation", self.quality)
        return panel

    def evaluate(self, done: int, total: int) -> None:
        if self.live:
            self.live.update(Text(f"evaluating the best model on held-out files: {done} of {total}"))

    def prior(self, steps: int, step: int, bits: float) -> None:
        if self.live:
            now = f"step {step} of {steps}, {bits:.2f} bits a token" if step else "encoding training files"
            self.live.update(Text(f"fitting the prior that makes token files smaller: {now}"))


def _each(values: Sequence[float], style: str) -> str:
    return " ".join(f"{value:{style}}" for value in values)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def with_progress(outcomes: Iterable[T], total: int, quiet: bool) -> Iterator[T]:
    """Pass things on, with a progress bar on a terminal where there are several."""
    if quiet or total < 2 or not err.is_terminal:
        yield from outcomes
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.completed} of {task.total}"), BarColumn(), TimeRemainingColumn()
    # Where stdout is not the terminal, what goes there is data and no business of the display.
    with Progress(*columns, console=err, transient=True, redirect_stdout=out.is_terminal) as bar:
        task = bar.add_task("", total=total)
        for outcome in outcomes:
            yield outcome
            bar.advance(task)
