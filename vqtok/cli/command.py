"""What every verb has in common: help in panels, errors as exit codes, the library's log as lines on stderr."""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from vqtok.compute.torchrun import is_secondary
from vqtok.errors import VqtokError

INTERRUPTED = 130

OPTIONS = {
    "address": "--ray-address",
    "against": "--against",
    "base": "--base",
    "begin_token": "--begin-token",
    "chunk_seconds": "--chunk-seconds",
    "coder": "--coder",
    "columns": "--columns",
    "config": "--config",
    "crop": "--crop",
    "device": "--device",
    "end_token": "--end-token",
    "extend": "--extend",
    "extend_tokenizer": "--extend-tokenizer",
    "family": "--family",
    "flip": "--flip",
    "effort": "--effort",
    "force": "--force",
    "grid": "--grid",
    "ids": "--ids",
    "init": "--init",
    "jobs": "--jobs",
    "key_column": "--key-column",
    "layout": "--layout",
    "like": "--like",
    "mask": "--mask",
    "max_bytes": "--max-bytes",
    "max_megapixels": "--max-megapixels",
    "max_pixels": "--max-pixels",
    "max_seconds": "--max-seconds",
    "media_column": "--media-column",
    "metrics": "--metrics",
    "min_pixels": "--min-pixels",
    "minutes": "--minutes",
    "model": "--model",
    "mono": "--mono",
    "num_codebooks": "--codebooks",
    "offset": "--offset",
    "output": "-o",
    "overwrite": "--force",
    "pack": "--pack",
    "pad_token": "--pad-token",
    "precision": "--precision",
    "preset": "--preset",
    "prior_only": "--prior-only",
    "replace": "--replace",
    "resize": "--resize",
    "resume": "--resume",
    "revision": "--revision",
    "row": "--row",
    "row_token": "--row-token",
    "rows_per_file": "--rows-per-file",
    "salvage": "--salvage",
    "seed": "--seed",
    "segment_seconds": "--segment-seconds",
    "settings": "--set",
    "shuffle": "--shuffle",
    "size": "--size",
    "skip_existing": "--skip-existing",
    "special_tokens": "--special-tokens",
    "split": "--split",
    "steps": "--steps",
    "strict": "--strict",
    "subtype": "--subtype",
    "target_bpp": "--target-bpp",
    "target_kbps": "--target-kbps",
    "target_psnr": "--target-psnr",
    "target_ssimulacra2": "--target-ssimulacra2",
    "target_stoi": "--target-stoi",
    "template": "--template",
    "tensorboard": "--tensorboard",
    "text": "--text",
    "to": "--to",
    "tokenizer": "--tokenizer",
    "tolerance": "--tolerance",
    "via": "--via",
}
"""The option that sets a library function's argument, for messages."""

PANELS = (
    "Arguments",
    "Input and output",
    "Rows and columns",
    "What to generate",
    "Sampling",
    "Training",
    "Model",
    "Evaluation",
    "Before encoding",
    "Coding",
    "Rate control",
    "Token ids",
    "Performance",
    "Large runs",
    "Messages",
    "Options",
)
"""Groups of options in the help, in order."""

Command = TypeVar("Command", bound=Callable[..., None])


class PanelCommand(TyperCommand):
    """A command whose help groups its options by their `rich_help_panel`, as plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {name: [] for name in PANELS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                if is_argument:
                    record = (parameter.metavar or record[0], record[1])
                panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if is_argument else "Options")
                panels[panel].append(record)
        for panel, records in panels.items():
            if not records:
                continue
            with formatter.section(panel):
                formatter.write_dl(records)


def command(function: Command) -> Command:
    """Wrap a verb so that its errors become one line on stderr and an exit code."""

    @functools.wraps(function)
    def run(*args: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> None:
        quiet = quiet or is_secondary()
        try:
            _start_logging(quiet, verbose)
            function(*args, quiet=quiet, verbose=verbose, **options)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of stdout is gone. Redirect it, so that Python does not fail again when it flushes at exit.
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
                print_error(f"unexpected {type(error).__name__} (VQTOK_DEBUG=1 shows the traceback): {error}")
            raise typer.Exit(1) from None

    return run  # type: ignore[return-value]


def print_error(message: str) -> None:
    """Print an error on stderr, with the options of the command line instead of the library's arguments."""
    from vqtok.cli.console import say

    say(f"error: {with_options(message)}", style="bold red")


def with_options(message: str) -> str:
    """Replace the names of Python arguments in a library's message, such as `overwrite`, by those of options."""
    return re.sub(r"`(\w+)`", lambda found: OPTIONS.get(found[1], found[0]), message)


class _ConsoleHandler(logging.Handler):
    """Prints the library's warnings as lines on stderr, above any progress display."""

    def emit(self, record: logging.LogRecord) -> None:
        from vqtok.cli.console import say

        say(f"{record.levelname.lower()}: {with_options(record.getMessage())}", style="yellow")


def _start_logging(quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[_ConsoleHandler()], force=True)
