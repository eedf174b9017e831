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
"""For results: the tables of `inspect`."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""For everything else."""


def say(message: str, style: str = "") -> None:
    """Print one line on stderr, without interpreting it as markup."""
    err.print(one_line(message, style=style))


def one_line(text: str, style: str = "") -> Text:
    """Return one line of text. Characters that would break the line or control the terminal are escaped."""
    return Text("".join(c if c.isprintable() else repr(c)[1:-1] for c in text), style=style)


_kept_stdout: list[TextIO] = []


@contextmanager
def stdout_for_json() -> Iterator[None]:
    """Send what libraries print to stderr, as Ray does with the log of a dead node."""
    _kept_stdout.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _kept_stdout.pop()


def print_json(facts: Mapping[str, Any]) -> None:
    stdout = _kept_stdout[-1] if _kept_stdout else sys.stdout
    # ASCII works on every stdout and preserves names that are not UTF-8.
    stdout.write(json.dumps(facts) + "\n")
    stdout.flush()
