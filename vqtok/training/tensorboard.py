"""TensorBoard files: scalars, pictures, sounds and the use of codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vqtok.errors import UsageError
from vqtok.media.audio import read_audio
from vqtok.media.image import read_image
from vqtok.training.monitor import CodebookWindow

TENSORBOARD_FOLDER = "tensorboard"
"""In the run folder."""
BINS = 64
"""Of a codebook's histogram, each of as many neighbouring codes."""


class TensorBoard:
    """Write what `metrics.jsonl` and the run folder hold as TensorBoard shows it.

    Raises:
        UsageError: the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError:
            raise UsageError("--tensorboard needs tensorboard: pip install 'vqtok[tensorboard]'") from None
        self.folder = folder
        self._open = tensorboard.SummaryWriter
        self._writer: Any = None

    def write(self, row: Mapping[str, Any], window: CodebookWindow) -> None:
        """Write a line of `metrics.jsonl`; at a validation also what it left in the run folder, and the window."""
        step = row["step"]
        if self._writer is None:
            # What an earlier part of the run wrote from this step on is no longer shown.
            self._writer = self._open(str(self.folder / TENSORBOARD_FOLDER), purge_step=step)
        for name, value in _scalars(row):
            self._writer.add_scalar(name, value, step)
        if "validation" in row:
            self._write_validation(step, window)
            self._writer.flush()

    def _write_validation(self, step: int, window: CodebookWindow) -> None:
        for path in sorted(self.folder.glob(f"step-{step:07d}*")):
            name = f"validation/{path.stem.partition('-')[2].partition('-')[2] or 'originals over reconstructions'}"
            if path.suffix == ".png":
                self._writer.add_image(name, read_image(path).data / 2 + 0.5, step)
            else:
                sound = read_audio(path)
                self._writer.add_audio(name, sound.data[0], step, sample_rate=sound.sample_rate)
        if not window.num_tokens:
            return
        for index, (codes, size) in enumerate(zip(window.codes(), window.codebook_sizes, strict=True)):
            edges = np.unique(np.linspace(0, size, BINS + 1).round())
            self._writer.add_histogram(f"codes/{index + 1}", codes.cpu().numpy(), step, bins=edges)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Flatten a line to named figures; lists have one a codebook, and quality one a prefix of them."""
    for name, value in row.items():
        if isinstance(value, list):
            yield from ((f"{name}/{index + 1}", figure) for index, figure in enumerate(value))
        elif isinstance(value, (int, float)):
            yield f"training/{name}", value
    found = row.get("validation")
    if found:
        yield "validation/score", found["score"]
        for length, quality in zip(found["prefixes"], found["quality"], strict=True):
            yield f"validation/{found['quality_name']} at {length}", quality
        for name in ("usage", "perplexity"):
            yield from ((f"validation {name}/{index + 1}", figure) for index, figure in enumerate(found[name]))
