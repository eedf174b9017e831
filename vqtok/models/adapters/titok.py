"""TiTok, which turns an image into a sequence of tokens instead of a grid."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.digest import read_weights
from vqtok.models.adapters.pretrained import SavedModel, fill, ready, with_config
from vqtok.models.adapters.squares import cut, join

HEAD_WIDTH = 64


class TiTok(SavedModel):
    """The 1-D tokenizer, as its project saves it for the Hugging Face Hub.

    A grid step is a square of the model's size, 256 x 256 pixels; its 32, 64, 128 or 256 tokens are its codebooks.
    Larger images are cut into independent squares.

    Source: Yu et al. 2024, "An Image is Worth 32 Tokens for Reconstruction and Generation"; code:
        github.com/bytedance/1d-tokenizer.
    """

    modality = "image"
    channels = 3
    network_class = "TiTok"
    encoder_context = decoder_context = 0
    settings = ("size", "enc_patch", "dec_patch", "is_legacy", "use_l2_norm")

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.stride = self.config.size
        vectors, tokens = self.network.quantize.embedding.num_embeddings, len(self.network.latent_tokens)
        self.codebook_sizes = (vectors,) * tokens
        if self.network.pixel_decoder is None and self.config.is_legacy:
            self.why_encode_only = "its decoder to pixels is not in the folder, which is that of a first stage"

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Only all tokens together: the first ones are not a coarse version of the image."""
        return (len(self.codebook_sizes),)

    def _load(self, modules: Sequence[str]) -> Any:
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            settings = config["model"]["vq_model"]
            if settings.get("quantize_mode", "vq") != "vq":
                raise ModelError(f"{self.folder}: has continuous latents instead of codes; choose a model with `vq`")
            facts: dict[str, Any] = {
                "size": int(config["dataset"]["preprocessing"]["crop_size"]),
                "enc_patch": int(settings["vit_enc_patch_size"]),
                "dec_patch": int(settings["vit_dec_patch_size"]),
                "is_legacy": bool(settings.get("is_legacy", True)),
                "use_l2_norm": bool(settings["use_l2_norm"]),
            }
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"{self.folder}: its config.json is not that of a TiTok: {error!r}") from None
        shapes = {name: tensor.shape for file in self.files for name, tensor in read_weights(file)}
        try:
            network = _Network(shapes, **facts)
        except (LookupError, ValueError, TypeError) as error:
            raise ModelError(f"{self.folder}: the weights do not match the config: {error!r}") from None
        return ready(fill(with_config(network, facts, config), self.folder, self.files, modules))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        rows, columns = (side // self.stride for side in x.shape[2:])
        codes = self.network.encode((cut(x, self.stride) + 1) / 2)
        return codes.view(-1, rows, columns, codes.shape[1]).permute(0, 3, 1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        if self.why_encode_only:
            return super().decode(codes)
        squares = self.network.decode(codes.permute(0, 2, 3, 1).flatten(0, 2)) * 2 - 1
        return join(squares, *codes.shape[2:])


Shapes = dict[str, torch.Size]


class _Network(nn.Module):
    """The network, whose weights have the names of the project. `shapes` has the sizes that are not in the config."""

    def __init__(
        self, shapes: Shapes, size: int, enc_patch: int, dec_patch: int, is_legacy: bool, use_l2_norm: bool
    ) -> None:
        super().__init__()
        tokens, width = shapes["latent_tokens"]
        self.use_l2_norm = use_l2_norm
        self.latent_tokens = nn.Parameter(torch.empty(tokens, width))
        self.quantize = _Codebook(shapes["quantize.embedding.weight"])
        dim = self.quantize.embedding.embedding_dim
        self.encoder = _Encoder(width, _depth(shapes, "encoder"), tokens, dim, size // enc_patch, enc_patch, is_legacy)
        dec_width = shapes["decoder.mask_token"][2]
        self.decoder = _Decoder(
            dec_width, _depth(shapes, "decoder"), tokens, dim, size // dec_patch, dec_patch, is_legacy
        )
        self.pixel_decoder: _PixelDecoder | None = None
        if "pixel_decoder.conv_in.weight" in shapes:
            self.pixel_quantize = _Codebook(shapes["pixel_quantize.embedding.weight"])
            self.pixel_decoder = _PixelDecoder(shapes)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes `(batch, tokens)` of images in [0, 1]."""
        z = self.encoder(x, self.latent_tokens)
        flat, codebook = z.flatten(0, 1), self.quantize.embedding.weight
        if self.use_l2_norm:
            flat, codebook = F.normalize(flat, dim=-1), F.normalize(codebook, dim=-1)
        distances = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * flat @ codebook.T
        return distances.argmin(dim=1).view(z.shape[:2])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images of codes `(batch, tokens)`, about in [0, 1]."""
        z_q = self.quantize.embedding(codes)
        if self.use_l2_norm:
            z_q = F.normalize(z_q, dim=-1)
        decoded: Tensor = self.decoder(z_q)
        if self.pixel_decoder is None:
            return decoded
        features = torch.einsum("nchw,cd->ndhw", decoded.softmax(1), self.pixel_quantize.embedding.weight)
        media: Tensor = self.pixel_decoder(features)
        return media


def _depth(shapes: Shapes, part: str) -> int:
    return next(index for index in count() if f"{part}.transformer.{index}.ln_1.weight" not in shapes)


class _Codebook(nn.Module):
    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*shape)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    """The common part of encoder and decoder: a transformer on the patches of an image and the latent tokens."""

    def __init__(self, width: int, depth: int, tokens: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(grid**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList(_Block(width) for _ in range(depth))

    def run(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches `(batch, positions, width)` and tokens `(batch, tokens, width)` after the transformer."""
        x = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + self.positional_embedding
        x = self.ln_pre(torch.cat([x, tokens + self.latent_token_positional_embedding], dim=1))
        for block in self.transformer:
            x = block(x)
        return x[:, 1 : 1 + self.grid**2], x[:, 1 + self.grid**2 :]


class _Encoder(_Transformer):
    def __init__(self, width: int, depth: int, tokens: int, dim: int, grid: int, patch: int, is_legacy: bool) -> None:
        super().__init__(width, depth, tokens, grid)
        self.is_legacy = is_legacy
        self.patch_embed = nn.Conv2d(3, width, patch, patch)
        self.conv_out = nn.Conv2d(width, dim, 1)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Return latents `(batch, tokens, dim)`."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        found = self.ln_post(self.run(patches, tokens.expand(len(x), -1, -1))[1])
        batch, length, width = found.shape
        # The first models were trained with a reshape that mixes up the axes.
        z = found.reshape(batch, width, length, 1) if self.is_legacy else found.transpose(1, 2)[..., None]
        latents: Tensor = self.conv_out(z).reshape(batch, -1, length).transpose(1, 2)
        return latents


class _Decoder(_Transformer):
    def __init__(self, width: int, depth: int, tokens: int, dim: int, grid: int, patch: int, is_legacy: bool) -> None:
        super().__init__(width, depth, tokens, grid)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.ffn: nn.Module
        if is_legacy:
            self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, 1024, 1))
            self.conv_out: nn.Module = nn.Identity()
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, patch**2 * 3, 1), _ToPixels(patch))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z_q: Tensor) -> Tensor:
        masks = self.mask_token.expand(len(z_q), self.grid**2, -1)
        patches = self.ln_post(self.run(masks, self.decoder_embed(z_q))[0])
        decoded: Tensor = self.conv_out(self.ffn(patches.transpose(1, 2).unflatten(2, (self.grid, self.grid))))
        return decoded


class _ToPixels(nn.Module):
    """Rearranges channels, which are (rows, columns, colors) of a patch, to pixels."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        split = x.unflatten(1, (self.patch, self.patch, 3))  # batch, rows, columns, colors, height, width
        return split.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


class _ResBlock(nn.Module):
    """A residual block of MaskGIT's VQGAN; its shortcut takes the output of the convolutions instead of the input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, inputs, 1e-6), nn.GroupNorm(32, outputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class _Level(nn.Module):
    def __init__(self, blocks: nn.ModuleList, width: int, upsamples: bool) -> None:
        super().__init__()
        self.block = blocks
        self.upsample_conv = nn.Conv2d(width, width, 3, padding=1) if upsamples else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.upsample_conv is None:
            return x
        y: Tensor = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class _PixelDecoder(nn.Module):
    """The decoder of MaskGIT's VQGAN, with the sizes of its weights.

    Source: Chang et al. 2022, "MaskGIT: Masked Generative Image Transformer".
    """

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        shapes = {name.removeprefix("pixel_decoder."): shape for name, shape in shapes.items()}

        def blocks(prefix: str) -> nn.ModuleList:
            found = nn.ModuleList()
            while (name := f"{prefix}.{len(found)}.conv1.weight") in shapes:
                found.append(_ResBlock(shapes[name][1], shapes[name][0]))
            return found

        width, dim = shapes["conv_in.weight"][:2]
        self.conv_in = nn.Conv2d(dim, width, 3, padding=1)
        self.mid = blocks("mid")
        self.up = nn.ModuleList()
        while f"up.{len(self.up)}.block.0.conv1.weight" in shapes:
            prefix = f"up.{len(self.up)}.block"
            outputs = shapes[f"{prefix}.0.conv1.weight"][0]
            self.up.append(_Level(blocks(prefix), outputs, upsamples=len(self.up) > 0))
        first = shapes["norm_out.weight"][0]
        self.norm_out = nn.GroupNorm(32, first, 1e-6)
        self.conv_out = nn.Conv2d(first, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        media: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return media
