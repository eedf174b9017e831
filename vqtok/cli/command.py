"""What every verb has in common: errors become exit codes, the library's log becomes lines on stderr."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from vqtok.errors import VqtokError

INTERRUPTED = 130
IS_SECONDARY_RANK = os.environ.get("RANK", "0") != "0"
"""Whether torchrun started this process as one of several and another one reports."""

Command = TypeVar("Command", bound=Callable[..., None])


def command(function: Command) -> Command:
    """Wrap a verb so that its errors become one line on stderr and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> None:
        quiet = quiet or IS_SECONDARY_RANK
        try:
            _start_logging(quiet, verbose)
            function(*args, quiet=quiet, verbose=verbose, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of stdout went away; so that Python does not complain at exit, nothing more is flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if os.environ.get("VQTOK_DEBUG"):
                raise
            if isinstance(error, VqtokError):
                print_error(str(error))
                raise typer.Exit(error.exit_code) from None
            if isinstance(error, OSError):
                print_error(f"{error.filename}: {error.strerror}" if error.filename else str(error))
            else:
                print_error(f"unexpected {type(error).__name__}, VQTOK_DEBUG=1 shows where: {error}")
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]


class _ConsoleHandler(logging.Handler):
    """Show the library's warnings as lines on stderr, above any progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        from vqtok.cli.console import say

        say(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")


def _start_logging(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[_ConsoleHandler()], force=True)


def print_error(message: str) -> None:
    from vqtok.cli.console import say

    say(f"error: {message}", style="bold red")
