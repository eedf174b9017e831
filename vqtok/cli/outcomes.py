"""Print the outcomes of jobs, and decide the exit code."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vqtok.cli.command import print_error, with_options
from vqtok.errors import UsageError
from vqtok.files.paths import STDIO, stream_number
from vqtok.jobs.job import Job

if TYPE_CHECKING:
    from vqtok.cli.progress import ItemProgress
    from vqtok.jobs.job import Outcome


def print_outcomes(
    outcomes: Generator[Outcome, None, None],
    line: Callable[[dict[str, Any]], str],
    progress: ItemProgress,
    *,
    total: int | None,
    manifest: Path | None = None,
    ignored: Counter[str] | None = None,
    json: bool,
    quiet: bool,
    on_stdout: bool = False,
    at_end: Callable[[], None] = lambda: None,
) -> None:
    """Print each outcome as it arrives and a summary of several; exit with the code that they require.

    Args:
        line: Returns the line that describes an outcome.
        progress: The display that the work reports to.
        total: The number of items; None if it is not known.
        manifest: Where failures are recorded.
        ignored: Files of other kinds that were passed over, counted by suffix.
        on_stdout: Whether the lines are data, which go to stdout.
        at_end: Called after the summary.
    """
    from vqtok.cli.console import print_json, say
    from vqtok.cli.lines import Tally
    from vqtok.files.walk import describe_ignored
    from vqtok.jobs.failures import failure_log

    tally, several = Tally(), total is None or total > 1
    exit_code = 0
    try:
        # Closing the generator on Ctrl-C stops the threads that work on other items.
        with failure_log(manifest) as note_failure, closing(outcomes), progress:
            for outcome in outcomes:
                facts = outcome.facts
                if outcome.error:
                    exit_code = outcome.error.exit_code if total == 1 else 1
                    facts = facts | {"error": with_options(str(outcome.error))}
                    print_error(str(outcome.error))
                    note_failure(facts)
                elif on_stdout and not json:
                    typer.echo(line(facts))
                elif not outcome.skipped and not quiet and not json:
                    say(line(facts))
                tally.add(facts)
                if json:
                    print_json(facts)
    except KeyboardInterrupt:
        if several:
            to_do = "" if total is None else f", {total - tally.count} to do"
            say(f"{tally}{to_do}; the same command with --skip-existing continues")
        raise
    if json and several:
        print_json(tally.facts() | {"ignored": dict(ignored or {})})
    if ignored and not quiet:
        say(describe_ignored(ignored))
    if (several or tally.skipped) and not quiet:
        say(str(tally))
    at_end()
    if exit_code:
        raise typer.Exit(exit_code)


def refuse_terminal(jobs: Iterable[Job], json: bool) -> None:
    """Raise if a job would write binary data to a terminal, or to a stdout that JSON goes to.

    Raises:
        UsageError: A job would.
    """
    if any(job.target == STDIO or stream_number(job.target) == 1 for job in jobs):
        if json:
            raise UsageError("-o -: stdout cannot take both the file and --json")
        if sys.stdout is not None and sys.stdout.isatty():
            raise UsageError("-o -: binary data is not written to a terminal; redirect it, or give -o FILE")
