"""vqtok publish: models, exports and shards as repositories of the Hugging Face Hub."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import files_in

import vqtok
from vqtok.errors import OutputError, UsageError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Names of models that are opened are remembered; those of tests must not be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_published_model_opens_again(run, image_model, photo, tmp_path):
    folder = tmp_path / "mine"
    result = run("publish", image_model, "-o", folder, "--license", "apache-2.0", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["kind"] == "model"
    assert files_in(folder) == ["README.md", "config.json", "model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vqtok"
    assert np.array_equal(vqtok.encode(photo, str(folder)).codes, vqtok.encode(photo, str(image_model)).codes)
    assert run("encode", photo, "-m", folder, "-o", tmp_path / "x.vqt").exit_code == 0
    assert run("decode", tmp_path / "x.vqt", "-m", folder, "-o", tmp_path / "x.png").exit_code == 0
    assert run("publish", image_model, "-o", folder).exit_code == 1
    assert run("publish", image_model, "-o", folder, "--force").exit_code == 0


def test_the_card_of_a_model(tmp_path):
    yaml = pytest.importorskip("yaml")
    vqtok.publish("image", str(tmp_path / "mine"), license="mit", data_license="Research only.")
    card = (tmp_path / "mine/README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert (metadata["license"], metadata["library_name"]) == ("mit", "vqtok")
    assert "| codebooks | bpp | psnr | ssim |" in card
    assert "research-only" in card  # The note on the data.
    assert "Licence: mit. Data: Research only." in card


def test_data_sets_have_a_card_with_their_splits(run, tmp_path, photo):
    datasets, yaml = pytest.importorskip("datasets"), pytest.importorskip("yaml")
    for index in range(8):
        run("encode", photo, "-o", tmp_path / f"t/{index}.vqt")
    run(
        "export",
        tmp_path / "t",
        "--to",
        "parquet",
        "-o",
        tmp_path / "e/",
        "--split",
        "train=0.5,test=0.5",
        "--rows-per-file",
        2,
    )
    assert run("publish", tmp_path / "e", "-o", tmp_path / "data").exit_code == 0
    card = (tmp_path / "data/README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert {found["split"] for found in metadata["configs"][0]["data_files"]} == {"train", "test"}
    found = datasets.load_dataset(str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in found.items()} == {
        name: len(rows)
        for name, rows in datasets.load_dataset(str(tmp_path / "e"), cache_dir=str(tmp_path / "cache")).items()
    }
    assert run("decode", next((tmp_path / "data").glob("train*.parquet")), "-o", tmp_path / "back").exit_code == 0


def test_shards(run, tmp_path, photo):
    run("encode", photo, "--shard", tmp_path / "x.vqts")
    assert run("publish", tmp_path / "x.vqts", "-o", tmp_path / "data").exit_code == 0
    assert files_in(tmp_path / "data") == ["README.md", "x.vqts"]
    assert "| `x.vqts` | shard | 1 |" in (tmp_path / "data/README.md").read_text()
    assert list(vqtok.open_shard(tmp_path / "data/x.vqts")) == ["photo.png"]


def test_uploads(monkeypatch, image_model):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options["repo_type"]))

        def upload_folder(self, *, repo_id, repo_type, folder_path):
            calls.append(files_in(folder_path))

    monkeypatch.setattr(hub, "HfApi", Api)
    vqtok.publish(image_model, "hf:me/mine")
    assert calls == [("me/mine", "model"), ["README.md", "config.json", "model.safetensors"]]
    with pytest.raises(UsageError, match="hf:ORG/NAME"):
        vqtok.publish(image_model, "hf:mine")

    def refuse(self, *args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(OutputError, match="hf:me/mine: cannot be uploaded: no route to host"):
        vqtok.publish(image_model, "hf:me/mine")


def test_what_cannot_be_published(photo, tmp_path):
    for source in (photo, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UsageError):
            vqtok.publish(source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
