"""Fit the context prior to the codes of the training media."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtok.codec.codec import Codec
from vqtok.config import Config, PriorConfig
from vqtok.errors import TrainingError
from vqtok.media.media import Media
from vqtok.models.vqmodel import VQModel
from vqtok.tokens.coding.prior import ACTIVATION_BITS, MAX_ACTIVATION, PREFIX, STAGES, WEIGHT_BITS, stage_of
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.data import Item

CROP = {"image": (24, 24), "audio": (1, 256)}
KERNEL = {"image": (3, 3), "audio": (1, 7)}
STEP_POSITIONS = 6912
"""Grid positions of a training step."""

Codes = NDArray[np.integer[Any]]


class _CodebookNetwork(nn.Module):
    """The network of one codebook in the order of ranks; `vqtok.tokens.coding.prior.CodebookPrior` names its parts."""

    def __init__(self, rank: Tensor, config: PriorConfig, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.rank = rank
        size, dim, hidden = len(rank), config.dim, config.hidden
        self.members = math.isqrt(size - 1) + 1
        self.groups = -(-size // self.members)
        self.embedding = nn.Parameter(0.5 * torch.randn(size, dim))
        fan_in = 2 * dim * math.prod(kernel)
        self.context = nn.Parameter(fan_in**-0.5 * torch.randn(hidden, 2 * dim, *kernel))
        self.context_bias = nn.Parameter(torch.zeros(STAGES, hidden))
        self.hidden = nn.Linear(hidden, hidden)
        self.group = nn.Linear(hidden, self.groups)
        self.member = nn.Linear(hidden, self.groups * self.members)
        for layer in (self.hidden, self.group, self.member):
            nn.init.normal_(layer.weight, std=0.5 * hidden**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, below: Tensor, codes: Tensor, stage: Tensor) -> tuple[Tensor, Tensor]:
        """Give the nats of all codes `(batch, height, width)`, and their embeddings `(batch, dim, height, width)`."""
        embedded = F.embedding(codes, _activation(self.embedding, signed=True)).permute(0, 3, 1, 2)
        weight = _weight(self.context)
        padding = [size // 2 for size in weight.shape[2:]]
        dim = embedded.shape[1]
        limited = below.clamp(*(sign * MAX_ACTIVATION / 2**ACTIVATION_BITS for sign in (-1, 1)))
        from_below = F.conv2d(limited, weight[:, :dim], padding=padding)
        nats = codes.new_zeros((), dtype=torch.float32)
        for index in range(STAGES):
            x = from_below
            if index:
                x = x + F.conv2d(embedded * (stage < index), weight[:, dim:], padding=padding)
            here = stage == index
            x = x.permute(0, 2, 3, 1)[:, here].flatten(0, 1) + self.context_bias[index]
            x = _linear(self.hidden, _activation(x))
            ranks = self.rank[codes[:, here].flatten()]
            group, member = ranks // self.members, ranks % self.members
            x = _activation(x)
            members = _linear(self.member, x).unflatten(1, (-1, self.members))
            members = members.gather(1, group[:, None, None].expand(-1, -1, self.members))[:, 0]
            for logits, wanted in ((_linear(self.group, x), group), (members, member)):
                nats = nats + F.cross_entropy(_round(logits.float(), 16), wanted, reduction="sum")
        return nats, embedded

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the network in whole numbers, as `CodebookPrior` takes them."""
        one = 2**ACTIVATION_BITS
        shift = 2 ** (ACTIVATION_BITS + WEIGHT_BITS)

        def bias(values: Tensor) -> Tensor:
            return (values * shift).round().int()

        member_shape = (self.groups, self.members)
        arrays = {
            "rank": self.rank.int(),
            "embedding": (_activation(self.embedding, signed=True) * one).to(torch.int8),
            "context": _whole(self.context.permute(2, 3, 1, 0).flatten(0, 2)),
            "context_bias": bias(self.context_bias),
            "hidden": _whole(self.hidden.weight.T),
            "hidden_bias": bias(self.hidden.bias),
            "group": _whole(self.group.weight.T),
            "group_bias": bias(self.group.bias),
            "member": _whole(self.member.weight.unflatten(0, member_shape).mT),
            "member_bias": bias(self.member.bias.unflatten(0, member_shape)),
        }
        return {name: np.ascontiguousarray(values.detach().numpy()) for name, values in arrays.items()}


def fit_prior(
    codes: Sequence[Codes],
    codebooks: Sequence[Tensor],
    modality: str,
    config: PriorConfig,
    steps: int,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, bits: None,
) -> dict[str, NDArray[Any]]:
    """Fit a prior to the codes `(num_codebooks, *grid)` of training media.

    Args:
        codebooks: The vectors `(size, dim)` of each codebook, to put like codes into one group.
        on_step: Gets the number of steps done and the bits a token of the last.

    Returns:
        The arrays that a model file stores, by name.
    """
    torch.manual_seed(seed)
    kernel = KERNEL[modality]
    networks = nn.ModuleList(_CodebookNetwork(_ranks(vectors), config, kernel) for vectors in codebooks)
    optimizer = torch.optim.AdamW(networks.parameters(), config.learning_rate, (0.9, 0.98), fused=True)
    planes = [item if item.ndim == 3 else item[:, None] for item in codes]
    bfloat16 = torch.cpu._is_avx512_bf16_supported()
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        batch = _batch(planes, CROP[modality], np.random.default_rng([seed, step]))
        stage = torch.from_numpy(stage_of(batch.shape[2], batch.shape[3], kernel))
        below = torch.zeros(len(batch), config.dim, *batch.shape[2:])
        total = torch.zeros(())
        # Activations and weights have 8 bits at most, which bfloat16 holds exactly.
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            for index, network in enumerate(networks):
                nats, embedded = network(below, batch[:, index], stage)
                total, below = total + nats, below + embedded
        loss = total / batch.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(step + 1, loss.item() / math.log(2))
    arrays: dict[str, NDArray[Any]] = {f"{PREFIX}kernel": np.array(kernel, np.int32)}
    for index, network in enumerate(networks):
        assert isinstance(network, _CodebookNetwork)
        arrays |= {f"{PREFIX}{index}.{name}": values for name, values in network.arrays().items()}
    return arrays


def _batch(planes: Sequence[Codes], crop: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Cut crops of equal size that begin where a stage pattern does: `(batch, num_codebooks, height, width)`."""
    areas = np.cumsum([plane[0].size for plane in planes], dtype=float)
    first = planes[int(np.searchsorted(areas, rng.random() * areas[-1]))]
    size = [min(length, limit) for length, limit in zip(first.shape[1:], crop, strict=True)]
    crops: list[Codes] = []
    while len(crops) < max(1, STEP_POSITIONS // math.prod(size)):
        plane = planes[int(np.searchsorted(areas, rng.random() * areas[-1]))]
        room = [length - part for length, part in zip(plane.shape[1:], size, strict=True)]
        if min(room) >= 0:
            top, left = (int(rng.integers(space + 1)) // 4 * 4 for space in room)
            crops.append(plane[:, top : top + size[0], left : left + size[1]])
    return torch.from_numpy(np.stack(crops)).long()


def _ranks(vectors: Tensor) -> Tensor:
    """Order codebook vectors so that like ones are neighbours: halve them along their principal axis, and again."""

    def order(rows: Tensor) -> Tensor:
        if len(rows) <= 2:
            return rows
        centred = vectors[rows] - vectors[rows].mean(0)
        axis = torch.linalg.svd(centred, full_matrices=False)[2][0]
        rows = rows[(centred @ axis).argsort()]
        return torch.cat([order(half) for half in rows.tensor_split(2)])

    found = order(torch.arange(len(vectors)))
    return torch.empty_like(found).scatter_(0, found, torch.arange(len(found)))


def _round(x: Tensor, steps: int) -> Tensor:
    """Round to multiples of 1 / steps, with the gradient of the identity."""
    return x + (torch.floor(x * steps + 0.5) / steps - x).detach()


def _activation(x: Tensor, *, signed: bool = False) -> Tensor:
    steps = 2**ACTIVATION_BITS
    limit = MAX_ACTIVATION / steps
    return _round(x.float().clamp(-limit if signed else 0.0, limit), steps)


def _weight(x: Tensor) -> Tensor:
    steps = 2**WEIGHT_BITS
    return _round(x.clamp(-MAX_ACTIVATION / steps, MAX_ACTIVATION / steps), steps)


def _whole(x: Tensor) -> Tensor:
    return (_weight(x) * 2**WEIGHT_BITS).round().to(torch.int8)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, _weight(layer.weight)) + layer.bias


def learn_prior(
    codec: Codec,
    config: Config,
    items: Sequence[Item],
    read: Callable[[Item], Media | None],
    steps: int,
    seed: int,
    on_prior: Callable[[int, int, float], None],
) -> tuple[dict[str, NDArray[Any]], CodeStatistics]:
    """Encode media in random order until there are `config.prior.positions` positions, and fit a prior to their codes.

    Args:
        on_prior: Gets the number of all steps, of those done, and the bits a token.

    Returns:
        The prior's arrays, as `save_model` takes them, and the counted codes.
    """
    model = codec.tokenizer
    assert isinstance(model, VQModel)
    codes: list[NDArray[np.integer[Any]]] = []
    statistics = CodeStatistics()
    positions = 0
    for index in np.random.default_rng(seed).permutation(len(items)):
        media = read(items[index])
        if media is None:
            continue
        tokens = codec.encode(media)
        statistics.add(tokens)
        codes.append(tokens.codes)
        positions += codes[-1][0].size
        on_prior(steps, 0, 0.0)
        if positions >= config.prior.positions:
            break
    if not codes:
        raise TrainingError("no training file can be read to fit the prior to")
    vectors = model.quantizer.codebooks()
    arrays = fit_prior(codes, vectors, model.modality, config.prior, steps, seed, partial(on_prior, steps))
    return arrays, statistics
