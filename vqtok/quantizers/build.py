"""From `QuantizerConfig` to a quantiser."""

from __future__ import annotations

from vqtok.config import QuantizerConfig
from vqtok.errors import UsageError
from vqtok.quantizers.base import Quantizer
from vqtok.quantizers.compose import Grouped, Projected, Residual
from vqtok.quantizers.fsq import FSQ
from vqtok.quantizers.lfq import BSQ, LFQ
from vqtok.quantizers.vq import VQ


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """Compose the quantiser that the config describes: Residual over Grouped over Projected over the kind."""
    dim = config.dim // config.groups

    def one() -> Quantizer:
        inner = _kind(config, config.projected_dim or dim)
        return inner if inner.dim == dim and not config.projected_dim else Projected(inner, dim)

    def side_by_side() -> Quantizer:
        return one() if config.groups == 1 else Grouped([one() for _ in range(config.groups)])

    if config.depth == 1:
        return side_by_side()
    return Residual([side_by_side() for _ in range(config.depth)], prefix_dropout=config.prefix_dropout)


def _kind(config: QuantizerConfig, dim: int) -> Quantizer:
    if config.kind == "fsq":
        return FSQ(config.levels)
    if config.kind in ("lfq", "bsq"):
        if dim > 24:
            raise UsageError(f"{config.kind} of {dim} bits: set model.quantizer.projected_dim to at most 24")
        return (LFQ if config.kind == "lfq" else BSQ)(dim)
    return VQ(
        dim,
        config.codebook_size,
        metric=config.metric,
        learning=config.learning,
        decay=config.decay,
        restart_below=config.restart_below,
    )
