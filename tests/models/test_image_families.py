"""vqtok.models.adapters.image_vq: codes and images equal those of transformers, for small random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rounding import assert_same_codes
from safetensors.torch import load_file
from torch import nn

import vqtok
from vqtok.errors import CorruptFileError, ModelError, UsageError
from vqtok.media.image import read_pixels
from vqtok.media.media import Media
from vqtok.models import hub
from vqtok.models.adapters.image_vq import Normalization
from vqtok.models.registry import open_tokenizer

transformers = pytest.importorskip("transformers")

SMALL = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 4000,
}


def lively(model):
    """Replace parameters of one dimension that are zero, as many are in a new model, by random values."""
    for parameter in model.parameters():
        if parameter.ndim == 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model


def spread(book, latents):
    """Make codebook vectors like latents `(batch, dim, ...)`, so that many codes are in use."""
    vectors = latents.movedim(1, -1).flatten(0, -2)
    book.copy_(vectors[torch.randperm(len(vectors))[: len(book)]])


NOISE = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


def make_emu3():
    config = transformers.Emu3VQVAEConfig(codebook_size=64, **SMALL, attn_resolutions=[1], hidden_size=64)
    model = lively(transformers.Emu3VQVAE(config))
    latents = model.quant_conv(model.encoder(NOISE[:, None].repeat(1, 4, 1, 1, 1)).permute(0, 2, 1, 3, 4))
    spread(model.quantize.embedding.weight, latents)
    return model


JANUS = {"num_embeddings": 64, "latent_channels": 16, **SMALL, "num_patches": 16}


def make_janus():
    model = lively(transformers.JanusVQVAE(transformers.JanusVQVAEConfig(**JANUS)))
    spread(model.quantize.embedding.weight, model.quant_conv(model.encoder(NOISE)))
    return model


def make_chameleon():
    sizes = {"num_embeddings": 64, "latent_channels": 16, "embed_dim": 8}
    model = lively(transformers.ChameleonVQVAE(transformers.ChameleonVQVAEConfig(**sizes, **SMALL)))
    spread(model.quantize.embedding.weight, model.quant_conv(model.encoder(NOISE)))
    return model


def make_flava():
    model = transformers.FlavaImageCodebook(transformers.FlavaImageCodebookConfig(hidden_size=8, vocab_size=64))
    features = model.blocks[:-1](0.8 * (NOISE + 1) / 2 + 0.1).relu()
    output = model.blocks.output.conv
    output.bias.copy_(-output.weight[:, :, 0, 0] @ features.mean(dim=(0, 2, 3)))  # Else one code would win everywhere.
    return model


APERTUS = {"codebook_size": 64, "embed_dim": 8, "latent_channels": 16, **SMALL, "attn_resolutions": [128]}


def make_apertus():
    model = lively(transformers.Apertus1p5VisionTokenizerModel(transformers.Apertus1p5VisionTokenizerConfig(**APERTUS)))
    spread(model.quantize.embedding.weight, model.quant_conv(model.encoder(NOISE)))
    return model


def make_whole_janus():
    """A model with images in and out, and the codebook as above."""
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 2}
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**TEXT).to_dict(),
        vision_config=vision | {"projection_dim": 16, "mlp_ratio": 1.0, "depth": 1},
        vq_config=JANUS | {"image_token_embed_dim": 16, "projection_dim": 16},
    )
    model = transformers.JanusForConditionalGeneration(config)
    torch.manual_seed(0)
    model.model.vqmodel.load_state_dict(make_janus().state_dict())
    return model


def make_glm_image():
    config = transformers.GlmImageConfig(
        text_config=TEXT | {"head_dim": 8, "pad_token_id": 0, "vision_vocab_size": 64},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "num_heads": 2,
            "intermediate_size": 16,
            "image_size": 32,
            "patch_size": 4,
        },
        vq_config={"embed_dim": 8, "num_embeddings": 64, "latent_channels": 16},
    )
    model = lively(transformers.GlmImageForConditionalGeneration(config)).eval()
    features = model.get_image_features(*glm_inputs(NOISE[0])).pooler_output
    spread(model.model.vqmodel.quantize.embedding.weight, model.model.vqmodel.quant_conv(torch.stack(features)))
    return model


def glm_inputs(image, size=4):
    """Return patches and their grid as the library's image processor arranges them."""
    rows, columns = (length // size for length in image.shape[1:])
    patches = image.reshape(3, rows, size, columns, size).permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)
    return patches, torch.tensor([[1, rows, columns]])


MAKE = {
    "emu3": make_emu3,
    "janus": make_janus,
    "chameleon": make_chameleon,
    "flava": make_flava,
    "apertus": make_apertus,
    "whole janus": make_whole_janus,
    "glm": make_glm_image,
}


@pytest.fixture(scope="module")
def saved(saving):
    return saving(MAKE)


def picture(width, height):
    return Media("image", np.random.default_rng(0).uniform(-1, 1, (3, height, width)).astype(np.float32))


def filled(media, stride):
    _, height, width = media.data.shape
    pads = [(0, 0), (0, -height % stride), (0, -width % stride)]
    return torch.from_numpy(np.pad(media.data, pads, mode="symmetric"))[None]


def library_codes(name, model, x):
    if name == "emu3":
        return model.encode(x, image_sizes=torch.tensor([x.shape[2:]])).image_tokens[0]
    if name == "flava":
        return model.get_codebook_indices(0.8 * (x + 1) / 2 + 0.1)[0]
    if name == "chameleon":
        x = (x + 1) * 127.5 * 0.0078 - 1
    if name == "glm":
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        features = model.get_image_features(*glm_inputs(((x[0] + 1) / 2 - mean) / std)).pooler_output
        return model.get_image_tokens(features).view(x.shape[2] // 4, -1)
    model = model.model.vqmodel if name == "whole janus" else model
    return model.encode(x).image_tokens.view(x.shape[2] // 2, -1)


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STRIDES = {"flava": 8, "glm": 4}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("size", [(48, 32), (31, 33)])
def test_codes(saved, name, size):
    model, folder = saved(name)
    media, stride = picture(*size), STRIDES.get(name, 2)
    tokens = vqtok.encode(media, folder)
    expected = library_codes(name, model, filled(media, stride))
    assert_same_codes(tokens.codes, expected[None].numpy())
    assert tokens.codebook_sizes == (64,)
    assert tokens.stride == stride
    assert len(np.unique(tokens.codes)) > 8


def test_emu3_images(saved):
    model, folder = saved("emu3")
    tokens = vqtok.encode(picture(30, 22), folder)
    expected = model.decode(torch.from_numpy(tokens.codes).long())[0]
    assert expected.std() > 0.01
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data, expected[:, :22, :30], atol=1e-4)


@pytest.mark.parametrize("name", ["janus", "whole janus"])
def test_janus_images(saved, name):
    """The library decodes square grids of one size, vqtok others, too."""
    model, folder = saved(name)
    model = model.model.vqmodel if name == "whole janus" else model
    tokens = vqtok.encode(picture(32, 32), folder)
    expected = model.decode(torch.from_numpy(tokens.codes).long().flatten(1))[0]
    assert expected.std() > 0.01
    np.testing.assert_allclose(vqtok.decode(tokens, folder).data, expected, atol=1e-4)
    assert vqtok.decode(vqtok.encode(picture(12, 30), folder), folder).data.shape == (3, 30, 12)


def test_a_part_of_a_larger_model_is_the_same_model(saved, tmp_path, monkeypatch):
    """Its identity is that of the part alone; only the shards with its weights are read."""
    alone, whole = (open_tokenizer(saved(name)[1]) for name in ("janus", "whole janus"))
    assert whole.identity == alone.identity
    assert whole.facts()["num_parameters"] == alone.facts()["num_parameters"]
    model = saved("whole janus")[0]
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in places.items() if "vqmodel" in name}
    for file in set(places.values()) - needed:
        (tmp_path / file).unlink()
    assert len(needed) < len(set(places.values()))
    sharded = open_tokenizer(str(tmp_path))
    assert sharded.identity == whole.identity
    assert {path.name for path in sharded.files} == needed
    part = load_file(Path(saved("janus")[1]) / "model.safetensors")
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, part[name])
    (tmp_path / min(needed)).unlink()
    with pytest.raises(CorruptFileError, match="cannot be read"):
        open_tokenizer(str(tmp_path))


def test_the_hub_gives_only_the_shards_that_are_needed(saved, tmp_path, monkeypatch):
    model = saved("whole janus")[0]
    model.save_pretrained(tmp_path / "all", max_shard_size="100KB")
    places = json.loads((tmp_path / "all" / "model.safetensors.index.json").read_text())["weight_map"]
    got = tmp_path / "got"

    def snapshot_download(repo, revision, allow_patterns):
        got.mkdir(exist_ok=True)
        for pattern in allow_patterns:
            for file in (tmp_path / "all").glob(pattern):
                shutil.copy(file, got)
        return str(got)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert hub.download("me/janus") == got
    names = {path.name for path in got.iterdir()} - {"config.json", "model.safetensors.index.json"}
    assert names == {file for name, file in places.items() if "vqmodel" in name} != set(places.values())


def test_the_settings_of_the_image_processor_count(saved, tmp_path):
    _, folder = saved("chameleon")
    plain = open_tokenizer(folder)
    assert plain.normalization == Normalization((1, 1, 1), (1, 1, 1), 0.0078)
    shutil.copytree(folder, tmp_path / "a")
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 0.004}
    (tmp_path / "a" / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "a" / "processor_config.json").write_text(json.dumps({"image_processor": {"rescale_factor": 1}}))
    changed = open_tokenizer(str(tmp_path / "a"))
    assert changed.identity != plain.identity
    x = NOISE.clone()
    pixels = (x + 1) * 127.5 * 0.004
    expected = (pixels - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    torch.testing.assert_close(changed.normalization.apply(x), expected)
    torch.testing.assert_close(changed.normalization.invert(expected), x)
    for broken in ("{", '{"image_mean": "x"}', "[]"):
        (tmp_path / "a" / "preprocessor_config.json").write_text(broken)
        with pytest.raises(ModelError, match="image processor"):
            open_tokenizer(str(tmp_path / "a"))


@pytest.fixture
def tokens_of_encoder(saved, run, photo, tmp_path) -> Iterator[tuple[Path, str]]:
    _, folder = saved("chameleon")
    result = run("encode", photo, "-m", folder)
    assert result.exit_code == 0, result.output
    return photo.with_suffix(".vqt"), folder


def test_an_encode_only_model_says_so(tokens_of_encoder, run, photo, tmp_path):
    tokens, folder = tokens_of_encoder
    for command in (["decode", tokens, "-o", tmp_path / "b.png"], ["encode", photo, "--target-psnr", 20, "--force"]):
        result = run(*command, "-m", folder)
        text = " ".join(result.stderr.split())
        assert result.exit_code != 0
        assert "this model only encodes: transformers has no decoder of ChameleonVQVAE" in text
        assert "Traceback" not in text
    with pytest.raises(ModelError, match="only encodes"):
        open_tokenizer(folder).decode(torch.zeros(1, 1, 2, 2, dtype=torch.long))
    facts = json.loads(run("inspect", folder, "--json").stdout)
    assert facts["why_encode_only"].startswith("transformers has no decoder")
    assert "encode only" in run("inspect", folder).stdout
    result = run("export", tokens, "--to", "jsonl", "-o", tmp_path / "a.jsonl")
    assert result.exit_code == 0
    found = vqtok.read_export(tmp_path / "a.jsonl")["photo"].codes
    expected = open_tokenizer(folder).encode(torch.from_numpy(read_pixels(photo, 3) / np.float32(127.5) - 1)[None])
    assert_same_codes(found, expected[0].numpy())


def test_an_image_that_a_library_refuses_does_not_stop_the_others(saved, run, tmp_path):
    """Group norm of torch refuses groups of one value; published models have wider ones."""
    _, folder = saved("chameleon")
    for name, size in {"a.png": (9, 8), "b.png": (1, 1), "c.png": (8, 7)}.items():
        Image.new("RGB", size, "red").save(tmp_path / name)
    shown = run("encode", tmp_path, "-m", folder, "-o", tmp_path / "out")
    assert shown.exit_code == 1, shown.output
    assert f"{tmp_path / 'b.png'}: its library cannot process this: ValueError: Expected more than 1" in shown.stderr
    assert [(tmp_path / f"out/{name}.vqt").exists() for name in "abc"] == [True, False, True]


def test_an_encode_only_model_is_evaluated(tokens_of_encoder, run, photo, tmp_path, image_model):
    _, folder = tokens_of_encoder
    options = ["-m", folder, "-m", image_model, "--against", "jpeg", "--metrics", "psnr,ssim"]
    result = run("evaluate", photo, "-o", tmp_path / "report", *options, "--codebooks", 1)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "report" / "results.json").read_text())["modalities"]["image"]
    figures = {candidate["id"]: candidate["figures"] for candidate in found["candidates"]}
    assert figures[f"{folder}@1"]["psnr"] is None
    assert figures[f"{folder}@1"]["bpp"] > 0
    assert figures[f"{folder}@1"]["order0_bpp"] > 0
    assert figures["image@1"]["psnr"] > 0
    assert "decode" not in found["models"][folder]["throughput"]["megapixels_per_second"]
    assert found["models"][folder]["agreement"]["repeat"] == [1.0]


def test_every_family_is_in_the_registry():
    from vqtok.models.adapters.image_vq import FAMILIES
    from vqtok.models.registry import ADAPTERS

    listed = {name for name, adapter in ADAPTERS.items() if adapter.endswith(":ImageVQ")}
    assert listed == set(FAMILIES)
    within_larger_models = {name for name, adapter in ADAPTERS.items() if not adapter.endswith(":ImageVQ")} & {
        *hub.PARTS
    }
    assert {name for name in listed if name in hub.PARTS} == set(hub.PARTS) - within_larger_models


def test_weights_that_are_missing(saved, tmp_path):
    _, folder = saved("whole janus")
    shutil.copytree(folder, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["vq_config"]["num_res_blocks"] = 2
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="the weights do not match the config: Missing key"):
        open_tokenizer(str(tmp_path / "a"))
    config["vq_config"] = "x"
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="transformers cannot load it"):
        open_tokenizer(str(tmp_path / "a"))


def test_numbers_of_codebooks(saved):
    _, folder = saved("emu3")
    with pytest.raises(UsageError, match="`num_codebooks` 2: there are 1"):
        vqtok.encode(picture(8, 8), folder, num_codebooks=2)
