"""What the README tells people to type works."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vqtok.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SHELL = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
PYTHON = [text for language, text in BLOCKS if language == "python"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's samples, and what the examples call photo.jpg."""
    shutil.copytree(ROOT / "tests" / "samples", tmp_path / "tests" / "samples")
    shutil.copy(ROOT / "tests" / "samples" / "photo.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_line(workplace: Path) -> None:
    """All of it but the installation: encode, inspect, decode the samples with the bundled models."""
    steps = [step.strip() for step in SHELL[0].split("&&")]
    commands = [shlex.split(step) for step in steps if step.startswith("vqtok ")]
    assert [command[1] for command in commands] == ["encode", "inspect", "decode"]
    for _, *arguments in commands:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    with Image.open("tests/samples/photo.jpg") as original, Image.open("try/photo.png") as decoded:
        assert decoded.size == original.size
    assert Path("try/photo.vqt").stat().st_size < 0.1 * 3 * original.width * original.height
    assert Path("try/speech.wav").stat().st_size > 100_000


def test_the_second_command_line_is_what_ci_runs() -> None:
    assert next(line for line in SHELL if "pytest" in line) == "pip install '.[dev]' && pytest -m 'not slow'"
    assert "pip install .*pytest" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith("vqtok ")])
def test_options_shown_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    shown = CliRunner().invoke(app, [words[1], "--help"]).output
    for option in (word for word in words[2:] if re.match(r"--?[a-z]", word)):
        assert re.search(rf"(?<![\w-]){re.escape(option)}\b", shown), option


@pytest.mark.parametrize("code", [code for code in PYTHON if "import ray" not in code])  # See test_cluster.
def test_python_examples_run(code: str, workplace: Path) -> None:
    CliRunner().invoke(app, ["encode", "photo.jpg"])
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=workplace)


def test_numbers_shown_are_those_of_the_bundled_models() -> None:
    """The tables of metrics are printed by `vqtok inspect`, line by line."""
    for name in ("image", "audio"):
        printed = CliRunner().invoke(app, ["inspect", name], env={"COLUMNS": "120"}).output
        identity = re.search(r"identity +(\w+)", printed)
        assert identity
        assert identity[1] in README
        table = [line.rstrip() for line in printed.splitlines() if re.match(r"(.* \(\d+\))? +[1248] +-?\d", line)]
        assert len(table) >= 4
        for line in table:
            assert line in README, line
