"""Checkpoints that become folders: codes and media are those of the original network, for small random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import codecs_restated as codecs
import numpy as np
import pytest
import torch
from rounding import assert_same_codes
from torch import nn

import vqtok
from vqtok.errors import ModelError, OutputError, UsageError
from vqtok.media.media import Media
from vqtok.models.importers import import_checkpoint

pytest.importorskip("transformers")


def make_dac() -> codecs.DAC:
    model = codecs.DAC(4, [2, 4, 5], 32, count=3, size=32, dim=4)
    for name, parameter in model.named_parameters():
        if name.endswith("weight_v"):
            nn.init.normal_(parameter)
        if name.endswith("weight_g"):
            nn.init.constant_(parameter, 0.7)
        if name.endswith("alpha"):
            nn.init.uniform_(parameter, 0.5, 2)
    return model


def make_wavtokenizer() -> codecs.WavTokenizer:
    model = codecs.WavTokenizer(4, [5, 4, 2], latent=32, size=64, dim=128, intermediate=16, layers=1)
    codebook = model.feature_extractor.encodec.quantizer.vq.layers[0]._codebook
    latents = model.feature_extractor.encodec.encoder.model(torch.randn(1, 1, 8000) * 0.3)[0].T
    codebook.embed.copy_(latents[torch.randperm(len(latents))[:64]])
    nn.init.normal_(model.head.out.weight, std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.scale.weight", "norm.shift.weight")):
            nn.init.normal_(parameter, 1)
    return model


def save(model: nn.Module, path: Path, family: str) -> Path:
    """Write a checkpoint as the project does."""
    if family == "dac":
        kwargs = {"sample_rate": 8000, "encoder_rates": [2, 4, 5]}
        torch.save({"state_dict": model.state_dict(), "metadata": {"kwargs": kwargs}}, path)
    else:
        others = {"multiperioddisc.discriminators.0.bias": torch.ones(2), "melspec_loss.fb": torch.ones(2)}
        torch.save({"epoch": 3, "state_dict": model.state_dict() | others, "callbacks": {}}, path)
    return path


MAKE = {"dac": make_dac, "wavtokenizer": make_wavtokenizer}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, Path]]:
    """Return the original network, its checkpoint and the imported folder of each family."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for family, make in MAKE.items():
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = make().eval().requires_grad_(False)
        checkpoint = save(model, folder / f"{family}.ckpt", family)
        found[family] = model, checkpoint, import_checkpoint(checkpoint, folder / family).model
    return found


def sound(samples: int, rate: int) -> Media:
    data = np.random.default_rng(samples).normal(0, 0.2, (1, samples)).astype(np.float32)
    return Media("audio", data, rate)


@pytest.mark.parametrize("family", MAKE)
def test_codes_and_media_are_the_original_ones(made: Any, family: str) -> None:
    model, _, folder = made[family]
    media = sound(4000, {"dac": 8000, "wavtokenizer": 24_000}[family])
    expected = model.encode(torch.from_numpy(media.data)[None])
    tokens = vqtok.encode(media, str(folder))
    assert tokens.codes.shape == ((3, 100) if family == "dac" else (1, 100))
    assert len(np.unique(tokens.codes)) > 10
    assert_same_codes(tokens.codes, expected[0].numpy())
    audio = model.decode(torch.from_numpy(tokens.codes).long()[None])[0].numpy()
    decoded = vqtok.decode(tokens, str(folder)).data
    assert np.abs(audio).max() > 0.01
    length = min(audio.shape[1], 4000)
    assert length >= 3980
    np.testing.assert_allclose(decoded[:, :length], audio[:, :length], atol=2e-4 * max(1, np.abs(audio).max()))


@pytest.mark.parametrize("family", MAKE)
def test_facts(made: Any, family: str, run: Any, tmp_path: Path) -> None:
    _, checkpoint, folder = made[family]
    facts = json.loads((folder / "import.json").read_text())
    assert (facts["family"], facts["file"]) == (family, checkpoint.name)
    if family == "wavtokenizer":
        dropped = {"decoder that is not used": 2, "discriminators and losses": 2, "window, which is computed": 1}
        assert dropped.items() <= facts["dropped"].items()
    shown = run("import", checkpoint, "-o", tmp_path / "again")
    assert shown.exit_code == 0, shown.output
    again = json.loads(run("inspect", tmp_path / "again", "--json").stdout)
    assert again["identity"] == json.loads(run("inspect", folder, "--json").stdout)["identity"]


def test_what_is_refused(made: Any, tmp_path: Path) -> None:
    _, checkpoint, folder = made["dac"]
    content = torch.load(checkpoint)

    def attempt(output: str = "out", **changes: Any) -> None:
        torch.save(content | changes, tmp_path / "a.pth")
        import_checkpoint(tmp_path / "a.pth", tmp_path / output)

    with pytest.raises(OutputError, match="exists"):
        import_checkpoint(checkpoint, folder)
    with pytest.raises(UsageError, match="this family becomes a folder"):
        attempt("m.safetensors")
    with pytest.raises(ModelError, match="has no sample rate"):
        attempt(metadata={})
    with pytest.raises(ModelError, match="has an unknown weight extra.bias"):
        attempt(state_dict=content["state_dict"] | {"extra.bias": torch.ones(1)})
    state = content["state_dict"] | {"encoder.block.1.block.0.block.1.bias": torch.ones(7)}
    with pytest.raises(ModelError, match="transformers cannot load it"):
        attempt(state_dict=state)
    lacking = {name: tensor for name, tensor in content["state_dict"].items() if name != "encoder.block.0.bias"}
    with pytest.raises(ModelError, match="missing keys encoder.conv1.bias"):
        attempt(state_dict=lacking)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    import_checkpoint(checkpoint, tmp_path / "out")
    import_checkpoint(checkpoint, tmp_path / "out", force=True)
