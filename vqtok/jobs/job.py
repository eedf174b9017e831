"""One job and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok.errors import VqtokError
from vqtok.files.paths import STDIO


@dataclass(frozen=True)
class Job:
    """One input and where its result goes."""

    source: Path
    target: Path
    key: str | None = None
    """Which item of an input that holds several."""

    @property
    def name(self) -> str:
        """What messages call the input."""
        name = "stdin" if self.source == STDIO else str(self.source)
        return name if self.key is None else f"{name}: {self.key}"


@dataclass(frozen=True)
class Existing:
    """What to do with outputs that exist already: refuse them, unless one of these is set."""

    overwrite: bool = False
    skip: bool = False


REFUSED = Existing()


@dataclass(frozen=True)
class Outcome:
    """What became of one job; `facts` is what `--json` prints."""

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    error: VqtokError | None = None
    skipped: bool = False
