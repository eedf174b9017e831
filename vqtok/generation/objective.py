"""The training objective, and what it means on held-out items: bits per token."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.generation.batches import Masked, hide, stack
from vqtok.generation.items import Item
from vqtok.generation.network import Generator
from vqtok.generation.streams import StreamName

ROWS = 256
"""Logits are computed for a multiple of so many positions. On CPUs, PyTorch compiles and keeps its matrix products for
each number of rows, and a different one in each step would fill the memory."""
BITS = 1 / math.log(2)
"""Bits per nat."""


def losses(generator: Generator, batch: Mapping[StreamName, Masked]) -> dict[StreamName, Tensor]:
    """Return the mean cross entropy in nats of the codes to predict, for each stream that has any."""
    features = generator({name: masked.shown for name, masked in batch.items()})
    found: dict[StreamName, Tensor] = {}
    for name, masked in batch.items():
        total, count = torch.zeros(()), 0
        for codebook in range(masked.codes.shape[1]):
            where = masked.predicted(codebook)
            targets = masked.codes[:, codebook].flatten(1)[where]
            if targets.numel():
                chosen = F.pad(features[name][where], (0, 0, 0, -targets.numel() % ROWS))
                logits = generator.logits(name, codebook, chosen)[: targets.numel()]
                total = total + F.cross_entropy(logits.float(), targets, reduction="sum")
                count += targets.numel()
        if count:
            found[name] = total / count
    return found


@torch.no_grad()
def bits_per_token(generator: Generator, items: Sequence[Item], name: StreamName, given: Sequence[StreamName]) -> float:
    """Return an upper bound of the bits that a code of a stream takes, given other streams of the same items.

    The number of hidden positions is uniform from 1 to all. The mean cross entropy of the hidden codes is then that of
    coding them one at a time in a random order, which no order-agnostic coder can beat. The masks are the same in each
    call.

    Source: Uria et al. 2014, "A Deep and Tractable Density Estimator"; Hoogeboom et al. 2022, "Autoregressive
        Diffusion Models", section 3.
    """
    total, count = 0.0, 0
    device = next(generator.parameters()).device
    for start in range(0, len(items), BATCH):
        part = items[start : start + BATCH]
        batch = {other: _masked(generator, part, other, None, start).to(device) for other in given}
        for codebook in range(generator.streams[name].num_codebooks):
            batch[name] = _masked(generator, part, name, codebook, start).to(device)
            total += losses(generator, batch)[name].item() * len(part)
            count += len(part)
    return BITS * total / count


BATCH = 64


def _masked(generator: Generator, items: Sequence[Item], name: StreamName, codebook: int | None, seed: int) -> Masked:
    """Return the middle of each item's grid, with a part of a codebook hidden, or None for all known."""
    stream, rows = generator.streams[name], []
    for place, item in enumerate(items):
        rng = np.random.default_rng([seed, place, codebook or 0])
        codes = middle(item.codes(stream), stream.window)
        count = 0 if codebook is None else int(rng.integers(1, stream.positions + 1))
        rows.append(hide(codes, count, codebook or 0, rng))
    return stack(rows)


def middle(codes: Any, window: Sequence[int]) -> Any:
    """Return the middle window of a grid, int64 `(num_codebooks, *window)`."""
    starts = [(length - side) // 2 for length, side in zip(codes.shape[1:], window, strict=True)]
    where = tuple(slice(start, start + side) for start, side in zip(starts, window, strict=True))
    return codes[(slice(None), *where)].astype(np.int64)
