"""Alarms: reports and counts; collapse and regression, and the reactions to them."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from vqtok.quantizers import FSQ, VQ, Residual
from vqtok.training.alarms import (
    Alarms,
    RegressionWatch,
    collapsed_codebooks,
    describe_collapse,
    discriminator_problems,
    mark_for_restart,
)
from vqtok.training.monitor import WINDOW_STEPS, CodebookWindow
from vqtok.training.validation import Validation


def filled(sizes: tuple[int, ...], *codes: torch.Tensor, steps: int = WINDOW_STEPS) -> CodebookWindow:
    """Return a window of steps that all have these codes `(tokens,)` for each codebook."""
    window = CodebookWindow(sizes)
    for _ in range(steps):
        window.add(torch.stack(codes)[None])
    return window


def validated(figure: float, name: str = "psnr") -> Validation:
    return Validation(0.0, [1, 2], [figure - 0.1, figure + 0.1], name, [0.0, 0.0], [1.0, 1.0])


def test_alarms_are_said_less_and_less_often_but_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alarms = Alarms(tmp_path)
    for step in range(10, 21):
        alarms.add("a", step, "oh")
    alarms.add("b", 30, "ah")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["alarm"], row["count"]) for row in rows] == [
        (10, "a", 1),
        (11, "a", 2),
        (13, "a", 4),
        (17, "a", 8),
        (30, "b", 1),
    ]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert (len(said), said[0], said[1]) == (5, "step 10: oh", "step 11: oh (occurrence 2)")
    again = Alarms(tmp_path, json.loads(json.dumps(alarms.kinds)))
    assert again.lines() == ["step 10: oh (11 times, last at step 20)", "step 30: ah"]
    assert [alarms.count(kind) for kind in "abc"] == [11, 1, 0]


def test_collapse_is_little_use_over_a_whole_window() -> None:
    even, one, few = torch.arange(64), torch.zeros(64, dtype=torch.int64), torch.arange(64) % 8
    assert collapsed_codebooks(filled((64, 64, 64), even, one, few)) == [1, 2]
    assert collapsed_codebooks(filled((64, 64), even, one, steps=WINDOW_STEPS - 1)) == []
    assert collapsed_codebooks(filled((16,), few)) == []  # 8 codes are more than half of the bits of 16 codes.
    assert collapsed_codebooks(filled((64,), torch.cat([one, even]))) == []
    window = CodebookWindow((10**6,))
    for step in range(WINDOW_STEPS):
        window.add((64 * step + even)[None, None])
    assert collapsed_codebooks(window) == []  # So few steps cannot use all codes.


def test_what_collapsed_is_described_and_marked() -> None:
    window = filled((64, 64), torch.arange(64), torch.zeros(64, dtype=torch.int64))
    assert describe_collapse(window, [1]) == (
        "collapsed over the last 100 steps: codebook 2 (usage 1.6%, perplexity 1.0 of 64)"
    )
    parts = [VQ(2, 64) for _ in range(2)]
    for part in parts:
        part.reset_statistics()
    assert mark_for_restart(Residual(parts), [1]) == "restarted by k-means"
    assert [part.ready for part in parts] == [True, False]
    assert "no codebook to restart" in mark_for_restart(FSQ([8, 8]), [0])
    without = VQ(2, 64, restart_below=0)
    without.reset_statistics()
    assert mark_for_restart(without, [0]) == "not restarted because model.quantizer.restart_below is 0"
    assert without.ready


@pytest.mark.parametrize(("name", "sign"), [("psnr", 1), ("mel_distance", -0.1)])
def test_validation_that_stays_worse_is_an_alarm(name: str, sign: float) -> None:
    def said(watch: RegressionWatch, *figures: float) -> list[bool]:
        return [bool(watch.check(validated(10 + sign * figure, name))) for figure in figures]

    assert said(RegressionWatch(), 0, 20, 19.9, 19.7, 19.8, 20.1) == [False] * 6
    # A single one may be chance. After an alarm the count starts again.
    watch = RegressionWatch()
    assert said(watch, 20, 10, 19.9, 10, 10, 10) == [False, False, False, False, True, False]
    assert said(RegressionWatch(**watch.state), 10) == [True]
    assert "not finite" in RegressionWatch().check(validated(math.nan, name))


def test_a_regression_names_the_figures() -> None:
    for name, figures, expected in (
        ("psnr", (27.3, 25.0, 24.5), "PSNR 24.50 dB, best 27.30 dB"),
        ("mel_distance", (0.5, 0.6, 0.7), "mel distance 0.70, best 0.50"),
    ):
        watch = RegressionWatch()
        messages = [watch.check(validated(figure, name)) for figure in figures]
        assert messages == ["", "", f"validation got worse: {expected}"]


def test_discriminators_that_are_not_heard_or_have_won_are_told() -> None:
    heard = {"adversarial": 1.0, "adversarial_share": 0.3, "discriminator_accuracy": 0.9}
    assert discriminator_problems(heard) == {}
    assert discriminator_problems({"l2": 0.1}) == {}
    # They may tell all patches before their loss is used.
    assert discriminator_problems({"discriminator_accuracy": 1.0}) == {}
    assert list(discriminator_problems(heard | {"adversarial_share": 0.019})) == ["discriminators not heard"]
    found = discriminator_problems(heard | {"discriminator_accuracy": 0.99})
    assert found["discriminators have won"].startswith("the discriminators tell 99.0% of the patches")
