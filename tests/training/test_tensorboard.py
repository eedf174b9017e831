"""TensorBoard files have the contents of `metrics.jsonl` and of the run folder."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqtok.errors import UsageError
from vqtok.media.audio import write_audio
from vqtok.media.image import write_image
from vqtok.media.media import Media
from vqtok.training.monitor import CodebookWindow
from vqtok.training.tensorboard import TENSORBOARD_FOLDER, TensorBoard

VALIDATION = {"score": 0.5, "prefixes": [1, 2], "quality": [20.0, 25.0], "quality_name": "psnr"}


def read_back(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    events.Reload()
    return events


def test_files_read_back(tmp_path: Path) -> None:
    write_image(Media("image", np.zeros((3, 8, 12), np.float32)), tmp_path / "step-0000040.png")
    write_audio(Media("audio", np.zeros((1, 100), np.float32), 2000), tmp_path / "step-0000040-0-decoded.wav")
    window = CodebookWindow((16, 200))
    window.add(torch.tensor([[[3, 3, 5], [0, 0, 199]]]))
    board = TensorBoard(tmp_path)
    board.write({"step": 20, "l2": 1.5, "usage": [0.5, 0.25]}, window)
    validation = VALIDATION | {"usage": [1.0, 0.5], "perplexity": [2.0, 1.0]}
    board.write({"step": 40, "l2": 1.0, "usage": [0.5, 0.25], "validation": validation}, window)
    board.close()
    events = read_back(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("training/l2")] == [(20, 1.5), (40, 1.0)]
    assert [event.value for event in events.Scalars("usage/2")] == [0.25, 0.25]
    assert events.Scalars("validation/psnr at 2")[0].value == 25
    assert events.Scalars("validation perplexity/1")[0].value == 2
    picture = events.Images("validation/originals over reconstructions")[0]
    assert (picture.width, picture.height, picture.step) == (12, 8, 40)
    sound = events.Audio("validation/0-decoded")[0]
    assert (sound.sample_rate, sound.length_frames) == (2000, 100)
    histogram = events.Histograms("codes/1")[0].histogram_value
    assert (histogram.num, sum(histogram.bucket)) == (3, 3)
    assert events.Histograms("codes/2")[0].histogram_value.num == 3


def test_what_a_killed_run_wrote_too_much_is_hidden(tmp_path: Path) -> None:
    for steps in ((20, 40, 60), (40,)):
        board = TensorBoard(tmp_path)
        for step in steps:
            board.write({"step": step, "l2": float(len(steps))}, CodebookWindow((2,)))
        board.close()
    found = [(event.step, event.value) for event in read_back(tmp_path).Scalars("training/l2")]
    assert found == [(20, 3.0), (40, 1.0)]


def test_a_missing_package_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name == "torch.utils" and "tensorboard" in (fromlist or ()):
            raise ImportError
        return real(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'vqtok\[tensorboard\]'"):
        TensorBoard(tmp_path)
