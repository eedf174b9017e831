"""The manifest of failures of a long run, a file that exists only if something failed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vqtok.errors import VqtokError
from vqtok.files.atomic import atomic_write, make_folder, write_error
from vqtok.files.paths import RemotePath, as_path

logger = logging.getLogger(__name__)


@contextmanager
def failure_log(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that records a failure as a JSON line: the input's `path`, the item's `key` if any, the `error`.

    Each line is written at once, in a remote file at the end. The file of an earlier run is removed. A file that cannot
    be written does not end the run.
    """
    remote_lines: list[bytes] = []

    def note(facts: Mapping[str, Any]) -> None:
        if path is None:
            return
        line = {"path": facts["file"]} | {name: facts[name] for name in ("key", "error") if name in facts}
        data = json.dumps(line).encode() + b"\n"
        if isinstance(path, RemotePath):
            remote_lines.append(data)
        else:
            _try_append(path, data)

    if path is not None and not isinstance(path, RemotePath):
        with suppress(OSError):
            path.unlink(missing_ok=True)
    yield note
    if isinstance(path, RemotePath) and remote_lines:
        atomic_write(path, b"".join(remote_lines))


def failures_beside(output: str | None, num_inputs: int, share: str = "") -> Path | None:
    """Return the manifest of a run: in the folder of its outputs, or next to its shard; None for a single output.

    Args:
        share: The name of this run among several with the same folder.
    """
    if output is None or output == "-" or num_inputs < 2:
        return None
    path = as_path(output)
    if path.suffix == ".vqts":
        return path.with_suffix(".failures.jsonl")
    return path / ".".join(["failures", *([share] if share else []), "jsonl"])


def _try_append(path: Path, data: bytes) -> None:
    try:
        make_folder(path.parent)
        with path.open("ab") as file:
            file.write(data)
    except OSError as error:
        logger.warning("%s", write_error(path, error))
    except VqtokError as error:
        logger.warning("%s", error)
