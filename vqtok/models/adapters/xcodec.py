"""The X-codec models of transformers."""

from __future__ import annotations

from importlib import import_module

from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.adapters.encodec import sufficient_bandwidth
from vqtok.models.adapters.pretrained import TOGETHER, SavedModel
from vqtok.networks.receptive_field import context, conv_layers


class Xcodec(SavedModel):
    """DAC's networks with a speech model beside the encoder.

    Source: Ye et al. 2024, "Codec Does Matter: Exploring the Semantic Shortcoming of Codec for Audio Language Model".
    """

    modality = "audio"
    network_class = "XcodecModel"
    padding = "constant"
    encodes_together = TOGETHER
    why_whole = "its speech model attends to the whole audio"
    settings: tuple[str, ...] = (
        "sample_rate",
        "target_bandwidths",
        "kernel_size",
        "unit_kernel_size",
        "channel_ratios",
        "strides",
        "block_dilations",
        "codebook_size",
        "acoustic_model_config.downsampling_ratios",
        "acoustic_model_config.upsampling_ratios",
        "semantic_model_config.model_type",
        "semantic_model_config.hidden_act",
        "semantic_model_config.feat_extract_norm",
        "semantic_model_config.feat_extract_activation",
        "semantic_model_config.conv_stride",
        "semantic_model_config.conv_kernel",
        "semantic_model_config.num_attention_heads",
        "semantic_model_config.num_conv_pos_embedding_groups",
        "semantic_model_config.do_stable_layer_norm",
        "semantic_model_config.layer_norm_eps",
    )

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.sample_rate = self.config.sample_rate
        self.stride = self.config.hop_length
        count = self.network.quantizer.get_num_quantizers_for_bandwidth(self.config.target_bandwidths[-1])
        self.codebook_sizes = (self.config.codebook_size,) * count
        self.decoder_context = context(conv_layers(self.network.acoustic_decoder))

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        bandwidth = sufficient_bandwidth(self.network, num_codebooks)
        codes: Tensor = self.network.encode(x, bandwidth=bandwidth).audio_codes
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        media: Tensor = self.network.decode(codes).audio_values
        return media


class HiggsAudioV2(Xcodec):
    """X-codec for 24 kHz, with a semantic model for 16 kHz.

    Source: Boson AI 2025, "Higgs Audio V2: Redefining Expressiveness in Audio Generation".
    """

    network_class = "HiggsAudioV2TokenizerModel"
    settings = (*Xcodec.settings, "codebook_dim", "semantic_sample_rate", "downsample_factor")

    def __init__(self, source: str) -> None:
        require_torchaudio(source)
        super().__init__(source)


def require_torchaudio(source: str) -> None:
    """Raise if torchaudio, which transformers resamples with, cannot be imported.

    Raises:
        ModelError: It cannot; with the reason.
    """
    try:
        import_module("torchaudio")
    except (ImportError, OSError) as error:
        raise ModelError(f"{source}: transformers needs torchaudio for it: pip install torchaudio ({error})") from error
