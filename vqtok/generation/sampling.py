"""Sampling: fill in hidden codes in a few steps, the most certain ones first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtok.generation.network import Generator
from vqtok.generation.streams import HIDDEN, StreamName

NO_GUMBEL = 1e-20
CHOICE_NOISE = 1.0
"""The scale of the random numbers that are added to the certainty of codes, at the start of sampling.

Unlike: The published configuration of MaskGIT has 4.5. On grids of 49 codes chance then decides which codes are kept:
of digits drawn from their names 70 % were recognized instead of 81 %.
"""


@dataclass(frozen=True)
class SamplingOptions:
    """How codes are sampled."""

    steps: int = 12
    """Passes of the network for the first codebook; each finer codebook has half as many."""
    temperature: float = 1.0
    """Above 1 codes vary more, below 1 less; 0 takes the most likely codes."""
    guidance: float = 2.0
    """How much the condition is emphasized: 0 samples as trained. Without a condition it has no effect."""


DEFAULT_SAMPLING = SamplingOptions()
MOST_LIKELY = SamplingOptions(temperature=0.0, guidance=0.0)
"""For captions, which are to be right rather than varied."""


@torch.no_grad()
def fill(
    generator: Generator,
    codes: Mapping[StreamName, Tensor],
    target: StreamName,
    options: SamplingOptions = DEFAULT_SAMPLING,
    noise: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Return the codes of a stream with all hidden ones filled in, if the grid is not larger than the window.

    Codebooks are filled coarse to fine. In each step all hidden codes of a codebook are sampled, and those that are the
    least certain are hidden again, as many as a cosine over the steps says.

    Args:
        codes: int64 `(batch, num_codebooks, *grid)` for each stream, with `HIDDEN` codes; grids at most as large as the
            window.
        target: The stream to fill in.
        noise: The random numbers of each item; by default those of the seeds 0, 1, 2...

    Source: Chang et al. 2022, "MaskGIT", section 3.2; Ho and Salimans 2022, "Classifier-Free Diffusion Guidance".
    """
    filled = codes[target].clone()
    others = {name: known for name, known in codes.items() if name != target}
    noise = noise or seeded(range(len(filled)))
    for codebook in range(filled.shape[1]):
        plane = filled[:, codebook].flatten(1)
        # All codes of the finer codebooks have to be hidden while a coarser one is sampled, as in training.
        counts = (plane == HIDDEN).sum(1)
        steps = max(1, options.steps >> codebook) if counts.any() else 0
        for step in range(steps):
            shown = filled.clone()
            shown[:, codebook] = plane.view_as(filled[:, codebook])
            _hide_finer(shown, codebook)
            hidden = plane == HIDDEN
            logits = _guided(generator, others, target, shown, codebook, hidden, options.guidance)
            left = (counts * math.cos(math.pi / 2 * (step + 1) / steps)).floor().long()
            plane = _sample(plane, hidden, logits, left, noise, options.temperature, 1 - (step + 1) / steps)
        filled[:, codebook] = plane.view_as(filled[:, codebook])
    return filled


@torch.no_grad()
def fill_grid(
    generator: Generator,
    codes: Tensor,
    target: StreamName,
    others: Mapping[StreamName, Tensor],
    options: SamplingOptions = DEFAULT_SAMPLING,
    noise: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """Return codes of any grid with all hidden ones filled in.

    A grid larger than the window is filled by windows that overlap: each sees what was known or filled in before.

    Args:
        codes: int64 `(batch, num_codebooks, *grid)`, with `HIDDEN` codes at the same positions of all items.
        others: The codes of other streams, the condition. All windows get them.
    """
    filled, noise = codes.clone(), noise or seeded(range(len(codes)))
    while (hidden := (filled == HIDDEN).flatten(0, 1).any(0)).any():
        where = (slice(None), slice(None), *next_window(hidden, generator.streams[target].window))
        filled[where] = fill(generator, {**others, target: filled[where]}, target, options, noise)
    return filled


def next_window(hidden: Tensor, window: Sequence[int]) -> tuple[slice, ...]:
    """Return where the next window lies: around all hidden positions if they take at most half of it on each axis.

    Else half of the window, if possible, lies before the first hidden position, as its context.
    """
    where: list[slice] = []
    for axis, side in enumerate(window):
        length = hidden.shape[axis]
        # Hidden positions in the part of the grid that the axes before have chosen.
        rows = hidden[tuple(where)].movedim(axis, 0).reshape(length, -1).any(1).nonzero()[:, 0]
        first, last = int(rows[0]), int(rows[-1])
        side = min(side, length)
        start = (first + last + 1 - side) // 2 if last - first < side // 2 else first - side // 2
        start = min(max(0, start), length - side)
        where.append(slice(start, start + side))
    return tuple(where)


def seeded(seeds: Iterable[int]) -> list[torch.Generator]:
    """Return a source of random numbers for each seed."""
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _hide_finer(shown: Tensor, codebook: int) -> None:
    shown[:, codebook + 1 :] = HIDDEN


def _guided(
    generator: Generator,
    others: Mapping[StreamName, Tensor],
    target: StreamName,
    shown: Tensor,
    codebook: int,
    hidden: Tensor,
    guidance: float,
) -> Tensor:
    """Return the logits of the hidden positions `(hidden, codebook_size)`."""
    features = generator({**others, target: shown})[target]
    logits = generator.logits(target, codebook, features[hidden]).float()
    if others and guidance:
        alone = generator.logits(target, codebook, generator({target: shown})[target][hidden]).float()
        logits = logits + guidance * (logits - alone)
    return logits


def _sample(
    plane: Tensor,
    hidden: Tensor,
    logits: Tensor,
    left: Tensor,
    noise: Sequence[torch.Generator],
    temperature: float,
    remaining: float,
) -> Tensor:
    """Sample the hidden codes `(batch, positions)`, and hide the `left` least certain ones of each item again."""
    counts = hidden.sum(1).tolist()
    size = logits.shape[-1]
    log_probabilities = logits.log_softmax(-1)
    gumbels = torch.cat([_gumbel((count, size + 1), own) for count, own in zip(counts, noise, strict=True)]).to(logits)
    chosen = (log_probabilities + temperature * gumbels[:, :size]).argmax(-1)
    certainty = log_probabilities.gather(-1, chosen[:, None])[:, 0]
    certainty = certainty + CHOICE_NOISE * temperature * remaining * gumbels[:, size]
    plane = plane.clone()
    plane[hidden] = chosen
    certainties = torch.full(plane.shape, math.inf, device=plane.device)
    certainties[hidden] = certainty
    order = certainties.argsort(dim=1)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(plane.shape[1], device=plane.device).expand_as(order)
    )
    plane[rank < left[:, None]] = HIDDEN
    return plane


def _gumbel(shape: Sequence[int], noise: torch.Generator) -> Tensor:
    uniform = torch.rand(*shape, generator=noise).clamp(min=NO_GUMBEL)
    return -(-uniform.log()).clamp(min=NO_GUMBEL).log()
