"""What importers are measured against: the networks of other projects restated, with the names that their weights have.

Sources: CompVis/taming-transformers and CompVis/latent-diffusion, FoundationVision/LlamaGen, TencentARC/SEED-Voken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(swish(self.norm2(self.conv1(swish(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) * x.shape[1] ** -0.5, dim=2)
        return x + self.proj_out(torch.einsum("bcj,bij->bci", v, weights).view_as(x))


class Resampling(nn.Module):
    """`Downsample` and `Upsample`, whose convolution is called conv."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.down:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Module):
    """Blocks with or without attention, under the names that the project gives them."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attends: bool, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        residual = [ResnetBlock(outputs if i else inputs, outputs) for i in range(blocks)]
        self.add_module(names[0], nn.ModuleList(residual))
        self.add_module(names[1], nn.ModuleList(AttnBlock(outputs) for _ in range(blocks) if attends))

    def forward(self, x: Tensor) -> Tensor:
        residual, attention = (getattr(self, name) for name in self.names)
        for i, block in enumerate(residual):
            x = block(x)
            x = attention[i](x) if len(attention) else x
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, attends: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels) if attends else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class TamingEncoder(nn.Module):
    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, attends: set[int], middle: bool, z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList()
        inputs = ch
        for level, factor in enumerate(ch_mult):
            stage = Stage(inputs, ch * factor, blocks, level in attends, ("block", "attn"))
            inputs = ch * factor
            if level < len(ch_mult) - 1:
                stage.downsample = Resampling(inputs, down=True)
            self.down.append(stage)
        self.mid = Middle(inputs, middle)
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        return self.conv_out(swish(self.norm_out(self.mid(x))))


class TamingDecoder(nn.Module):
    """Its `up` is indexed by level, 0 the full resolution, and runs from the last to the first."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, attends: set[int], middle: bool, z: int) -> None:
        super().__init__()
        inputs = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z, inputs, 3, padding=1)
        self.mid = Middle(inputs, middle)
        self.up = nn.ModuleList()
        for level in reversed(range(len(ch_mult))):
            stage = Stage(inputs, ch * ch_mult[level], blocks + 1, level in attends, ("block", "attn"))
            inputs = ch * ch_mult[level]
            if level:
                stage.upsample = Resampling(inputs, down=False)
            self.up.insert(0, stage)
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            x = stage(x)
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        return self.conv_out(swish(self.norm_out(x)))


class LlamaGenEncoder(nn.Module):
    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        inputs, last = ch, len(ch_mult) - 1
        for level, factor in enumerate(ch_mult):
            stage = Stage(inputs, ch * factor, blocks, level == last, ("res", "attn"))
            inputs = ch * factor
            if level < last:
                stage.downsample = Resampling(inputs, down=True)
            self.conv_blocks.append(stage)
        self.mid = nn.ModuleList([ResnetBlock(inputs, inputs), AttnBlock(inputs), ResnetBlock(inputs, inputs)])
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, z, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.conv_blocks:
            x = stage(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        for block in self.mid:
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class LlamaGenDecoder(nn.Module):
    """Its `conv_blocks` are in the order in which they run."""

    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        inputs, last = ch * ch_mult[-1], len(ch_mult) - 1
        self.conv_in = nn.Conv2d(z, inputs, 3, padding=1)
        self.mid = nn.ModuleList([ResnetBlock(inputs, inputs), AttnBlock(inputs), ResnetBlock(inputs, inputs)])
        self.conv_blocks = nn.ModuleList()
        for level in reversed(range(len(ch_mult))):
            stage = Stage(inputs, ch * ch_mult[level], blocks + 1, level == last, ("res", "attn"))
            inputs = ch * ch_mult[level]
            if level:
                stage.upsample = Resampling(inputs, down=False)
            self.conv_blocks.append(stage)
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for stage in self.conv_blocks:
            x = stage(x)
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        return self.conv_out(swish(self.norm_out(x)))


class Magvit2Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(outputs if i else inputs, outputs, bias=False) for i in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Magvit2Encoder(nn.Module):
    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        inputs = ch
        for level, factor in enumerate(ch_mult):
            stage = Magvit2Stage(inputs, ch * factor, blocks)
            inputs = ch * factor
            if level < len(ch_mult) - 1:
                stage.downsample = nn.Conv2d(inputs, inputs, 3, stride=2, padding=1)
            self.down.append(stage)
        self.mid_block = nn.ModuleList(ResnetBlock(inputs, inputs, bias=False) for _ in range(blocks))
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, z, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
            x = stage.downsample(x) if hasattr(stage, "downsample") else x
        for block in self.mid_block:
            x = block(x)
        return self.conv_out(swish(self.norm_out(x)))


class DepthToSpace(nn.Module):
    """The four pixels of a position are quarters of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        x = self.conv1(x).view(batch, 2, 2, channels, height, width)
        return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * height, 2 * width)


class AdaptiveGroupNorm(nn.Module):
    def __init__(self, z: int, channels: int) -> None:
        super().__init__()
        self.gn = nn.GroupNorm(32, channels, eps=1e-6, affine=False)
        self.gamma, self.beta = nn.Linear(z, channels), nn.Linear(z, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        flat = style.flatten(2)
        scale = self.gamma((flat.var(dim=-1) + 1e-6).sqrt())[:, :, None, None]
        return scale * self.gn(x) + self.beta(flat.mean(dim=-1))[:, :, None, None]


class Magvit2Decoder(nn.Module):
    def __init__(self, ch: int, ch_mult: Sequence[int], blocks: int, z: int) -> None:
        super().__init__()
        inputs = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z, inputs, 3, padding=1)
        self.mid_block = nn.ModuleList(ResnetBlock(inputs, inputs, bias=False) for _ in range(blocks))
        self.up, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(ch_mult))):
            self.adaptive.insert(0, AdaptiveGroupNorm(z, inputs))
            stage = Magvit2Stage(inputs, ch * ch_mult[level], blocks)
            inputs = ch * ch_mult[level]
            if level:
                stage.upsample = DepthToSpace(inputs)
            self.up.insert(0, stage)
        self.norm_out, self.conv_out = norm(inputs), nn.Conv2d(inputs, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid_block:
            x = block(x)
        for stage, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            x = stage(adaptive(x, z))
            x = stage.upsample(x) if hasattr(stage, "upsample") else x
        return self.conv_out(swish(self.norm_out(x)))


class NearestQuantizer(nn.Module):
    """taming's `VectorQuantizer2`, and with `l2_norm` LlamaGen's `VectorQuantizer`."""

    def __init__(self, size: int, dim: int, *, l2_norm: bool = False, used: Sequence[int] = ()) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)
        self.l2_norm = l2_norm
        if l2_norm:
            self.register_buffer("codebook_used", torch.zeros(64))
        if used:
            self.register_buffer("used", torch.tensor(used))

    def _normalized(self, vectors: Tensor) -> Tensor:
        return F.normalize(vectors, p=2, dim=-1) if self.l2_norm else vectors

    def codes(self, z: Tensor) -> Tensor:
        vectors, embedding = self._normalized(z.movedim(1, -1)), self._normalized(self.embedding.weight)
        distances = vectors.square().sum(-1, keepdim=True) + embedding.square().sum(1) - 2 * vectors @ embedding.T
        codes = distances.argmin(-1)
        return codes if not hasattr(self, "used") else (codes[..., None] == self.used).long().argmax(-1)

    def entry(self, codes: Tensor) -> Tensor:
        codes = self.used[codes] if hasattr(self, "used") else codes
        return self._normalized(self.embedding.weight)[codes].movedim(-1, 1)


class GumbelQuantizer(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, size, 1)
        self.embed = nn.Embedding(size, dim)

    def codes(self, z: Tensor) -> Tensor:
        return self.proj(z).argmax(dim=1)

    def entry(self, codes: Tensor) -> Tensor:
        one_hot = F.one_hot(codes, self.embed.num_embeddings).float()
        return torch.einsum("bhwn,nd->bdhw", one_hot, self.embed.weight)


class IndexPropagationQuantizer(nn.Module):
    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, dim)

    def codes(self, z: Tensor) -> Tensor:
        logits = torch.einsum("bdhw,nd->bnhw", z, self.embedding.weight)
        return torch.softmax(logits, dim=1).max(1)[1]

    def entry(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).movedim(-1, 1)


class LookupFreeQuantizer(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def codes(self, z: Tensor) -> Tensor:
        mask = 2 ** torch.arange(self.bits)
        return ((z.movedim(1, -1) > 0).int() * mask).sum(-1)

    def entry(self, codes: Tensor) -> Tensor:
        mask = 2 ** torch.arange(self.bits)
        return (((codes[..., None] & mask) != 0) * 2.0 - 1.0).movedim(-1, 1)


class Original(nn.Module):
    """A tokenizer as its project has it: with 1x1 convolutions about the quantizer where there is an `embed_dim`."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, quantize: nn.Module, z: int, embed_dim: int = 0) -> None:
        super().__init__()
        self.encoder, self.decoder, self.quantize = encoder, decoder, quantize
        if embed_dim:
            self.quant_conv, self.post_quant_conv = nn.Conv2d(z, embed_dim, 1), nn.Conv2d(embed_dim, z, 1)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        h = self.encoder(x)
        return self.quantize.codes(self.quant_conv(h) if hasattr(self, "quant_conv") else h)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        quantized = self.quantize.entry(codes)
        return self.decoder(self.post_quant_conv(quantized) if hasattr(self, "post_quant_conv") else quantized)


class LitEma(nn.Module):
    """Averages under the names of the weights without their dots."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("decay", torch.tensor(0.999))
        self.register_buffer("num_updates", torch.tensor(-1, dtype=torch.int))
        for name, parameter in model.named_parameters():
            self.register_buffer(name.replace(".", ""), parameter.detach().clone())
