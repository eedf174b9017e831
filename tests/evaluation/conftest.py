"""Small images and audio to evaluate the tiny models on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import picture, wave
from PIL import Image

EVALUATE = Callable[..., dict[str, Any]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with four images of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        pixels = np.roll(picture(48 + 8 * index, 40), 7 * index, axis=1)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Return a folder with three sounds of different lengths, rates and channels."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for index, (rate, channels) in enumerate([(16_000, 1), (24_000, 2), (8_000, 1)]):
        soundfile.write(folder / f"{index}.wav", wave(rate // 2, rate, channels), rate)
    return folder


@pytest.fixture
def evaluate(run, tmp_path: Path) -> EVALUATE:
    """Return a function that evaluates in this process with quick metrics, and returns the results."""

    def invoke(*args: object, exit_code: int = 0, output: str = "report", metrics: str = "psnr,mel_distance") -> Any:
        result = run(
            "evaluate", *args, "-o", tmp_path / output, "--metrics", metrics, "--jobs", "1", "--no-stability", "-q"
        )
        assert result.exit_code == exit_code, result.output
        return json.loads((tmp_path / output / "results.json").read_text())

    return invoke
