"""Quantizers: continuous latents to codes and back. They compose, as in `Residual([VQ(...), VQ(...)])`."""

from vqtok.quantizers.base import Quantizer, QuantizerOutput
from vqtok.quantizers.build import build_quantizer
from vqtok.quantizers.compose import Grouped, Projected, Residual
from vqtok.quantizers.fsq import FSQ
from vqtok.quantizers.ibq import IBQ
from vqtok.quantizers.lfq import BSQ, LFQ
from vqtok.quantizers.vq import VQ, one_update

__all__ = [
    "BSQ",
    "FSQ",
    "IBQ",
    "LFQ",
    "VQ",
    "Grouped",
    "Projected",
    "Quantizer",
    "QuantizerOutput",
    "Residual",
    "build_quantizer",
    "one_update",
]
