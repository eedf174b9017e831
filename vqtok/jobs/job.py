"""One job, and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vqtok.errors import MediaError, VqtokError
from vqtok.files.atomic import refuse_existing
from vqtok.files.paths import STDIO, is_stream

if TYPE_CHECKING:
    from vqtok.media.transforms import Part
    from vqtok.rows.row import Row


class NamedBytes(BytesIO):
    """The content of a file, with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


@dataclass(frozen=True)
class Job:
    """One input and the output for its result."""

    source: Path
    target: Path
    key: str | None = None
    """The item of an input that contains several."""
    row: Row | None = None
    """The row of a data set that is the input, unless it is the file `source`."""

    part: Part | None = None
    """How the item is made of the input; by default it is the whole input as it is."""

    @property
    def media(self) -> Path | BinaryIO:
        """Return what is to be encoded.

        Raises:
            MediaError: The row has a fault.
        """
        if self.row is None:
            return self.source
        if self.row.fault or self.row.media is None:
            raise MediaError(self.row.fault or "has no media")
        return NamedBytes(self.row.media, self.name) if isinstance(self.row.media, bytes) else self.row.media

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


def skipped(job: Job, reason: str = "") -> Outcome:
    """Return the outcome of a job whose output exists, or that is left out for a reason."""
    facts: dict[str, Any] = {"output": str(job.target), "skipped": True}
    return Outcome(job, job.facts() | facts | ({"reason": reason} if reason else {}), skipped=True)


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
