"""Model files: vqtok.models.model_file, card, entropy_model and registry."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from conftest import contents, write
from safetensors.torch import save_file

from vqtok.config import Config, from_dict
from vqtok.errors import CorruptFileError, ModelError, UnsupportedVersionError, VqtokError, WrongModelError
from vqtok.models.card import METADATA_KEY, read_card
from vqtok.models.entropy_model import entropy_model
from vqtok.models.model_file import decoding_state, load_model, save_model
from vqtok.models.registry import bundled_models, find_model
from vqtok.models.token_reader import entropy_model_of, read_entropy_model
from vqtok.models.vqmodel import VQModel, code_prices
from vqtok.quantizers import VQ, Residual
from vqtok.tokens.coding.frequencies import frequencies


@pytest.fixture
def saved(image_model, tmp_path):
    """Return a model in memory, its config and its tables, and a function that saves it."""
    model, card = load_model(image_model), read_card(image_model)
    config = from_dict(Config, card.config)
    tables = dict(enumerate(read_entropy_model(image_model).tables))

    def save(model=model, config=config, tables=tables):
        return save_model(tmp_path / "m.safetensors", model, config, entropy_tables=tables, training={})

    return model, config, tables, save


def test_round_trip(image_model, tmp_path):
    torch.manual_seed(0)
    config = from_dict(Config, {"model": read_card(image_model).config["model"]})
    model = VQModel(config.model)
    tables = {0: frequencies(np.arange(16)), 2: np.full(16, 1024, np.uint16)}
    path = tmp_path / "model.safetensors"
    training = {"steps": 3, "note": "é"}
    identity = save_model(path, model, config, entropy_tables=tables, training=training, dtype=torch.float32)
    loaded = load_model(path)
    assert (loaded.identity, len(identity)) == (identity, 32)
    assert not loaded.training
    assert [None if table is None else table.tolist() for table in loaded.entropy_model.tables] == [
        frequencies(np.arange(16)).tolist(),
        None,
        [1024] * 16,
        None,
    ]
    for name, tensor in decoding_state(model).items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    x = torch.rand(1, 3, 16, 20)
    codes = loaded.encode(x)
    assert torch.equal(codes, model.eval().encode(x))
    assert torch.equal(loaded.decode(codes), model.decode(codes))
    assert not loaded.decode(codes).requires_grad

    card = read_card(path)
    assert (card.identity, card.training, card.config) == (
        identity.hex(),
        training,
        json.loads(json.dumps(config.to_dict())),
    )
    assert (card.codebook_sizes, card.stride, card.file_bytes) == ((16,) * 4, 4, path.stat().st_size)
    assert card.num_parameters == sum(tensor.numel() for tensor in decoding_state(model).values())


def test_half_precision_rounds_once(saved, tmp_path):
    _, _, _, save = saved
    identity = save()
    again = save(model=load_model(tmp_path / "m.safetensors"))
    assert again == identity


def test_identity_is_what_decoding_depends_on(saved, image_model):
    model, config, tables, save = saved
    identity = load_model(image_model).identity
    assert save() == identity
    for name, tensor in decoding_state(model).items():
        before = tensor.clone()
        tensor[(-1,) * tensor.ndim] += 1
        assert (save() == identity) == name.startswith("encoder."), name
        tensor.copy_(before)
    assert save() == identity
    assert save(tables={0: tables[0]}) != identity
    assert save(tables=tables | {3: np.roll(tables[3], 1)}) != identity
    values = config.to_dict()
    values["model"]["network"]["activation"] = "elu"
    assert save(config=from_dict(Config, values)) != identity
    values = config.to_dict()
    values["train"]["steps"] += 1
    assert save(config=from_dict(Config, values)) == identity


def test_settings_of_later_versions_leave_identities_as_they_are(image_model, tmp_path):
    """A file from before a setting existed loads with its default, under its own identity."""
    tensors, values = contents(image_model)
    del values["config"]["model"]["quantizer"]["prefix_dropout"]
    older = write(tmp_path / "older.safetensors", tensors, values)
    assert load_model(older).identity.hex() == values["identity"]

    values["config"]["model"]["quantizer"]["invented"] = 1
    newer = write(tmp_path / "newer.safetensors", tensors, values)
    with pytest.raises(ModelError, match=r"is not compatible with this version of vqtok: .*invented"):
        load_model(newer)


@pytest.mark.parametrize("part", ["decoder.", "quantizer.", "entropy."])
def test_altered_weights_are_refused(image_model, tmp_path, part):
    tensors, values = contents(image_model)
    tensors[next(name for name in tensors if name.startswith(part))].view(-1)[0] += 1
    path = write(tmp_path / "altered.safetensors", tensors, values, sign=False)
    with pytest.raises(CorruptFileError, match="do not match the identity"):
        load_model(path)


@pytest.mark.parametrize("table", [np.zeros(16), np.full((4, 4), 1024), np.full(16, 1023), np.eye(1, 16)[0] * 2**14])
def test_tables_that_are_no_frequencies_are_refused(table):
    with pytest.raises(CorruptFileError, match="entropy tables are damaged"):
        entropy_model({"entropy.0": table.astype(np.int16)}, 1)


def test_altered_tables_are_refused_without_the_weights(image_model, tmp_path):
    tensors, values = contents(image_model)
    tensors["entropy.1"][0] += 1
    path = write(tmp_path / "altered.safetensors", tensors, values, sign=False)
    with pytest.raises(CorruptFileError, match="do not match the identity"):
        read_entropy_model(path)


def test_every_truncation_of_the_header_and_some_of_the_weights_is_refused(image_model, tmp_path):
    data = image_model.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "cut.safetensors"
    for length in [*range(0, header, 97), header - 1, header, header + 1, len(data) - 1]:
        path.write_bytes(data[:length])
        expected = ModelError if length < 9 else CorruptFileError
        for read in (read_card, load_model):
            with pytest.raises(expected, match=re.escape(str(path))):
                read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorruptFileError, match="damaged or truncated"):
        load_model(path)


def test_flipped_bits_never_escape_the_typed_errors(image_model, tmp_path):
    data = bytearray(image_model.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    path = tmp_path / "flipped.safetensors"
    refused = 0
    for position in range(0, header, 23):
        data[position] ^= 1 << position % 7
        path.write_bytes(data)
        try:
            read_card(path)
        except VqtokError:
            refused += 1
        data[position] ^= 1 << position % 7
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a safetensors file"), (b"PK\3\4", "not a safetensors file"), (b"\4\0\0\0\0\0\0\0[{}]", "not a safet")],
)
def test_foreign_files(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        read_card(path)


@pytest.mark.parametrize(
    ("header", "error", "message"),
    [
        ("{}", ModelError, "a safetensors file, but not a vqtok model"),
        ("{'a': 1}", CorruptFileError, "damaged or truncated"),
        ('{"__metadata__": "vqtok"}', CorruptFileError, "damaged or truncated"),
        ('{"__metadata__": ["vqtok"]}', CorruptFileError, "damaged or truncated"),
        ('{"weight": null}', CorruptFileError, "damaged or truncated"),
        ('{"weight": {"data_offsets": []}}', CorruptFileError, "damaged or truncated"),
        ('{"weight": {"data_offsets": [0, 4]}}', CorruptFileError, "damaged or truncated"),
    ],
)
def test_odd_headers(tmp_path, header, error, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(error, match=message):
        read_card(path)


def test_the_value_of_a_bit_is_in_the_file(image_model, tmp_path):
    tensors, values = contents(image_model)
    assert values["bit_value"] == load_model(image_model).bit_value == 0.25
    path = write(tmp_path / "x.safetensors", tensors, values | {"bit_value": 0.5})
    assert load_model(path).bit_value == read_card(path).bit_value == 0.5
    for odd in ("x", -1, None):
        with pytest.raises(CorruptFileError, match="the header is damaged"):
            read_card(write(path, tensors, values | {"bit_value": odd}))
    del values["bit_value"]  # As in files of earlier versions.
    assert load_model(write(path, tensors, values)).bit_value == 0.25


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="not a vqtok model"):
        load_model(path)
    for card in ("no JSON", "[]", "{}", '{"format": 1}', '{"format": "x"}', '{"format": 1, "identity": 5}'):
        save_file({"weight": torch.zeros(2)}, path, metadata={METADATA_KEY: card})
        with pytest.raises(CorruptFileError, match="the header is damaged"):
            read_card(path)


def test_future_format(image_model, tmp_path):
    tensors, values = contents(image_model)
    values["format"] = 3
    with pytest.raises(UnsupportedVersionError, match="model format 3; upgrade vqtok"):
        load_model(write(tmp_path / "x.safetensors", tensors, values))


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_weights_that_do_not_fit_their_config(image_model, tmp_path, change):
    tensors, values = contents(image_model)
    if change == "missing":
        del tensors["decoder.layers.0.weight"]
    elif change == "unexpected":
        tensors["decoder.extra"] = torch.zeros(1)
    else:
        tensors["decoder.layers.0.weight"] = torch.zeros(1)
    with pytest.raises(ModelError, match=r"decoder\.(layers\.0\.weight|extra)|is not compatible"):
        load_model(write(tmp_path / "x.safetensors", tensors, values))


def test_tables_follow_the_file(make_model, tmp_path):
    """A file that replaces another under the same name has its own tables."""
    path = tmp_path / "model.safetensors"
    first, second = make_model("image"), make_model("image", seed=1)
    seen = []
    for source in (first, second):
        path.write_bytes(source.read_bytes())
        seen.append(
            [np.concatenate(load_model(path).entropy_model.tables), np.concatenate(read_entropy_model(path).tables)]
        )
        assert np.array_equal(*seen[-1])
    assert not np.array_equal(seen[0][0], seen[1][0])


def test_tables_of_the_model_that_is_named(bundled, image_model, audio_model, make_model):
    identity = load_model(image_model).identity[:8]
    for model in (None, "image", str(image_model)):
        tables = entropy_model_of(identity, model).tables
        assert [table.sum() for table in tables] == [2**14] * 4
    with pytest.raises(WrongModelError, match=f"made by model {identity.hex()}, not by audio; use `model` image"):
        entropy_model_of(identity, "audio")
    with pytest.raises(ModelError, match="made by model 7878787878787878, which is not a bundled model"):
        entropy_model_of(b"xxxxxxxx", None)


def test_models_by_name_and_path(bundled, image_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image").write_bytes(b"a file that happens to be called so")
    assert list(bundled_models()) == ["audio", "image"]
    assert find_model("image") == bundled / "image.safetensors"
    assert find_model("./image").samefile(tmp_path / "image")
    assert find_model(str(image_model)) == image_model
    with pytest.raises(ModelError, match=r"none: is neither a model file nor a bundled model \(audio, image\)"):
        find_model("none")


def test_a_longer_search_avoids_codes_that_take_many_bits():
    quantizer = Residual([VQ(2, 4), VQ(2, 4)]).eval()
    for part in quantizer.parts:
        part.codebook.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]) / 2)
    even, skewed = np.full(4, 4096, np.uint16), np.array([16000, 128, 128, 128], np.uint16)
    prices = code_prices(quantizer, [even, skewed], 2, 0.25)
    # All vectors have an energy of 1/4. Bits cost what the second codebook explains, a quarter of 1/4 for its entropy.
    shares = skewed / skewed.sum()
    bits = -np.log2(shares)
    expected = 0.25 * 0.25 / (shares * bits).sum()
    torch.testing.assert_close(prices[1], torch.tensor(expected * bits, dtype=torch.float32))
    torch.testing.assert_close(prices[0], torch.full((4,), expected * 2, dtype=torch.float32))
    assert code_prices(quantizer, [even, None], 2, 0.25) == code_prices(quantizer, [even], 2, 0.25) == []
    assert code_prices(quantizer, [even, skewed], 1, 0.25) == []
    free = code_prices(quantizer, [even, skewed], 2, 0)
    torch.testing.assert_close(torch.stack(free), torch.zeros(2, 4))
    z = torch.tensor([-0.45, 0.5]).view(1, 2, 1, 1)
    assert sorted(quantizer.encode(z, beam=4).flatten().tolist()) == [1, 2]
    assert quantizer.encode(z, beam=4, prices=prices)[0, 1] == 0
