"""The commands and examples of the README and of the documents beside the code work."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import DOCUMENTS, PYTHON, ROOT, blocks
from PIL import Image
from typer.testing import CliRunner

from vqtok.cli.app import app
from vqtok.cli.help import TOPICS

README = (ROOT / "README.md").read_text(encoding="utf-8")


SHELL = [line for text in blocks("sh", README) for line in text.splitlines()]
COMMANDS = sorted({line for text in DOCUMENTS.values() for block in blocks("sh", text) for line in block.splitlines()})


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the samples of the repository, and photo.jpg, which examples use."""
    shutil.copytree(ROOT / "tests" / "samples", tmp_path / "tests" / "samples")
    shutil.copy(ROOT / "tests" / "samples" / "photo.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_command_line(workplace: Path) -> None:
    """All of it except the installation: encode, inspect and decode the samples with the bundled models."""
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


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("vqtok ")])
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
    """The model cards are what `vqtok inspect` prints, line by line."""
    cards = DOCUMENTS["vqtok/bundled/README.md"]
    for name in ("image", "audio"):
        printed = CliRunner().invoke(app, ["inspect", name], env={"COLUMNS": "120"}).output
        identity = re.search(r"identity +(\w+)", printed)
        assert identity
        assert identity[1] in cards
        table = [line.rstrip() for line in printed.splitlines() if re.match(r"(.* \(\d+\))? +[1248] +-?\d", line)]
        assert len(table) >= 4
        for line in table:
            assert line in cards, line


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 250


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name]):
        assert link.startswith("https://") or (ROOT / name).parent.joinpath(link).exists(), link


def test_every_document_is_a_topic_of_help() -> None:
    listed = CliRunner().invoke(app, ["help"]).output
    shipped = {name.removeprefix("vqtok/") for name in DOCUMENTS if name.startswith("vqtok/")}
    assert shipped == {path for path, _ in TOPICS.values()}
    for topic, (path, summary) in TOPICS.items():
        assert f"{topic:12}{summary}" in listed
        assert CliRunner().invoke(app, ["help", topic]).output == DOCUMENTS[f"vqtok/{path}"]
    assert CliRunner().invoke(app, ["help", "nonsense"]).exit_code == 2


def test_documents_are_in_the_package_data() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "**/*.md" in settings["tool"]["setuptools"]["package-data"]["vqtok"]
