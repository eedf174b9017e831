"""TensorBoard files: scalars, images, audio and code histograms."""

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
"""The name of the folder in the run folder."""
BINS = 64
"""The number of bins of a codebook's histogram, each of equally many adjacent codes."""


class TensorBoard:
    """Writes the contents of `metrics.jsonl` and of the run folder to TensorBoard files.

    Raises:
        UsageError: The package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils import tensorboard
        except ImportError:
            raise UsageError("`tensorboard` needs the package tensorboard: pip install 'vqtok[tensorboard]'") from None
        self.folder = folder
        self._open = tensorboard.SummaryWriter
        self._writer: Any = None

    def write(self, row: Mapping[str, Any], window: CodebookWindow) -> None:
        """Write a line of `metrics.jsonl`; at a validation also its files in the run folder and the histograms."""
        step = row["step"]
        if self._writer is None:
            # Hides what the run has written from this step on before it was resumed.
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
                audio = read_audio(path)
                self._writer.add_audio(name, audio.data[0], step, sample_rate=audio.sample_rate)
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
    """Yield the names and values of a line; lists have one value per codebook, `quality` one per prefix length."""
    for name, value in row.items():
        if isinstance(value, list):
            yield from ((f"{name}/{index + 1}", figure) for index, figure in enumerate(value))
        elif isinstance(value, (int, float)):
            yield f"training/{name}", value
    validation = row.get("validation", {})
    for modality, found in ({"": validation} if "score" in validation else validation).items():
        title = f"validation {modality}".rstrip()
        yield f"{title}/score", found["score"]
        for length, quality in zip(found["prefixes"], found["quality"], strict=True):
            yield f"{title}/{found['quality_name']} at {length}", quality
        for name in ("usage", "perplexity"):
            yield from ((f"{title} {name}/{index + 1}", figure) for index, figure in enumerate(found[name]))
