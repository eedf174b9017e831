"""TiTok: codes and images equal those of the project's network, for small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rounding import assert_same_codes
from torch import nn

import vqtok
from vqtok.errors import ModelError, UsageError
from vqtok.media.media import Media
from vqtok.models.registry import open_tokenizer

pytest.importorskip("einops")

SIZE, TOKENS = 32, 6


def make_titok(**changes):
    import titok

    vq = {
        "codebook_size": 40,
        "token_size": 8,
        "use_l2_norm": True,
        "vit_enc_patch_size": 8,
        "vit_dec_patch_size": 8,
        "num_latent_tokens": TOKENS,
    }
    model = titok.TiTok({"model": {"vq_model": vq | changes}, "dataset": {"preprocessing": {"crop_size": SIZE}}})
    nn.init.normal_(model.encoder.patch_embed.weight, std=0.3)
    for parameter in model.parameters():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


MAKE = {
    "l32": make_titok,
    "bl64": lambda: make_titok(use_l2_norm=False, finetune_decoder=False, is_legacy=False),
    "stage 1": lambda: make_titok(finetune_decoder=False),
}


@pytest.fixture(scope="module")
def saved(saving):
    return saving(MAKE)


def picture(width, height):
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (3, height, width)).astype(np.float32))


@pytest.mark.parametrize("name", MAKE)
def test_an_image_becomes_a_sequence(saved, name):
    model, folder = saved(name)
    media = picture(SIZE, SIZE)
    tokens = vqtok.encode(media, folder)
    assert (tokens.codes.shape, tokens.stride, tokens.codebook_sizes) == ((TOKENS, 1, 1), SIZE, (40,) * TOKENS)
    expected = model.encode((torch.from_numpy(media.data)[None] + 1) / 2)
    assert_same_codes(tokens.codes.reshape(1, -1), expected[0].numpy())
    if name == "stage 1":
        with pytest.raises(ModelError, match="only encodes: its decoder to pixels is not in the folder"):
            vqtok.decode(tokens, folder)
        return
    image = model.decode_tokens(torch.from_numpy(tokens.codes).long().reshape(1, 1, -1))[0] * 2 - 1
    assert image.std() > 0.01
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data, image, atol=1e-4)


def test_larger_images_become_several_squares(saved):
    _, folder = saved("bl64")
    media = picture(3 * SIZE, 2 * SIZE)
    tokens = vqtok.encode(media, folder)
    assert tokens.grid == (2, 3)
    decoded = vqtok.decode(tokens, folder).data
    assert decoded.shape == media.data.shape
    for row in range(2):
        for column in range(3):
            where = (slice(None), slice(row * SIZE, (row + 1) * SIZE), slice(column * SIZE, (column + 1) * SIZE))
            alone = vqtok.encode(Media("image", media.data[where]), folder)
            assert_same_codes(tokens.codes[:, row, column, None], alone.codes[:, :, 0])
            again = tokens.codes[:, row : row + 1, column : column + 1]
            square = vqtok.Codec(open_tokenizer(folder)).tokens(again, (SIZE, SIZE))
            np.testing.assert_allclose(decoded[where], vqtok.decode(square, folder).data, atol=1e-4)
    assert vqtok.decode(vqtok.encode(picture(40, 20), folder), folder).data.shape == (3, 20, 40)


def test_commands(saved, run, photo, tmp_path):
    """The flat layout with a shared vocabulary is the sequence of the project."""
    _, folder = saved("l32")
    assert run("encode", photo, "-m", folder).exit_code == 0
    file = photo.with_suffix(".vqt")
    assert run("decode", file, "-m", folder, "-o", tmp_path / "b.png").exit_code == 0
    assert run("export", file, "--to", "npy", "-o", tmp_path / "a.npy", "--shared-vocabulary").exit_code == 0
    codes = vqtok.tokens.vqt.file.load(file.read_bytes()).codes
    assert np.load(tmp_path / "a.npy").tolist() == codes.transpose(1, 2, 0).ravel().tolist()
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert (facts["num_codebooks"], facts["stride"]) == (TOKENS, SIZE)
    result = run("decode", file, "-m", folder, "--codebooks", 2, "-o", tmp_path / "c.png")
    assert result.exit_code != 0
    assert f"--codebooks 2: this model has {TOKENS}" in " ".join(result.stderr.split())


def test_a_part_of_the_tokens_is_no_image(saved):
    _, folder = saved("l32")
    with pytest.raises(UsageError, match=f"`num_codebooks` 2: this model has {TOKENS}"):
        vqtok.encode(picture(SIZE, SIZE), folder, num_codebooks=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["model"]["vq_model"].update(quantize_mode="vae"), "continuous latents instead of codes"),
        (lambda config: config["model"]["vq_model"].pop("use_l2_norm"), "is not that of a TiTok"),
        (lambda config: config["dataset"]["preprocessing"].update(crop_size=64), "the weights do not match"),
        (lambda config: config["model"]["vq_model"].update(is_legacy=False), "the weights do not match"),
    ],
)
def test_configs_that_do_not_fit(saved, tmp_path, change, message):
    _, folder = saved("l32")
    config = json.loads((Path(folder) / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(Path(folder) / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        open_tokenizer(str(tmp_path))


def test_a_checkpoint_of_the_project(saved, tmp_path, run):
    """`tokenizer_titok_*.bin` and its YAML become the folder that the project publishes."""
    yaml = pytest.importorskip("yaml")
    model, folder = saved("l32")
    torch.save(model.state_dict(), tmp_path / "titok.bin")
    config = json.loads((Path(folder) / "config.json").read_text()) | {"experiment": {"output_dir": "x"}}
    (tmp_path / "titok.yaml").write_text(yaml.safe_dump(config))
    result = run("import", tmp_path / "titok.bin", "-o", tmp_path / "imported")
    assert (result.exit_code, "give --config, the YAML of the checkpoint" in " ".join(result.stderr.split())) == (
        2,
        True,
    )
    shown = run("import", tmp_path / "titok.bin", "-o", tmp_path / "imported", "--config", tmp_path / "titok.yaml")
    assert shown.exit_code == 0, shown.output
    assert open_tokenizer(str(tmp_path / "imported")).identity == open_tokenizer(folder).identity
