"""The WavTokenizer models of transformers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vqtok.models.adapters.pretrained import TOGETHER, SavedModel
from vqtok.models.registry import folder_family


class WavTokenizer(SavedModel):
    """A codec with a single codebook, or its encoder alone.

    Source: Ji et al. 2024, "WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling".
    """

    modality = "audio"
    network_class = "WavTokenizerModel"
    padding = None
    encodes_together = TOGETHER
    why_whole = "its LSTM and its attention depend on the whole audio"
    settings = (
        "sampling_rate",
        "upsampling_ratios",
        "dilation_growth_rate",
        "use_causal_conv",
        "pad_mode",
        "norm_type",
        "codebook_size",
        "decoder_attention_num_groups",
        "norm_eps",
    )

    def __init__(self, source: str) -> None:
        if folder_family(Path(source)) == "wavtokenizer_encoder":
            self.network_class = "WavTokenizerEncoderModel"
            self.why_encode_only = "the folder has the encoder alone; open that of the whole WavTokenizer"
        super().__init__(source)
        self.sample_rate, self.stride = self.config.sampling_rate, self.config.hop_length
        self.codebook_sizes = (self.config.codebook_size,)

    def encode_first(self, x: Tensor, num_codebooks: int) -> Tensor:
        codes: Tensor = self.network.encode(x).audio_codes
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        if self.why_encode_only:
            return super().decode(codes)
        media: Tensor = self.network.decode(codes).audio_values
        return media
