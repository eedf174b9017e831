"""Fine-tuning: what is copied from a model, what may differ, what is frozen, and the facts in the model card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training.conftest import TINY, metrics, ticking, tiny
from vqtok.cli.tables import show_facts
from vqtok.config import load_preset
from vqtok.errors import UsageError
from vqtok.inspection import inspect
from vqtok.media.image import read_image
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.token_reader import TokenReader
from vqtok.training import initialise as start
from vqtok.training.initialise import tuning_config
from vqtok.training.prior import fit_prior
from vqtok.training.train import TrainingResult, train, train_prior

pytestmark = pytest.mark.usefixtures("quick_kmeans")

QUICK = ["train.warmup_steps=0", "train.validations=1"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    y, x = np.mgrid[:20, :20]
    waves = [127 + 100 * np.sin(x / period) * np.cos(y / period) for period in np.linspace(1, 6, 12)]
    np.save(folder / "waves.npy", np.stack(waves).astype(np.uint8))
    return folder


@pytest.fixture(scope="module")
def parent(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    output = tmp_path_factory.mktemp("parent") / "parent.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "KMEANS_VECTORS", 256)
        return train(pictures, output, preset="digits", settings=[*TINY, "data.note=waves"], steps=12, device="cpu")


def tune(pictures: Path, output: Path, parent: TrainingResult, *settings: str, **options: Any) -> TrainingResult:
    settings = (*QUICK, *settings)
    return train(pictures, output, init=str(parent.model), settings=settings, steps=4, device="cpu", **options)


def kept(a: Path, b: Path, part: str) -> bool:
    """Return whether the tensors of a part are equal in two model files."""
    before, after = load_file(a), load_file(b)
    names = [name for name in before if name.startswith(part)]
    assert names
    return all(torch.equal(before[name], after[name]) for name in names)


# The configuration.


def test_a_model_brings_its_architecture_and_its_way_of_training() -> None:
    trained = tiny("train.learning_rate=0.5", "data.note=mine", "data.speech=a/*", "train.freeze=decoder").to_dict()
    config = tuning_config(trained, None, ["train.batch_size=4", "train.freeze=encoder, codebook"])
    assert config.model == tiny().model
    assert config.train.learning_rate == 0.5
    assert (config.train.batch_size, config.train.continuous_steps, config.data.note) == (4, 0, "")
    assert config.train.freeze == ("encoder", "codebook")
    assert tuning_config(trained, None, []).train.freeze == ()
    assert tuning_config(trained, None, []).data.speech == ""


def test_a_preset_may_agree_but_not_contradict() -> None:
    trained = load_preset("digits").to_dict()
    assert tuning_config(trained, "digits", []).loss == load_preset("digits").loss
    changed = tuning_config(trained, "digits", ["model.quantizer.prefix_dropout=0.1", "model.network.strides=2,2"])
    assert changed.model.quantizer.prefix_dropout == 0.1
    with pytest.raises(UsageError, match=r"model\.channels of the model to start from is 1, not 3; leave it out"):
        tuning_config(trained, "image", [])
    with pytest.raises(UsageError, match="model is a section"):
        tuning_config(trained, None, ["model=image"])
    with pytest.raises(UsageError, match=r"model\.quantizer\.codebook_size .* 1024, not 8; leave it out"):
        tuning_config(trained, None, ["model.quantizer.codebook_size=8"])
    with pytest.raises(UsageError, match="unknown setting model.sizes"):
        tuning_config(trained, None, ["model.sizes=8"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.freeze=encoder,decoder"], "must leave the encoder or the decoder"),
        (["train.freeze=codebook", "train.restart_codebook=true"], "cannot be combined with a frozen codebook"),
        (["train.keep_initial=0.5"], "train.keep_initial must be between 0 and 1, and needs a frozen codebook"),
        (["train.keep_initial=1.5", "train.freeze=codebook"], "train.keep_initial must be between 0 and 1"),
        (["train.freeze=all"], "train.freeze must be 'encoder' or 'codebook' or 'decoder', not 'all'"),
    ],
)
def test_what_cannot_be_frozen_is_said(settings: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(*settings)


# Training from a model.


def test_tuning_the_decoder_keeps_the_codes(
    pictures: Path, tmp_path: Path, parent: TrainingResult, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "child.safetensors"
    child = tune(pictures, output, parent, "train.freeze=encoder,codebook")
    assert kept(parent.model, output, "encoder.")
    assert kept(parent.model, output, "quantizer.")
    assert not kept(parent.model, output, "decoder.")
    x = torch.rand(1, 3, 16, 16)
    assert torch.equal(load_model(output).encode(x), load_model(parent.model).encode(x))
    # The first validation measures the parent, on the same held-out images.
    first, *_, last = [row["validation"] for row in metrics(tmp_path / "child.run") if "validation" in row]
    before = [row["validation"] for row in metrics(parent.model.with_suffix(".run")) if "validation" in row][-1]
    assert first["quality"] == pytest.approx(before["quality"], abs=0.3)  # weights rounded to float16
    assert last["quality"] != first["quality"]
    assert child.training["parent"] == parent.identity != child.identity
    show_facts(inspect(output))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"parent {parent.identity} kept encoder, codebook" in shown


def test_the_result_is_between_the_weights_before_and_after(
    pictures: Path, tmp_path: Path, parent: TrainingResult
) -> None:
    whole, mixed = tmp_path / "whole.safetensors", tmp_path / "mixed.safetensors"
    tune(pictures, whole, parent, "train.freeze=encoder,codebook")
    tune(pictures, mixed, parent, "train.freeze=encoder,codebook", "train.keep_initial=0.25")
    before, after, found = (load_file(path) for path in (parent.model, whole, mixed))
    assert kept(parent.model, mixed, "encoder.")
    for name in (name for name in found if name.startswith("decoder.")):
        expected = 0.25 * before[name].float() + 0.75 * after[name].float()
        torch.testing.assert_close(found[name].float(), expected, rtol=2e-3, atol=2e-4)  # Rounded to float16.
    assert not kept(whole, mixed, "decoder.")


def test_all_is_trained_and_codebooks_kept_unless_said_otherwise(
    pictures: Path, tmp_path: Path, parent: TrainingResult
) -> None:
    tuned, restarted = tmp_path / "tuned.safetensors", tmp_path / "restarted.safetensors"
    tune(pictures, tuned, parent, "train.freeze=decoder")
    # The networks are not scaled to the data, and the codebook only drifts.
    assert kept(parent.model, tuned, "decoder.")
    assert not kept(parent.model, tuned, "encoder.")
    tune(pictures, restarted, parent, "train.freeze=encoder", "train.restart_codebook=true")
    name = "quantizer.parts.0.codebook"
    before, near, far = (load_file(path)[name].float() for path in (parent.model, tuned, restarted))
    drift, new = ((after - before).norm() / before.norm() for after in (near, far))
    assert 0 < drift < 0.5 < new


def test_what_cannot_start_is_said(pictures: Path, tmp_path: Path, parent: TrainingResult) -> None:
    output = tmp_path / "child.safetensors"
    with pytest.raises(UsageError, match="give `init`"):
        train(pictures, output, preset="digits", settings=[*TINY, "train.freeze=encoder"])
    tune(pictures, output, parent)
    with pytest.raises(UsageError, match="other settings"):
        train(pictures, output, init=str(output), settings=QUICK, steps=8, device="cpu", resume=True)
    assert tune(pictures, output, parent, resume=True).training["parent"] == parent.identity


def test_several_decoders_decode_the_same_tokens(
    pictures: Path, tmp_path: Path, with_prior: TrainingResult, run: Any, photo: Path
) -> None:
    sharp, sharper = tmp_path / "sharp.safetensors", tmp_path / "sharper.safetensors"
    child = tune(pictures, sharp, with_prior, "train.freeze=encoder,codebook")
    assert kept(with_prior.model, sharp, "prior.")
    assert kept(with_prior.model, sharp, "entropy.")
    # With a decoder for a decoder, the tokens of both models before it are decoded.
    tune(pictures, sharper, child, "train.freeze=encoder,codebook")
    assert read_card(sharper).decodes == (child.identity, with_prior.identity)

    tokens = tmp_path / "photo.vqt"
    assert run("encode", photo, "-m", with_prior.model, "-o", tokens).exit_code == 0
    result = run("decode", tokens, "-m", sharper, "-o", tmp_path / "b.png", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout.splitlines()[0])
    assert facts["model"] == with_prior.identity[:16]
    assert facts["decoder"] == read_card(sharper).identity[:16]
    codes = torch.from_numpy(TokenReader(str(with_prior.model)).read(tokens).codes)
    expected = load_model(sharper).decode(codes.long()[None])[0]
    assert np.abs(read_image(tmp_path / "b.png").data - expected.clamp(-1, 1).numpy()).max() < 0.02
    # Another model with other codes does not decode them, and neither does the parent those of the child.
    other = tune(pictures, tmp_path / "other.safetensors", with_prior, "train.freeze=encoder")
    assert run("decode", tokens, "-m", other.model, "-o", tmp_path / "c.png").exit_code != 0
    assert run("encode", photo, "-m", sharp, "-o", tmp_path / "own.vqt").exit_code == 0
    refused = run("decode", tmp_path / "own.vqt", "-m", with_prior.model, "-o", tmp_path / "c.png")
    assert refused.exit_code != 0
    assert "made by model" in refused.stderr


# The prior.


@pytest.fixture(scope="module")
def with_prior(pictures: Path, parent: TrainingResult, tmp_path_factory: pytest.TempPathFactory) -> TrainingResult:
    output = tmp_path_factory.mktemp("prior") / "parent.safetensors"
    return train_prior(pictures, output, str(parent.model), settings=["prior.fit_steps=5"])


def prior_of(result: TrainingResult) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in load_file(result.model).items() if name.startswith("prior.")}


def test_a_short_tuning_keeps_the_prior_and_says_so(
    pictures: Path, tmp_path: Path, with_prior: TrainingResult, caplog: pytest.LogCaptureFixture
) -> None:
    child = tune(pictures, tmp_path / "child.safetensors", with_prior)
    before, after = prior_of(with_prior), prior_of(child)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["prior.0.rank"].dtype == after["prior.0.rank"].dtype
    assert "the run is too short to fit a prior, so the model keeps that of the model it started from" in caplog.text
    restarted = tune(pictures, tmp_path / "restarted.safetensors", with_prior, "train.restart_codebook=true")
    assert not prior_of(restarted)


def test_tuning_by_the_clock_fits_the_prior_further(
    pictures: Path, tmp_path: Path, with_prior: TrainingResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def fit(*others: Any) -> dict[str, Any]:
        started.append(others[-1])
        return fit_prior(*others)

    monkeypatch.setattr("vqtok.training.prior.fit_prior", fit)
    monkeypatch.setattr("vqtok.training.prior._is_useful", lambda *others: True)
    ticking(monkeypatch)
    output = tmp_path / "child.safetensors"
    child = train(pictures, output, init=str(with_prior.model), settings=QUICK, minutes=1, device="cpu")
    before, after = prior_of(with_prior), prior_of(child)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert [type(prior).__name__ for prior in started] == ["Prior"]


def test_a_prior_is_taken_over_exactly(with_prior: TrainingResult) -> None:
    model = load_model(with_prior.model)
    prior = model.entropy_model.prior
    assert prior is not None
    codes = [np.zeros((2, 4, 4), np.int32)]
    config = load_preset("digits").prior
    found = fit_prior(codes, model.quantizer.codebooks(), "image", config, 0, start=prior)
    assert all(np.array_equal(found[name], tensor.numpy()) for name, tensor in prior_of(with_prior).items())
    # Other sizes need a new prior.
    found = fit_prior(codes, model.quantizer.codebooks(), "image", replace(config, dim=8), 0, start=prior)
    assert found["prior.0.embedding"].shape == (16, 8)
