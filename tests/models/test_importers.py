"""Imported checkpoints of other projects: same codes, same media, and no weight is ignored."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import originals
import pytest
import torch
import yaml
from conftest import RUN, picture
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from vqtok.codec.codec import Codec
from vqtok.errors import ModelError, OutputError, UsageError
from vqtok.inspection import inspect
from vqtok.media.image import read_pixels
from vqtok.media.media import Media
from vqtok.models.card import read_card
from vqtok.models.importers import import_checkpoint
from vqtok.models.model_file import load_model
from vqtok.training.train import train, train_prior

CH, MULT, BLOCKS, Z = 32, (1, 1, 2), 1, 6
SIZE, DIM = 40, 4


def taming(quantize: nn.Module, *, attends: set[int] = frozenset(), middle: bool = True, dim: int = DIM) -> nn.Module:
    shape = CH, MULT, BLOCKS, set(attends), middle, Z
    return originals.Original(originals.TamingEncoder(*shape), originals.TamingDecoder(*shape), quantize, Z, dim)


def llamagen() -> nn.Module:
    shape = CH, MULT, BLOCKS, Z
    quantize = originals.NearestQuantizer(SIZE, DIM, l2_norm=True)
    return originals.Original(originals.LlamaGenEncoder(*shape), originals.LlamaGenDecoder(*shape), quantize, Z, DIM)


def magvit2() -> nn.Module:
    shape = CH, MULT, 2, Z
    quantize = originals.LookupFreeQuantizer(Z)
    return originals.Original(originals.Magvit2Encoder(*shape), originals.Magvit2Decoder(*shape), quantize, Z)


def nearest(**options: Any) -> nn.Module:
    return originals.NearestQuantizer(SIZE, DIM, **options)


ORIGINALS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "taming": ("vqgan", lambda: taming(nearest(), attends={2})),
    "attention everywhere": ("vqgan", lambda: taming(nearest(), attends={0, 1, 2})),
    "attn_type none": ("vqgan", lambda: taming(nearest(), middle=False)),
    "remapped": ("vqgan", lambda: taming(nearest(used=list(range(SIZE - 1, -1, -1))))),
    "gumbel": ("gumbel", lambda: taming(originals.GumbelQuantizer(SIZE, Z), dim=Z)),
    "llamagen": ("llamagen", llamagen),
    "magvit2": ("magvit2", magvit2),
    "ibq": ("ibq", lambda: taming(originals.IndexPropagationQuantizer(SIZE, DIM), attends={2})),
}


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Set random weights with which images have many codes, and reconstructions about the range of images."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(float(is_norm), 0.8 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
            if name.startswith("quantize."):
                parameter.normal_()
        model.decoder.conv_out.weight.mul_(0.3)
    return model.eval()


@pytest.fixture(scope="module")
def made() -> Callable[[str], nn.Module]:
    models: dict[str, nn.Module] = {}
    return lambda name: models.setdefault(name, randomized(ORIGINALS[name][1]()))


def save(path: Path, tensors: Mapping[str, Tensor], **entries: Any) -> Path:
    """Write a checkpoint in the format of Lightning."""
    torch.save({"epoch": 3, "global_step": 7, "state_dict": dict(tensors), "optimizer_states": [], **entries}, path)
    return path


def config(path: Path, target: str = "taming.models.vqgan.VQModel", **changes: Any) -> Path:
    """Write a YAML in the format of taming-transformers."""
    networks = {"double_z": False, "z_channels": Z, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": CH}
    networks |= {"ch_mult": list(MULT), "num_res_blocks": BLOCKS, "attn_resolutions": [16], "dropout": 0.0}
    values = {"embed_dim": DIM, "n_embed": SIZE, "ddconfig": networks}
    for name, value in changes.items():
        (networks if name in networks or name not in values else values)[name] = value
    path.write_text(yaml.safe_dump({"model": {"target": target, "params": values}}))
    return path


def check_same(original: nn.Module, path: Path, width: int = 72, height: int = 56) -> None:
    """Assert that codes and reconstruction of an image of whole grid steps are equal."""
    x = torch.from_numpy(picture(width, height)).permute(2, 0, 1)[None] / 127.5 - 1.0
    codec = Codec(load_model(path))
    tokens = codec.encode(Media("image", x[0].numpy()))
    codes = original.encode(x)
    assert codes.unique().numel() > 5
    assert np.array_equal(tokens.codes, codes.numpy())
    decoded = original.decode(codes)[0].numpy()
    assert decoded.std() > 0.1
    np.testing.assert_allclose(codec.decode(tokens).data, decoded, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ORIGINALS)
def test_codes_and_media_are_the_original_ones(name: str, made: Any, tmp_path: Path) -> None:
    family, original = ORIGINALS[name][0], made(name)
    tensors = original.state_dict()
    checkpoint = save(tmp_path / "last.ckpt", tensors)
    result = import_checkpoint(checkpoint, tmp_path / "m.safetensors", family=family)
    check_same(original, result.model)
    dropped = 1 if name == "llamagen" else 0
    assert (result.facts["family"], result.facts["taken"]) == (family, len(tensors) - dropped)
    assert sum(result.facts["dropped"].values()) == dropped + 3  # epoch, global_step, optimizer_states


def test_pictures_of_any_size_come_back_exactly(made: Any, tmp_path: Path) -> None:
    original = made("taming")
    checkpoint = save(tmp_path / "last.ckpt", original.state_dict())
    codec = Codec(load_model(import_checkpoint(checkpoint, tmp_path / "m.safetensors", family="vqgan").model))
    photo = tmp_path / "grey.png"
    Image.fromarray(picture(37, 21, 1)[..., 0]).save(photo)
    pixels = read_pixels(photo, 3)
    tokens = codec.encode_image(pixels)
    assert (tokens.grid, tokens.size, tokens.stride) == ((6, 10), (37, 21), 4)
    whole = np.pad(np.asarray(pixels), [(0, 0), (0, 3), (0, 3)], mode="symmetric")
    x = torch.from_numpy(whole)[None] / 127.5 - 1.0
    assert np.array_equal(tokens.codes, original.encode(x).numpy())
    expected = original.decode(original.encode(x))[0, :, :21, :37].numpy()
    np.testing.assert_allclose(codec.decode(tokens).data, expected, rtol=0, atol=1e-4)


# The location of weights in a file.


def test_inside_a_latent_diffusion_model(made: Any, tmp_path: Path) -> None:
    original = made("taming")
    tensors = {f"first_stage_model.{name}": tensor for name, tensor in original.state_dict().items()}
    tensors |= {
        "model.diffusion_model.out.0.weight": torch.ones(2),
        "model_ema.diffusion_modelout0weight": torch.ones(2),
    }
    tensors |= {"betas": torch.ones(3), "cond_stage_model.embedding.weight": torch.ones(1)}
    tensors |= {"first_stage_model.loss.logvar": torch.ones(1), "first_stage_model.model_ema.decay": torch.ones(1)}
    first_stage = yaml.safe_load(config(tmp_path / "c.yaml", "ldm.models.autoencoder.VQModelInterface").read_text())
    around = {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": {"first_stage_config": first_stage["model"]},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": around}))
    checkpoint = save(tmp_path / "model.ckpt", tensors)
    result = import_checkpoint(checkpoint, tmp_path / "m.safetensors", config=tmp_path / "c.yaml")
    check_same(original, result.model)
    assert result.facts["dropped"] == {
        "state of the training run": 3,
        "the model around it": 4,
        "averaged weights, which the model around it does not use": 1,
        "discriminator and perceptual loss": 1,
    }


@pytest.mark.parametrize("name", ["magvit2", "ibq", "taming"])
def test_averages_are_preferred(name: str, made: Any, tmp_path: Path) -> None:
    original, other = made(name), randomized(ORIGINALS[name][1](), seed=9)
    original.loss = nn.Linear(2, 2)
    tensors = other.state_dict() | {f"loss.{n}": x for n, x in original.loss.state_dict().items()}
    tensors |= {f"model_ema.{n}": x for n, x in originals.LitEma(original).state_dict().items()}
    del original.loss
    num_weights = len(original.state_dict())
    checkpoint = save(tmp_path / "last.ckpt", tensors)
    result = import_checkpoint(checkpoint, tmp_path / "m.safetensors", family=ORIGINALS[name][0])
    check_same(original, result.model)
    assert result.facts["averaged"]
    assert result.facts["dropped"] == {
        "state of the training run": 3,
        "discriminator and perceptual loss": 4,
        "weights that averages stand in for": num_weights,
        "counters of the averages": 2,
    }


def test_averages_that_could_be_of_two_weights_are_refused(made: Any, tmp_path: Path) -> None:
    tensors = made("taming").state_dict() | {"encoder.convin.weight": torch.ones(1)}
    tensors["model_ema.encoderconv_inweight"] = torch.ones(1)
    tensors["model_ema.encoderconvinweight"] = torch.ones(1)
    tensors["encoder.conv.in.weight"] = torch.ones(1)
    with pytest.raises(ModelError, match="encoderconvinweight could be the average of several weights"):
        import_checkpoint(save(tmp_path / "a.ckpt", tensors), tmp_path / "m.safetensors", family="vqgan")


@pytest.mark.parametrize("averaged", [True, False])
def test_llamagen_files_of_training(made: Any, averaged: bool, tmp_path: Path) -> None:
    original, other = made("llamagen"), randomized(llamagen(), seed=9)
    content = {"model": (other if averaged else original).state_dict(), "optimizer": {}, "steps": 5}
    content |= {"args": argparse.Namespace(vq_model="VQ-16")}
    if averaged:
        content["ema"] = original.state_dict()
    torch.save(content, tmp_path / "vq.pt")
    result = import_checkpoint(tmp_path / "vq.pt", tmp_path / "m.safetensors")
    check_same(original, result.model)
    assert result.facts["averaged"] is averaged


@pytest.mark.parametrize(
    "wrap",
    [
        "module.{}",
        "_orig_mod.{}",
        "model.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "model._orig_mod.module.{}",
        "module.model.{}",
        "generator.{}",
        "model.generator.{}",
    ],
)
def test_what_wraps_a_model_is_no_part_of_its_names(wrap: str, made: Any, tmp_path: Path) -> None:
    tensors = made("llamagen").state_dict()
    plain = import_checkpoint(save(tmp_path / "plain.ckpt", tensors), tmp_path / "plain.safetensors")
    wrapped = {wrap.format(name): tensor for name, tensor in tensors.items()}
    others = {"discriminator.0.weight": torch.ones(1)} if "generator" in wrap else {}
    torch.save({"model": wrapped | others}, tmp_path / "wrapped.pt")
    save_file(wrapped | others, tmp_path / "wrapped.bin")
    for name in ("wrapped.pt", "wrapped.bin"):
        found = import_checkpoint(tmp_path / name, tmp_path / f"{name}.safetensors")
        assert found.identity == plain.identity
        assert found.facts["dropped"].get("discriminator and perceptual loss", 0) == len(others)


def test_parts_of_a_model_may_be_wrapped(made: Any, tmp_path: Path) -> None:
    """Only the encoder is wrapped by torch.compile or DistributedDataParallel."""
    tensors = made("llamagen").state_dict()
    plain = import_checkpoint(save(tmp_path / "plain.ckpt", tensors), tmp_path / "plain.safetensors")
    wrapped = {name.replace("encoder.", "encoder._orig_mod.module.", 1): tensor for name, tensor in tensors.items()}
    assert wrapped.keys() != tensors.keys()
    found = import_checkpoint(save(tmp_path / "wrapped.ckpt", wrapped), tmp_path / "wrapped.safetensors")
    assert found.identity == plain.identity
    with pytest.raises(ModelError, match="has several weights for encoder.conv_in.weight of the model"):
        import_checkpoint(save(tmp_path / "both.ckpt", tensors | wrapped), tmp_path / "both.safetensors")


@pytest.mark.parametrize(
    ("path", "averaged"),
    [
        (["model_state_dict"], False),
        (["generator"], False),
        (["model", "generator"], False),
        (["state_dict", "model"], False),
        (["module"], False),
        (["ema_state_dict"], True),
    ],
)
def test_sections_of_a_checkpoint(path: list[str], averaged: bool, made: Any, tmp_path: Path) -> None:
    tensors = made("llamagen").state_dict()
    content: dict[str, Any] = dict(tensors)
    for name in reversed(path):
        content = {name: content, "discriminator": {"0.weight": torch.ones(1)}, "step": 5}
    if averaged:
        content["model"] = randomized(llamagen(), seed=9).state_dict()
    torch.save(content, tmp_path / "a.pt")
    found = import_checkpoint(tmp_path / "a.pt", tmp_path / "m.safetensors")
    check_same(made("llamagen"), found.model)
    assert found.facts["averaged"] is averaged
    assert found.facts["dropped"]["state of the training run"] == 2 * len(path)


def test_safetensors_and_pickles_go_by_their_content(made: Any, tmp_path: Path) -> None:
    tensors = made("magvit2").state_dict()
    save_file(tensors, tmp_path / "a.ckpt")
    torch.save(tensors, tmp_path / "b.safetensors")
    names = ("a.ckpt", "b.safetensors")
    one, other = (import_checkpoint(tmp_path / name, tmp_path / f"{name}.model") for name in names)
    assert one.identity == other.identity


def test_weights_alone_in_safetensors_or_a_plain_file(made: Any, tmp_path: Path) -> None:
    original = made("magvit2")
    save_file(original.state_dict(), tmp_path / "m2.safetensors")
    torch.save(original.state_dict(), tmp_path / "m2.pt")
    one, other = (
        import_checkpoint(tmp_path / name, tmp_path / f"{name}.model") for name in ("m2.safetensors", "m2.pt")
    )
    assert one.identity == other.identity
    assert one.facts["dropped"] == {}


# Configs.


@pytest.mark.parametrize(
    ("target", "family"),
    [
        ("taming.models.vqgan.VQModel", "vqgan"),
        ("ldm.models.autoencoder.VQModelInterface", "vqgan"),
        ("taming.models.vqgan.GumbelVQ", "gumbel"),
        ("src.IBQ.models.ibqgan.IBQ", "ibq"),
        ("src.Open_MAGVIT2.models.lfqgan.VQModel", "magvit2"),
    ],
)
def test_the_config_tells_the_family(target: str, family: str, made: Any, tmp_path: Path) -> None:
    original = made({"vqgan": "taming"}.get(family, family))
    changes = {"n_embed": 2**Z, "num_res_blocks": 2, "embed_dim": Z} if family == "magvit2" else {}
    path = config(tmp_path / "c.yaml", target, l2_normalize=family != "vqgan", **changes)
    if target.startswith("src."):
        model = yaml.safe_load(path.read_text())["model"]
        path.write_text(yaml.safe_dump({"model": {"class_path": target, "init_args": model["params"]}}))
    checkpoint = save(tmp_path / "last.ckpt", original.state_dict())
    result = import_checkpoint(checkpoint, tmp_path / "m.safetensors", config=path)
    check_same(original, result.model)
    card = read_card(result.model).training["imported"]
    assert (card["family"], card["file"], card["config"]["file"]) == (family, "last.ckpt", "c.yaml")
    assert (card["config"]["target"], card["config"]["ddconfig"]["resolution"]) == (target, 64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_embed": 16384},
            r"c\.yaml: n_embed is 16384, but the checkpoint has 40; is this the config of another",
        ),
        ({"ch_mult": [1, 2, 2]}, r"ch_mult is \[1, 2, 2\], but the checkpoint has \[1, 1, 2\]"),
        ({"double_z": True}, "double_z: True is not supported"),
        ({"attn_type": "linear"}, "attn_type: linear is not supported"),
        ({"l2_normalize": True}, "l2_normalize is not supported"),
        ({"target": "ldm.models.autoencoder.AutoencoderKL"}, "AutoencoderKL cannot be imported"),
    ],
)
def test_configs_that_do_not_fit(changes: dict[str, Any], message: str, made: Any, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", made("taming").state_dict())
    path = config(tmp_path / "c.yaml", **changes)
    with pytest.raises(ModelError, match=message):
        import_checkpoint(checkpoint, tmp_path / "m.safetensors", config=path)
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("model: !!python/object/apply:os.system [echo]", "not valid YAML"),
        (
            "model: {target: x, params: {n_embed: 3}}",
            "not the config of a tokenizer: needs model.params with a ddconfig",
        ),
        ("just words", "not the config of a tokenizer"),
    ],
)
def test_yaml_that_is_no_config(text: str, message: str, made: Any, tmp_path: Path) -> None:
    save(tmp_path / "last.ckpt", made("taming").state_dict())
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        import_checkpoint(tmp_path / "last.ckpt", tmp_path / "m.safetensors", config=tmp_path / "c.yaml")


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(UsageError, match=r"`config` needs PyYAML: pip install 'vqtok\[import\]'"):
        import_checkpoint(tmp_path / "last.ckpt", tmp_path / "m.safetensors", config=tmp_path / "c.yaml")


# Checkpoints that are refused.


def test_weights_that_are_unknown_missing_or_of_another_shape(made: Any, tmp_path: Path) -> None:
    def attempt(tensors: Mapping[str, Any], family: str = "vqgan") -> None:
        import_checkpoint(save(tmp_path / "a.ckpt", tensors), tmp_path / "m.safetensors", family=family, force=True)

    tensors = made("taming").state_dict()
    with pytest.raises(ModelError, match=r"a\.ckpt: has 7 unknown weights: extra\.0, .*, extra\.4, \.\.\."):
        attempt(tensors | {f"extra.{i}": torch.ones(1) for i in range(7)})
    with pytest.raises(ModelError, match=r"has no decoder\.up\.1\.block\.0\.norm2\.bias; it may be of another family"):
        attempt({name: tensor for name, tensor in tensors.items() if name != "decoder.up.1.block.0.norm2.bias"})
    with pytest.raises(ModelError, match=r"has shape \(32, 32, 1, 1\), not \(32, 32, 3, 3\)"):
        attempt(tensors | {"decoder.up.0.block.1.conv2.weight": torch.ones(32, 32, 1, 1)})
    with pytest.raises(ModelError, match=r"has entries that are not weights: _metadata"):
        attempt(tensors | {"_metadata": 3})
    with pytest.raises(ModelError, match=r"has no quantize\.proj\.weight"):
        attempt(tensors, "gumbel")
    with pytest.raises(ModelError, match=r"has no encoder\.conv_blocks\.0; it may be of another family"):
        attempt(tensors, "llamagen")
    with pytest.raises(UsageError, match="give `config` or `family`, since the weights of vqgan and ibq"):
        attempt(tensors, None)
    with pytest.raises(ModelError, match="its weights are of no known family"):
        attempt({"weight": torch.ones(1)}, None)
    with pytest.raises(
        UsageError, match="`family` 'vae' is unknown; known are vqgan, gumbel, llamagen, magvit2, ibq, dac"
    ):
        attempt(tensors, "vae")


class Callback:
    """An object like those in checkpoints of old versions of Lightning."""


def test_a_pickle_that_needs_more_than_weights_is_refused_with_the_way_to_convert_it(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = made("taming")
    checkpoint = save(tmp_path / "last.ckpt", original.state_dict(), callbacks={Callback: {"best": 1}})
    with pytest.raises(ModelError) as refusal:
        import_checkpoint(checkpoint, tmp_path / "m.safetensors", family="vqgan")
    message = str(refusal.value)
    assert "\n" not in message
    assert "contains more than weights (models.test_importers.Callback)" in message
    # The command in the message works.
    monkeypatch.chdir(tmp_path)
    exec(message.partition('python -c "')[2].removesuffix('"'))
    result = import_checkpoint("weights.ckpt", tmp_path / "m.safetensors", family="vqgan")
    check_same(original, result.model)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 nor a zip file", b"\x80\x02}q\x00."])
def test_files_that_are_no_checkpoints(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"a\.ckpt: .*(not a PyTorch|another family)"):
        import_checkpoint(path, tmp_path / "m.safetensors", family="vqgan")
    with pytest.raises(ModelError, match=r"b\.ckpt: cannot be read: No such file"):
        import_checkpoint(tmp_path / "b.ckpt", tmp_path / "m.safetensors", family="vqgan")


def test_what_exists_is_kept(made: Any, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", made("llamagen").state_dict())
    import_checkpoint(checkpoint, tmp_path / "m.safetensors")
    with pytest.raises(OutputError, match="output exists; `overwrite`"):
        import_checkpoint(checkpoint, tmp_path / "m.safetensors")
    import_checkpoint(checkpoint, tmp_path / "m.safetensors", force=True)
    with pytest.raises(UsageError, match="would be overwritten by its own output"):
        import_checkpoint(checkpoint, checkpoint, force=True)


# Imported models work like others.


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        Image.fromarray(np.roll(picture(48, 40), 7 * index, axis=1)).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("name", ["gumbel", "llamagen"])
def test_commands_take_it(name: str, made: Any, photo: Path, run: RUN, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", made(name).state_dict())
    model = tmp_path / "m.safetensors"
    shown = run("import", checkpoint, "-o", model)
    assert shown.exit_code == 0, shown.output
    assert f"from last.ckpt, family {name}" in shown.stdout
    assert "3 of state of the training run" in shown.stdout
    assert inspect(model)["codebook_sizes"] == [SIZE]
    facts = json.loads(run("encode", photo, "-m", model, "--json").stdout)
    assert (facts["coder"], facts["num_tokens"], facts["grid"]) == ("packed", 24 * 16, [16, 24])
    assert run("decode", photo.with_suffix(".vqt"), "-m", model, "-o", tmp_path / "back.png").exit_code == 0
    refused = run("encode", photo, "-m", model, "--coder", "static", "--force")
    assert (refused.exit_code, "static" in refused.output) == (3, True)
    assert run("import", checkpoint, "-o", model).exit_code == 1


def test_a_prior_and_tables_are_fitted_to_it(made: Any, photos: Path, photo: Path, run: RUN, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", made("ibq").state_dict())
    model = import_checkpoint(checkpoint, tmp_path / "m.safetensors", family="ibq").model
    fitted = train_prior(photos, tmp_path / "p.safetensors", str(model), settings=["prior.fit_steps=30"]).model
    before, after = load_model(model), load_model(fitted)
    assert before.entropy_model.prior is None
    assert before.entropy_model.tables == [None]
    assert after.entropy_model.prior is not None
    assert after.entropy_model.tables[0] is not None
    assert all(
        torch.equal(*pair) for pair in zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    )
    assert inspect(fitted)["training"]["imported"]["family"] == "ibq"
    sizes = {}
    for coder in ("packed", "static", "prior"):
        facts = json.loads(run("encode", photo, "-m", fitted, "--coder", coder, "--force", "--json").stdout)
        sizes[coder] = facts["file_bytes"]
        assert run("decode", photo.with_suffix(".vqt"), "-m", fitted, "-o", tmp_path / f"{coder}.png").exit_code == 0
    assert sizes["static"] < sizes["packed"]
    assert (tmp_path / "prior.png").read_bytes() == (tmp_path / "packed.png").read_bytes()
    assert "imported" in run("inspect", fitted).stdout


@pytest.mark.parametrize("name", ["taming", "gumbel", "magvit2"])
def test_it_is_tuned(name: str, made: Any, photos: Path, tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "last.ckpt", made(name).state_dict())
    model = import_checkpoint(checkpoint, tmp_path / "m.safetensors", family=ORIGINALS[name][0]).model
    quick = ["data.crop_pixels=16", "train.batch_size=2", "train.validations=1", "train.warmup_steps=0"]
    result = train(photos, tmp_path / "t.safetensors", init=str(model), settings=quick, steps=2, device="cpu")
    assert result.training["parent"] == read_card(model).identity
    before, after = load_model(model).state_dict(), load_model(result.model).state_dict()
    assert before.keys() == after.keys()
    moved = {
        part
        for part in ("encoder", "quantizer", "decoder")
        for n in before
        if n.startswith(part) and not torch.equal(before[n], after[n])
    }
    assert moved == {"encoder", "decoder"} | ({"quantizer"} if name != "magvit2" else set())
