"""Data sets and models of the Hugging Face Hub, by its own packages against a server on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import files_in, picture
from PIL import Image

import vqtok
from jobs.hub_server import TOKEN, serve

pytestmark = pytest.mark.slow

PUSH = """
import sys, datasets
features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
for split in ("train", "test"):
    rows = {"image": [f"{sys.argv[1]}/{n}.png" for n in range(3)], "label": [0, 1, 0]}
    datasets.Dataset.from_dict(rows, features=features).push_to_hub("me/pets", split=split)
"""
LOAD = """
import json, sys, datasets
found = datasets.load_dataset("me/tokens")
streamed = datasets.load_dataset("me/tokens", split="train", streaming=True)
assert [row["input_ids"] for row in streamed] == list(found["train"]["input_ids"])
found.push_to_hub("me/again")
again = datasets.load_dataset("me/again")
print(json.dumps({name: again[name].to_dict() for name in again}))
"""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serve a Hub, and let the processes of this test use it and caches of their own."""
    with serve() as server:
        own = {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "NO_COLOR": "1"}
        for name, value in {**own, "HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "xdg")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server


def python(*arguments):
    """Run Python in a process of its own, since huggingface_hub reads its settings when it is imported."""
    found = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=os.environ)
    assert "Traceback" not in found.stderr, found.stderr
    return found


def command(*arguments):
    return python("-m", "vqtok", *arguments)


def test_data_sets_of_the_hub_are_encoded(hub, tmp_path):
    pytest.importorskip("datasets")
    for number in range(3):
        Image.fromarray(picture(16 + number, 12)).save(tmp_path / f"{number}.png")
    python("-c", PUSH, tmp_path)
    out = tmp_path / "out"
    result = command("encode", "hf-dataset:me/pets", "-o", out, "--json")
    assert result.returncode == 0, result.stderr
    assert files_in(out) == [f"{split}/00000000{n}.vqt" for split in ("test", "train") for n in range(3)]
    assert vqtok.inspect(out / "train/000000001.vqt")["metadata"] == {"label": "dog"}
    assert np.array_equal(vqtok.read(out / "test/000000002.vqt").codes, vqtok.encode(tmp_path / "2.png").codes)
    result = command("encode", "hf-dataset:me/pets:test", "-o", tmp_path / "t.parquet")
    assert result.returncode == 0, result.stderr
    assert json.loads(command("inspect", tmp_path / "t.parquet", "--json").stdout)["num_items"] == 3
    for name, status, message in (
        ("me/pets:dev", 2, "has no split dev, only"),
        ("me/none", 1, "me/none: cannot be opened"),
    ):
        result = command("encode", f"hf-dataset:{name}", "-o", tmp_path / "none")
        assert result.returncode == status
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_models_and_exports_are_published_and_opened_again(hub, tmp_path, image_model, photo, monkeypatch):
    pytest.importorskip("datasets")
    result = command("publish", image_model, "-o", "hf:me/mine", "--license", "mit")
    assert result.returncode == 0, result.stderr
    assert sorted(hub.repos["models/me/mine"]) == ["README.md", "config.json", "model.safetensors"]
    assert hub.repos["models/me/mine"]["model.safetensors"] == Path(image_model).read_bytes()
    (tmp_path / "photos").mkdir()
    for number in range(6):
        shutil.copy(photo, tmp_path / f"photos/{number}.png")
    result = command("encode", tmp_path / "photos", "-m", "hf:me/mine", "-o", tmp_path / "t")
    assert result.returncode == 0, result.stderr
    own = vqtok.read(tmp_path / "t/0.vqt", str(image_model))
    assert np.array_equal(own.codes, vqtok.encode(photo, str(image_model)).codes)
    result = command("decode", tmp_path / "t/0.vqt", "-o", tmp_path / "x.png")
    assert (result.returncode, "--model hf:me/mine" in result.stderr) == (3, True)  # The name is remembered.
    assert command("decode", tmp_path / "t/0.vqt", "-o", tmp_path / "x.png", "-m", "hf:me/mine").returncode == 0
    data = tmp_path / "data"
    options = ["--split", "train=0.5,test=0.5", "-m", image_model, "-o", f"{data}/", "--to", "parquet"]
    assert command("export", tmp_path / "t", *options).returncode == 0
    result = command("publish", data, "-o", "hf:me/tokens", "--private")
    assert result.returncode == 0, result.stderr
    assert sorted(hub.repos["datasets/me/tokens"]) == [".vqtok.json", "README.md", "test.parquet", "train.parquet"]
    assert hub.private["datasets/me/tokens"]
    assert "hf:me/mine" in hub.repos["datasets/me/tokens"]["README.md"].decode()
    again = json.loads(python("-c", LOAD).stdout.splitlines()[-1])
    assert sorted(again["train"]["key"] + again["test"]["key"]) == list("012345")
    assert again["train"]["key"] == list(vqtok.read_export(data / "train.parquet"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    result = command("publish", data, "-o", "hf:me/other")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "hf:me/other: cannot be uploaded" in result.stderr
    assert "hf auth login" in result.stderr
