"""Fusion models: training on pairs, exact resume, one model file for both modalities, and what is done with it."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import contents, picture, wave
from PIL import Image

import vqtok
from training.conftest import (
    STEPS,
    TINY,
    Killed,
    distance,
    equal_state,
    kill_at,
    make_trainer,
    metrics,
    run_two_processes,
    tiny,
    watched,
)
from training.conftest import quick as quick
from vqtok.config import Config, from_dict, load_preset
from vqtok.errors import ModelError, TrainingError, UsageError, WrongModelError
from vqtok.losses.code_matching import code_distributions, code_matching_loss
from vqtok.losses.reconstruction import ReconstructionLoss
from vqtok.models.card import read_card
from vqtok.models.model_file import load_model
from vqtok.models.vqmodel import FusionModel, VQModel, build_model
from vqtok.quantizers import VQ, one_update
from vqtok.tokens.statistics import jensen_shannon_bits, shared_fraction
from vqtok.training.data import NO_PAIR, MediaCache, PairLoader, find_items, make_loader, pair_stem, split_items
from vqtok.training.objective import Objective, TensorBatch
from vqtok.training.optim import Budget
from vqtok.training.train import train, train_prior

FUSION = [
    "model.modality=fusion",
    "model.sample_rate=2000",
    "model.audio_network.strides=5,2",
    "model.audio_network.widths=8,12",
    "model.audio_network.encoder_blocks=0,1",
    "model.audio_network.decoder_blocks=0,1",
    "model.quantizer.depth=1",
    "loss.mel=0.1",
    "loss.sdr=0.1",
    "loss.code_matching=0.05",
    "data.crop_seconds=0.1",
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with 16 pairs of an image and audio, and one of each without a partner."""
    folder = tmp_path_factory.mktemp("pairs")
    for index in range(17):
        pixels = picture(24, 20) // 2 + 7 * index
        Image.fromarray(pixels).save(folder / (f"{index}.png" if index else "alone.png"))
        sound = wave(400 + 10 * index, 2000) * (index + 3) / 20
        soundfile.write(folder / (f"{index}.wav" if index else "only.wav"), sound, 2000)
    (folder / "1.txt").write_text("one")
    return folder


@pytest.fixture(scope="module")
def trained(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a model after a few steps."""
    output = tmp_path_factory.mktemp("model") / "fusion.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqtok.training.initialise.KMEANS_VECTORS", 256)
        settings = [*TINY, *FUSION, "prior.fit_steps=4", "train.stored_precision=float32"]
        train(pairs, output, preset="digits", settings=settings, steps=30, device="cpu")
    return output


# The configuration and the model.


def test_settings_of_each_side() -> None:
    config = tiny(*FUSION)
    image, audio = config.of("image"), config.of("audio")
    assert (image.model.modality, image.model.sample_rate, image.model.network) == ("image", 0, config.model.network)
    assert (audio.model.modality, audio.model.network) == ("audio", config.model.audio_network)
    assert (image.loss.l2, image.loss.mel, audio.loss.l2, audio.loss.mel) == (1.0, 0.0, 0.0, 0.1)
    assert tiny().of("audio") == tiny()


def test_other_models_know_nothing_of_fusion() -> None:
    assert "audio_network" not in tiny().to_dict()["model"]
    config = tiny(*FUSION)
    assert from_dict(Config, json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.sample_rate=0", "model.sample_rate must be set for audio"),
        ("model.audio_network.widths=8", "model.audio_network: strides, widths"),
        ("model.audio_network.kind=vqgan", "model.audio_network.kind vqgan is for images"),
        ("adversarial.weight=1", "adversarial.weight must be 0 for a fusion model"),
        ("model.quantizer.depth=2", "loss.code_matching needs one learned codebook"),
    ],
)
def test_settings_that_do_not_go_together(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny(*FUSION, setting)
    with pytest.raises(UsageError, match=r"loss\.code_matching is for a fusion model"):
        tiny("loss.code_matching=1")


def test_sides_share_the_quantizer_and_are_in_the_state_once() -> None:
    model = build_model(tiny(*FUSION).model)
    assert isinstance(model, FusionModel)
    assert model.modalities == ("image", "audio")
    image, audio = model.of("image"), model.of("audio")
    assert image.quantizer is audio.quantizer is model.quantizer
    names = set(model.state_dict())
    assert {name.split(".")[1] for name in names if name.startswith(("encoder.", "decoder."))} == {"image", "audio"}
    assert sum(name.startswith("quantizer.") for name in names) == 4
    twin = copy.deepcopy(model)
    twin.of("image").encoder.layers[0].conv.weight.data.fill_(3.0)  # type: ignore[union-attr, index]
    assert float(twin.state_dict()["encoder.image.layers.0.conv.weight"].mean()) == 3.0
    assert float(model.state_dict()["encoder.image.layers.0.conv.weight"].mean()) != 3.0
    with pytest.raises(TypeError, match="used by its sides"):
        model(torch.zeros(1, 3, 16, 16))


# The loss.


def test_code_matching_prefers_equal_codes_of_partners() -> None:
    distributions = torch.eye(6) * 0.9 + 0.1 / 6
    apart = torch.arange(6)
    assert float(code_matching_loss(distributions, distributions, apart)) < 0.1
    assert float(code_matching_loss(distributions, distributions.roll(1, 0), apart)) > 3
    same = torch.full((6, 6), 1 / 6)
    assert float(code_matching_loss(same, same, apart)) == pytest.approx(math.log(6))


def test_pairs_with_one_caption_are_partners_of_each_other() -> None:
    image = torch.eye(6)[[0, 0, 1, 1]] * 0.9 + 0.1 / 6
    captions = torch.tensor([5, 5, 2, 2])
    # The chosen pair within a caption does not matter, and no similarity within it has to be low.
    loss = code_matching_loss(image, image, captions)
    torch.testing.assert_close(code_matching_loss(image, image[[1, 0, 3, 2]], captions), loss)
    assert float(loss) == pytest.approx(math.log(2), abs=0.05)
    assert float(code_matching_loss(image, image.roll(2, 0), captions)) > 3


def test_code_distributions_follow_the_nearest_vectors() -> None:
    torch.manual_seed(0)
    codebook = torch.randn(8, 4)
    z = 2 * torch.randn(2, 4, 3, 5)
    z[0] = codebook[3][:, None, None] + 0.01
    z.requires_grad_(True)
    found = code_distributions(z, codebook)
    assert found.shape == (2, 8)
    torch.testing.assert_close(found.sum(1), torch.ones(2))
    assert int(found[0].argmax()) == 3
    # The scale of latents and codebook does not matter.
    torch.testing.assert_close(code_distributions(7 * z, 7 * codebook), found, rtol=1e-3, atol=1e-4)
    found[1, 2].backward()
    assert z.grad is not None
    assert bool(z.grad[1].any())


def test_gradient_descent_brings_pairs_to_the_same_codes() -> None:
    torch.manual_seed(0)
    quantizer = VQ(4, 16).eval()
    image, audio = torch.randn(8, 4, 3, 3).requires_grad_(), torch.randn(8, 4, 5).requires_grad_()
    codebook = quantizer.codebook
    optimizer = torch.optim.Adam([image, audio], lr=0.03)
    for _ in range(150):
        distributions = [code_distributions(z, codebook) for z in (image, audio)]
        loss = code_matching_loss(*distributions, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5
    codes = [quantizer.encode(z.detach()).flatten(1) for z in (image, audio)]
    shared = [len(set(a.tolist()) & set(b.tolist())) > 0 for a, b in zip(*codes, strict=True)]
    assert all(shared)


def test_modalities_weigh_the_same_in_the_codebook() -> None:
    quantizer = VQ(1, 2, decay=0.0)
    quantizer.prepare(torch.tensor([[[0.0], [1.0]]]))
    low, high = int(quantizer.codebook.argmin()), int(quantizer.codebook.argmax())
    image, audio = torch.tensor([0.0, 0.2]).repeat(15).view(1, 1, 30), torch.tensor([[[1.0, 1.1, 1.2, 0.0]]])
    with one_update(quantizer, equal=True):
        quantizer(image)
        quantizer(audio)
    # A quarter of the audio is at 0.
    torch.testing.assert_close(quantizer.counts[[low, high]], torch.tensor([1.25, 0.75]), atol=0.05, rtol=0)
    assert float(quantizer.codebook[high]) == pytest.approx(1.1, abs=0.01)
    with one_update(quantizer):
        quantizer(image)
        quantizer(audio)
    torch.testing.assert_close(quantizer.counts[[low, high]], torch.tensor([62 / 34, 6 / 34]))


def test_code_matching_falls_to_nothing(pairs: Path) -> None:
    config = tiny(*FUSION, "loss.code_matching=1")
    model = build_model(config.model)
    sides = {modality: config.of(modality) for modality in config.model.modalities}
    reconstruction = {name: ReconstructionLoss(side.loss, side.model.sample_rate) for name, side in sides.items()}
    objective = Objective(config, reconstruction, None, torch.float32)
    loader = make_loader(config, find_items(pairs, "image", "audio"), MediaCache(config), 0)
    batch = TensorBatch.of(loader.batch(0), torch.device("cpu"))
    model.quantizer.reset_statistics()  # type: ignore[operator]
    model.eval()
    norms = []
    for weight, fraction in (1, 0.0), (1, 1.0), (0, 1.0):
        own = replace(objective, config=replace(config, loss=replace(config.loss, code_matching=weight)))
        model.zero_grad()
        own.backward(model, batch, quantize=True, fraction=fraction)
        norms.append(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm().item())
    assert norms[0] != pytest.approx(norms[2], rel=1e-3)
    assert norms[1] == pytest.approx(norms[2], rel=1e-4)


# The data.


def test_pairs_are_held_out_together(pairs: Path) -> None:
    items = find_items(pairs, "image", "audio")
    assert len(items) == 34
    training, held_out = split_items(items, 0.3, pair_stem)
    stems = {pair_stem(item) for item in held_out}
    assert stems.isdisjoint(pair_stem(item) for item in training)
    assert len(held_out) > len(stems) > 3


def test_with_code_matching_pairs_with_one_caption_have_one_number(pairs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pairs, tmp_path / "captions")
    (folder / "2.txt").write_text("one")
    (folder / "3.txt").write_text("two")
    items = find_items(folder, "image", "audio")
    for weight, count in (0, 16), (1, 15):
        config = tiny(*FUSION, "train.batch_size=120", f"loss.code_matching={weight}")
        batch = make_loader(config, items, MediaCache(config), 0).batch(3)
        assert len(set(batch.pairs.tolist()) - {NO_PAIR}) == count


def test_batches_hold_pairs_at_the_same_place(pairs: Path) -> None:
    config = tiny(*FUSION, "train.batch_size=120")
    items = find_items(pairs, "image", "audio")
    drawn: list[tuple[str, str]] = []
    loader = make_loader(config, items, MediaCache(config), 0)
    assert isinstance(loader, PairLoader)
    assert loader.num_pairs == 16
    for side in loader.loaders.values():
        crop = side.crop
        side.crop = lambda rng, item, crop=crop: drawn.append(item) or crop(rng, item)  # type: ignore[method-assign]
    batch = loader.batch(3)
    assert {name: media.shape for name, media in batch.media.items()} == {
        "image": (120, 3, 16, 16),
        "audio": (120, 1, 200),
    }
    couples = list(zip(drawn[::2], drawn[1::2], strict=True))
    assert [pair_stem(a) == pair_stem(b) for a, b in couples] == (batch.pairs != NO_PAIR).tolist()
    assert {item.modality for item, _ in couples} == {"image", "audio"}  # Each is drawn first at every other place.
    are_pairs = batch.pairs != NO_PAIR
    assert 0 < are_pairs.sum() < 120
    assert {pair_stem(a) for (a, _), pair in zip(couples, are_pairs, strict=True) if not pair} <= {"alone", "only"}
    again = make_loader(config, items, MediaCache(config), 0).batch(3)
    assert all(np.array_equal(again.media[name], batch.media[name]) for name in batch.media)


def test_a_folder_without_one_modality(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="needs at least 2 readable image files, has 0"):
        train(sounds, tmp_path / "x.safetensors", preset="digits", settings=[*TINY, *FUSION], steps=5)


# The run.


def test_losses_of_both_sides_fall(pairs: Path, tmp_path: Path) -> None:
    trainer = make_trainer(pairs, tmp_path, Budget(steps=60), *FUSION, "train.learning_rate=5e-3")
    losses = watched(trainer)
    best = trainer.run()
    assert isinstance(best, FusionModel)
    last = losses[-1][1]
    assert set(last) == {
        "image.l2", "image.commitment", "audio.mel", "audio.sdr", "audio.commitment", "code_matching", "gradient_norm",
    }  # fmt: skip
    for name in ("image.l2", "audio.sdr"):
        first, end = (np.mean([loss[name] for _, loss in part]) for part in (losses[7:12], losses[-5:]))
        assert end < first
    row = metrics(tmp_path)[-1]["validation"]
    assert {name: found["quality_name"] for name, found in row.items()} == {"image": "psnr", "audio": "mel_distance"}
    assert list(tmp_path.glob("step-0000060.png"))
    assert list(tmp_path.glob("step-0000060-0-codebooks-1.wav"))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_killed_run_goes_on_exactly(pairs: Path, tmp_path: Path, accumulate: int) -> None:
    settings = [*FUSION, f"train.accumulate={accumulate}"]
    whole = make_trainer(pairs, tmp_path / "whole", Budget(steps=30), *settings)
    expected = watched(whole)
    best = whole.run()
    stopped = make_trainer(pairs, tmp_path / "stopped", Budget(steps=30), *settings, on_progress=kill_at(20))
    with pytest.raises(Killed):
        stopped.run()
    resumed = make_trainer(pairs, tmp_path / "stopped", Budget(steps=30), *settings)
    resumed.resume()
    found = watched(resumed)
    again = resumed.run()
    assert found == [entry for entry in expected if entry[0] >= resumed.step - len(found)]
    assert equal_state(best, again)
    assert {name: watch.state for name, watch in resumed.regression.items()} == {
        name: watch.state for name, watch in whole.regression.items()
    }


def test_two_processes_equal_one_with_the_double_batch(pairs: Path, tmp_path: Path) -> None:
    exact = [*FUSION, "loss.code_matching=1", "model.quantizer.restart_below=0", "train.learning_rate=3e-3"]
    make_trainer(pairs, tmp_path / "whole", Budget(steps=STEPS), *exact).run()
    make_trainer(pairs, tmp_path / "half", Budget(steps=STEPS), *exact, "train.batch_size=4").run()
    settings = [*TINY, *exact, "train.batch_size=4", "prior.fit_steps=0"]
    run_two_processes(pairs, tmp_path / "two.safetensors", settings)
    for module in ("model.encoder", "model.quantizer", "model.decoder"):
        far = distance(tmp_path / "whole", tmp_path / "half", module)
        near = distance(tmp_path / "whole", tmp_path / "two.run", module)
        assert near < 0.1 * far, (module, near, far)


# The model file.


def test_the_file_opens_as_it_was_saved(trained: Path) -> None:
    card = read_card(trained)
    assert card.strides == {"image": 4, "audio": 10}
    assert json.loads(json.dumps(contents(trained)[1]))["format"] == 2
    model = load_model(trained)
    assert isinstance(model, FusionModel)
    for modality in ("image", "audio"):
        side = model.of(modality)
        assert side.identity == model.identity
        assert side.entropy_model.tables[0] is not None
        assert side.entropy_model.prior is not None
    tables = [model.of(modality).entropy_model.tables[0] for modality in ("image", "audio")]
    assert not np.array_equal(*tables)
    assert set(card.training["evaluation"]) == {"image", "audio"}
    assert card.training["evaluation"]["image"]["files"] >= 3


def test_the_identity_does_not_depend_on_the_encoders(trained: Path) -> None:
    tensors, values = contents(trained)
    before = values["identity"]
    from vqtok.models.model_file import compute_identity

    changed = {name: tensor + 1 if name.startswith("encoder.") else tensor for name, tensor in tensors.items()}
    assert compute_identity(values["config"]["model"], changed).hex() == before
    changed["decoder.audio.layers.0.weight"] = tensors["decoder.audio.layers.0.weight"] + 1
    assert compute_identity(values["config"]["model"], changed).hex() != before


def test_fine_tuning_and_the_prior_alone(pairs: Path, trained: Path, tmp_path: Path) -> None:
    frozen = ["train.freeze=decoder,codebook", "prior.fit_steps=0"]
    train(pairs, tmp_path / "tuned.safetensors", init=str(trained), settings=frozen, steps=6, device="cpu")
    before, after = load_model(trained), load_model(tmp_path / "tuned.safetensors")
    torch.testing.assert_close(after.decoder.state_dict(), before.decoder.state_dict(), rtol=1e-3, atol=1e-3)
    result = train_prior(pairs, tmp_path / "prior.safetensors", str(trained), settings=["prior.fit_steps=2"])
    assert load_model(tmp_path / "prior.safetensors").of("audio").entropy_model.prior
    assert result.training["parent"] == before.identity.hex()


def test_a_single_model_is_no_start_for_a_fusion_model(pairs: Path, image_model: Path, tmp_path: Path) -> None:
    settings = ["model.modality=fusion", "model.sample_rate=2000"]
    with pytest.raises(UsageError, match=r"of the model to start from is .*, not "):
        train(pairs, tmp_path / "x.safetensors", init=str(image_model), settings=settings, steps=1)


# Its use.


def test_encode_decode_inspect_and_export(run: Any, pairs: Path, trained: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "tokens", tmp_path / "back"
    assert run("encode", pairs, "-o", out, "--model", trained).exit_code == 0
    assert {path.name for path in out.iterdir()} >= {"1.png.vqt", "1.wav.vqt", "alone.vqt", "only.vqt"}
    assert run("decode", out, "-o", back, "--model", trained).exit_code == 0
    assert soundfile.info(back / "1.wav").frames == 410
    with Image.open(back / "1.png") as image:
        assert image.size == (24, 20)
    assert (
        vqtok.inspect(out / "1.png.vqt")["metadata"]
        == vqtok.inspect(out / "1.wav.vqt")["metadata"]
        == {"caption": "one"}
    )
    facts = json.loads(run("inspect", "--usage", out, "--model", trained, "--json").stdout)
    assert facts["num_files"] == 34
    assert {name: use["num_files"] for name, use in facts["modalities"].items()} == {"image": 17, "audio": 17}
    assert 0 <= facts["shared_fraction"][0] <= 1
    assert 0 <= facts["divergence_bits"][0] <= 1
    shown = run("inspect", "--usage", out, "--model", trained).stdout
    assert "both modalities use" in shown
    exported = vqtok.export([out], tmp_path / "x.npy", "npy", model=str(trained))
    assert exported["strides"] == {"image": 4, "audio": 10}
    assert exported["vocabulary_size"] == 16
    read = vqtok.read_export(tmp_path / "x.npy")
    for key in ("1.png", "1.wav", "alone"):
        tokens = vqtok.models.token_reader.TokenReader(str(trained)).read(out / f"{key}.vqt")
        assert np.array_equal(read[key].codes, tokens.codes)
        assert (read[key].modality, read[key].stride) == (tokens.modality, tokens.stride)
    assert run("decode", tmp_path / "x.npy", "-o", tmp_path / "more", "--model", trained).exit_code == 0
    assert (tmp_path / "more/1.png").read_bytes() == (back / "1.png").read_bytes()
    assert (tmp_path / "more/1.wav").read_bytes() == (back / "1.wav").read_bytes()


def test_text_of_both_modalities_needs_words_for_both(run: Any, pairs: Path, trained: Path, tmp_path: Path) -> None:
    for name in ("1.png", "1.wav"):
        run("encode", pairs / name, "-o", tmp_path / f"{name}.vqt", "--model", trained)
    tokens = [tmp_path / "1.png.vqt", tmp_path / "1.wav.vqt"]
    with pytest.raises(UsageError, match="in text both need the same words"):
        vqtok.export(tokens, tmp_path / "x.txt", "text", model=str(trained))
    words = {"template": "<|{id}|>", "begin_token": "<s>", "end_token": "</s>"}
    vqtok.export(tokens, tmp_path / "x.txt", "text", model=str(trained), **words)
    assert vqtok.read_export(tmp_path / "x.txt")["1.wav"].modality == "audio"


def test_each_coder_works_for_each_modality(pairs: Path, trained: Path) -> None:
    from vqtok.tokens.vqt.file import dump, load

    model = load_model(trained)
    for name in ("1.png", "1.wav"):
        tokens = vqtok.encode(pairs / name, str(trained))
        for coder in ("packed", "static", "prior"):
            data = dump(tokens, model.entropy_model, coder)  # type: ignore[arg-type]
            assert data == dump(tokens, model.of(tokens.modality).entropy_model, coder)  # type: ignore[arg-type]
            assert np.array_equal(load(data, model.entropy_model).codes, tokens.codes)


def test_shards_hold_one_modality(run: Any, pairs: Path, trained: Path, tmp_path: Path) -> None:
    mixed = run("encode", pairs, "--shard", tmp_path / "x.vqts", "--model", trained)
    assert mixed.exit_code == 2
    assert "cannot hold both images and audio" in mixed.stderr
    sounds = sorted(pairs.glob("*.wav"))
    assert run("encode", *sounds, "--shard", tmp_path / "x.vqts", "--model", trained).exit_code == 0
    shard = vqtok.open_shard(tmp_path / "x.vqts", str(trained))
    assert np.array_equal(shard["1.wav"].codes, vqtok.encode(pairs / "1.wav", str(trained)).codes)


def test_codes_of_others_are_converted_by_their_form(run: Any, trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((1, 5, 6), np.int64))
    np.save(tmp_path / "audio.npy", np.ones((1, 41), np.int64))
    assert run("convert", tmp_path / "image.npy", "--model", trained).exit_code == 0
    assert run("convert", tmp_path / "audio.npy", "--model", trained).exit_code == 0
    assert vqtok.inspect(tmp_path / "image.vqt")["modality"] == "image"
    assert vqtok.inspect(tmp_path / "audio.vqt")["modality"] == "audio"


def test_tokens_of_another_model_are_refused(pairs: Path, trained: Path, image_model: Path) -> None:
    with pytest.raises(WrongModelError):
        vqtok.decode(vqtok.encode(pairs / "1.png", str(trained)), str(image_model))
    with pytest.raises(ModelError, match="this model encodes image, not audio"):
        vqtok.encode(pairs / "1.wav", str(image_model))


def test_the_model_and_its_media_are_described(run: Any, pairs: Path, trained: Path) -> None:
    shown = run("inspect", trained).stdout
    assert "image and audio, 2000 Hz" in shown
    assert "4 (image), 10 (audio)" in shown
    facts = vqtok.inspect(pairs / "1.wav", str(trained))
    assert facts["would_become"]["grid"] == [41]
    assert vqtok.inspect(pairs / "1.png", str(trained))["would_become"]["grid"] == [5, 6]


def test_the_preset_is_for_the_digits() -> None:
    config = load_preset("fusion")
    assert isinstance(build_model(config.model), FusionModel)
    assert config.loss.code_matching > 0


def test_statistics_of_shared_codes() -> None:
    one, other = np.array([4, 4, 0, 0]), np.array([0, 2, 2, 0])
    assert shared_fraction(one, other) == pytest.approx(1 / 3)
    assert jensen_shannon_bits(one, one * 3) == pytest.approx(0)
    assert jensen_shannon_bits(one, one[::-1]) == pytest.approx(1)
    assert jensen_shannon_bits(one, other) == pytest.approx(0.5)


def test_a_model_of_one_modality_is_its_own_side() -> None:
    model = VQModel(tiny().model)
    assert model.of("image") is model.of("audio") is model
    assert model.modalities == ("image",)
