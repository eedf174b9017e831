"""The families of checkpoints that can be imported: how each quantises, and what is peculiar to its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vqtok.errors import ModelError
from vqtok.models.importers.checkpoint import Checkpoint
from vqtok.models.importers.layouts import LLAMAGEN, MAGVIT2, TAMING, Layout

Quantised = tuple[dict[str, Any], dict[str, Tensor]]
"""Settings of a quantiser, and its weights by their names here."""


@dataclass(frozen=True)
class Family:
    """How the checkpoints of a project are read.

    Args:
        quantizer: Takes the quantiser's weights; gets the size of the latent, too.
        adjust: Changes the weights of the networks to what they are here.
        loss: Weights of the quantiser's losses to tune the model with.
    """

    layout: Layout
    quantizer: Callable[[Checkpoint, int], Quantised]
    adjust: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    loss: Mapping[str, float] = field(default_factory=dict)


def _vq(checkpoint: Checkpoint, dim: int, metric: str = "l2") -> Quantised:
    checkpoint.drop(
        "statistics of the codebook",
        {
            f"quantize.{name}" for name in ("codebook_used", "embedding.cluster_size", "embedding.embed_avg")
        }.__contains__,
    )
    codebook = _in_use(checkpoint, checkpoint.take("quantize.embedding.weight", 2))
    settings = {"kind": "vq", "metric": metric, "learning": "gradient"}
    return _projected(settings, codebook, *_convolutions(checkpoint))


def _cosine(checkpoint: Checkpoint, dim: int) -> Quantised:
    return _vq(checkpoint, dim, "cosine")


def _ibq(checkpoint: Checkpoint, dim: int) -> Quantised:
    codebook = _in_use(checkpoint, checkpoint.take("quantize.embedding.weight", 2))
    return _projected({"kind": "ibq"}, codebook, *_convolutions(checkpoint))


def _gumbel(checkpoint: Checkpoint, dim: int) -> Quantised:
    """Make one codebook of a classifier of latents and a codebook: of a code its weights, its bias, and its vector.

    Latents are filled up with 1 for the bias and with zeros, so that the product gives the classifier's logits.
    """
    weights, bias = checkpoint.take("quantize.proj.weight", 4), checkpoint.take("quantize.proj.bias", 1)
    vectors = checkpoint.take("quantize.embed.weight", 2)
    codebook = _in_use(checkpoint, torch.cat([weights.flatten(1), bias[:, None], vectors], dim=1))
    into, into_bias, out, out_bias = _convolutions(checkpoint)
    constant = torch.cat([into_bias, torch.ones(1), torch.zeros(vectors.shape[1])])
    into = torch.cat([into, torch.zeros(1 + vectors.shape[1], into.shape[1])])
    out = torch.cat([torch.zeros(len(out), codebook.shape[1] - vectors.shape[1]), out], dim=1)
    return _projected({"kind": "ibq"}, codebook, into, constant, out, out_bias)


def _lfq(checkpoint: Checkpoint, dim: int) -> Quantised:
    return {"kind": "lfq", "dim": dim}, {}


def _magvit2(name: str, tensor: Tensor) -> Tensor:
    """Reverse the latent, whose first bit is the lowest there, and sort what becomes four pixels by channels first."""
    if name.startswith("encoder.conv_out."):
        return tensor.flip(0)
    if name == "decoder.conv_in.weight" or (name.startswith("decoder.adaptive.") and tensor.ndim == 2):
        return tensor.flip(1)
    if ".upsample." in name:
        return tensor.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
    return tensor


def _in_use(checkpoint: Checkpoint, codebook: Tensor) -> Tensor:
    """Give the codes in use in their new order, where codes are numbered anew."""
    return codebook[checkpoint.take("quantize.used").long()] if "quantize.used" in checkpoint.tensors else codebook


def _convolutions(checkpoint: Checkpoint) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take the 1x1 convolutions before and after the quantiser as matrices and biases."""
    into, out = (checkpoint.take(f"{name}.weight", 4) for name in ("quant_conv", "post_quant_conv"))
    into_bias, out_bias = (checkpoint.take(f"{name}.bias", 1) for name in ("quant_conv", "post_quant_conv"))
    return into.flatten(1), into_bias, out.flatten(1), out_bias


def _projected(
    settings: dict[str, Any], codebook: Tensor, into: Tensor, into_bias: Tensor, out: Tensor, out_bias: Tensor
) -> Quantised:
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


def recognise(tensors: Mapping[str, Tensor]) -> str | None:
    """Give the family of weights whose names tell it."""
    tells = {
        "gumbel": "quantize.proj.weight",
        "llamagen": "encoder.conv_blocks.0.res.0.conv1.weight",
        "magvit2": "decoder.adaptive.0.gamma.weight",
    }
    return next((family for family, name in tells.items() if name in tensors), None)


def family_of_class(target: str) -> str:
    """Give the family of the class that a config names.

    Raises:
        ModelError: there is none.
    """
    name = target.rpartition(".")[2]
    if name in ("VQModel", "VQModelInterface", "VQNoDiscModel", "EMAVQ"):
        return "magvit2" if "MAGVIT2" in target else "vqgan"
    families = {"GumbelVQ": "gumbel", "IBQ": "ibq"}
    if name not in families:
        raise ModelError(f"{target} is no model that can be imported; there are {', '.join(FAMILIES)}")
    return families[name]
