"""Other tools' token files, read exactly or refused by name; codes as arrays and back."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RUN
from hypothesis import given, settings
from hypothesis import strategies as st

import vqtok
from vqtok.codec.files import Codecs
from vqtok.config import Config, from_dict
from vqtok.errors import CorruptFileError, MediaError, OutputError, UnsupportedVersionError, UsageError
from vqtok.jobs.convert import convert
from vqtok.models.model_file import load_model, save_model
from vqtok.models.vqmodel import VQModel
from vqtok.tokens.foreign import ForeignCodes, read_foreign_codes
from vqtok.tokens.foreign.ecdc import read_ecdc
from vqtok.tokens.tokens import pack_side_data
from vqtok.tokens.vqt.file import load

RNG = np.random.default_rng(0)


def like(path: Path, sample_rate: int, strides: list[int], depth: int) -> Path:
    """Write a model with the rate, stride and codebooks of another's."""
    blocks = [0] * len(strides)
    network = {"strides": strides, "widths": [4] * len(strides), "encoder_blocks": blocks, "decoder_blocks": blocks}
    model = {"modality": "audio", "sample_rate": sample_rate, "network": network}
    model["quantizer"] = {"dim": 4, "codebook_size": 1024, "depth": depth}
    config = from_dict(Config, {"model": model})
    torch.manual_seed(0)
    save_model(path, VQModel(config.model), config, entropy_tables={}, training={})
    return path


@pytest.fixture(scope="module")
def encodec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(like(tmp_path_factory.mktemp("models") / "encodec.safetensors", 24_000, [8, 8, 5], 8))


@pytest.fixture(scope="module")
def dac(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(like(tmp_path_factory.mktemp("models") / "dac.safetensors", 44_100, [8, 8, 8], 9))


def read(path: Path) -> ForeignCodes:
    ((key, item),) = read_foreign_codes(path).items()
    assert key is None
    return item()


# EnCodec.


def pack(codes: np.ndarray) -> bytes:
    """Pack codes `(num_codebooks, time)` as EnCodec does: step by step, each code's low bits first."""
    number = sum(int(code) << 10 * place for place, code in enumerate(codes.T.ravel()))
    return number.to_bytes((10 * codes.size + 7) // 8, "little")


def ecdc(payload: bytes, name: str = "encodec_24khz", samples: int = 1000, count: int = 2, **changes: Any) -> bytes:
    header = json.dumps({"m": name, "al": samples, "nc": count, "lm": False} | changes).encode()
    return struct.pack("!4sBI", b"ECDC", 0, len(header)) + header + payload


@given(samples=st.integers(1, 5000), count=st.sampled_from([2, 3, 8, 32]), seed=st.integers(0, 99))
def test_ecdc_codes_are_exact(samples: int, count: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1024, (count, -(-samples // 320)))
    found = read_ecdc(ecdc(pack(codes), samples=samples, count=count))
    assert np.array_equal(found.codes, codes)
    assert (found.size, found.model, found.side_data.size) == ((samples, 24_000, 1), "encodec_24khz", 0)


@pytest.mark.parametrize(
    ("samples", "steps"), [(100, [1]), (47_520, [149]), (47_521, [149, 1]), (120_000, [150, 150, 78])]
)
def test_ecdc_segments_have_scales(samples: int, steps: list[int]) -> None:
    segments = [RNG.integers(0, 1024, (4, length)) for length in steps]
    scales = RNG.random(len(steps)).astype(np.float32)
    payload = b"".join(struct.pack("!f", scale) + pack(part) for scale, part in zip(scales, segments, strict=True))
    found = read_ecdc(ecdc(payload, "encodec_48khz", samples, 4))
    assert np.array_equal(found.codes, np.concatenate(segments, axis=1)[:, None])
    assert np.array_equal(found.side_data, scales)
    assert found.size == (samples, 48_000, 2)
    assert pack_side_data(found.side_data)


def test_ecdc_to_tokens_and_media(encodec: str, run: RUN, tmp_path: Path) -> None:
    codes = RNG.integers(0, 1024, (8, 38))
    path = tmp_path / "x.ecdc"
    path.write_bytes(ecdc(pack(codes), samples=12_000, count=8))
    result = run("convert", path, "-m", encodec, "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["output"], facts["num_tokens"], facts["duration_seconds"]) == (
        str(path.with_suffix(".vqt")),
        304,
        0.5,
    )
    tokens = load(path.with_suffix(".vqt").read_bytes())
    assert np.array_equal(tokens.codes, codes)
    assert tokens.model == load_model(Path(encodec)).identity[:8]
    media = vqtok.decode(path.with_suffix(".vqt"), encodec)
    assert media.data.shape == (1, 12_000)
    # The first codebooks alone are a lower bandwidth.
    path.write_bytes(ecdc(pack(codes[:2]), samples=12_000, count=2))
    assert run("convert", path, "-m", encodec, "--force").exit_code == 0
    assert load(path.with_suffix(".vqt").read_bytes()).num_codebooks == 2


def test_ecdc_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encodec: str) -> None:
    asked = []
    monkeypatch.setattr("vqtok.jobs.convert.Codecs", lambda name: asked.append(name) or Codecs(encodec))
    path = tmp_path / "x.ecdc"
    path.write_bytes(ecdc(pack(np.ones((2, 4), int))))
    convert(path)
    assert asked == ["hf:facebook/encodec_24khz"]


@pytest.mark.parametrize("name", ["encodec_24khz", "encodec_48khz"])
def test_ecdc_is_what_encodec_itself_codes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("vqtok.models.adapters.encodec")
    transformers = pytest.importorskip("transformers")
    settings: dict[str, Any] = {"num_filters": 4, "hidden_size": 16, "num_lstm_layers": 1}
    if name == "encodec_48khz":
        settings |= {"sampling_rate": 48_000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0}
        settings |= {"overlap": 0.01, "norm_type": "time_group_norm", "use_causal_conv": False}
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**settings)).eval()
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_()
    model.save_pretrained(tmp_path / name)
    x = torch.rand(1, model.config.audio_channels, 60_000) - 0.5
    with torch.no_grad():
        found = model.encode(x, bandwidth=6.0)
        expected = model.decode(
            found.audio_codes, found.audio_scales, last_frame_pad_length=found.last_frame_pad_length
        ).audio_values
    payload = b""
    for index, codes in enumerate(found.audio_codes[:, 0] if name == "encodec_48khz" else found.audio_codes[0]):
        scale = found.audio_scales[index]
        payload += b"" if scale is None else struct.pack("!f", scale)
        last = found.last_frame_pad_length if index == len(found.audio_codes) - 1 else 0
        payload += pack(codes[:, : codes.shape[1] - last].numpy())
    path = tmp_path / "x.ecdc"
    path.write_bytes(ecdc(payload, name, 60_000, found.audio_codes.shape[2]))
    convert(path, model=str(tmp_path / name))
    media = vqtok.decode(path.with_suffix(".vqt"), str(tmp_path / name))
    np.testing.assert_allclose(media.data, expected[0, :, :60_000], rtol=0, atol=1e-4)


WHOLE = ecdc(pack(np.ones((2, 4), int)))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (WHOLE[:-1], CorruptFileError, "cut short"),
        (WHOLE + b"\0", CorruptFileError, "1 bytes too many"),
        (WHOLE[:20], CorruptFileError, r"damaged \.ecdc header"),
        (WHOLE[:7], CorruptFileError, r"damaged \.ecdc header"),
        (ecdc(b"", al=0), CorruptFileError, r"damaged \.ecdc header"),
        (ecdc(b"", al=10**18), CorruptFileError, "cut short"),
        (ecdc(b"", name="encodec_48khz", al=10**18), CorruptFileError, "cut short"),
        (ecdc(b"", nc=True), CorruptFileError, r"damaged \.ecdc header"),
        (ecdc(b"", lm=True), MediaError, "language model.*without its option --lm"),
        (
            ecdc(b"", name="my_model"),
            MediaError,
            "made by a model 'my_model'; vqtok knows encodec_24khz, encodec_48khz",
        ),
        (b"ECDC\1" + WHOLE[5:], UnsupportedVersionError, "version 1; vqtok knows 0"),
    ],
)
def test_ecdc_files_that_are_refused(data: bytes, error: type[Exception], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.ecdc"
    path.write_bytes(data)
    with pytest.raises(error, match=rf"x\.ecdc: .*{message}"):
        convert(path, model="image")


# DAC.


def dac_file(path: Path, codes: np.ndarray, **changes: Any) -> Path:
    metadata = {"input_db": np.array([-23.25], np.float32), "original_length": 20_000, "sample_rate": 44_100}
    metadata |= {"chunk_length": codes.shape[-1], "channels": len(codes), "padding": True, "dac_version": "1.0.0"}
    with path.open("wb") as file:
        np.save(file, {"codes": codes.astype(np.uint16), "metadata": metadata | changes})
    return path


@pytest.mark.parametrize("channels", [1, 2])
def test_dac_codes_are_exact(channels: int, dac: str, run: RUN, tmp_path: Path) -> None:
    codes = RNG.integers(0, 1024, (channels, 9, 40))
    path = dac_file(tmp_path / "x.dac", codes)
    result = run("convert", path, "-m", dac)
    assert result.exit_code == 0, result.output
    assert "decodes to DAC's loudness instead of its own of -23.2 dB" in result.stderr
    tokens = load(path.with_suffix(".vqt").read_bytes())
    assert np.array_equal(tokens.codes, codes.swapaxes(0, 1) if channels > 1 else codes[0])
    assert (tokens.size, tokens.metadata) == ((20_000, 44_100, channels), {"input_db": -23.25})
    assert vqtok.decode(path.with_suffix(".vqt"), dac).data.shape == (channels, 20_000)


def test_dac_files_of_older_numpy(tmp_path: Path) -> None:
    path = dac_file(tmp_path / "x.dac", np.ones((1, 2, 3), int))
    data = path.read_bytes()
    assert re.search(rb"numpy\._?core\.multiarray", data)  # _core from numpy 2 on
    # Protocol 3, in which modules have their old names.
    artifacts = np.load(path, allow_pickle=True)
    old = pickle.dumps(artifacts, 3, fix_imports=True).replace(b"numpy._core", b"numpy.core")
    path.write_bytes(data[: data.index(b"\n") + 1] + old)
    assert read(path).codes.tolist() == [[1, 1, 1], [1, 1, 1]]


class Malicious:
    """What a pickle can do: call anything."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (eval, ("open('{}', 'w')",), "builtins.eval"),
        (np.fromfile, ("{}",), "numpy.*fromfile"),
        (getattr, ("", "upper"), "builtins.getattr"),
    ],
)
def test_dac_files_cannot_run_code(function: Any, arguments: tuple[str, ...], name: str, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    bomb = Malicious(function, *(text.format(touched) for text in arguments))
    path = dac_file(tmp_path / "x.dac", np.ones((1, 2, 3), int), input_db=bomb)
    with pytest.raises(CorruptFileError, match=f"a pickle that asks for {name}, which no .dac file has"):
        convert(path, model="image")
    assert not touched.exists()
    if function is os.system:
        np.load(path, allow_pickle=True)
        assert touched.exists()  # It would have.


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"padding": False}, MediaError, "windows that overlap.*--win_duration"),
        ({"dac_version": "2.0.0"}, UnsupportedVersionError, "version '2.0.0'; vqtok knows 1.0.0"),
        ({"channels": 2}, CorruptFileError, r"damaged \.dac file"),
        ({"original_length": "long"}, CorruptFileError, r"damaged \.dac file"),
        ({"original_length": 99_999}, MediaError, "not what this model makes of media of 99999 samples at 44100 Hz"),
    ],
)
def test_dac_files_that_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, dac: str, tmp_path: Path
) -> None:
    path = dac_file(tmp_path / "x.dac", np.ones((1, 9, 40), int), **changes)
    with pytest.raises(error, match=message):
        convert(path, model=dac)


@settings(max_examples=150)
@given(data=st.data())
def test_damaged_dac_files_are_refused_whatever_is_in_them(data: st.DataObject, tmp_path_factory: Any) -> None:
    path = dac_file(tmp_path_factory.getbasetemp() / "damaged.dac", np.ones((1, 2, 3), int))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(8, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(8, len(content)))])
    with contextlib.suppress(CorruptFileError, MediaError, UnsupportedVersionError):
        read(path)


# Arrays and lines.


def test_codes_go_to_an_array_and_back(photo: Path, sound: Path, bundled: Path, run: RUN, tmp_path: Path) -> None:
    for medium, name, size in ((photo, "image", "96x64"), (sound, "audio", "4000@16000")):
        assert run("encode", medium).exit_code == 0
        tokens, array = medium.with_suffix(".vqt"), medium.with_suffix(".npy")
        assert run("convert", tokens).exit_code == 0
        codes = np.load(array)
        assert (codes.ndim, codes.dtype) == (3 if name == "image" else 2, np.int32)
        back = tmp_path / f"{name}.vqt"
        assert run("convert", array, "-o", back, "-m", name, "--size", size).exit_code == 0
        assert back.read_bytes() == tokens.read_bytes()


@pytest.mark.parametrize(
    ("shape", "message", "facts"),
    [
        (
            (1, 3, 9),
            "taken as a batch of one with 3 codebooks",
            (3, 1),
        ),  # (batch, codebooks, time), as libraries return
        ((1, 3, 2, 9), None, (3, 2)),
        ((3, 9), None, (3, 1)),
        ((3, 2, 9), None, (3, 2)),
        ((1, 4, 9), "have 4 codebooks, but the model has 3", None),
        ((2, 3, 2, 9), "are a batch of 2 items", None),
        ((8, 3, 9), "have 8 codebooks, or batches of several items, but the model has 3", None),
        ((3, 90, 9), "have 90 channels; expected (num_codebooks, time)", None),
        ((1, 1, 3, 2, 9), "expected (num_codebooks, time) or (num_codebooks, channels, time)", None),
    ],
)
def test_axes_of_audio_codes(run: RUN, tmp_path: Path, shape, message, facts) -> None:
    np.save(tmp_path / "x.npy", RNG.integers(0, 16, shape))
    result = run("convert", tmp_path / "x.npy", "-m", "audio")
    assert (result.exit_code == 0) == (facts is not None)
    assert message is None or message in result.stderr
    if facts:
        found = vqtok.inspect(tmp_path / "x.vqt")
        assert (found["num_codebooks"], found["channels"], found["grid"][-1]) == (*facts, 9)
        assert f"{facts[0]} codebooks, 0.00 s 16000 Hz {'mono' if facts[1] == 1 else 'stereo'})" in result.stderr


def test_without_a_size_all_that_the_grid_covers_is_assumed(run: RUN, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", RNG.integers(0, 16, (4, 5, 7)).astype(np.uint8))
    np.save(tmp_path / "s.npy", RNG.integers(0, 16, (3, 2, 9)))
    for name, model, shown, size in (
        ("p", "image", "28x20 pixels", (28, 20)),
        ("s", "audio", "72 samples at 16000 Hz", (72, 16_000, 2)),
    ):
        result = run("convert", tmp_path / f"{name}.npy", "-m", model)
        assert f"taken as {shown}, all that its grid covers; --size sets another size" in result.stderr
        assert vqtok.inspect(tmp_path / f"{name}.vqt")["num_tokens"] == 140 - 86 * (name == "s")
        suffix = {"image": "png", "audio": "wav"}[model]
        assert run("decode", tmp_path / f"{name}.vqt", "-o", tmp_path / f"{name}.{suffix}").exit_code == 0
        assert (
            load(
                (tmp_path / f"{name}.vqt").read_bytes(),
                load_model(vqtok.models.registry.find_model(model)).entropy_model,
            ).size
            == size
        )


def test_rows_and_columns_alone_are_of_one_codebook(image_model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", RNG.integers(0, 16, (5, 7)))
    convert(tmp_path / "p.npy", model=str(image_model))
    facts = vqtok.inspect(tmp_path / "p.vqt")
    assert (facts["grid"], facts["num_codebooks"]) == ([5, 7], 1)


@pytest.mark.parametrize(
    ("codes", "size", "message"),
    [
        (
            np.full((4, 5, 7), 16),
            None,
            r"codebook 0 has codes outside 0\.\.15; another model may have made these codes",
        ),
        (np.full((4, 5, 7), 2**32), None, "codes outside"),
        (np.zeros((5, 5, 7), int), None, "have 5 codebooks, but the model has 4"),
        (np.zeros((4, 2, 5, 7), int), None, r"codes of shape \(4, 2, 5, 7\) are a batch of 4 items"),
        (
            np.zeros((4, 5, 7), int),
            "29x20",
            r"codes of shape \(4, 5, 7\) are not what this model makes of .* 29x20 pixels",
        ),
        (np.zeros((4, 5, 7)), None, r"contains float64 of shape \(4, 5, 7\) instead of codes"),
        (np.zeros((4, 0), int), None, r"contains int64 of shape \(4, 0\) instead of codes"),
    ],
)
def test_arrays_that_are_not_this_models(
    codes: np.ndarray, size: str | None, message: str, image_model: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "p.npy", codes)
    with pytest.raises((MediaError, CorruptFileError), match=message):
        convert(tmp_path / "p.npy", model=str(image_model), size=size)
    assert not (tmp_path / "p.vqt").exists()


LINES = """{"key": "a/one.wav", "codes": [[1, 2, 3], [4, 5, 6]], "size": [20, 16000, 1]}
utt_2 [[7, 8], [9, 10], [11, 12]]

[[13, 14]]
utt_4 [[1, 2]
"""


def test_lines_become_files(run: RUN, tmp_path: Path) -> None:
    path = tmp_path / "codes.jsonl"
    path.write_text(LINES)
    result = run("convert", path, "-o", tmp_path / "out", "-m", "audio")
    assert result.exit_code == 1
    assert "codes.jsonl: utt_4: line 5: is neither KEY [[CODES], ...] nor a JSON object with codes" in result.stderr
    assert "3 done, 0 skipped, 1 failed" in result.stderr
    made = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.vqt")}
    assert made == {"a/one.vqt", "utt_2.vqt", "4.vqt"}
    facts = vqtok.inspect(tmp_path / "out" / "a" / "one.vqt")
    assert (facts["num_codebooks"], facts["grid"], facts["duration_seconds"]) == (2, [3], 20 / 16_000)
    assert run("convert", path, "-m", "audio").exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [[1]]\na [[2]]", "line 2: another item has the key 'a'"),
        ("", "contains no lines"),
        (
            '{"key": "a", "grid": [2], "input_ids": [1, 2]}',
            "line 1: token ids need the JSON file that vqtok export wrote",
        ),
        ("a [[1, 2], [3]]", "line 1: is neither KEY"),
        ("a [[1.5]]", "contains float64"),
        ('{"codes": [[1]], "size": ["x"]}', "line 1: is neither KEY"),
    ],
)
def test_lines_that_are_refused(text: str, message: str, audio_model: Path, tmp_path: Path) -> None:
    (tmp_path / "codes.txt").write_text(text)
    with pytest.raises((CorruptFileError, MediaError), match=message):
        convert(tmp_path / "codes.txt", model=str(audio_model))


def test_exports_and_shards_become_arrays(photo: Path, run: RUN, tmp_path: Path) -> None:
    for command in (
        ["encode", photo],
        ["encode", photo, "--shard", tmp_path / "all.vqts"],
        ["export", photo.with_suffix(".vqt"), "--to", "jsonl", "-o", tmp_path / "e.jsonl"],
    ):
        assert run(*command).exit_code == 0
    codes = vqtok.encode(photo).codes
    for source in ("photo.vqt", "all.vqts", "e.jsonl"):
        assert run("convert", tmp_path / source, "-o", tmp_path / f"{source}.npy").exit_code == 0
        assert np.array_equal(np.load(tmp_path / f"{source}.npy"), codes)
    assert run("convert", photo.with_suffix(".vqt"), "-o", tmp_path / "again.vqt").exit_code == 2


def test_foreign_codes_go_to_arrays_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "x.ecdc").write_bytes(WHOLE)
    convert(tmp_path / "x.ecdc", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").tolist() == [[1] * 4] * 2


def test_what_cannot_be_meant(photo: Path, run: RUN, tmp_path: Path) -> None:
    np.save(tmp_path / "p.npy", np.zeros((4, 2, 2), int))
    (tmp_path / "evil.txt").write_text("../../out [[1]]")
    (tmp_path / "x.vqt").write_bytes(b"kept")
    (tmp_path / "p.txt").write_text("p [[1]]")
    with pytest.raises(UsageError, match="does not say which model made the codes; give it as `model`"):
        convert(tmp_path / "p.npy")
    with pytest.raises(UsageError, match="`size` 7: for this model, give WIDTHxHEIGHT"):
        convert(tmp_path / "p.npy", model="image", size="7")
    with pytest.raises(UsageError, match="leads out of the folder"):
        convert(tmp_path / "evil.txt", model="audio")
    with pytest.raises(UsageError, match=r"none\.npy: no such file or folder"):
        convert(tmp_path / "none.npy")
    with pytest.raises(UsageError, match="is a folder; give its files"):
        convert(tmp_path)
    with pytest.raises(OutputError, match="output exists; `overwrite`"):
        convert(tmp_path / "p.npy", tmp_path / "x.vqt", model="image")
    with pytest.raises(CorruptFileError, match=r"photo\.png: neither an \.ecdc, a \.dac, an \.npy nor a \.jsonl file"):
        convert(photo, model="image")
    refused = run("convert", tmp_path / "p.npy", tmp_path / "p.npy", "-o", tmp_path / "out", "-m", "image")
    assert (refused.exit_code, "p.npy: is given twice" in refused.stderr) == (2, True)
    assert run("convert", tmp_path / "p.npy", tmp_path / "p.txt", "-o", tmp_path / "out", "-m", "image").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.npy.vqt", "p.vqt"]
    refused = run("convert", tmp_path / "p.npy", tmp_path / "evil.txt", "-o", tmp_path / "x.vqt", "-m", "image")
    assert (refused.exit_code, "is a file; several items need a folder" in refused.stderr) == (2, True)
    assert (tmp_path / "x.vqt").read_bytes() == b"kept"
