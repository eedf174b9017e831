"""Compiled networks: the same codes for every size, whatever came before; and TF32, which flags switch."""

from __future__ import annotations

import pytest
import torch
from conftest import picture, wave
from torch import nn

from vqtok.codec import Codec
from vqtok.errors import ModelError, UsageError
from vqtok.media.base import Media
from vqtok.models import compiled
from vqtok.models.tokenizer import Tokenizer
from vqtok.models.weights import load_model
from vqtok.quantizers.base import exact
from vqtok.quantizers.tf32 import tf32

SIZES = [(1, 1), (24, 24), (96, 64), (200, 8), (9, 130), (250, 190)]


def has_compiler() -> bool:
    try:
        compiled.check_compiler("cpu")
    except UsageError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Let torch keep what it compiles here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield


def image(width, height):
    return Media("image", (picture(width, height).transpose(2, 0, 1) / 127.5 - 1).astype("float32"))


@needs_compiler
def test_codes_depend_neither_on_what_came_before_nor_on_the_number_of_threads(audio_model):
    check_codes(load_model(audio_model), [Media("audio", wave(n, 16_000).T, 16_000) for n in (1, 500, 7000, 40_000)])


@needs_compiler
@pytest.mark.slow
def test_codes_of_pictures_likewise(image_model):
    check_codes(load_model(image_model), [image(*size) for size in SIZES])


def check_codes(model, media):
    one, other = (Codec(model, compile=True, jobs=jobs) for jobs in (1, 3))
    codes = [one.encode(medium).codes.tolist() for medium in media]
    assert [other.encode(medium).codes.tolist() for medium in media[::-1]] == codes[::-1]
    # Without it, too: the vectors of these codebooks are far enough from each other.
    assert [Codec(model).encode(medium).codes.tolist() for medium in media] == codes


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_is_decoded_differs_in_the_last_bits(image_model, audio_model, precision):
    for path, media in ((image_model, image(90, 64)), (audio_model, Media("audio", wave(9000, 16_000).T, 16_000))):
        model = load_model(path)
        tokens = Codec(model).encode(media)
        plain, quick = (Codec(model, precision=precision, compile=how).decode(tokens).data for how in (False, True))
        assert abs(plain - quick).max() < (1e-5 if precision == "float32" else 0.1)


def test_it_is_told_in_the_file(run, photo, monkeypatch):
    monkeypatch.setattr(compiled, "check_compiler", lambda device: None)
    monkeypatch.setattr("vqtok.codec.check_compiler", lambda device: None)
    monkeypatch.setattr(compiled._Compiled, "_compile", lambda self: self.network)
    assert run("encode", photo, "--compile").exit_code == 0
    from vqtok.facts import inspect

    assert inspect(str(photo.with_suffix(".vqt")))["metadata"] == {"compiled": "true"}


def test_wrong_programs_are_found_out(image_model, monkeypatch):
    tries = []
    monkeypatch.setattr("vqtok.codec.check_compiler", lambda device: None)
    monkeypatch.setattr(
        compiled._Compiled, "_compile", lambda self: tries.append(1) or nn.Sequential(self.network, nn.Tanh())
    )
    codec = Codec(load_model(image_model), compile=True)
    for _ in range(2):
        with pytest.raises(ModelError, match="cannot be compiled, leave it out: what came out is wrong by"):
            codec.encode(image(24, 24))
    assert len(tries) == 1


def test_the_model_itself_stays_as_it_is(image_model, monkeypatch):
    monkeypatch.setattr("vqtok.codec.check_compiler", lambda device: None)
    model = load_model(image_model)
    names = list(model.state_dict())
    Codec(model, compile=True)
    assert list(model.state_dict()) == names


def test_models_of_other_libraries_are_refused():
    with pytest.raises(ModelError, match="not compiled"):
        compiled.compiled(object.__new__(type("Other", (Tokenizer,), {"encode": None, "decode": None})), None, 1)


def test_without_a_compiler_it_says_what_to_install(run, photo, monkeypatch):
    def none():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    result = run("encode", photo, "--compile")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: --compile needs a C++ compiler: install g++, or name one in CXX\n",
    )


def test_tf32_is_for_gpus(run, photo):
    result = run("encode", photo, "--precision", "tf32")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "--device cuda" in result.stderr


@pytest.fixture
def flags():
    """Put the process's flags back at the end."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield matmul, cudnn
    matmul.allow_tf32, cudnn.allow_tf32 = before


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_switched_whatever_the_process_has_set_and_back(flags, before, allowed):
    matmul, cudnn = flags
    matmul.allow_tf32, cudnn.allow_tf32 = before, not before
    with tf32(allowed):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (allowed, allowed)
        with exact(torch.device("cuda")):
            assert not matmul.allow_tf32
        assert matmul.allow_tf32 == allowed
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (before, not before)


def test_tf32_is_switched_back_under_the_name_it_was_set_by(flags):
    matmul, _ = flags
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("this torch has one name for it")
    matmul.fp32_precision = "tf32"
    with tf32(False):
        assert not matmul.allow_tf32
    assert matmul.fp32_precision == "tf32"
