"""The page, the curves and the sheets of a report; the page in a headless browser, where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import wave
from PIL import Image

from vqtok.evaluation.curves import lines_of
from vqtok.evaluation.picks import middle, ranked_items
from vqtok.evaluation.sheets import spectrogram
from vqtok.media.kinds import is_installed
from vqtok.media.media import Media

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)
USE = """
<script>
addEventListener("load", () => {
  const heads = [...document.querySelectorAll("table")][0].querySelectorAll("th");
  heads[3].click();
  const column = [...document.querySelectorAll("tbody")[0].rows].map(row => row.cells[3].textContent);
  const before = document.querySelector(".stage img").src;
  document.querySelector(".stage").click();
  document.querySelector(".stage").click();
  const again = document.querySelector(".stage img").src;
  document.querySelector(".stage").click();
  const flipped = document.querySelector(".stage img").src;
  const players = [...document.querySelectorAll("audio")].map(audio => audio.src.slice(0, 16));
  document.body.append(Object.assign(document.createElement("pre"), {id: "seen", textContent: JSON.stringify(
    {column, same: before === again, differs: before !== flipped,
     flag: document.querySelector(".flag").textContent, players})}));
});
</script>
"""


@pytest.fixture
def report(run, photos, tmp_path) -> Path:
    soundfile.write(photos / "a.wav", wave(12_000, 16_000), 16_000)
    folder = tmp_path / "report"
    options = ["--metrics", "psnr,ssim,mel_distance", "--against", "jpeg,opus", "--codebooks", "1,3", "--jobs", 1]
    result = run("evaluate", photos, "-o", folder, *options, "-q")
    assert result.exit_code == 0, result.output
    return folder


def browse(page: Path, folder: Path, *flags: str) -> str:
    assert BROWSER
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=5000", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_report_has_sheets_and_a_page(report):
    sheets = sorted(path.name for path in (report / "sheets").glob("*.png"))
    assert [name.partition("-")[0] for name in sheets] == ["audio", "image", "image", "image"]
    with Image.open(report / "sheets" / next(name for name in sheets if "worst" in name and "image" in name)) as sheet:
        assert np.asarray(sheet).std() > 10
    page = (report / "index.html").read_text()
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:)', page)  # It needs no other file.
    assert page.count("data:audio/flac;base64,") == 5  # The original, two models, two codecs.


@pytest.mark.skipif(BROWSER is None, reason="no browser")
def test_the_page_in_a_browser(report, tmp_path):
    page = tmp_path / "used.html"
    page.write_text((report / "index.html").read_text().replace("</body>", USE + "</body>"))
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert 'data-ready="yes"' in shown
    for text in ("4 images", "1 sound", "Worst, median and best items", "codebook 4", "0.png"):
        assert text in shown
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', shown)[1])
    values = [float(value) for value in seen["column"]]
    assert values == sorted(values, reverse=True)  # The third figure is the PSNR, best first.
    assert (seen["same"], seen["differs"], seen["flag"]) == (True, True, "original")
    assert seen["players"] == ["data:audio/flac;"]
    for width in (1280, 390):
        image = tmp_path / f"{width}.png"
        browse(page, tmp_path / "profile", f"--screenshot={image}", f"--window-size={width},1500")
        with Image.open(image) as screenshot:
            assert np.asarray(screenshot.convert("L")).std() > 10


@pytest.mark.skipif(not is_installed("matplotlib"), reason="no matplotlib")
def test_curves(report):
    names = sorted(path.name for path in (report / "curves").iterdir())
    assert names == sorted(
        f"{n}{s}" for n in ("audio-mel_distance", "image-psnr", "image-ssim") for s in (".png", ".svg")
    )
    found = json.loads((report / "results.json").read_text())["modalities"]["image"]
    lines = {label: (line, is_model) for label, line, is_model in lines_of("image", found, "psnr")}
    assert len(lines["image"][0]) == 2
    assert lines["image"][1]
    assert len(lines["JPEG"][0]) == 6
    svg = (report / "curves/image-psnr.svg").read_text()
    assert "bits per pixel" in svg


def test_a_report_is_drawn_again(report, run):
    before = (report / "index.html").read_bytes()
    for path in [*(report / "sheets").iterdir(), report / "index.html"]:
        path.unlink()
    result = run("evaluate", "--from", report / "results.json")
    assert result.exit_code == 0, result.output
    assert "4 images" in result.stdout
    assert (report / "index.html").read_bytes() == before
    assert len(list((report / "sheets").iterdir())) == 4


def test_results_that_are_none(run, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    result = run("evaluate", "--from", tmp_path)
    assert result.exit_code == 4
    assert "is not the results.json of vqtok evaluate" in result.stderr.replace("\n", " ")
    assert run("evaluate", "--from", tmp_path, "-o", tmp_path).exit_code == 2


def test_names_that_look_like_markup(run, photos, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    (photos / "0.png").rename(photos / name)
    options = ["--metrics", "psnr", "--against", "none", "--codebooks", "1", "--jobs", 1, "--no-stability", "-q"]
    assert run("evaluate", photos, "-o", tmp_path / "r", *options).exit_code == 0
    page = (tmp_path / "r/index.html").read_text()
    assert page.count("</script>") == 2
    if BROWSER:
        shown = browse(tmp_path / "r/index.html", tmp_path / "profile", "--dump-dom")
        assert "&lt;img src=x" in shown


def test_ranking_and_the_middle():
    items = [{"figures": {"m@1": {"psnr": value}}} for value in (20.0, None, "inf", 10.0)]
    assert ranked_items(items, "m@1", "psnr") == [3, 0, 2]
    sounds = [{"figures": {"m@1": {"mel_distance": value}}} for value in (0.2, 0.9)]
    assert ranked_items(sounds, "m@1", "mel_distance") == [1, 0]  # A lower distance is better.
    assert middle(Media("image", np.zeros((3, 600, 100), np.float32))).data.shape == (3, 512, 100)
    assert middle(Media("audio", np.zeros((1, 200), np.float32), 10)).data.shape == (1, 100)


def test_a_spectrogram_shows_a_tone_at_its_frequency():
    time = np.arange(16_000) / 16_000
    tone = np.sin(2 * np.pi * 2000 * time, dtype=np.float64).astype(np.float32)
    rows = spectrogram(Media("audio", tone[None], 16_000)).sum(axis=(1, 2))
    assert abs(int(rows.argmax()) - 0.75 * len(rows)) < 3  # A quarter from the bottom: 2 of 8 kHz.
