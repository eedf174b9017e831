"""Checkpoints that become folders for adapters: their architecture is that of another library, or cannot be trained."""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vqtok.errors import ModelError, UsageError
from vqtok.files.atomic import refuse_existing, write_error
from vqtok.models.adapters.var import network_config
from vqtok.models.importers.checkpoint import Checkpoint
from vqtok.models.importers.cosmos import convert_cosmos
from vqtok.models.importers.layouts import TAMING, weight_names
from vqtok.models.importers.neucodec import convert_neucodec
from vqtok.models.importers.renaming import Converted, existing, strides, take_all, without_weight_norm
from vqtok.models.registry import open_tokenizer
from vqtok.networks.vqgan import VQGANDecoder, VQGANEncoder

FACTS = "import.json"
"""The file with the facts on the origin of a folder."""


@dataclass(frozen=True)
class FolderFamily:
    """How the checkpoints of a project become a folder.

    Args:
        characteristic: The name of a weight by which the family is recognized.
        convert: Takes all weights of a checkpoint, given the YAML or JSON that comes with it, if any.
    """

    characteristic: str
    convert: Callable[[Checkpoint, Mapping[str, Any] | None], Converted]


def write_folder(
    output: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, force: bool
) -> str:
    """Write a folder, open it, and return its identity. Nothing is left behind if it cannot be opened.

    Raises:
        UsageError: The name is that of a file.
        OutputError: The folder exists or cannot be written.
        ModelError: The library that opens the folder is missing, or the weights do not fit it.
    """
    if output.suffix == ".safetensors" or (output.exists() and not output.is_dir()):
        raise UsageError(f"{output}: this family becomes a folder with several files; give `output` another name")
    if not force:
        refuse_existing(output)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as made:
            folder = Path(made) / output.name
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(dict(config), indent=2))
            (folder / FACTS).write_text(json.dumps(dict(facts), indent=2))
            # The names in the header of the file make transformers accept it.
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()},
                folder / "model.safetensors",
                {"format": "pt"},
            )
            try:
                open_tokenizer(str(folder))
            except ModelError as error:
                raise ModelError(str(error).replace(f"{folder}: ", "")) from None
            if output.exists():
                shutil.rmtree(output)
            folder.rename(output)
    except OSError as error:
        raise write_error(output, error) from error
    return open_tokenizer(str(output)).identity.hex()


def _dac(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of Descript's package to those of transformers."""
    blocks = sum(bool(re.fullmatch(r"encoder\.block\.\d+\.block\.4\.weight_g", name)) for name in checkpoint.tensors)
    parts = {"0.alpha": "snake1.alpha", "1.": "conv1.", "2.alpha": "snake2.alpha", "3.": "conv2."}
    rules = {r"quantizer\.": "quantizer."}
    for side, chain, shift, last in (("encoder", "block", 0, "conv1"), ("decoder", "model", 2, "conv_t1")):
        first = rf"{side}\.{chain}\."
        rules[rf"{first}0\."] = f"{side}.conv1."
        rules[rf"{first}{blocks + 1}\.alpha"] = f"{side}.snake1.alpha"
        rules[rf"{first}{blocks + 2}\."] = f"{side}.conv2."
        for block in range(blocks):
            here, there = rf"{first}{block + 1}\.block\.", f"{side}.block.{block}."
            for unit in range(3):
                for part, name in parts.items():
                    rules[rf"{here}{unit + shift}\.block\.{re.escape(part)}"] = f"{there}res_unit{unit + 1}.{name}"
            rules[rf"{here}{0 if shift else 3}\.alpha"] = f"{there}snake1.alpha"
            rules[rf"{here}{1 if shift else 4}\."] = f"{there}{last}."
    rate = checkpoint.metadata.get("kwargs", {}).get("sample_rate")
    if not isinstance(rate, int):
        raise ModelError("has no sample rate in its `metadata`; it may be of another family")
    tensors = without_weight_norm(take_all(checkpoint, rules))
    down, up = (
        strides(tensors, existing(f"{name}.weight", tensors))
        for name in ("encoder.block.{}.conv1", "decoder.block.{}.conv_t1")
    )
    if down != up[::-1]:
        raise ModelError(
            f"its encoder has the strides {down} and its decoder {up}, which transformers does not support"
        )
    codebook = tensors["quantizer.quantizers.0.codebook.weight"]
    config = {
        "model_type": "dac",
        "sampling_rate": rate,
        "encoder_hidden_size": tensors["encoder.conv1.weight"].shape[0],
        "decoder_hidden_size": tensors["decoder.conv1.weight"].shape[0],
        "downsampling_ratios": down,
        "n_codebooks": len(existing("quantizer.quantizers.{}.codebook.weight", tensors)),
        "codebook_size": codebook.shape[0],
        "codebook_dim": codebook.shape[1],
    }
    return config, tensors


WAVTOKENIZER = {
    r"feature_extractor\.encodec\.encoder\.model\.(.*?)conv\.conv\.weight_g": (
        r"encoder_model.encoder.layers.\1conv.parametrizations.weight.original0"
    ),
    r"feature_extractor\.encodec\.encoder\.model\.(.*?)conv\.conv\.weight_v": (
        r"encoder_model.encoder.layers.\1conv.parametrizations.weight.original1"
    ),
    r"feature_extractor\.encodec\.encoder\.model\.(.*?)conv\.conv\.": r"encoder_model.encoder.layers.\1conv.",
    r"feature_extractor\.encodec\.encoder\.model\.(\d+\.lstm\.)": r"encoder_model.encoder.layers.\1",
    r"feature_extractor\.encodec\.quantizer\.vq\.layers\.0\._codebook\.": "encoder_model.quantizer.codebook.",
    r"backbone\.": "backbone.",
    r"head\.out\.": "head.linear.",
}


def _wavtokenizer(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of WavTokenizer's training to those of transformers."""
    checkpoint.drop("decoder that is not used", lambda name: name.startswith("feature_extractor.encodec.decoder."))
    losses = ("multiperioddisc.", "multiresddisc.", "dac.", "dacdiscriminator.", "melspec_loss.")
    checkpoint.drop("discriminators and losses", lambda name: name.startswith(losses))
    checkpoint.drop("window, which is computed", lambda name: name == "head.istft.window")
    tensors = take_all(checkpoint, WAVTOKENIZER)
    layer = "encoder_model.encoder.layers.{}.conv.parametrizations.weight.original1"
    convolutions = [tensors[layer.format(index)] for index in range(1000) if layer.format(index) in tensors]
    embed, linear = tensors["encoder_model.quantizer.codebook.embed"], tensors["backbone.convnext.0.pwconv1.weight"]
    config = {
        "model_type": "wavtokenizer",
        "sampling_rate": _setting(settings, "model.init_args.sample_rate", 24_000),
        "num_filters": convolutions[0].shape[0],
        "upsampling_ratios": [weight.shape[2] // 2 for weight in reversed(convolutions[1:-1])],
        "hidden_size": embed.shape[1],
        "codebook_dim": embed.shape[1],
        "codebook_size": embed.shape[0],
        "decoder_hidden_size": linear.shape[1],
        "decoder_intermediate_size": linear.shape[0],
        "decoder_num_layers": len(existing("backbone.convnext.{}.gamma", tensors)),
        "adanorm_num_embeddings": tensors["backbone.norm.scale.weight"].shape[0],
    }
    return config, tensors


SPEECHTOKENIZER = {
    r"(encoder|decoder)\.model\.(.*?)(?:conv\.conv|convtr\.convtr)\.weight_g": (
        r"\1.layers.\2conv.parametrizations.weight.original0"
    ),
    r"(encoder|decoder)\.model\.(.*?)(?:conv\.conv|convtr\.convtr)\.weight_v": (
        r"\1.layers.\2conv.parametrizations.weight.original1"
    ),
    r"(encoder|decoder)\.model\.(.*?)(?:conv\.conv|convtr\.convtr)\.bias": r"\1.layers.\2conv.bias",
    r"(encoder|decoder)\.model\.(\d+\.lstm\.)": r"\1.layers.\2",
    r"quantizer\.vq\.layers\.(\d+)\._codebook\.": r"quantizer.layers.\1.codebook.",
}


def _speechtokenizer(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of SpeechTokenizer to those of EnCodec in transformers."""
    if not any(name.endswith("_reverse") for name in checkpoint.tensors):
        raise ModelError("its LSTM has one direction, as in EnCodec of Meta's package; use a folder of transformers")
    checkpoint.drop("projection to the teacher in training", lambda name: name.startswith("transform."))
    tensors = take_all(checkpoint, SPEECHTOKENIZER)
    layer = "encoder.layers.{}.conv.parametrizations.weight.original1"
    convolutions = [tensors[layer.format(index)] for index in range(1000) if layer.format(index) in tensors]
    ratios = [weight.shape[2] // 2 for weight in reversed(convolutions[1:-1])]
    unit = "encoder.layers.1.block.1.conv.parametrizations.weight.original1"
    units = sum(bool(re.fullmatch(r"encoder\.layers\.\d+\.block\.1\.conv\.bias", name)) for name in tensors)
    count, embed = (
        len(existing("quantizer.layers.{}.codebook.embed", tensors)),
        tensors["quantizer.layers.0.codebook.embed"],
    )
    rate = _setting(settings, "sample_rate", 16_000)
    bits_per_second = math.log2(embed.shape[0]) * math.ceil(rate / math.prod(ratios))
    lstm = next(name for name in tensors if name.endswith("lstm.weight_ih_l0")).removesuffix("0")
    config = {
        "model_type": "speechtokenizer",
        "sampling_rate": rate,
        # Rates at which transformers uses 1, 2, ... codebooks.
        "target_bandwidths": [(index + 1.5) * bits_per_second / 1000 for index in range(count)],
        "num_filters": convolutions[0].shape[0],
        "kernel_size": convolutions[0].shape[2],
        "last_kernel_size": convolutions[-1].shape[2],
        "residual_kernel_size": tensors[unit].shape[2],
        "num_residual_layers": units // len(ratios),
        "dilation_growth_rate": _setting(settings, "dilation_base", 2),
        "num_lstm_layers": len(existing(f"{lstm}{{}}", tensors)),
        "upsampling_ratios": ratios,
        "use_causal_conv": False,
        "hidden_size": embed.shape[1],
        "codebook_dim": embed.shape[1],
        "codebook_size": embed.shape[0],
    }
    return config, tensors


BIGCODEC = {
    r"CodecEnc\.block\.": "encoder.",
    r"quantizer\.layers\.(\d+)\._codebook\.": r"quantizer.\1.codebook.",
    r"quantizer\.layers\.": "quantizer.",
    r"(\d+\.)": r"decoder.\1",  # Its prefixes, generator.model, are those of wrappers.
}


def _bigcodec(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the weights of BigCodec, without the normalization of weights."""
    losses = ("discriminator.", "spec_discriminator.", "criteria.")
    checkpoint.drop("discriminators and losses", lambda name: name.startswith(losses))
    inner = {".act.": ".", ".upsample.filter": ".up", ".downsample.lowpass.filter": ".down"}
    for name in list(checkpoint.tensors):
        for there, here in inner.items():
            if there in name:
                checkpoint.tensors[name.replace(there, here)] = checkpoint.tensors.pop(name)
    tensors = without_weight_norm(take_all(checkpoint, BIGCODEC))
    encoder, decoder = (
        [
            name
            for index in range(1, 1000)
            for part in parts
            if (name := f"{side}.{index}.block.{part}.weight") in tensors
        ]
        for side, parts in (("encoder", range(1, 20)), ("decoder", (1,)))
    )
    first = tensors["encoder.0.weight"]
    lstm = next(name for name in tensors if name.startswith("encoder.") and name.endswith("lstm.weight_ih_l0"))
    codebook, latent = tensors["quantizer.0.codebook.weight"], tensors["quantizer.0.out_proj.weight"]
    config = {
        "model_type": "bigcodec",
        "sampling_rate": _setting(settings, "preprocess.audio.sr", 16_000),
        "width": first.shape[0],
        "ratios": strides(tensors, encoder),
        "dilations": [1, 3, 9],
        "num_lstm_layers": len(existing(f"{lstm.removesuffix('0')}{{}}", tensors)),
        "latent_dim": latent.shape[0],
        "decoder_width": tensors["decoder.0.weight"].shape[0],
        "decoder_ratios": strides(tensors, decoder),
        "num_codebooks": len(existing("quantizer.{}.codebook.weight", tensors)),
        "codebook_size": codebook.shape[0],
        "codebook_dim": codebook.shape[1],
    }
    return config, tensors


def _titok(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Add the YAML of a checkpoint of 1d-tokenizer as the config.json that its project publishes for the Hub."""
    if settings is None:
        raise UsageError("give `config`, the YAML of the checkpoint, since the weights do not show its patches")
    config = {name: settings[name] for name in ("model", "dataset") if name in settings}
    return config, {name: checkpoint.take(name) for name in list(checkpoint.tensors)}


VAR_SCALES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
"""The sizes of the token maps of an image of 256 x 256 pixels; the weights do not show them."""


def _var(checkpoint: Checkpoint, settings: Mapping[str, Any] | None) -> Converted:
    """Convert the tokenizer of VAR, whose networks are those of taming-transformers."""
    checkpoint.drop("statistics of the codebook", lambda name: name == "quantize.ema_vocab_hit_SV")
    for name in [name for name in checkpoint.tensors if ".qkv." in name]:
        for part, tensor in zip("qkv", checkpoint.tensors.pop(name).chunk(3), strict=True):
            checkpoint.tensors[name.replace(".qkv.", f".{part}.")] = tensor
    network = TAMING.network(checkpoint)
    config = network_config(network)
    dim = checkpoint.size("decoder.conv_in.weight", 1)
    encoder, decoder = VQGANEncoder(config, 3, dim).layers, VQGANDecoder(config, 3, dim).layers
    names = [
        *weight_names(encoder, "encoder.layers.", TAMING.encoder(config)),
        *weight_names(decoder, "decoder.layers.", TAMING.decoder(config)),
    ]
    tensors = {here: checkpoint.take(there) for here, there in names}
    phis = len(existing("quantize.quant_resi.qresi_ls.{}.weight", checkpoint.tensors))
    rules = {r"quantize\.embedding\.": "quantizer.embedding.", r"quantize\.quant_resi\.qresi_ls\.": "quantizer.phis."}
    tensors |= take_all(checkpoint, rules | {r"quant_conv\.": "quant_conv.", r"post_quant_conv\.": "post_quant_conv."})
    facts = {"model_type": "var_tokenizer", "network": network, "scales": VAR_SCALES, "quant_resi": 0.5}
    size = tensors["quantizer.embedding.weight"].shape[0]
    return facts | {"codebook_size": size, "dim": dim, "num_phis": phis}, tensors


def _setting(settings: Mapping[str, Any] | None, path: str, default: int) -> int:
    """Return a number in a YAML, or the default if there is no YAML.

    Raises:
        UsageError: The YAML has no such number.
    """
    if settings is None:
        return default
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(value, int):
        raise UsageError(f"the YAML has no number {path}; is this the config of another checkpoint?")
    return value


FOLDERS = {
    "dac": FolderFamily("quantizer.quantizers.0.in_proj.weight_g", _dac),
    "wavtokenizer": FolderFamily("feature_extractor.encodec.quantizer.vq.layers.0._codebook.embed", _wavtokenizer),
    "speechtokenizer": FolderFamily("quantizer.vq.layers.0._codebook.embed", _speechtokenizer),
    "bigcodec": FolderFamily("quantizer.layers.0._codebook.weight", _bigcodec),
    "var": FolderFamily("quantize.quant_resi.qresi_ls.0.weight", _var),
    "cosmos": FolderFamily("quantizer._levels", convert_cosmos),
    "neucodec": FolderFamily("CodecEnc.conv_blocks.0.weight_g", convert_neucodec),
    "titok": FolderFamily("latent_tokens", _titok),
}


def folder_family_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the family of weights that become a folder; None if they are of no such family."""
    return next((name for name, family in FOLDERS.items() if family.characteristic in tensors), None)
