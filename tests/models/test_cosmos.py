"""Cosmos-Tokenizer: weights are read from TorchScript without running it; codes and images are those of the project.

The network is NVIDIA/Cosmos-Tokenizer (Apache-2.0), cosmos_tokenizer/networks/discrete_image.py and modules, restated
with the names that its weights have.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import originals
import pytest
import torch
from rounding import assert_same_codes
from torch import Tensor, nn

import vqtok
from vqtok.errors import ModelError
from vqtok.media.media import Media
from vqtok.models.importers import import_checkpoint

LEVELS = [8, 8, 5]
MULT = (2, 4, 4)


def haar(x: Tensor) -> Tensor:
    a, b, c, d = x[..., ::2, ::2], x[..., ::2, 1::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 4


def inverse_haar(y: Tensor) -> Tensor:
    ll, lh, hl, hh = y.chunk(4, dim=1)
    top = torch.stack([ll + lh + hl + hh, ll + lh - hl - hh], dim=-1).flatten(-2)
    bottom = torch.stack([ll - lh + hl - hh, ll - lh - hl + hh], dim=-1).flatten(-2)
    return torch.stack([top, bottom], dim=-2).flatten(-3, -2)


class FSQuantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("_levels", torch.tensor(LEVELS, dtype=torch.int32), persistent=False)
        self.register_buffer("_basis", torch.tensor([1, 8, 64], dtype=torch.int32), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        half_l = (self._levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self._levels % 2 == 0, 0.5, 0.0)
        bounded = (z.movedim(1, -1) + (offset / half_l).atanh()).tanh() * half_l - offset
        return ((bounded.round() + self._levels // 2) * self._basis).sum(dim=-1).to(torch.int32)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        half_width = self._levels // 2
        return ((indices[..., None] // self._basis % self._levels - half_width) / half_width).movedim(-1, 1)


class Patcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("wavelets", torch.full((2,), 0.5**0.5), persistent=False)


class CosmosTokenizer(nn.Module):
    """The model that compresses 16 times in each direction, or 8 times."""

    def __init__(self, ch: int, z: int, compression: int) -> None:
        super().__init__()
        self.encoder = originals.TamingEncoder(ch, MULT, 1, set(), True, z)
        self.decoder = originals.TamingDecoder(ch, MULT, 1, set(), True, z)
        self.encoder.conv_in = nn.Conv2d(48, ch, 3, padding=1)
        self.decoder.conv_out = nn.Conv2d(ch * MULT[0], 48, 3, padding=1)
        if (
            compression == 8
        ):  # The first level halves the resolution, the last one, which the decoder runs first, doubles it.
            del self.encoder.down[1].downsample, self.decoder.up[1].upsample
        self.encoder.patcher, self.decoder.unpatcher = Patcher(), Patcher()
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, 3, 1), nn.Conv2d(3, z, 1)
        self.quantizer = FSQuantizer()

    def encode(self, x: Tensor) -> Tensor:
        return self.quantizer(self.quant_conv(self.encoder(haar(haar(x)))))

    def decode(self, indices: Tensor) -> Tensor:
        z_q = self.quantizer.indices_to_codes(indices)
        return inverse_haar(inverse_haar(self.decoder(self.post_quant_conv(z_q))))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def save(model: nn.Module, path: Path) -> Path:
    """Write TorchScript, as the project publishes its models."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 32, 32), check_trace=False), str(path))
    return path


@pytest.fixture(scope="module", params=[16, 8])
def cosmos(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[CosmosTokenizer, Path, Path]:
    """Return a model, its archive and the folder that it became."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = CosmosTokenizer(32, 8, request.param).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.8 * parameter[0].numel() ** -0.5)
        model.quant_conv.weight.mul_(2)
    folder = tmp_path_factory.mktemp("cosmos")
    archive = save(model, folder / "autoencoder.jit")
    return model, archive, import_checkpoint(archive, folder / "out").model


def test_codes_and_images_are_the_original_ones(cosmos: Any) -> None:
    model, _, folder = cosmos
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 64, 96)).astype(np.float32)
    tokens = vqtok.encode(Media("image", pixels), str(folder))
    expected = model.encode(torch.from_numpy(pixels)[None])
    assert tokens.codebook_sizes == (320,)
    assert len(expected.unique()) > 10
    assert_same_codes(tokens.codes, expected.numpy())
    decoded = model.decode(torch.from_numpy(tokens.codes).long())[0].numpy()
    ours = vqtok.load(str(folder)).decode(torch.from_numpy(tokens.codes)[None].long())[0].numpy()
    assert decoded.std() > 0.1
    np.testing.assert_allclose(ours, decoded, atol=1e-4 * max(1, np.abs(decoded).max()))


def test_commands(cosmos: Any, run: Any, tmp_path: Path) -> None:
    _, archive, folder = cosmos
    facts = json.loads((folder / "import.json").read_text())
    assert (facts["family"], facts["dropped"]) == ("cosmos", {"wavelets and codebook, which are computed": 4})
    assert run("import", archive, "-o", tmp_path / "again").exit_code == 0
    first, again = (json.loads(run("inspect", path, "--json").stdout) for path in (folder, tmp_path / "again"))
    assert first["identity"] == again["identity"]
    vqtok.decode(vqtok.encode(Media("image", np.zeros((3, 21, 17), np.float32)), str(folder)), str(folder)).save(
        tmp_path / "a.png"
    )
    assert run("encode", tmp_path / "a.png", "-m", folder).exit_code == 0
    assert run("decode", tmp_path / "a.vqt", "-m", folder, "-o", tmp_path / "b.png").exit_code == 0


def test_what_is_refused(cosmos: Any, tmp_path: Path) -> None:
    model, archive, _ = cosmos
    only_encoder = nn.Sequential()
    for name in ("encoder", "quant_conv", "quantizer"):
        only_encoder.add_module(name, getattr(model, name))
    only_encoder.forward = model.encode
    with pytest.raises(ModelError, match=r"encoder\.jit: has no decoder; give the autoencoder\.jit"):
        import_checkpoint(save(only_encoder, tmp_path / "encoder.jit"), tmp_path / "out")
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "cut.jit", "w") as cut:
        for name in whole.namelist():
            content = whole.read(name)
            cut.writestr(name, content[:-4] if name.endswith("/data/5") else content)
    with pytest.raises(ModelError, match=r"cut\.jit: is a TorchScript archive that is damaged"):
        import_checkpoint(tmp_path / "cut.jit", tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("harm", "w")


@pytest.mark.parametrize("content", [b"", pickle.dumps(Harmful()), pickle.dumps([1]), b"\x80\x02c__torch__\nM\n."])
def test_programs_are_not_run(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("encoder/code/__torch__.py", "open('harm', 'w')")
        archive.writestr("encoder/data.pkl", content)
    (tmp_path / "a.jit").write_bytes(data.getvalue())
    with pytest.raises(ModelError, match=r"a\.jit: (is a TorchScript archive that is damaged|.*no known family)"):
        import_checkpoint(tmp_path / "a.jit", tmp_path / "out")
    assert not (tmp_path / "harm").exists()
