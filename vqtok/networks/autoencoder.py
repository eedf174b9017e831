"""Convolutional encoder and decoder for images and audio with any number of channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqtok.config import NetworkConfig
from vqtok.networks.layers import Axes, Downsample, ResBlock, Upsample, convolution, dct_stages, start_as


class Encoder(nn.Module):
    """Maps media `(batch, channels, *size)` to latents `(batch, dim, *grid)`; sizes are multiples of the stride.

    Source: van den Oord et al. 2017 and Esser et al. 2021 ("Taming Transformers") for images, Tagliasacchi et al.
        2020 ("SEANet") and Kumar et al. 2023 (DAC) for audio.
    Unlike: No attention and no norm across positions, so that the receptive field is finite.
    """

    def __init__(self, config: NetworkConfig, axes: Axes, channels: int, dim: int) -> None:
        super().__init__()
        self.axes = axes
        layers: list[nn.Module] = []
        inputs = channels
        starts = dct_stages(axes, channels, config.strides, config.widths)
        for stride, width, blocks, start in zip(
            config.strides, config.widths, config.encoder_blocks, starts, strict=True
        ):
            layers.append(Downsample(axes, inputs, width, stride, start))
            layers += _blocks(config, axes, width, blocks)
            inputs = width
        head = convolution(axes, inputs, dim, 3)
        start_as(head, torch.eye(inputs))
        self.layers = nn.Sequential(*layers, head)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if self.axes == 2 else self.layers(x.unsqueeze(2)).squeeze(2)


class Decoder(nn.Module):
    """Maps latents `(batch, dim, *grid)` to media `(batch, channels, *size)`: the mirror image of `Encoder`."""

    def __init__(self, config: NetworkConfig, axes: Axes, channels: int, dim: int) -> None:
        super().__init__()
        self.axes = axes
        head = convolution(axes, dim, config.widths[-1], 3)
        start_as(head, torch.eye(config.widths[-1]))
        layers: list[nn.Module] = [head]
        starts = dct_stages(axes, channels, config.strides, config.widths)
        for stage in reversed(range(len(config.strides))):
            width = config.widths[stage]
            outputs = config.widths[stage - 1] if stage else channels
            layers += _blocks(config, axes, width, config.decoder_blocks[stage])
            layers.append(Upsample(axes, width, outputs, config.strides[stage], starts[stage].T))
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z) if self.axes == 2 else self.layers(z.unsqueeze(2)).squeeze(2)


def _blocks(config: NetworkConfig, axes: Axes, width: int, count: int) -> list[ResBlock]:
    dilations = config.dilations
    return [ResBlock(config, axes, width, dilations[i % len(dilations)]) for i in range(count)]


@torch.no_grad()
def scale_to_data(encoder: Encoder, decoder: Decoder, x: Tensor) -> None:
    """Scale the channels between the stages of untrained networks to unit standard deviation on media `x`.

    Each convolution is divided by the deviations of its channels and the next one multiplied by them, so that the
    networks compute the same function. But the blocks in between then receive low and high frequencies at the same
    level, while otherwise DC would dominate.

    Source: Mishkin and Matas 2016, "All You Need Is a Good Init", section 3.
    """
    downs = [layer for layer in encoder.layers if isinstance(layer, Downsample)]
    ups = [layer for layer in reversed(decoder.layers) if isinstance(layer, Upsample)]
    before = x.new_ones(x.shape[1])
    y = x if encoder.axes == 2 else x.unsqueeze(2)
    for down, up in zip(downs, ups, strict=True):
        block = down.conv.in_channels // len(before)
        down.conv.weight *= before.repeat_interleave(block)[:, None, None]
        up.conv.weight /= before.repeat_interleave(block)[:, None, None, None]
        y = down(y)
        deviation = y.std((0, 2, 3), correction=0)
        before = deviation.clamp(min=0.01 * float(deviation.max()) or 1.0)  # 1 for blank or silent media
        down.conv.weight /= before[:, None, None, None]
        up.conv.weight *= before[:, None, None]
        y = y / before[:, None, None]
    to_latent, from_latent = encoder.layers[-1], decoder.layers[0]
    assert isinstance(to_latent, nn.Conv2d)
    assert isinstance(from_latent, nn.Conv2d)
    to_latent.weight *= before[:, None, None]
    from_latent.weight /= before[:, None, None, None]
