"""`vqtok evaluate`: figures, the comparison with classical codecs, bad items, and interrupted runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import wave
from PIL import Image

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.evaluation import run as run_module
from vqtok.evaluation.items import Worker
from vqtok.media.image import as_float
from vqtok.media.media import Media
from vqtok.metrics.audio import mel_distance
from vqtok.metrics.image import psnr
from vqtok.models.card import check_identity, read_card
from vqtok.models.model_file import load_model
from vqtok.models.registry import find_model


def by_id(results, modality="image"):
    return {candidate["id"]: candidate["figures"] for candidate in results["modalities"][modality]["candidates"]}


def pixels(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")) / 127.5 - 1).permute(2, 0, 1)[None]


def test_figures_are_those_of_encoded_and_decoded_files(evaluate, run, photos, tmp_path):
    results = evaluate(photos, "--against", "none", "--codebooks", "1,3")
    for count in (1, 3):
        tokens, decoded = tmp_path / f"tokens{count}", tmp_path / f"decoded{count}"
        assert run("encode", photos, "-o", tokens, "--codebooks", count).exit_code == 0
        assert run("decode", tokens, "-o", decoded).exit_code == 0
        names = [f"{index}.png" for index in range(4)]
        expected = np.mean([float(psnr(pixels(photos / name), pixels(decoded / name))) for name in names])
        sizes = [path.stat().st_size for path in sorted(tokens.glob("*.vqt"))]
        figures = by_id(results)[f"image@{count}"]
        assert figures["psnr"] == pytest.approx(expected, abs=1e-4)
        assert figures["bytes"] == np.mean(sizes)
        areas = [(48 + 8 * index) * 40 for index in range(4)]
        assert figures["bpp"] == pytest.approx(np.mean([8 * s / a for s, a in zip(sizes, areas, strict=True)]))


def test_with_effort_each_number_of_codebooks_is_searched_for(evaluate, photos):
    found = evaluate(photos, "--against", "none", "--codebooks", "2,4", "--effort", "4")
    codec = Codec(load_model(find_model("image")), options=CodecOptions(effort=4))
    for count in (2, 4):
        media = [Media("image", pixels(photos / f"{index}.png")[0].numpy().astype(np.float32)) for index in range(4)]
        tokens = [codec.encode(item, count) for item in media]
        figures = [
            float(psnr(torch.from_numpy(item.data)[None], torch.from_numpy(as_float(codec.decode_pixels(own)))[None]))
            for item, own in zip(media, tokens, strict=True)
        ]
        assert by_id(found)[f"image@{count}"]["psnr"] == pytest.approx(np.mean(figures), abs=1e-3)
    assert found["modalities"]["image"]["models"]["image"]["usage"]


def test_audio_keeps_its_rate_and_channels(evaluate, run, recordings, tmp_path):
    results = evaluate(recordings, "--against", "none", "--codebooks", "2")
    assert run("encode", recordings, "-o", tmp_path / "t", "--codebooks", 2).exit_code == 0
    assert run("decode", tmp_path / "t", "-o", tmp_path / "d").exit_code == 0
    for item in results["modalities"]["audio"]["items"]:
        (x, rate), (x_hat, _) = (
            soundfile.read(tmp_path / f / item["key"], always_2d=True) for f in ("recordings", "d")
        )
        assert item["size"] == {"samples": len(x), "sample_rate": rate, "channels": x.shape[1]}
        distance = mel_distance(*(torch.from_numpy(y.T[None].astype(np.float32)) for y in (x, x_hat)), rate)
        # The decoded file has 16 bits.
        assert item["figures"]["audio@2"]["mel_distance"] == pytest.approx(float(distance), abs=0.02)


def test_sample_rate_and_mono(evaluate, recordings):
    results = evaluate(recordings, "--against", "none", "--sample-rate", 12_000, "--mono")
    sizes = [item["size"] for item in results["modalities"]["audio"]["items"]]
    assert {(size["sample_rate"], size["channels"]) for size in sizes} == {(12_000, 1)}


def test_classical_codecs_never_have_fewer_bytes(evaluate, photos):
    results = evaluate(photos, "--against", "jpeg,webp", "--codebooks", "1,4")
    found = results["modalities"]["image"]
    ids = [candidate["id"] for candidate in found["candidates"]]
    assert ids[:4] == ["image@1", "jpeg=image@1", "webp=image@1", "image@4"]
    curve = [by_id(results)[name] for name in ids if name.startswith("jpeg:")]
    assert len(curve) >= 5
    assert [point["bytes"] for point in curve] == sorted(point["bytes"] for point in curve)
    assert curve[0]["psnr"] < curve[-1]["psnr"]
    for item in found["items"]:
        for count in (1, 4):
            for codec in ("jpeg", "webp"):
                assert item["figures"][f"{codec}=image@{count}"]["bytes"] >= item["figures"][f"image@{count}"]["bytes"]


def test_opus_beside_an_audio_model(evaluate, recordings):
    results = evaluate(recordings, "--against", "opus,jpeg", "--codebooks", "3")
    figures = by_id(results, "audio")
    assert {name.partition("=")[0].partition(":")[0] for name in figures} == {"audio@3", "opus"}
    curve = [figure["mel_distance"] for name, figure in figures.items() if ":" in name]
    assert curve[-1] < curve[0]  # A codec that were not aligned would not become better.


def test_a_bad_item_is_left_out_of_all_means(evaluate, run, photos, tmp_path):
    whole = evaluate(photos, "--against", "none")
    (photos / "bad.png").write_bytes((photos / "0.png").read_bytes()[:200])
    result = run("evaluate", photos, "-o", tmp_path / "other", "--metrics", "psnr", "--against", "none", "--jobs", 1)
    assert result.exit_code == 1
    assert "bad.png: the image is damaged" in result.stderr.replace("\n", "")
    found = json.loads((tmp_path / "other/results.json").read_text())
    assert by_id(found)["image@4"]["psnr"] == by_id(whole)["image@4"]["psnr"]
    assert [failure["key"] for failure in found["modalities"]["image"]["failed"]] == ["bad.png"]


def test_infinite_psnr_is_never_averaged(evaluate, photos, monkeypatch):
    without = evaluate(photos, "--against", "none", output="without")
    Image.new("RGB", (40, 40), (7, 7, 7)).save(photos / "blank.png")
    decode = "vqtok.codec.prefixes.Prefixes.decode"
    original = Worker.read
    blank = []

    def read(self, item):
        blank[:] = [original(self, item)] if item.key == "blank.png" else []
        return original(self, item)

    import vqtok.codec.prefixes

    real = vqtok.codec.prefixes.Prefixes.decode
    monkeypatch.setattr(Worker, "read", read)
    monkeypatch.setattr(decode, lambda self, count: blank[0] if blank else real(self, count))
    found = evaluate(photos, "--against", "none")["modalities"]["image"]
    assert next(item for item in found["items"] if item["key"] == "blank.png")["figures"]["image@1"]["psnr"] == "inf"
    assert found["candidates"][0]["figures"]["psnr"] == by_id(without)["image@1"]["psnr"]
    assert next(metric for metric in found["metrics"] if metric["name"] == "psnr")["items"] == 4


def test_both_modalities_in_one_folder(run, photos, tmp_path):
    soundfile.write(photos / "a.wav", wave(8000, 16_000), 16_000)
    result = run("evaluate", photos, "-o", tmp_path / "r", "--against", "none", "--metrics", "psnr,stft_distance")
    assert result.exit_code == 0, result.output
    assert "4 images" in result.stdout
    assert "1 sound" in result.stdout
    assert "STFT distance" in result.stdout


def test_a_model_of_the_wrong_modality(run, photos, audio_model, tmp_path):
    result = run("evaluate", photos, "-m", audio_model, "-o", tmp_path / "r")
    assert result.exit_code == 3
    assert "encodes audio, but there are none" in result.stderr.replace("\n", "")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--codebooks", "0"], "give numbers such as 1,2,4,8"),
        (["--codebooks", "9"], "--codebooks 9"),
        (["--against", "gif"], "no codec 'gif'"),
        (["--metrics", "beauty"], "no metric 'beauty'"),
        (["--metrics", "pesq"], "none that is installed is for image"),
    ],
)
def test_options_that_cannot_be(run, photos, tmp_path, options, message):
    result = run("evaluate", photos, "-o", tmp_path / "r", *options)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", "")
    assert not (tmp_path / "r").exists()


def test_what_is_not_installed_is_named_and_left_out(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("vqtok.metrics.catalogue._is_found", lambda module: False)
    monkeypatch.setattr("vqtok.evaluation.codecs.PillowCodec.why_missing", lambda self: "it is not there")
    result = run("evaluate", photos, "-o", tmp_path / "r", "--metrics", "psnr,flip", "--against", "webp")
    assert result.exit_code == 0, result.output
    lines = result.stderr.replace("\n", " ")
    assert "webp is left out: it is not there" in lines
    assert "flip is left out: needs flip-evaluator: pip install 'vqtok[evaluate]'" in lines
    protocol = json.loads((tmp_path / "r/protocol.json").read_text())["modalities"]["image"]
    assert set(protocol["left_out"]) == {"webp", "flip"}


def test_the_protocol(evaluate, photos, image_model, tmp_path):
    evaluate(photos, "-m", image_model, "--against", "jpeg", "--codebooks", "2", "--limit", "2")
    protocol = json.loads((tmp_path / "report/protocol.json").read_text())
    found = protocol["modalities"]["image"]
    assert [item["key"] for item in found["items"]] == ["0.png", "2.png"]
    assert found["items"][0]["size"] == {"width": 48, "height": 40}
    assert found["models"][0]["num_codebooks"] == [2]
    assert len(found["models"][0]["identity"]) == 64
    assert "Pillow" in found["codecs"]["jpeg"]["implementation"]
    assert found["metrics"]["psnr"]["computed_by"] == {"vqtok": protocol["packages"]["vqtok"]}


def test_two_models_are_compared_on_the_same_items(evaluate, photos, image_model, make_model):
    other = make_model("image", seed=1)
    found = by_id(evaluate(photos, "-m", image_model, "-m", other, "--against", "none", "--codebooks", "1"))
    assert len(found) == 2  # Both files are called image.safetensors, so they go by their paths.
    assert {name.rpartition("@")[0] for name in found} == {str(image_model), str(other)}


# Runs that are interrupted.


def test_an_interrupted_run_continues(evaluate, photos, monkeypatch, tmp_path):
    seen: list[str] = []
    real = Worker.evaluate

    def stops(self, item):
        seen.append(item.key)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, item)

    monkeypatch.setattr(Worker, "evaluate", stops)
    with pytest.raises((AssertionError, FileNotFoundError)):
        evaluate(photos, "--against", "none", exit_code=130)
    lines = tmp_path / "report/image-items.jsonl"
    assert len(lines.read_text().splitlines()) == 3
    with lines.open("a") as file:
        file.write('{"key": "2.png", "figures"')  # A line that was cut off by a kill.
    results = evaluate(photos, "--against", "none")
    assert seen == ["0.png", "1.png", "2.png", "2.png", "3.png"]
    assert len(results["modalities"]["image"]["items"]) == 4
    assert not lines.exists()
    monkeypatch.undo()


def test_an_item_that_has_changed_is_evaluated_again(photos, tmp_path, image_model):
    from vqtok.evaluation.candidates import make_plan, open_models
    from vqtok.evaluation.items import Item

    plan = make_plan("image", open_models([str(image_model)], [1]), [], ["psnr"], stability=False)
    items = [Item(path.name, path) for path in sorted(photos.glob("*.png"))]
    run_module.evaluate_items(plan, items, tmp_path / "lines", "digest")
    Image.new("RGB", (40, 40), (200, 30, 30)).save(items[1].path)
    skipped = []
    run_module.evaluate_items(
        plan, items, tmp_path / "lines", "digest", on_finished=lambda record: skipped.append("skipped" in record)
    )
    assert sorted(skipped) == [False, True, True, True]
    records = list(run_module.read_records(tmp_path / "lines", items))
    assert [record["size"]["width"] for record in records] == [48, 40, 64, 72]


def test_results_of_other_settings_are_not_mixed(evaluate, run, photos, monkeypatch, tmp_path):
    lines = tmp_path / "report/image-items.jsonl"
    lines.parent.mkdir()
    lines.write_text('{"run": "another"}\n')
    result = run("evaluate", photos, "-o", tmp_path / "report", "--metrics", "psnr", "--against", "none")
    assert result.exit_code == 1
    assert "left by a run with other models, options or versions; --force" in result.stderr.replace("\n", " ")
    assert lines.read_text() == '{"run": "another"}\n'
    evaluate(photos, "--against", "none", "--codebooks", "1", "--force")
    assert not lines.exists()


def test_an_existing_report_is_kept(evaluate, run, photos, tmp_path):
    evaluate(photos, "--against", "none")
    before = (tmp_path / "report/results.json").read_bytes()
    result = run("evaluate", photos, "-o", tmp_path / "report")
    assert result.exit_code == 1
    assert "output exists; --force replaces it" in result.stderr.replace("\n", " ")
    assert (tmp_path / "report/results.json").read_bytes() == before


def test_several_processes_find_the_same(run, photos, tmp_path):
    found = []
    for jobs in (1, 2):
        folder = tmp_path / f"r{jobs}"
        options = ["--metrics", "psnr", "--against", "jpeg", "--codebooks", "2", "--jobs", jobs, "-q"]
        assert run("evaluate", photos, "-o", folder, *options).exit_code == 0
        found.append(json.loads((folder / "results.json").read_text())["modalities"]["image"])
    one, two = ([c["figures"] for c in results["candidates"]] for results in found)
    for first, second in zip(one, two, strict=True):
        assert first == pytest.approx(second, abs=1e-3, nan_ok=True)
    assert [item["key"] for item in found[1]["items"]] == [f"{index}.png" for index in range(4)]


def test_nothing_can_be_evaluated(run, tmp_path):
    Path(tmp_path / "x.png").write_bytes(b"no image")
    result = run("evaluate", tmp_path / "x.png", "-o", tmp_path / "r", "--against", "none", "--metrics", "psnr")
    assert result.exit_code == 1
    assert "none of the 1 items could be evaluated" in result.stderr.replace("\n", " ")


# Degraded inputs, and learnability.


def test_degraded_inputs_are_compared_with_the_originals(evaluate, photos):
    plain = by_id(evaluate(photos, "--against", "jpeg", "--codebooks", "4", output="plain"))
    found = evaluate(photos, "--against", "jpeg", "--codebooks", "4", "--degrade", "noise:50", output="noisy")
    noisy = by_id(found)
    best = "jpeg:95"
    assert plain[best]["psnr"] > 30
    # Noise of a standard deviation of 50 has a PSNR of about 14 dB (clipped, a little more), which a good codec keeps.
    assert 12 < noisy[best]["psnr"] < 21
    again = by_id(evaluate(photos, "--against", "jpeg", "--codebooks", "4", "--degrade", "noise:50", output="again"))
    assert again[best]["psnr"] == pytest.approx(noisy[best]["psnr"])


@pytest.mark.slow
def test_learnability(run, photos, tmp_path):
    options = ["--metrics", "psnr", "--against", "none", "--codebooks", "1", "--no-stability", "--jobs", 1]
    result = run("evaluate", photos, "-o", tmp_path / "r", *options, "--learnability", "20s")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r/results.json").read_text())["modalities"]["image"]["models"]["image"]
    assert "learnability" in found, result.output
    learned = found["learnability"]
    assert learned["steps"] >= 1
    assert learned["items"] + learned["held_out_items"] == 4
    assert 0 < learned["bits_per_token"] < 8  # Of 16 codes; a random guess needs 4.
    assert "bits a token after" in result.stdout.replace("\n", " ")


def test_learnability_without_time_costs_nothing_else(run, photos, tmp_path):
    options = ["--metrics", "psnr", "--against", "none", "--codebooks", "1", "--no-stability", "--jobs", 1]
    result = run("evaluate", photos, "-o", tmp_path / "r", *options, "--learnability", "0.01s")
    assert result.exit_code == 0, result.output
    assert "no learnability of image" in result.stderr.replace("\n", " ")
    assert (tmp_path / "r/results.json").exists()
    assert run("evaluate", photos, "-o", tmp_path / "x", "--learnability", "soon").exit_code == 2


def test_the_card_gets_the_results(evaluate, run, photos, image_model, tmp_path):
    model = tmp_path / "mine.safetensors"
    model.write_bytes(image_model.read_bytes())
    (photos / "night").mkdir()
    (photos / "0.png").rename(photos / "night" / "0.png")
    results = evaluate(photos, "-m", model, "--codebooks", "1,3", "--update-card")
    card = read_card(model)
    evaluation = card.training["evaluation"]
    assert evaluation["prefixes"] == [1, 3]
    assert evaluation["files"] == 4
    for place, count in enumerate((1, 3)):
        assert evaluation["psnr"][place] == round(by_id(results)[f"mine@{count}"]["psnr"], 4)
    night = next(item for item in results["modalities"]["image"]["items"] if item["key"] == "night/0.png")
    assert evaluation["by_folder"]["night"]["psnr"][1] == round(night["figures"]["mine@3"]["psnr"], 4)
    # Neither the weights nor the identity change, so that token files stay valid.
    check_identity(model)
    assert card.identity == read_card(image_model).identity
    assert model.read_bytes()[-1000:] == image_model.read_bytes()[-1000:]
    printed = run("inspect", model).output
    assert f"{evaluation['psnr'][0]:.2f}" in printed
    assert "all (4)" in printed
    assert "night (1)" in printed


def test_only_model_files_have_a_card_to_update(run, photos, tmp_path):
    result = run("evaluate", photos, "-m", "dac:folder", "--update-card", "-o", tmp_path / "report")
    assert result.exit_code != 0
    assert not (tmp_path / "report").exists()
    result = run("evaluate", "--from", tmp_path, "--update-card")
    assert result.exit_code == 2
    assert "--update-card" in result.stderr
