"""From `QuantizerConfig` to a quantiser."""

from __future__ import annotations

import math

from vqtok.config import QuantizerConfig
from vqtok.errors import UsageError
from vqtok.quantizers.base import Quantizer
from vqtok.quantizers.compose import Grouped, Projected, Residual
from vqtok.quantizers.fsq import FSQ
from vqtok.quantizers.ibq import IBQ
from vqtok.quantizers.lfq import BSQ, LFQ
from vqtok.quantizers.vq import VQ

MAX_IMPLICIT_SIZE = 2**24
"""Codes of a codebook that is not stored; their use is still counted one by one."""


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Compose the quantiser that the config describes: Residual over Grouped over Projected over the kind."""
    dim = config.dim // config.groups

    # What an implicit codebook leaves over is out of scale for the next one; a learned projection rescales it.
    projected = bool(config.projected_dim) or (config.depth > 1 and config.kind != "vq")

    def one() -> Quantizer:
        inner = _kind(config, config.projected_dim or dim)
        return Projected(inner, dim) if projected or inner.dim != dim else inner

    def side_by_side() -> Quantizer:
        return one() if config.groups == 1 else Grouped([one() for _ in range(config.groups)])

    if config.depth == 1:
        return side_by_side()
    return Residual([side_by_side() for _ in range(config.depth)], prefix_dropout=config.prefix_dropout)


def _kind(config: QuantizerConfig, dim: int) -> Quantizer:
    if config.kind == "fsq":
        if math.prod(config.levels) > MAX_IMPLICIT_SIZE or not all(3 <= n <= 1000 for n in config.levels):
            raise UsageError("model.quantizer.levels must each be 3 to 1000, and their product at most 2^24")
        if config.projected_dim not in (0, len(config.levels)):
            raise UsageError("model.quantizer.projected_dim of fsq is the number of its levels; leave it out")
        return FSQ(config.levels)
    if config.kind in ("lfq", "bsq"):
        if 2**dim > MAX_IMPLICIT_SIZE:
            raise UsageError(f"{config.kind} of {dim} bits: set model.quantizer.projected_dim to at most 24")
        return (LFQ if config.kind == "lfq" else BSQ)(dim)
    if config.kind == "ibq":
        return IBQ(dim, config.codebook_size)
    return VQ(
        dim,
        config.codebook_size,
        metric=config.metric,
        learning=config.learning,
        decay=config.decay,
        restart_below=config.restart_below,
    )
