"""Odd media through the command line: what is read of them, what is said, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from conftest import RUN, wave
from PIL import Image

from media.conftest import chord, mp3, with_av
from vqtok.tokens.vqt.header import read_header


def test_joined_mp3_files_become_tokens_of_all_of_them_without_a_word(run: RUN, tmp_path: Path) -> None:
    path = tmp_path / "cat.mp3"
    path.write_bytes(mp3(chord(2)) + mp3(chord(3)))
    result = run("encode", path, "-q")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert read_header(path.with_suffix(".vqt")).duration_seconds == 5


def test_formats_of_packages_are_found_in_folders(run: RUN, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.m4a").write_bytes(with_av(chord(1), "ipod", "aac"))
    soundfile.write(folder / "b.wav", wave(100, 8000), 8000)
    result = run("encode", folder, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0
    *lines, _ = map(json.loads, result.stdout.splitlines())
    assert [Path(line["file"]).name for line in lines] == ["a.m4a", "b.wav"]


def test_what_a_format_cannot_hold_is_one_line_and_leaves_nothing(run: RUN, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "bat.wav", wave(1000, 250_000), 250_000)
    tokens = tmp_path / "bat.vqt"
    assert run("encode", tmp_path / "bat.wav").exit_code == 0
    result = run("decode", tokens, "-o", tmp_path / "out.ogg")
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "as .ogg: it supports sample rates of up to 200000 Hz; use .wav" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bat.vqt", "bat.wav"]


def test_the_limit_of_megapixels_is_an_option(run: RUN, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((60, 100), np.uint8)).save(path)
    result = run("encode", path)
    assert result.exit_code == 1
    assert result.stderr == f"error: {path}: has more than 0.005 megapixels; --max-megapixels allows more\n"
    assert run("encode", path, "--max-megapixels", "0.006").exit_code == 0
    path.with_suffix(".vqt").unlink()
    assert run("encode", path, "--max-megapixels", "0.0059").exit_code == 1
