"""Progress displays."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from rich.table import Table

from vqtok.cli.console import err, out, say
from vqtok.cli.lines import bits_line, times

if TYPE_CHECKING:
    from rich.live import Live
    from rich.progress import Progress

    from vqtok.config import Config
    from vqtok.generation.streams import Stream
    from vqtok.generation.validation import GeneratorProgress
    from vqtok.training.monitor import Progress as TrainingProgress
    from vqtok.training.validation import Validation

T = TypeVar("T")


class TrainingDisplay:
    """Shows the progress of training: a live panel on a terminal, elsewhere a line at each validation."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live: Live | None = None
        self.quality = ""
        self._stage = ""
        self._latest: TrainingProgress | None = None
        self._codebooks: dict[str, list[float]] = {}
        self._since = time.monotonic()
        if err.is_terminal and not quiet:
            from rich.live import Live

            self.live = Live(console=err, refresh_per_second=4, transient=True, get_renderable=self._panel)

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def stage(self, stage: str) -> None:
        """Show what is done before, between and after training steps."""
        self._stage = stage

    def step(self, progress: TrainingProgress) -> None:
        """Show how far training is."""
        self._stage, self._latest, self._since = "", progress, time.monotonic()
        self._codebooks |= progress.codebooks

    def start(self, config: Config, training: int, held_out: int, run_folder: Path) -> None:
        if not self.quiet:
            what = " and ".join(config.model.modalities)
            say(f"{what}: {training} files to train on, {held_out} held out; run folder {run_folder}")

    def progress(self, progress: TrainingProgress) -> None:
        if progress.validation:
            found = progress.validation
            qualities, lines = zip(
                *(_quality_and_use(found[name], name * (len(found) > 1)) for name in found), strict=True
            )
            self.quality = "; ".join(qualities)
            if not self.quiet:
                say(f"step {progress.step}, {_clock(progress.seconds)}: validation {'; '.join(lines)}")
        self.step(progress)

    def _panel(self) -> Table:
        """Draw the panel as of now: its clock goes on while a step or a stage takes its time."""
        panel = Table.grid(padding=(0, 2))
        panel.add_column(style="cyan")
        panel.add_column()
        progress, passed = self._latest, time.monotonic() - self._since
        if progress is None:
            panel.add_row("progress", f"{bar(0.0)} {_clock(passed)}, {self._stage}")
            return panel
        left = max(0.0, progress.left - passed)
        fraction = 1 - left / max(progress.seconds + progress.left, 1e-9)
        doing = self._stage or f"step {progress.step}"
        panel.add_row("progress", f"{bar(fraction)} {fraction:.1%}, {_clock(left)} left, {doing}")
        panel.add_row(
            "speed",
            f"{progress.items_per_second:.1f} items/s, {progress.waiting:.1%} of the time waiting for data",
        )
        panel.add_row("losses", "  ".join(f"{name} {value:.4g}" for name, value in progress.losses.items()))
        for name, values in self._codebooks.items():
            panel.add_row(name, _each(values, ".0%" if name == "usage" else ".0f"))
        if self.quality:
            panel.add_row("validation", self.quality)
        return panel

    def evaluate(self, done: int, total: int) -> None:
        self.stage(f"evaluating: file {done + 1} of {total}")

    def prior(self, steps: int, step: int, bits: float) -> None:
        now = f"step {step} of {steps}, {bits:.2f} bits a token" if step else "encoding training files"
        self.stage(f"fitting the prior: {now}")


class GeneratorDisplay(TrainingDisplay):
    """Shows the progress of the training of a generator."""

    def start_generator(self, streams: Sequence[Stream], training: int, held_out: int, run_folder: Path) -> None:
        if not self.quiet:
            parts = [f"{s.name} ({times(s.window)}{f' x {s.num_codebooks}' * (s.num_codebooks > 1)})" for s in streams]
            say(f"{', '.join(parts)}: {training} items to train on, {held_out} held out; run folder {run_folder}")

    def generator_progress(self, progress: GeneratorProgress) -> None:
        if progress.held_out:
            found = progress.held_out
            self.quality = f"bits a token {bits_line(found.bits, found.bits_given_rest)}"
            if not self.quiet:
                say(f"step {progress.step}, {_clock(progress.seconds)}: validation {self.quality}")
        self.step(progress)


def _quality_and_use(found: Validation, modality: str) -> tuple[str, str]:
    """Return the quality of a validation after the modality, and the same with the use of the codebooks."""
    figures = ", ".join(
        f"{quality:.2f} at {length}" for quality, length in zip(found.quality, found.prefixes, strict=True)
    )
    quality = f"{modality} {'PSNR dB' if found.quality_name == 'psnr' else 'mel distance'} {figures}".lstrip()
    if found.texture:
        quality += f"; texture distance {_each(found.texture, '.3f')}"
    return quality, f"{quality}; usage {_each(found.usage, '.0%')}; perplexity {_each(found.perplexity, '.0f')}"


def _each(values: Sequence[float], style: str) -> str:
    return " ".join(f"{value:{style}}" for value in values)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


class ItemProgress:
    """A progress bar on a terminal for work on several items, counted as they finish, in any order.

    Items that are skipped are taken off the total, so that they do not distort the time left.
    """

    def __init__(self, total: int | None, quiet: bool) -> None:
        self._bar: Progress | None = None
        self._total, self._skipped = total, 0
        if quiet or (total is not None and total < 2) or not err.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        of_all = " items" if total is None else " of {task.total}"
        text = TextColumn("{task.completed}" + of_all + "{task.fields[skipped]}")
        columns = (text, BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        # Where stdout is not the terminal, what goes there is data that the display must not touch.
        self._bar = Progress(
            *columns, console=err, transient=True, redirect_stdout=out.is_terminal, speed_estimate_period=600
        )
        self._task = self._bar.add_task("", total=total, skipped="")

    def __enter__(self) -> ItemProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar:
            self._bar.stop()

    def finish(self, result: object) -> None:
        """Count a finished item; `result` is its `Outcome`, or anything else. May be called from any thread."""
        if self._bar is None:
            return
        if getattr(result, "skipped", False):
            self._skipped += 1
            total = None if self._total is None else self._total - self._skipped
            self._bar.update(self._task, total=total, skipped=f", {self._skipped} skipped")
        else:
            self._bar.advance(self._task)

    def count(self, results: Iterable[T]) -> Iterator[T]:
        """Yield results of work that is done one item after another, and count each."""
        for result in results:
            self.finish(result)
            yield result


def bar(fraction: float) -> str:
    done = round(min(1.0, fraction) * 30)
    return f"{'━' * done}{'╌' * (30 - done)}"
