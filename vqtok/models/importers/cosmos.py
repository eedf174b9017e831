"""The discrete image tokenizers of Cosmos, which become folders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.adapters.cosmos import CosmosNetwork
from vqtok.models.importers.checkpoint import Checkpoint
from vqtok.models.importers.layouts import TAMING, weight_names
from vqtok.models.importers.renaming import Converted, existing

LEVELS = [8, 8, 8, 5, 5, 5]
"""The levels of the published models, if a checkpoint does not have them."""


def convert_cosmos(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of a discrete image tokenizer, whose networks are like those of taming-transformers.

    Raises:
        ModelError: The encoder or the decoder is missing, or the tokenizer is another one of Cosmos.
    """
    tensors = checkpoint.tensors
    for part in ("encoder", "decoder"):
        if f"{part}.conv_in.weight" not in tensors:
            raise ModelError(f"has no {part}; give the autoencoder.jit of the model, which has all of it")
    if "quant_conv.weight" not in tensors or tensors["quant_conv.weight"].ndim != 4:
        raise ModelError("is a tokenizer of Cosmos for video or with continuous latents; give one of the models DI")
    levels = tensors.get("quantizer._levels")
    checkpoint.drop(
        "wavelets and codebook, which are computed",
        lambda name: name.startswith(("encoder.patcher.", "decoder.unpatcher.", "quantizer.")),
    )
    first = tensors["encoder.conv_in.weight"]
    facts: dict[str, Any] = {
        "width": first.shape[0],
        "patch": math.isqrt(first.shape[1] // 3),
        "dim": tensors["quant_conv.weight"].shape[1],
        "levels": LEVELS if levels is None else levels.tolist(),
        "encoder": _network(tensors, "encoder.down", "downsample"),
        "decoder": _network(tensors, "decoder.up", "upsample"),
    }
    network, names = CosmosNetwork(**facts), [("quant_conv", "quant_conv"), ("post_quant_conv", "post_quant_conv")]
    converted = {
        f"{here}.{part}": checkpoint.take(f"{there}.{part}") for here, there in names for part in ("weight", "bias")
    }
    for side, layout in (("encoder", TAMING.encoder), ("decoder", TAMING.decoder)):
        layers = getattr(network, side).layers
        for here, there in weight_names(layers, f"{side}.layers.", layout(getattr(network, f"{side}_config"))):
            converted[here] = checkpoint.take(there)
    return {"model_type": "cosmos_tokenizer", **facts}, converted


def _network(tensors: Mapping[str, Tensor], levels: str, resampling: str) -> dict[str, Any]:
    """Return the settings of an encoder or a decoder."""
    stages = [f"{levels}.{level}" for level in range(len(existing(f"{levels}.{{}}.block.0.conv1.weight", tensors)))]
    blocks = [len(existing(f"{stage}.block.{{}}.conv1.weight", tensors)) for stage in stages]
    resamples = [f"{stage}.{resampling}.conv.weight" in tensors for stage in stages]
    # The encoder halves the resolution after a stage, as the next one begins; the decoder doubles it after a stage.
    halves = [False, *resamples[:-1]] if resampling == "downsample" else resamples
    return {
        "kind": "vqgan",
        "strides": [1 + half for half in halves],
        "widths": [tensors[f"{stage}.block.0.conv1.weight"].shape[0] for stage in stages],
        "encoder_blocks": blocks,
        "decoder_blocks": blocks,
        "attention": [f"{stage}.attn.0.q.weight" in tensors for stage in stages],
        "middle_attention": True,
    }
