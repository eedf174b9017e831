"""The VQModel of diffusers, including MoVQ."""

from __future__ import annotations

from torch import Tensor

from vqtok.models.adapters.pretrained import SavedModel


class DiffusersVQModel(SavedModel):
    """The VQGAN of diffusers, or MoVQ if `norm_type` is "spatial".

    Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis"; Zheng et al. 2022, "MoVQ:
        Modulating Quantized Vectors for High-Fidelity Image Generation".
    Unlike: The library's `encode` returns latents before quantization; here they are quantized.
    """

    modality = "image"
    package = "diffusers"
    network_class = "VQModel"
    why_whole = "its norms and its attention depend on the whole image"
    settings = (
        "in_channels",
        "out_channels",
        "down_block_types",
        "up_block_types",
        "block_out_channels",
        "layers_per_block",
        "act_fn",
        "norm_num_groups",
        "norm_type",
        "mid_block_add_attention",
    )

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.channels = self.config.in_channels
        self.stride = 2 ** (len(self.config.block_out_channels) - 1)
        self.codebook_sizes = (self.config.num_vq_embeddings,)

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        # In the memory format that users of the library have, so that results are rounded in the same way.
        latents = self.network.encode(x.contiguous()).latents
        codes: Tensor = self.network.quantize(latents)[2][2]
        return codes.reshape(len(x), 1, *latents.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        shape = (len(codes), *codes.shape[2:], self.network.quantize.vq_embed_dim)
        quantized = codes.flatten()
        if not self.config.lookup_from_codebook:
            quantized = self.network.quantize.get_codebook_entry(quantized, shape)
        media: Tensor = self.network.decode(quantized, force_not_quantize=True, shape=shape).sample
        return media
