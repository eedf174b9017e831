"""Standard output and standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

out = Console(soft_wrap=False, highlight=False)
"""Results that were asked for: tables of `inspect`."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""Everything said along the way."""


def say(message: str, style: str = "") -> None:
    """Print one line on stderr; file names in it are never read as markup."""
    err.print(one_line(message, style=style))


def one_line(text: str, style: str = "") -> Text:
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
