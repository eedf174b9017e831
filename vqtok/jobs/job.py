"""One job, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vqtok.errors import VqtokError
from vqtok.files.atomic import refuse_existing
from vqtok.files.paths import STDIO, is_stream


@dataclass(frozen=True)
class Job:
    """One input and the output for its result."""

    source: Path
    target: Path
    key: str | None = None
    """The item of an input that contains several."""

    @property
    def name(self) -> str:
        """The name of the input in messages."""
        name = "stdin" if str(self.source) == str(STDIO) else str(self.source)
        return name if self.key is None else f"{name}: {self.key}"

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints of the input."""
        return {"file": str(self.source)} | ({} if self.key is None else {"key": self.key})


@dataclass(frozen=True)
class Outcome:
    """The outcome of one job; `facts` is what `--json` prints."""

    job: Job
    facts: dict[str, Any] = field(default_factory=dict)
    error: VqtokError | None = None
    skipped: bool = False


def done(job: Job, facts: dict[str, Any], error: VqtokError | None = None) -> Outcome:
    """Return the outcome of a job whose output was written, completely or (with an error) in part."""
    facts = facts | {"output": str(job.target)} | ({} if job.key is None else {"key": job.key})
    return Outcome(job, facts | (error_facts(error) if error else {}), error)


def failed(job: Job, error: VqtokError) -> Outcome:
    return Outcome(job, job.facts() | error_facts(error), error)


def skipped(job: Job) -> Outcome:
    return Outcome(job, job.facts() | {"output": str(job.target), "skipped": True}, skipped=True)


def error_facts(error: VqtokError) -> dict[str, Any]:
    """Return what `--json` prints of an error."""
    return {"error": str(error), "exit_code": error.exit_code}


@dataclass(frozen=True)
class Existing:
    """What to do with outputs that exist: refuse them, unless one of these is set."""

    overwrite: bool = False
    skip: bool = False

    def check(self, target: Path) -> bool:
        """Return whether an output exists and is not to be overwritten.

        Raises:
            OutputError: It exists, and is neither to be overwritten nor skipped.
        """
        if self.overwrite or is_stream(target) or not target.exists():
            return False
        if not self.skip:
            refuse_existing(target, skippable=True)
        return True


REFUSED = Existing()
