"""vqtok.jobs.failures, and the summary of a run."""

from __future__ import annotations

import json
import re

import pytest
from conftest import picture
from PIL import Image

from vqtok.cli.lines import Tally
from vqtok.jobs.failures import failure_log, failures_beside


def test_lines_are_there_at_once_and_only_if_something_failed(tmp_path, caplog):
    path = tmp_path / "new/failures.jsonl"
    with failure_log(path) as note:
        assert not path.exists()
        note({"file": "a\udcff\n.png", "error": "is bad", "exit_code": 1})
        assert json.loads(path.read_text()) == {"path": "a\udcff\n.png", "error": "is bad"}
        note({"file": "b", "key": "c", "error": "too", "exit_code": 1})
        assert json.loads(path.read_text().splitlines()[1]) == {"path": "b", "key": "c", "error": "too"}
    with failure_log(path):
        assert not path.exists()
    path.mkdir()
    with failure_log(path) as note:
        note({"file": "a", "error": "is bad"})
    assert f"{path}: cannot be written: Is a directory" in caplog.text
    with failure_log(None) as note:
        note({"file": "a", "error": "is bad"})


@pytest.mark.parametrize(
    ("output", "num_inputs", "share", "expected"),
    [
        ("out", 2, "", "out/failures.jsonl"),
        ("out/", 2, "00003-of-00100", "out/failures.00003-of-00100.jsonl"),
        ("a/x.vqts", 2, "", "a/x.failures.jsonl"),
        ("s3://b/out", 2, "", "s3://b/out/failures.jsonl"),
        ("out", 1, "", "None"),
        (None, 2, "", "None"),
        ("-", 2, "", "None"),
    ],
)
def test_places(output, num_inputs, share, expected):
    assert str(failures_beside(output, num_inputs, share)) == expected


def test_summary_tells_the_real_rates(run, photo, sound, tmp_path):
    Image.fromarray(picture(32, 32)).save(tmp_path / "small.png")
    result = run("encode", photo, sound, tmp_path / "small.png", "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    bpp = 8 * (found[0]["file_bytes"] + found[2]["file_bytes"]) / (96 * 64 + 32 * 32)
    last = result.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"[\d.]+ items/s, {bpp:.3f} bpp, {found[1]['kbps']:.3f} kbps: 3 done, 0 skipped, 0 failed", last
    )
    tally = Tally()
    tally.add({"file": "x", "error": "bad"})
    tally.add({"file": "y", "skipped": True})
    assert str(tally) == "0 done, 1 skipped, 1 failed"


def test_manifest_by_name(run, photo, tmp_path):
    (tmp_path / "bad.png").touch()
    for verb, bad in [("encode", "bad.png"), ("decode", "bad.vqt")]:
        (tmp_path / "bad.vqt").touch()
        result = run(verb, tmp_path / bad, "--failures", tmp_path / f"{verb}.jsonl", "--force")
        assert result.exit_code in (1, 4)
        assert json.loads((tmp_path / f"{verb}.jsonl").read_text())["path"] == str(tmp_path / bad)
    (tmp_path / "in").mkdir()
    (tmp_path / "bad.png").rename(tmp_path / "in/bad.png")
    photo.rename(tmp_path / "in/good.png")
    assert run("encode", tmp_path / "in", "--shard", tmp_path / "x.vqts").exit_code == 1
    assert json.loads((tmp_path / "x.failures.jsonl").read_text())["path"] == f"{tmp_path}/in/bad.png"
