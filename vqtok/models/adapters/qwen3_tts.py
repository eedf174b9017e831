"""The 12 Hz tokenizer of Qwen3-TTS, whose encoder is Mimi's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.adapters.digest import read_weights
from vqtok.models.adapters.mimi import Mimi
from vqtok.models.adapters.pretrained import find_class, ready, silent

NO_WINDOW = 1 << 30
"""A window of attention that is longer than any audio."""


class Qwen3TTS(Mimi):
    """The encoder, with the class of transformers from which the package `qwen-tts` derives its own.

    Source: Qwen Team 2026, "Qwen3-TTS Technical Report".
    Unlike: The config has a window of attention, which transformers 4.57 does not apply to audio without padding. The
        package computes its codes with this release, so that there is no window here either.
    """

    section = "encoder_config"
    why_encode_only = "its decoder needs the package qwen-tts, which only works with transformers 4.57; decode there"

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.network.decoder = None  # Its weights are not in the folder.
        self.codebook_sizes = self.codebook_sizes[: self.network.valid_quantizers]

    def _load(self, modules: Sequence[str]) -> Any:
        found = find_class(self.folder, "transformers", "MimiModel")
        weights = {name: tensor for file in self.files for name, tensor in read_weights(file, modules)}
        try:
            config = json.loads((self.folder / "config.json").read_bytes())
            valid = int(config["encoder_valid_num_quantizers"])
            section = config[self.section] | {"sliding_window": NO_WINDOW}
            with silent("transformers"):
                network, loading = found.from_pretrained(
                    None,
                    config=found.config_class(**section),
                    state_dict=weights,
                    output_loading_info=True,
                )
        except Exception as error:  # The library may raise anything for a folder that it cannot load.
            raise ModelError(f"{self.folder}: transformers cannot load it: {type(error).__name__}: {error}") from error
        missing = {name for name in loading["missing_keys"] if not name.startswith("decoder.")}
        if wrong := sorted({*missing, *loading["unexpected_keys"], *map(str, loading["mismatched_keys"])}):
            raise ModelError(f"{self.folder}: the weights do not match the config: {', '.join(wrong)}")
        network.valid_quantizers = valid
        return ready(network)

    def more_settings(self) -> dict[str, Any]:
        return {"encoder_valid_num_quantizers": self.network.valid_quantizers}

    def decode(self, codes: Tensor) -> Tensor:
        raise ModelError(f"this model only encodes: {self.why_encode_only}")
