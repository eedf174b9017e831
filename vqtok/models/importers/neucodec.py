"""The checkpoint of NeuCodec's own package, which becomes a folder of transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqtok.errors import UsageError
from vqtok.models.importers.checkpoint import BASE, Checkpoint
from vqtok.models.importers.renaming import Converted, existing, strides, take_all, without_weight_norm

SEMANTIC_LAYERS = 16
"""The layers of the speech model whose output is used; the package computes the others in vain."""
HEAD_DIM = 64
"""Features of a head of attention; the weights do not show them."""
LEVELS = 4
"""Levels of each dimension of the quantizer; nor these."""


def convert_neucodec(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of NeuCodec, and those of the speech model beside them, to those of transformers.

    Raises:
        UsageError: The speech model is missing, which the published checkpoint does not contain.
    """
    if not any(name.startswith(BASE) for name in checkpoint.tensors):
        raise UsageError(
            "give `base`, the speech model that it reads: the folder of w2v-bert-2.0, or its name on the Hub"
        )
    checkpoint.drop("heads of training", lambda name: name.startswith(("fc_post_s.", "SemanticDecoder_module.")))
    filters = (".upsample.filter", ".downsample.lowpass.filter", ".istft.window")
    checkpoint.drop("filters and window, which are computed", lambda name: name.endswith(filters))
    checkpoint.drop("layers of the speech model that are not used", _is_late_layer)
    norms = {f"{name}_{part}" for name in checkpoint.tensors if name.endswith(".weight") for part in "gv"}
    checkpoint.drop("normalization of weights that are there as such", norms.__contains__)
    blocks = len(existing("CodecEnc.conv_blocks.{}.block.4.weight_g", checkpoint.tensors, start=1))
    tensors = without_weight_norm(take_all(checkpoint, _rules(blocks)))
    width, hidden = tensors["acoustic_encoder.conv1.weight"].shape[0], tensors["acoustic_decoder.fc.weight"].shape[0]
    for name in existing("acoustic_decoder.layers.{}.self_attn.qkv.weight", tensors):
        query, key, value = tensors.pop(name).chunk(3)
        for part, tensor in {"q": _halves(query), "k": _halves(key), "v": value}.items():
            tensors[name.replace("qkv", f"{part}_proj")] = tensor.contiguous()
    dims, latent = tensors["quantizer.project_in.weight"].shape
    config = {
        "model_type": "neucodec",
        "encoder_hidden_size": width,
        "downsampling_ratios": strides(tensors, existing("acoustic_encoder.block.{}.conv1.weight", tensors)),
        "hidden_size": hidden,
        "intermediate_size": tensors["acoustic_decoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": len(existing("acoustic_decoder.layers.{}.mlp.fc1.weight", tensors)),
        "num_attention_heads": hidden // HEAD_DIM,
        "num_key_value_heads": hidden // HEAD_DIM,
        "head_dim": HEAD_DIM,
        "quantization_dim": latent,
        "quantization_levels": [LEVELS] * dims,
        "semantic_model_config": {
            "model_type": "wav2vec2-bert",
            **checkpoint.base_config,
            "num_hidden_layers": SEMANTIC_LAYERS,
        },
    }
    return config, tensors


def _rules(blocks: int) -> dict[str, str]:
    """Return the new names of weights, given the number of blocks of the encoder."""
    rules = {
        re.escape(BASE): "semantic_encoder.",
        r"SemanticEncoder_module\.initial_conv\.": "semantic_adapter.conv1.",
        r"SemanticEncoder_module\.residual_blocks\.1\.": "semantic_adapter.conv2.",
        r"SemanticEncoder_module\.residual_blocks\.3\.": "semantic_adapter.conv3.",
        r"SemanticEncoder_module\.final_conv\.": "semantic_adapter.conv4.",
        r"CodecEnc\.conv_blocks\.0\.": "acoustic_encoder.conv1.",
        r"CodecEnc\.conv_final_block\.0\.": "acoustic_encoder.snake1.",
        r"CodecEnc\.conv_final_block\.1\.": "acoustic_encoder.conv2.",
        r"fc_prior\.": "fc_encoder.",
        r"fc_post_a\.": "acoustic_decoder.fc.",
        r"quantizer\.": "quantizer.",
        r"head\.out\.": "acoustic_decoder.head.linear.",
    }
    for block in range(blocks):
        here, there = rf"CodecEnc\.conv_blocks\.{block + 1}\.block\.", f"acoustic_encoder.block.{block}."
        for unit in range(3):
            for index, part in enumerate(("snake1", "conv1", "snake2", "conv2")):
                rules[rf"{here}{unit}\.block\.{index}\."] = f"{there}res_unit{unit + 1}.{part}."
        rules |= {rf"{here}3\.": f"{there}snake1.", rf"{here}4\.": f"{there}conv1."}
    layer = r"backbone\.transformers\.(\d+)\."
    return rules | {
        rf"{layer}att\.c_attn\.": r"acoustic_decoder.layers.\1.self_attn.qkv.",
        rf"{layer}att\.c_proj\.": r"acoustic_decoder.layers.\1.self_attn.o_proj.",
        rf"{layer}att_norm\.": r"acoustic_decoder.layers.\1.input_layernorm.",
        rf"{layer}ffn_norm\.": r"acoustic_decoder.layers.\1.post_attention_layernorm.",
        rf"{layer}": r"acoustic_decoder.layers.\1.",
        r"backbone\.final_layer_norm\.": "acoustic_decoder.norm.",
        r"backbone\.": "acoustic_decoder.",
    }


def _is_late_layer(name: str) -> bool:
    found = re.match(rf"{re.escape(BASE)}encoder\.layers\.(\d+)\.", name)
    return found is not None and int(found[1]) >= SEMANTIC_LAYERS


def _halves(weight: Tensor) -> Tensor:
    """Reorder the rows of each head: rotary positions of transformers rotate halves, those of torchtune neighbors."""
    return weight.unflatten(0, (-1, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2)
