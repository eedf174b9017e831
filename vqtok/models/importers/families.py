"""The families of checkpoints that can be imported: their quantizers and the differences of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.importers.checkpoint import Checkpoint
from vqtok.models.importers.layouts import LLAMAGEN, MAGVIT2, TAMING, Layout

Quantized = tuple[dict[str, Any], dict[str, Tensor]]
"""The settings of a quantizer, and its weights by their names in vqtok."""


@dataclass(frozen=True)
class Family:
    """How the checkpoints of a project are converted.

    Args:
        layout: The names of the layers of the networks.
        quantizer: Converts the quantizer, given the checkpoint and the dimension of the latent.
        adjust: Converts a weight of the networks, given its name in the checkpoint.
        loss: The weights of the quantizer's losses for fine-tuning.
    """

    layout: Layout
    quantizer: Callable[[Checkpoint, int], Quantized]
    adjust: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    loss: Mapping[str, float] = field(default_factory=dict)


def _vq(checkpoint: Checkpoint, dim: int, metric: str = "l2") -> Quantized:
    checkpoint.drop(
        "statistics of the codebook",
        {
            f"quantize.{name}" for name in ("codebook_used", "embedding.cluster_size", "embedding.embed_avg")
        }.__contains__,
    )
    codebook = _in_use(checkpoint, checkpoint.take("quantize.embedding.weight", 2))
    settings = {"kind": "vq", "metric": metric, "learning": "gradient"}
    return _projected(settings, codebook, *_convolutions(checkpoint))


def _cosine(checkpoint: Checkpoint, dim: int) -> Quantized:
    return _vq(checkpoint, dim, "cosine")


def _ibq(checkpoint: Checkpoint, dim: int) -> Quantized:
    codebook = _in_use(checkpoint, checkpoint.take("quantize.embedding.weight", 2))
    return _projected({"kind": "ibq"}, codebook, *_convolutions(checkpoint))


def _gumbel(checkpoint: Checkpoint, dim: int) -> Quantized:
    """Convert a classifier of latents and a codebook into one codebook, which can be looked up by inner product.

    A codebook vector consists of the classifier's weights, its bias, and the vector that the code is decoded to.
    Latents are extended by a 1 for the bias and by zeros, so that the inner product is the classifier's logit.
    """
    weights, bias = checkpoint.take("quantize.proj.weight", 4), checkpoint.take("quantize.proj.bias", 1)
    vectors = checkpoint.take("quantize.embed.weight", 2)
    codebook = _in_use(checkpoint, torch.cat([weights.flatten(1), bias[:, None], vectors], dim=1))
    into, into_bias, out, out_bias = _convolutions(checkpoint)
    constant = torch.cat([into_bias, torch.ones(1), torch.zeros(vectors.shape[1])])
    into = torch.cat([into, torch.zeros(1 + vectors.shape[1], into.shape[1])])
    out = torch.cat([torch.zeros(len(out), codebook.shape[1] - vectors.shape[1]), out], dim=1)
    return _projected({"kind": "ibq"}, codebook, into, constant, out, out_bias)


def _lfq(checkpoint: Checkpoint, dim: int) -> Quantized:
    return {"kind": "lfq", "dim": dim}, {}


def _magvit2(name: str, tensor: Tensor) -> Tensor:
    """Convert a weight of Open-MAGVIT2.

    The dimensions of the latent are reversed, because the first bit is the lowest one there. The output channels of
    upsampling, which become four pixels, are reordered from pixel-major to channel-major.
    """
    if name.startswith("encoder.conv_out."):
        return tensor.flip(0)
    if name == "decoder.conv_in.weight" or (name.startswith("decoder.adaptive.") and tensor.ndim == 2):
        return tensor.flip(1)
    if ".upsample." in name:
        return tensor.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
    return tensor


def _in_use(checkpoint: Checkpoint, codebook: Tensor) -> Tensor:
    """Return the vectors of the codes in use, in their new order, if the checkpoint has renumbered its codes."""
    return codebook[checkpoint.take("quantize.used").long()] if "quantize.used" in checkpoint.tensors else codebook


def _convolutions(checkpoint: Checkpoint) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the 1x1 convolutions before and after the quantizer as matrices and biases."""
    into, out = (checkpoint.take(f"{name}.weight", 4) for name in ("quant_conv", "post_quant_conv"))
    into_bias, out_bias = (checkpoint.take(f"{name}.bias", 1) for name in ("quant_conv", "post_quant_conv"))
    return into.flatten(1), into_bias, out.flatten(1), out_bias


def _projected(
    settings: dict[str, Any], codebook: Tensor, into: Tensor, into_bias: Tensor, out: Tensor, out_bias: Tensor
) -> Quantized:
    size, projected_dim = codebook.shape
    settings = settings | {"dim": into.shape[1], "projected_dim": projected_dim, "codebook_size": size}
    return settings, {
        "quantizer.inner.codebook": codebook,
        "quantizer.project_in.weight": into,
        "quantizer.project_in.bias": into_bias,
        "quantizer.project_out.weight": out,
        "quantizer.project_out.bias": out_bias,
    }


FAMILIES = {
    "vqgan": Family(TAMING, _vq),
    "gumbel": Family(TAMING, _gumbel, loss={"commitment": 0.0, "codebook": 0.0, "entropy": 0.0}),
    "llamagen": Family(LLAMAGEN, _cosine),
    "magvit2": Family(MAGVIT2, _lfq, _magvit2),
    "ibq": Family(TAMING, _ibq, loss={"entropy": 0.05}),
}


def recognize(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the family of weights that have a characteristic name; None if they have none."""
    characteristic = {
        "gumbel": "quantize.proj.weight",
        "llamagen": "encoder.conv_blocks.0.res.0.conv1.weight",
        "magvit2": "decoder.adaptive.0.gamma.weight",
    }
    return next((family for family, name in characteristic.items() if name in tensors), None)


def family_of_class(target: str) -> str:
    """Return the family of a class, given its path in the checkpoint's YAML.

    Raises:
        ModelError: No family has such a class.
    """
    name = target.rpartition(".")[2]
    if name in ("VQModel", "VQModelInterface", "VQNoDiscModel", "EMAVQ"):
        return "magvit2" if "MAGVIT2" in target else "vqgan"
    families = {"GumbelVQ": "gumbel", "IBQ": "ibq"}
    if name not in families:
        raise ModelError(f"{target} cannot be imported; the families are {', '.join(FAMILIES)}")
    return families[name]
