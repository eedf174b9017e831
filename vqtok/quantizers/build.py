"""Build a quantizer from a `QuantizerConfig`."""

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
"""Largest size of a codebook that is not stored; the occurrences of each of its codes are still counted."""


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Build a quantizer from a config: the kind inside Projected inside Grouped inside Residual, each if needed."""
    dim = config.dim // config.groups

    # The residual of an implicit codebook is too small for the next codebook; a learned projection scales it.
    projected = bool(config.projected_dim) or (config.depth > 1 and config.kind != "vq")

    def one() -> Quantizer:
        inner = _kind(config, config.projected_dim or dim)
        return Projected(inner, dim) if projected or inner.dim != dim else inner

    def grouped() -> Quantizer:
        return one() if config.groups == 1 else Grouped([one() for _ in range(config.groups)])

    if config.depth == 1:
        return grouped()
    if config.beam > 1 and (config.kind, config.metric, config.groups, projected) != ("vq", "l2", 1, False):
        raise UsageError("model.quantizer.beam: paths can be followed only through codebooks of vq with the metric l2")
    return Residual([grouped() for _ in range(config.depth)], prefix_dropout=config.prefix_dropout, beam=config.beam)


def _kind(config: QuantizerConfig, dim: int) -> Quantizer:
    if config.kind == "fsq":
        if math.prod(config.levels) > MAX_IMPLICIT_SIZE or not all(3 <= n <= 1000 for n in config.levels):
            raise UsageError("model.quantizer.levels must each be 3 to 1000, and their product at most 2^24")
        if config.projected_dim not in (0, len(config.levels)):
            raise UsageError("model.quantizer.projected_dim: for fsq it is the number of levels; remove the setting")
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
