"""What the adapter of TiTok is measured against: the network restated from its project, with settable sizes.

Source: bytedance/1d-tokenizer (Apache-2.0), modeling/titok.py, modeling/modules/blocks.py,
modeling/modules/maskgit_vqgan.py and modeling/quantizer/quantizer.py. The order of operations and the names of weights
are the project's. Widths are set in `SIZES` instead of "small", "base" and "large"; what only training needs is left
out.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from einops.layers.torch import Rearrange
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES: dict[str, Any] = {"width": 64, "num_layers": 2, "num_heads": 1, "hidden": 32, "z": 16, "classes": 1024}


class ResidualAttentionBlock(nn.Module):
    def __init__(self, d_model: int, n_head: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(d_model)
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_2 = nn.LayerNorm(d_model)
        mlp_width = int(d_model * mlp_ratio)
        layers = [
            ("c_fc", nn.Linear(d_model, mlp_width)),
            ("gelu", nn.GELU()),
            ("c_proj", nn.Linear(mlp_width, d_model)),
        ]
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _expand_token(token: Tensor, batch_size: int) -> Tensor:
    return token.unsqueeze(0).expand(batch_size, -1, -1)


class TiTokEncoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vq = config["model"]["vq_model"]
        self.patch_size = vq["vit_enc_patch_size"]
        self.grid_size = config["dataset"]["preprocessing"]["crop_size"] // self.patch_size
        self.num_latent_tokens, self.token_size = vq["num_latent_tokens"], vq["token_size"]
        self.is_legacy = vq.get("is_legacy", True)
        self.width, self.num_layers = SIZES["width"], SIZES["num_layers"]
        self.patch_embed = nn.Conv2d(3, self.width, kernel_size=self.patch_size, stride=self.patch_size, bias=True)
        self.class_embedding = nn.Parameter(torch.randn(1, self.width))
        self.positional_embedding = nn.Parameter(torch.randn(self.grid_size**2 + 1, self.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.randn(self.num_latent_tokens, self.width))
        self.ln_pre = nn.LayerNorm(self.width)
        self.transformer = nn.ModuleList()
        for _ in range(self.num_layers):
            self.transformer.append(ResidualAttentionBlock(self.width, SIZES["num_heads"], mlp_ratio=4.0))
        self.ln_post = nn.LayerNorm(self.width)
        self.conv_out = nn.Conv2d(self.width, self.token_size, kernel_size=1, bias=True)

    def forward(self, pixel_values: Tensor, latent_tokens: Tensor) -> Tensor:
        batch_size = pixel_values.shape[0]
        x = self.patch_embed(pixel_values)
        x = x.reshape(x.shape[0], x.shape[1], -1)
        x = x.permute(0, 2, 1)
        x = torch.cat([_expand_token(self.class_embedding, x.shape[0]), x], dim=1)
        x = x + self.positional_embedding
        latent_tokens = _expand_token(latent_tokens, x.shape[0])
        latent_tokens = latent_tokens + self.latent_token_positional_embedding
        x = torch.cat([x, latent_tokens], dim=1)
        x = self.ln_pre(x)
        x = x.permute(1, 0, 2)
        for block in self.transformer:
            x = block(x)
        x = x.permute(1, 0, 2)
        latent_tokens = x[:, 1 + self.grid_size**2 :]
        latent_tokens = self.ln_post(latent_tokens)
        if self.is_legacy:
            latent_tokens = latent_tokens.reshape(batch_size, self.width, self.num_latent_tokens, 1)
        else:
            latent_tokens = latent_tokens.reshape(batch_size, self.num_latent_tokens, self.width, 1)
            latent_tokens = latent_tokens.permute(0, 2, 1, 3)
        latent_tokens = self.conv_out(latent_tokens)
        return latent_tokens.reshape(batch_size, self.token_size, 1, self.num_latent_tokens)


class TiTokDecoder(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        vq = config["model"]["vq_model"]
        self.patch_size = vq["vit_dec_patch_size"]
        self.grid_size = config["dataset"]["preprocessing"]["crop_size"] // self.patch_size
        self.num_latent_tokens, self.token_size = vq["num_latent_tokens"], vq["token_size"]
        self.width, self.num_layers = SIZES["width"], SIZES["num_layers"]
        self.decoder_embed = nn.Linear(self.token_size, self.width, bias=True)
        self.class_embedding = nn.Parameter(torch.randn(1, self.width))
        self.positional_embedding = nn.Parameter(torch.randn(self.grid_size**2 + 1, self.width))
        self.mask_token = nn.Parameter(torch.randn(1, 1, self.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.randn(self.num_latent_tokens, self.width))
        self.ln_pre = nn.LayerNorm(self.width)
        self.transformer = nn.ModuleList()
        for _ in range(self.num_layers):
            self.transformer.append(ResidualAttentionBlock(self.width, SIZES["num_heads"], mlp_ratio=4.0))
        self.ln_post = nn.LayerNorm(self.width)
        if vq.get("is_legacy", True):
            self.ffn = nn.Sequential(
                nn.Conv2d(self.width, 2 * self.width, 1, padding=0, bias=True),
                nn.Tanh(),
                nn.Conv2d(2 * self.width, SIZES["classes"], 1, padding=0, bias=True),
            )
            self.conv_out: nn.Module = nn.Identity()
        else:
            self.ffn = nn.Sequential(
                nn.Conv2d(self.width, self.patch_size * self.patch_size * 3, 1, padding=0, bias=True),
                Rearrange("b (p1 p2 c) h w -> b c (h p1) (w p2)", p1=self.patch_size, p2=self.patch_size),
            )
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1, bias=True)

    def forward(self, z_quantized: Tensor) -> Tensor:
        n, c, h, w = z_quantized.shape
        x = z_quantized.reshape(n, c * h, w).permute(0, 2, 1)
        x = self.decoder_embed(x)
        batchsize, seq_len, _ = x.shape
        mask_tokens = self.mask_token.repeat(batchsize, self.grid_size**2, 1)
        mask_tokens = torch.cat([_expand_token(self.class_embedding, mask_tokens.shape[0]), mask_tokens], dim=1)
        mask_tokens = mask_tokens + self.positional_embedding
        x = x + self.latent_token_positional_embedding[:seq_len]
        x = torch.cat([mask_tokens, x], dim=1)
        x = self.ln_pre(x)
        x = x.permute(1, 0, 2)
        for block in self.transformer:
            x = block(x)
        x = x.permute(1, 0, 2)
        x = x[:, 1 : 1 + self.grid_size**2]
        x = self.ln_post(x)
        x = x.permute(0, 2, 1).reshape(batchsize, self.width, self.grid_size, self.grid_size)
        return self.conv_out(self.ffn(x.contiguous()))


class VectorQuantizer(nn.Module):
    def __init__(self, codebook_size: int, token_size: int, use_l2_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, token_size)
        self.use_l2_norm = use_l2_norm

    def forward(self, z: Tensor) -> Tensor:
        z = rearrange(z, "b c h w -> b h w c").contiguous()
        z_flattened = rearrange(z, "b h w c -> (b h w) c")
        embedding = self.embedding.weight
        if self.use_l2_norm:
            z_flattened = F.normalize(z_flattened, dim=-1)
            embedding = F.normalize(embedding, dim=-1)
        d = (
            torch.sum(z_flattened**2, dim=1, keepdim=True)
            + torch.sum(embedding**2, dim=1)
            - 2 * torch.einsum("bd,dn->bn", z_flattened, embedding.T)
        )
        return torch.argmin(d, dim=1).view(z.shape[:3])

    def get_codebook_entry(self, indices: Tensor) -> Tensor:
        z_quantized = self.embedding(indices)
        return F.normalize(z_quantized, dim=-1) if self.use_l2_norm else z_quantized


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels_ = in_channels, out_channels
        self.norm1 = nn.GroupNorm(num_groups=32, num_channels=in_channels, eps=1e-6, affine=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding="same", bias=False)
        self.norm2 = nn.GroupNorm(num_groups=32, num_channels=out_channels, eps=1e-6, affine=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding="same", bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        residual = hidden_states
        hidden_states = self.conv1(F.silu(self.norm1(hidden_states)))
        hidden_states = self.conv2(F.silu(self.norm2(hidden_states)))
        if self.in_channels != self.out_channels_:
            residual = self.nin_shortcut(hidden_states)
        return hidden_states + residual


class UpsamplingBlock(nn.Module):
    def __init__(self, mult: list[int], block_idx: int) -> None:
        super().__init__()
        block_in = SIZES["hidden"] * (mult[-1] if block_idx == len(mult) - 1 else mult[block_idx + 1])
        block_out = SIZES["hidden"] * mult[block_idx]
        blocks = []
        for _ in range(2):
            blocks.append(ResnetBlock(block_in, block_out))
            block_in = block_out
        self.block = nn.ModuleList(blocks)
        self.add_upsample = block_idx != 0
        if self.add_upsample:
            self.upsample_conv = nn.Conv2d(block_out, block_out, kernel_size=3, padding="same")

    def forward(self, hidden_states: Tensor) -> Tensor:
        for res_block in self.block:
            hidden_states = res_block(hidden_states)
        if self.add_upsample:
            hidden_states = F.interpolate(hidden_states, scale_factor=2.0, mode="nearest")
            hidden_states = self.upsample_conv(hidden_states)
        return hidden_states


class PixelDecoder(nn.Module):
    def __init__(self, mult: list[int]) -> None:
        super().__init__()
        block_in = SIZES["hidden"] * mult[-1]
        self.conv_in = nn.Conv2d(SIZES["z"], block_in, kernel_size=3, padding="same")
        self.mid = nn.ModuleList(ResnetBlock(block_in, block_in) for _ in range(2))
        self.up = nn.ModuleList(UpsamplingBlock(mult, block_idx) for block_idx in range(len(mult)))
        block_out = SIZES["hidden"] * mult[0]
        self.norm_out = nn.GroupNorm(num_groups=32, num_channels=block_out, eps=1e-6, affine=True)
        self.conv_out = nn.Conv2d(block_out, 3, kernel_size=3, padding="same")

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.conv_in(hidden_states)
        for block in self.mid:
            hidden_states = block(hidden_states)
        for block in reversed(self.up):
            hidden_states = block(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


class TiTok(nn.Module):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        vq = config["model"]["vq_model"]
        self.finetune_decoder = vq.get("finetune_decoder", True)
        self.encoder, self.decoder = TiTokEncoder(config), TiTokDecoder(config)
        self.latent_tokens = nn.Parameter(torch.randn(vq["num_latent_tokens"], self.encoder.width))
        self.quantize = VectorQuantizer(vq["codebook_size"], vq["token_size"], vq["use_l2_norm"])
        if self.finetune_decoder:
            self.pixel_quantize = nn.Module()
            self.pixel_quantize.embedding = nn.Embedding(SIZES["classes"], SIZES["z"])
            levels = self.encoder.patch_size.bit_length()
            self.pixel_decoder = PixelDecoder([1] * (levels - 1) + [2])

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.state_dict(), folder / "model.safetensors")

    def encode(self, x: Tensor) -> Tensor:
        """Return the `min_encoding_indices` of the project's `encode`, for images in [0, 1]."""
        return self.quantize(self.encoder(pixel_values=x, latent_tokens=self.latent_tokens))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        tokens = tokens.squeeze(1)
        batch, seq_len = tokens.shape
        z_quantized = self.quantize.get_codebook_entry(tokens.reshape(-1)).reshape(batch, 1, seq_len, -1)
        decoded = self.decoder(rearrange(z_quantized, "b h w c -> b c h w").contiguous())
        if self.finetune_decoder:
            weight = self.pixel_quantize.embedding.weight
            decoded = self.pixel_decoder(torch.einsum("nchw,cd->ndhw", decoded.softmax(1), weight))
        return decoded
