"""SpeechTokenizer, an EnCodec whose encoder has an LSTM in both directions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vqtok.errors import ModelError
from vqtok.models.adapters.encodec import Encodec
from vqtok.models.adapters.pretrained import fill, find_class, ready, silent


class SpeechTokenizer(Encodec):
    """A codec for speech, whose first codebook is trained on the features of HuBERT.

    `vqtok import` writes the folder, with the configuration and the weights of EnCodec in transformers.

    Source: Zhang et al. 2023, "SpeechTokenizer: Unified Speech Tokenizer for Speech Language Models".
    """

    network_class = "SpeechTokenizer"

    def _load(self, modules: Sequence[str]) -> Any:
        found = find_class(self.folder, "transformers", "EncodecModel")
        try:
            settings = json.loads((self.folder / "config.json").read_bytes())
            config = found.config_class(**{name: value for name, value in settings.items() if name != "model_type"})
            with silent("transformers"):
                network = found(config)
            dim, layers = config.num_filters * 2 ** len(config.upsampling_ratios), network.encoder.layers
            layers[-3] = _LSTM(dim, config.num_lstm_layers)
            layers[-1] = type(layers[-1])(config, 2 * dim, config.hidden_size, config.last_kernel_size)
        except Exception as error:  # The library may raise anything for a config that it cannot use.
            raise ModelError(f"{self.folder}: transformers cannot load it: {type(error).__name__}: {error}") from error
        return ready(fill(network, self.folder, self.files, modules))


class _LSTM(nn.Module):
    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)
        return (self.lstm(x)[0] + x.repeat(1, 1, 2)).permute(1, 2, 0)
