"""Runs that are killed or interrupted at any moment, or run twice at once, and the runs that continue them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import picture
from PIL import Image

from vqtok.tokens.shard.writer import ShardWriter

MANY = [pytest.param(20, marks=pytest.mark.slow), 3]
"""The number of repetitions; twenty take a while."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files below a folder, including hidden ones."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    for index in range(24):
        path = folder / f"{index % 4}/{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(40 + index, 70)).save(path)
    return folder


class Case:
    """A command line, the folder it writes to, and its output and duration without interruption."""

    def __init__(self, start, folder: Path, *command: object) -> None:
        self.start, self.folder, self.command = start, folder, command
        started = start(*command)
        started.await_begin()
        since = time.monotonic()
        assert started.wait() == 0
        self.seconds = time.monotonic() - since
        self.expected = contents(folder)

    def begin(self):
        return self.start(*self.command, "--skip-existing", "--json")

    def disturb(self, number: signal.Signals, moment: float):
        started = self.begin()
        started.send(number, moment * self.seconds)
        if started.wait() == 0:
            self.seconds /= 2  # Ended before the signal: later runs are faster than the first, which fills caches.
        return started


@pytest.fixture(params=["encode", "shard", "decode"])
def case(request, start, album, image_model, tmp_path):
    model, out = ("--model", image_model), tmp_path / "out"
    if request.param == "shard":
        return Case(start, out, "encode", album, "--shard", out / "x.vqts", *model)
    if request.param == "decode":
        assert start("encode", album, "-o", tmp_path / "tokens", *model).wait() == 0
        return Case(start, out, "decode", tmp_path / "tokens", "-o", out, *model)
    return Case(start, out, "encode", album, "-o", out, *model)


def finished(folder: Path) -> tuple[int, dict[str, int]]:
    """Return the number of finished items, and the inodes of their files."""
    partial = folder / "x.vqts.part"
    if partial.exists() and partial.stat().st_size:
        copy = folder.parent / "copy"
        shutil.copy(partial, copy)
        with copy.open("r+b") as file:
            return len(ShardWriter.resume(file).keys), {}
    names = [path for path in folder.rglob("*") if path.suffix in (".vqt", ".vqts", ".png")]
    inodes = {path.relative_to(folder).as_posix(): path.stat().st_ino for path in names}
    return 24 if "x.vqts" in inodes else len(inodes), inodes


@pytest.mark.parametrize("times", MANY)
def test_kill_and_go_on(case, times):
    chance = random.Random(times)
    killed = 0
    for _ in range(times):
        shutil.rmtree(case.folder)
        killed += case.disturb(signal.SIGKILL, chance.random()).wait() == -signal.SIGKILL
        num_done, inodes = finished(case.folder)
        again = case.begin()
        assert again.wait() == 0
        assert contents(case.folder) == case.expected
        # Finished items are not done again.
        assert again.stdout.count('"skipped": true') == num_done
        assert inodes.items() <= finished(case.folder)[1].items()
    assert killed >= times // 3


@pytest.mark.parametrize("times", MANY)
def test_interrupt_at_any_moment(case, times):
    chance = random.Random(times)
    stopped = 0
    for turn in range(times):
        shutil.rmtree(case.folder)
        started = case.disturb((signal.SIGINT, signal.SIGTERM)[turn % 2], chance.random())
        code = started.wait()
        assert code in (0, 130), started.stderr
        if code == 130:
            stopped += 1
            assert started.stderr.splitlines()[-1] == "error: interrupted"
            assert "Traceback" not in started.stderr
            found = contents(case.folder)
            assert all(name.endswith(".part") or found[name] == case.expected[name] for name in found)
        assert case.begin().wait() == 0
        assert contents(case.folder) == case.expected
    assert stopped


def test_two_runs_at_once(case):
    shutil.rmtree(case.folder)
    both = case.begin(), case.begin()
    codes = [run.wait() for run in both]
    assert contents(case.folder) == case.expected
    if os.fspath(case.folder / "x.vqts") in map(str, case.command):
        assert sorted(codes) in ([0, 0], [0, 1])
        assert all(
            code == 0 or "is being written by another run" in run.stderr for code, run in zip(codes, both, strict=True)
        )
    else:
        assert codes == [0, 0]
