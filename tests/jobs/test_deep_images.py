"""Gray images with 16 bits stay so from the file to the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from training.conftest import tiny

from vqtok.media.image import as_deep, read_image, read_pixels, write_pixels
from vqtok.models.model_file import load_model
from vqtok.models.token_reader import TokenReader
from vqtok.training.data import BatchLoader, MediaCache, find_items


@pytest.fixture
def scan(tmp_path):
    """Return a gray image that uses only 200 of 65,536 levels, all of which are one level of 8 bits or its neighbor."""
    ramp = np.linspace(30_000, 30_199, 48).astype(np.uint16)
    path = tmp_path / "scan.png"
    Image.fromarray(np.tile(ramp, (40, 1))).save(path)
    return path


@pytest.fixture(scope="module")
def gray_model(make_model):
    return make_model("image", channels=1)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_decoded_with_16_bits(run, scan, gray_model, tmp_path, suffix):
    tokens, decoded = tmp_path / "scan.vqt", tmp_path / f"decoded{suffix}"
    assert run("encode", scan, "-m", gray_model, "-o", tokens).exit_code == 0
    assert run("decode", tokens, "-m", gray_model, "-o", decoded).exit_code == 0
    with Image.open(decoded) as image:
        assert image.mode == "I;16"
        assert image.size == (48, 40)
        pixels = np.asarray(image)
    codes = TokenReader(str(gray_model)).read(tokens).codes
    model = load_model(gray_model)
    with Image.open(scan) as original:
        assert len(np.unique(np.asarray(original))) > 40
    expected = as_deep(model.decode(torch.from_numpy(codes).long()[None])[0].numpy())[0]
    assert np.abs(pixels.astype(int) - expected).max() <= 2
    facts = json.loads(run("inspect", tokens, "--json").stdout)
    assert facts["metadata"] == {"bits": 16}


def test_8_bits_stay_8_bits(run, photo, scan, gray_model, image_model, tmp_path):
    for source, model in ((photo, gray_model), (scan, image_model)):
        assert run("encode", source, "-m", model, "-o", tmp_path / "x.vqt", "--force").exit_code == 0
        assert run("decode", tmp_path / "x.vqt", "-m", model, "-o", tmp_path / "x.png", "--force").exit_code == 0
        assert read_pixels(tmp_path / "x.png").dtype == np.uint8


def test_a_format_without_16_bits_gets_8(scan, tmp_path, caplog):
    write_pixels(read_pixels(scan, 1), tmp_path / "x.jpg")
    assert "written with 8 bits" in caplog.text
    assert np.abs(read_image(tmp_path / "x.jpg").data - read_image(scan).data).max() < 0.02


def test_training_sees_all_levels(scan, photo):
    config = tiny("model.channels=1", "data.crop_pixels=32", "data.flip=false", "train.batch_size=24")
    loader = BatchLoader(config, find_items(scan.parent, "image"), MediaCache(config), seed=0)
    crops = loader.batch(0).media["image"]
    deep = [crop for crop in crops if len(np.unique(crop)) > 20 and np.ptp(crop) < 0.01]
    assert 0 < len(deep) < 24  # The other crops are of the photo.
    assert np.isin(as_deep(deep[0]), read_pixels(scan, 1)).all()
