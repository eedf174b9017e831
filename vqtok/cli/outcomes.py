"""Print the outcomes of jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqtok.cli.command import print_error
from vqtok.errors import UsageError
from vqtok.files.paths import STDIO
from vqtok.jobs.job import Job

if TYPE_CHECKING:
    from vqtok.jobs.job import Outcome


def print_outcomes(
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
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import Tally
    from vqtok.cli.progress import with_progress
    from vqtok.jobs.failures import failure_log

    tally = Tally()
    exit_code = 0
    # Closed at once, so that on Ctrl-C nothing goes on behind.
    with failure_log(manifest) as note_failure, closing(outcomes):
        for outcome in with_progress(outcomes, total, quiet):
            tally.add(outcome.facts)
            if outcome.error:
                exit_code = outcome.error.exit_code if total == 1 else 1
                print_error(str(outcome.error))
                note_failure(outcome.facts)
            elif not outcome.skipped and not quiet and not json:
                say(line(outcome.facts))
            if json:
                print_json(outcome.facts)
    if (total > 1 or tally.skipped) and not quiet:
        say(str(tally))
    at_end()
    if exit_code:
        raise typer.Exit(exit_code)


def refuse_terminal(jobs: Iterable[Job], json: bool) -> None:
    """Keep binary data off the terminal, and off a stdout that JSON goes to."""
    if any(job.target == STDIO for job in jobs):
        if json:
            raise UsageError("-o -: stdout cannot take both the file and --json")
        if sys.stdout.isatty():
            raise UsageError("-o -: binary data is not written to a terminal; redirect it, or give -o FILE")
