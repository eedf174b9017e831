"""Encoder, decoder and their layers: shapes and receptive fields."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from rounding import bfloat16_bound
from torch import Tensor, nn

from vqtok.config import ModelConfig, NetworkConfig, QuantizerConfig
from vqtok.models.vqmodel import VQModel
from vqtok.networks import Decoder, Encoder, network_context, scale_to_data
from vqtok.networks.layers import Axes, ChannelNorm, Downsample, ResBlock, Snake, Upsample, dct_matrix

DIM = 4


def network(strides: tuple[int, ...], blocks: int = 1, **changes: object) -> NetworkConfig:
    stages = len(strides)
    config = NetworkConfig(strides, (8,) * stages, (blocks,) * stages, (blocks,) * stages)
    return dataclasses.replace(config, **changes)


def randomised(module: nn.Module) -> nn.Module:
    """Set all parameters to random values; zeros would hide a path through the network."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module.eval()


def changed(before: Tensor, after: Tensor, axis: int) -> tuple[int, int]:
    """Return the first and last position along an axis where any bit differs."""
    others = [i for i in range(before.ndim) if i != axis % before.ndim]
    positions = (before != after).sum(others).nonzero()
    return int(positions.min()), int(positions.max())


@torch.no_grad()
def reach(module: nn.Module, x: Tensor, position: int, axis: int) -> tuple[int, int]:
    """Return the first and last output position along an axis that one input position affects."""
    poked = x.clone()
    poked.select(axis, position).add_(3.0)
    return changed(module(x), module(poked), axis)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("strides", [(2, 2), (4, 2), (8,), (2, 2, 4), (4, 8), (1, 4)])
def test_images_keep_their_size(strides: tuple[int, ...], channels: int) -> None:
    stride = torch.Size(strides).numel()
    config = network(strides)
    x = torch.randn(2, channels, 2 * stride, 3 * stride)
    z = Encoder(config, 2, channels, DIM)(x)
    assert z.shape == (2, DIM, 2, 3)
    assert Decoder(config, 2, channels, DIM)(z).shape == x.shape


@pytest.mark.parametrize("activation", ["silu", "elu", "snake"])
@pytest.mark.parametrize("strides", [(2, 4, 5, 8), (40, 8), (8, 8, 5)])
def test_sounds_keep_their_length(strides: tuple[int, ...], activation: str) -> None:
    config = network(strides, kernel=7, dilations=(1, 3, 9), activation=activation, norm="none")
    x = torch.randn(2, 1, 960)
    z = Encoder(config, 1, 1, DIM)(x)
    assert z.shape == (2, DIM, 3)
    assert Decoder(config, 1, 1, DIM)(z).shape == x.shape


@pytest.mark.parametrize("norm", ["channel", "none"])
@pytest.mark.parametrize("axis", [2, 3])
def test_a_pixel_reaches_as_far_as_the_kernels_go(norm: str, axis: int) -> None:
    config = network((2, 2), norm=norm)
    # Pixel 64 is 32 at half size: 3 on from the convolution and the block, so 29..35, which is 14..17 at the grid;
    # another convolution, block and convolution follow: 1 + 2 + 1.
    x = torch.randn(1, 3, 128, 128)
    assert reach(randomised(Encoder(config, 2, 3, DIM)), x, 64, axis) == (14 - 4, 17 + 4)
    # Grid 16: convolution, block and convolution make 12..20, or 24..41 at half size; block and convolution: 21..44.
    z = torch.randn(1, DIM, 32, 32)
    assert reach(randomised(Decoder(config, 2, 3, DIM)), z, 16, axis) == (2 * 21, 2 * 44 + 1)


def test_a_sample_reaches_as_far_as_the_kernels_go() -> None:
    config = network((4,), kernel=7, dilations=(3,), activation="elu")
    # Sample 400 is 100 at the grid: 1 for each convolution, 3 x 3 for the block.
    x = torch.randn(1, 1, 800)
    assert reach(randomised(Encoder(config, 1, 1, DIM)), x, 400, 2) == (100 - 11, 100 + 11)
    z = torch.randn(1, DIM, 200)
    assert reach(randomised(Decoder(config, 1, 1, DIM)), z, 100, 2) == (4 * (100 - 11), 4 * (100 + 11) + 3)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize(
    ("strides", "changes"),
    [
        ((2, 2), {}),
        ((4, 2), {"blocks": 2}),
        ((2, 3), {"kernel": 5, "dilations": (1, 3), "blocks": 2}),
        ((3,), {"kernel": 7, "dilations": (2,)}),
        ((5, 1, 2), {"blocks": 0}),
    ],
)
def test_context_is_what_a_poke_moves(axes: Axes, strides: tuple[int, ...], changes: dict[str, int]) -> None:
    """No output beyond the context changes, and one at its end does."""
    config = network(strides, **changes)
    stride, middle = torch.Size(strides).numel(), 40
    # In float64, because float32 would round the smallest effects away.
    encoder = randomised(Encoder(config, axes, 3, DIM)).double()
    decoder = randomised(Decoder(config, axes, 3, DIM)).double()
    x = torch.randn(1, 3, *[stride] * (axes - 1), 80 * stride, dtype=torch.float64)
    ends = [reach(encoder, x, middle * stride + i, -1) for i in range(stride)]
    moved = max(middle - min(first for first, _ in ends), max(last for _, last in ends) - middle)
    assert moved == network_context(encoder) > 0
    z = torch.randn(1, DIM, *[1] * (axes - 1), 80, dtype=torch.float64)
    first, last = reach(decoder, z, middle, -1)
    assert max(middle - first // stride, last // stride - middle) == network_context(decoder) > 0


def test_context_of_an_unknown_layer() -> None:
    encoder = Encoder(network((2,)), 2, 3, DIM)
    encoder.layers.append(nn.Flatten())
    with pytest.raises(TypeError, match="receptive field of Flatten is not known"):
        network_context(encoder)


@torch.no_grad()
def test_a_part_of_an_image_has_the_same_latents_away_from_its_borders() -> None:
    """Exact tiling depends on this."""
    encoder = randomised(Encoder(network((2, 2)), 2, 3, DIM))
    x = torch.randn(1, 3, 128, 128)
    whole, part = encoder(x), encoder(x[:, :, 32:, 32:])
    # Of sums of 8 channels x 3 x 3 products, through a few layers.
    rounding = 100 * torch.finfo(torch.float32).eps * float(whole.abs().max())
    torch.testing.assert_close(part[:, :, 8:, 8:], whole[:, :, 16:, 16:], rtol=1e-4, atol=rounding)


def test_norm_is_a_layer_norm_of_each_position() -> None:
    norm = randomised(ChannelNorm(6))
    x = torch.randn(2, 6, 3, 5)
    centered = x - x.mean(1, keepdim=True)
    expected = centered / (centered.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = expected * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected)
    others = torch.randn_like(x)
    others[:, :, 1, 2] = x[:, :, 1, 2]
    assert torch.equal(norm(others)[:, :, 1, 2], norm(x)[:, :, 1, 2])


def test_snake_by_hand() -> None:
    snake = Snake(2)
    snake.frequency.data = torch.tensor([1.0, 2.0])[:, None, None]
    x = torch.tensor([0.5, 0.5])[None, :, None, None]
    # 0.5 + sin(0.5)^2 and 0.5 + sin(1)^2 / 2
    expected = torch.tensor([0.7298488, 0.8540367])[None, :, None, None]
    torch.testing.assert_close(snake(x), expected, rtol=1e-5, atol=1e-5)


def test_a_block_starts_as_the_identity() -> None:
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(ResBlock(network((2,)), 2, 8, 1)(x), x)


@pytest.mark.parametrize("norm", ["channel", "none"])
@pytest.mark.parametrize("activation", ["silu", "elu", "snake"])
def test_a_block_overwrites_only_what_is_its_own(activation: str, norm: str) -> None:
    block = randomised(ResBlock(network((2,), activation=activation, norm=norm), 2, 8, 1))
    x = torch.randn(1, 8, 5, 5)
    before = x.clone()
    with_gradients = block(x)
    with torch.no_grad():
        assert torch.equal(block(x), with_gradients)
    assert torch.equal(x, before)


@pytest.mark.parametrize("axes", [1, 2])
def test_maps_of_features_stay_channels_last(axes: Axes) -> None:
    """Another layout would cost a copy in each of the following layers."""
    encoder, decoder = Encoder(network((2, 4)), axes, 3, DIM), Decoder(network((2, 4)), axes, 3, DIM)
    layouts = []
    for layer in [*encoder.layers, *decoder.layers]:
        layer.register_forward_hook(lambda _, __, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)))
    decoder(encoder(torch.randn(2, 3, *[16] * axes)))
    assert all(layouts)
    assert len(layouts) == 2 * 5


@pytest.mark.parametrize(
    ("axes", "channels", "strides", "widths"),
    [(2, 3, (4, 2), (48, 192)), (2, 1, (2, 2), (7, 16)), (1, 1, (5, 4), (9, 20))],
)
def test_an_untrained_network_with_room_for_all_is_the_identity(
    axes: Axes, channels: int, strides: tuple[int, ...], widths: tuple[int, ...]
) -> None:
    config = network(strides, widths=widths)
    encoder, decoder = (part(config, axes, channels, widths[-1]) for part in (Encoder, Decoder))
    x = torch.randn(2, channels, *(40,) * axes)
    torch.testing.assert_close(decoder(encoder(x)), x, rtol=1e-4, atol=1e-5)


def test_an_untrained_network_keeps_low_frequencies_and_the_sum_of_colors() -> None:
    config = network((4, 2), widths=(48, 192))
    encoder, decoder = (part(config, 2, 3, 4) for part in (Encoder, Decoder))
    ramp = torch.linspace(-1, 1, 32)
    smooth = (ramp[:, None] + ramp).expand(1, 3, 32, 32)
    assert F.mse_loss(decoder(encoder(smooth)), smooth) < 0.02 * smooth.square().mean()
    chequers = (torch.arange(32)[:, None] + torch.arange(32)).remainder(2).mul(2.0).sub(1).expand(1, 3, 32, 32)
    assert decoder(encoder(chequers)).square().mean() < 0.2


def test_dct_of_four() -> None:
    # 1/2, and cos(pi/8) / sqrt(2) with cos(3 pi/8) / sqrt(2)
    matrix = dct_matrix(4)
    torch.testing.assert_close(matrix[0], torch.full((4,), 0.5))
    torch.testing.assert_close(matrix[1], torch.tensor([0.6532815, 0.2705981, -0.2705981, -0.6532815]))


@torch.no_grad()
@pytest.mark.parametrize(("axes", "size"), [(1, (400,)), (2, (16, 24))])
def test_scaling_to_data_gives_each_stage_unit_deviation_and_changes_no_result(
    axes: Axes, size: tuple[int, ...]
) -> None:
    config = network((2, 4))
    encoder, decoder = Encoder(config, axes, 1, DIM), Decoder(config, axes, 1, DIM)
    x = 0.1 * torch.randn(4, 1, *size)
    z, x_hat = encoder(x), decoder(encoder(x))
    scale_to_data(encoder, decoder, x)
    torch.testing.assert_close(encoder(x), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder(encoder(x)), x_hat, rtol=1e-4, atol=1e-5)
    y = x if axes == 2 else x.unsqueeze(2)
    for layer in encoder.layers[:-1]:
        y = layer(y)
        torch.testing.assert_close(y.std((0, 2, 3), correction=0), torch.ones(8))


@pytest.mark.parametrize("shape", [(2, 1, 16, 16), (1, 1, 4, 4)])
def test_scaling_to_blank_media_or_a_single_position_keeps_weights_finite(shape: tuple[int, ...]) -> None:
    config = network((2, 2))
    encoder, decoder = Encoder(config, 2, 1, DIM), Decoder(config, 2, 1, DIM)
    scale_to_data(encoder, decoder, torch.zeros(shape))
    assert all(parameter.isfinite().all() for part in (encoder, decoder) for parameter in part.parameters())


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_squares_of_pixels_become_channels_and_back(stride: int) -> None:
    start = torch.eye(3 * stride**2)
    down, up = Downsample(2, 3, 8, stride, start), Upsample(2, 8, 3, stride, start)
    down.conv = up.conv = nn.Identity()
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(down(x), F.pixel_unshuffle(x, stride))
    assert torch.equal(down(x.contiguous(memory_format=torch.channels_last)), F.pixel_unshuffle(x, stride))
    assert torch.equal(up(down(x)), x)
    z = torch.randn(2, 3 * stride**2, 4, 5)
    assert torch.equal(up(z), F.pixel_shuffle(z, stride))


def test_runs_of_samples_become_channels_and_back() -> None:
    down, up = Downsample(1, 1, 8, 4, torch.eye(4)), Upsample(1, 8, 1, 4, torch.eye(4))
    down.conv = up.conv = nn.Identity()
    x = torch.arange(12.0).view(1, 1, 1, 12)
    assert down(x)[0, :, 0].T.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(up(down(x)), x)


@pytest.mark.parametrize(("axes", "norm"), [(1, "channel"), (1, "none"), (2, "channel"), (2, "none")])
def test_bfloat16_autocast_comes_close(axes: Axes, norm: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(network((4, 2), norm=norm), axes, 1, DIM)
    x = torch.randn(2, 1, 64, 64) if axes == 2 else torch.randn(2, 1, 512)
    with torch.autocast("cpu", torch.bfloat16):
        z = encoder(x)
    assert z.dtype == torch.bfloat16
    z.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    exact = encoder(x)
    assert (z.float() - exact).norm() < bfloat16_bound(encoder) * exact.norm()


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_model_decodes_what_it_encodes(modality: str) -> None:
    rate = 8000 if modality == "audio" else 0
    quantizer = QuantizerConfig(dim=DIM, codebook_size=8, depth=3)
    model = VQModel(ModelConfig(modality, 3, rate, network((2, 2)), quantizer))
    assert (model.modality, model.stride, model.sample_rate) == (modality, 4, rate or None)
    x = torch.randn(2, 3, 16, 24) if modality == "image" else torch.randn(2, 1, 64)
    grid = (4, 6) if modality == "image" else (16,)
    model.train()
    x_hat, output = model(x)
    assert x_hat.shape == x.shape
    assert set(output.losses) == {"commitment"}
    model.eval()
    codes = model.encode(x)
    assert codes.shape == (2, 3, *grid)
    with torch.no_grad():
        assert torch.equal(model.decode(codes), model(x)[0])
    assert model.decode(codes[:, :1]).shape == x.shape


def test_the_way_around_the_codebooks() -> None:
    model = VQModel(ModelConfig("image", 1, 0, network((2, 2)), QuantizerConfig(dim=DIM, codebook_size=8)))
    x = torch.randn(1, 1, 16, 16)
    x_hat, output = model(x, quantize=False)
    assert output is None
    assert torch.equal(x_hat, model.decoder(model.encoder(x)))
    assert not model.quantizer.ready
