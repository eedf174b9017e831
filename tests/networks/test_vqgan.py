"""The networks of VQGAN and Open-MAGVIT2: sizes, receptive fields, and models with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vqtok.codec.codec import Codec
from vqtok.codec.options import CodecOptions
from vqtok.config import Config, ModelConfig, NetworkConfig, QuantizerConfig, from_dict
from vqtok.errors import UsageError
from vqtok.media.media import Media
from vqtok.models.vqmodel import VQModel
from vqtok.networks.vqgan import AdaptiveNorm, Attention, GroupNorm, ResnetBlock, VQGANDecoder, VQGANEncoder
from vqtok.training.optim import make_optimizer

NETWORK = NetworkConfig((1, 2, 2), (32, 32, 64), (1, 2, 1), (2, 2, 1), kind="vqgan", attention=(False, False, True))
MAGVIT2 = dataclasses.replace(NETWORK, kind="magvit2", attention=(), encoder_blocks=(2, 2, 2), decoder_blocks=(2, 2, 2))


def model_of(network: NetworkConfig) -> VQModel:
    torch.manual_seed(0)
    return VQModel(ModelConfig(network=network, quantizer=QuantizerConfig(kind="lfq", dim=5))).eval()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [NETWORK, MAGVIT2], ids=["vqgan", "magvit2"])
def test_images_keep_their_size(network: NetworkConfig, channels: int) -> None:
    x = torch.randn(2, channels, 12, 20)
    z = VQGANEncoder(network, channels, 5)(x)
    assert z.shape == (2, 5, 3, 5)
    assert VQGANDecoder(network, channels, 5)(z).shape == x.shape


def test_the_config_says_where_attention_is() -> None:
    def count(network: NetworkConfig) -> tuple[int, int]:
        networks = VQGANEncoder(network, 3, 4), VQGANDecoder(network, 3, 4)
        counts = [sum(isinstance(layer, Attention) for layer in each.layers) for each in networks]
        return counts[0], counts[1]

    assert count(NETWORK) == (2, 2)
    assert count(dataclasses.replace(NETWORK, attention=(True, True, False))) == (4, 5)
    assert count(dataclasses.replace(NETWORK, attention=(), middle_attention=False)) == (0, 0)


@pytest.mark.parametrize("network", [NETWORK, MAGVIT2], ids=["vqgan", "magvit2"])
def test_every_pixel_counts_for_every_code_so_that_nothing_is_tiled(network: NetworkConfig) -> None:
    model = model_of(network)
    model.identity = bytes(32)
    assert (model.stride, model.encoder_context, model.decoder_context) == (4, None, None)
    x = torch.rand(1, 3, 40, 48) * 2 - 1
    poked = x.clone()
    poked[..., 0, 0] += 3
    moved = (model.encoder(x) != model.encoder(poked)).all(1)
    assert moved.float().mean() > 0.9
    media = Media("image", x[0, :, :37, :45].numpy())
    whole, tiled = (Codec(model, options=CodecOptions(tile=tile)).encode(media) for tile in (1024, 16))
    assert whole.grid == (10, 12)
    assert (whole.codes == tiled.codes).all()
    assert Codec(model, options=CodecOptions(tile=16)).decode(whole).data.shape == (3, 37, 45)


def test_an_image_of_a_single_position_with_groups_of_one_value() -> None:
    network = dataclasses.replace(NETWORK, widths=(32, 32, 32))
    z = VQGANEncoder(network, 3, 5)(torch.randn(1, 3, 4, 4))
    assert z.shape == (1, 5, 1, 1)
    assert VQGANDecoder(network, 3, 5)(z).isfinite().all()


def test_a_grid_of_a_single_position_decodes() -> None:
    assert model_of(MAGVIT2).decode(torch.zeros(1, 1, 1, 1, dtype=torch.int64)).isfinite().all()


def test_adaptive_norm_takes_its_scale_and_shift_from_the_latents() -> None:
    torch.manual_seed(0)
    layer, x, z = AdaptiveNorm(32, 2), torch.randn(2, 32, 4, 4), torch.randn(2, 2, 2, 2)
    plain = torch.nn.functional.group_norm(x, 32, eps=1e-6)
    scale, shift = layer.scale(z.std((2, 3))), layer.shift(z.mean((2, 3)))
    torch.testing.assert_close(layer(x, z), plain * scale[..., None, None] + shift[..., None, None])


def test_norms_are_exact_far_from_zero() -> None:
    x = (0.01 * torch.randn(1, 32, 64, 64) + 3).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(GroupNorm(32)(x), GroupNorm(32).double()(x.double()).float(), rtol=0, atol=1e-3)


def test_blocks_are_computed_again_for_the_same_gradients() -> None:
    block, x = ResnetBlock(32, 64, bias=False), torch.randn(1, 32, 4, 4)
    block(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in block.parameters()]
    block.zero_grad()
    block.recompute = True
    block(x).square().sum().backward()
    assert all(torch.equal(a.grad, b) for a, b in zip(block.parameters(), expected, strict=True))


def test_all_of_it_learns_at_the_same_rate() -> None:
    groups = make_optimizer(model_of(NETWORK), Config().train).param_groups
    assert {group["scale"] for group in groups} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [4, 2]}, "strides of vqgan must be 1 or 2"),
        ({"widths": [32, 48]}, "widths of vqgan must be multiples of 32"),
        ({"attention": [True]}, "attention must be empty or have true or false for each stage"),
    ],
)
def test_settings_that_make_no_such_network(changes: dict[str, object], message: str) -> None:
    network = {"kind": "vqgan", "strides": [1, 2], "widths": [32, 64]} | changes
    with pytest.raises(UsageError, match=message):
        from_dict(Config, {"model": {"network": network}})
    with pytest.raises(UsageError, match="kind vqgan is for images"):
        from_dict(Config, {"model": {"network": {"kind": "vqgan"}, "modality": "audio", "sample_rate": 8000}})
