"""Several processes, or several parts of a batch, train like one process with the whole batch."""

from __future__ import annotations

import json
import os
import socket
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import picture
from PIL import Image

from training.conftest import STEPS, TINY, distance, make_trainer, metrics, run_two_processes
from vqtok.config import load_preset
from vqtok.errors import UsageError
from vqtok.inspection import inspect
from vqtok.models.vqmodel import VQModel
from vqtok.quantizers import VQ, one_update
from vqtok.training import initialise as start
from vqtok.training.optim import Budget

pytestmark = pytest.mark.usefixtures("quick_kmeans")

EXACT = ["model.quantizer.prefix_dropout=0", "model.quantizer.restart_below=0", "train.learning_rate=1e-2"]
"""No randomness, and steps far larger than rounding errors."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    y, x = np.mgrid[:20, :20]
    waves = [127 + 100 * np.sin(x / period) * np.cos(y / period) for period in np.linspace(1, 6, 30)]
    np.save(folder / "waves.npy", np.stack(waves).astype(np.uint8))
    return folder


def assert_alike(whole: Path, found: Path, half: Path) -> None:
    """Assert that two runs differ by rounding, which training amplifies, less than from a run with half the data."""
    for module in ("model.encoder", "model.quantizer", "model.decoder", "average.decoder"):
        far = distance(whole, half, module)
        assert far > 0.01
        # On all instruction sets tried rounding comes to 0.025 at most, a forgotten average of gradients to 0.25.
        assert distance(whole, found, module) < 0.1 * far, (module, distance(whole, found, module), far)


@pytest.fixture
def whole(pictures: Path, tmp_path: Path) -> Path:
    make_trainer(pictures, tmp_path / "whole", Budget(steps=STEPS), *EXACT).run()
    return tmp_path / "whole"


@pytest.fixture
def half(pictures: Path, tmp_path: Path) -> Path:
    make_trainer(pictures, tmp_path / "half", Budget(steps=STEPS), *EXACT, "train.batch_size=4").run()
    return tmp_path / "half"


def test_two_processes_equal_one_with_the_double_batch(pictures: Path, tmp_path: Path, whole: Path, half: Path) -> None:
    settings = [*TINY, *EXACT, "train.batch_size=4"]
    identities = run_two_processes(pictures, tmp_path / "two.safetensors", settings)
    assert_alike(whole, tmp_path / "two.run", half)
    # Only the first process wrote, and both know the result.
    rows = metrics(tmp_path / "two.run")
    assert [row["step"] for row in rows] == [row["step"] for row in metrics(whole)] == [5, 10, 14]
    facts = inspect(tmp_path / "two.safetensors")
    assert identities == [facts["identity"]] * 2
    assert (facts["training"]["processes"], facts["training"]["items_seen"]) == (2, 8 * STEPS)
    with pytest.raises(UsageError, match="has 2 processes, not 1"):
        make_trainer(pictures, tmp_path / "two.run", Budget(steps=STEPS), *settings).resume()


def test_parts_of_a_batch_equal_the_whole(pictures: Path, tmp_path: Path, whole: Path, half: Path) -> None:
    parts = tmp_path / "parts"
    make_trainer(pictures, parts, Budget(steps=STEPS), *EXACT, "train.accumulate=4").run()
    assert_alike(whole, parts, half)
    found, expected = ([row["l2"] for row in metrics(folder)] for folder in (parts, whole))
    assert found == pytest.approx(expected, rel=0.05)
    with pytest.raises(UsageError, match="multiple of train.accumulate"):
        load_preset("digits", ["train.accumulate=3"])


def test_codebooks_learn_once_from_all_parts() -> None:
    torch.manual_seed(0)
    whole, parts, apart = (VQ(4, 8) for _ in range(3))
    z = torch.randn(6, 4, 10)
    for quantizer in (whole, parts, apart):
        quantizer.reset_statistics()
        quantizer.load_state_dict(whole.state_dict())
    whole(z)
    with one_update(parts):
        for part in z.chunk(3):
            parts(part)
    for part in z.chunk(3):
        apart(part)
    torch.testing.assert_close(parts.codebook, whole.codebook)
    assert (apart.codebook - whole.codebook).abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_gradient() -> None:
    config = load_preset("digits", TINY)
    again = load_preset("digits", [*TINY, "train.gradient_checkpointing=true"])
    x = torch.rand(2, 3, 16, 16)
    kept: list[list[torch.Tensor]] = []
    calls = []
    for setup in (config, again):
        torch.manual_seed(0)
        model: VQModel = start.make_model(setup, torch.device("cpu"), None)
        block = model.decoder.layers[1]
        count = 0

        def counting(*_: object) -> None:
            nonlocal count
            count += 1

        block.conv1.register_forward_hook(counting)
        x_hat, _ = model(x, quantize=False)
        x_hat.square().sum().backward()
        kept.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        calls.append(count)
    assert calls == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))


def set_environment(variables: dict[str, str]) -> None:
    os.environ.update(variables)


def test_processes_of_torchrun_share_encoding_and_end_together(start, image_model: Path, tmp_path: Path) -> None:
    """When one process exits with an error, torchrun ends the others."""
    for index in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(picture(20, 10 + index)).save(tmp_path / f"in/{index}.png")
    (tmp_path / "in/bad.png").touch()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = ["encode", tmp_path / "in", "-o", tmp_path / "out", "--model", image_model, "--json"]
    both = [start(*command, before=partial(set_environment, place | {"RANK": rank})) for rank in "01"]
    assert sorted(run.wait() for run in both) == [0, 1]
    lines = [json.loads(line) for run in both for line in run.stdout.splitlines()]
    found = [line for line in lines if line.get("kind") != "summary"]
    assert sorted(Path(entry["file"]).name for entry in found) == sorted(
        path.name for path in (tmp_path / "in").iterdir()
    )
    assert len(list((tmp_path / "out").glob("*.vqt"))) == 12
    assert len(list((tmp_path / "out").glob("failures.0000?-of-00002.jsonl"))) == 1
    assert "task 0 of 2 (RANK): " in both[0].stderr
    assert "task" not in both[1].stderr  # Apart from errors, only the first process reports.
