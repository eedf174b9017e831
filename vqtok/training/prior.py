"""Fitting of the context prior to the codes of the training media."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from vqtok.tokens.coding.fixed_point import MAX_ACTIVATION, WEIGHT_BITS
from vqtok.tokens.coding.prior import ACTIVATION_BITS, PREFIX, STAGES, Prior, stage_of
from vqtok.tokens.coding.rans import TOTAL
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.clock import PRIOR_SHARE, Clock, Pace
from vqtok.training.data import TrainingItem

logger = logging.getLogger(__name__)


CROP = {"image": (24, 24), "audio": (1, 256)}
KERNEL = {"image": (3, 3), "audio": (1, 7)}
STEP_POSITIONS = 6912
"""The number of grid positions in a training step."""
WARM_UP_STEPS, WARM_UP_SHARE = 100, 0.2
"""The warm-up of the learning rate in steps and as a share of the fit; the shorter one counts."""
FURTHER_RATE = 0.25
"""The factor of the learning rate if the fit starts from an existing prior."""

Codes = NDArray[np.integer[Any]]


class _CodebookNetwork(nn.Module):
    """The trainable network of one codebook; `vqtok.tokens.coding.prior.CodebookPrior` describes its parts."""

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
        """Compute the cross-entropy of the codes in nats, summed, and their embeddings.

        Shapes:
            below: `(batch, dim, height, width)`, the sum of the embeddings of the codebooks before.
            codes: `(batch, height, width)`. stage: `(height, width)`. embeddings: `(batch, dim, height, width)`.
        """
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

    @torch.no_grad()
    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load what `arrays` returned.

        Raises:
            ValueError: The arrays have other sizes.
        """
        whole = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
        dim, kernel = self.embedding.shape[1], self.context.shape[2:]
        shift = 2 ** (ACTIVATION_BITS + WEIGHT_BITS)
        sizes = {name: tuple(values.shape) for name, values in whole.items()}
        if sizes != {name: values.shape for name, values in self.arrays().items()}:
            raise ValueError("the prior has other sizes")
        self.rank = whole["rank"].long()
        self.embedding.copy_(whole["embedding"] / 2**ACTIVATION_BITS)
        context = whole["context"].unflatten(0, (*kernel, 2 * dim)) / 2**WEIGHT_BITS
        self.context.copy_(context.permute(3, 2, 0, 1))
        self.context_bias.copy_(whole["context_bias"] / shift)
        for layer, name in ((self.hidden, "hidden"), (self.group, "group")):
            layer.weight.copy_(whole[name].T / 2**WEIGHT_BITS)
            layer.bias.copy_(whole[f"{name}_bias"] / shift)
        self.member.weight.copy_(whole["member"].mT.flatten(0, 1) / 2**WEIGHT_BITS)
        self.member.bias.copy_(whole["member_bias"].flatten() / shift)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the network as integers, in the form that `CodebookPrior` takes."""
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
    until: float | None = None,
    start: Prior | None = None,
) -> dict[str, NDArray[Any]]:
    """Fit a prior to the codes `(num_codebooks, *grid)` of training media.

    Args:
        codes: The codes of each item.
        codebooks: The vectors `(size, dim)` of each codebook, which determine the groups of similar codes.
        modality: "image" or "audio".
        config: The size of the prior and the learning rate.
        steps: The number of steps.
        seed: The seed of the initial weights and of the batches.
        on_step: Called with the number of steps done and the bits per token of the last step.
        until: A deadline by `time.monotonic()`, which may end the fit before the last step.
        start: A prior to start from; ignored if it has other sizes.

    Returns:
        The arrays that a model file stores, by name.
    """
    torch.manual_seed(seed)
    kernel = KERNEL[modality]
    networks, rate = _further(start, codebooks, config, kernel), FURTHER_RATE * config.learning_rate
    if networks is None:
        networks = nn.ModuleList(_CodebookNetwork(_ranks(vectors), config, kernel) for vectors in codebooks)
        rate = config.learning_rate
    optimizer = torch.optim.AdamW(networks.parameters(), rate, (0.9, 0.98), fused=True)
    planes = [item if item.ndim == 3 else item[:, None] for item in codes]
    began = time.monotonic()
    for step in range(steps):
        done = step / steps
        if until is not None:
            done = max(done, (time.monotonic() - began) / max(until - began, 1e-9))
        if done >= 1:
            break
        warm = min(1.0, max((step + 1) / WARM_UP_STEPS, done / WARM_UP_SHARE))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        batch = _batch(planes, CROP[modality], np.random.default_rng([seed, step]))
        bits = _step(networks, optimizer, batch, config, kernel)
        on_step(step + 1, bits)
    arrays: dict[str, NDArray[Any]] = {f"{PREFIX}kernel": np.array(kernel, np.int32)}
    for index, network in enumerate(networks):
        assert isinstance(network, _CodebookNetwork)
        arrays |= {f"{PREFIX}{index}.{name}": values for name, values in network.arrays().items()}
    return arrays


def prior_arrays(prior: Prior) -> dict[str, NDArray[Any]]:
    """Return the arrays that a model file stores for a prior."""
    arrays: dict[str, NDArray[Any]] = {f"{PREFIX}kernel": np.array(prior.kernel, np.int32)}
    for index, codebook in enumerate(prior.codebooks):
        for name in codebook.__dataclass_fields__:
            dtype = np.int32 if name == "rank" or name.endswith("_bias") else np.int8
            arrays[f"{PREFIX}{index}.{name}"] = getattr(codebook, name).astype(dtype)
    return arrays


def step_seconds(codebook_sizes: Sequence[int], modality: str, config: PriorConfig) -> float:
    """Measure the seconds that a step of fitting a prior takes on this machine."""
    kernel, crop = KERNEL[modality], CROP[modality]
    networks = nn.ModuleList(_CodebookNetwork(torch.arange(size), config, kernel) for size in codebook_sizes)
    optimizer = torch.optim.AdamW(networks.parameters(), fused=True)
    batch = torch.zeros(STEP_POSITIONS // math.prod(crop), len(codebook_sizes), *crop, dtype=torch.int64)
    for _ in range(2):  # The first step is slower, so the second one counts.
        since = time.monotonic()
        _step(networks, optimizer, batch, config, kernel)
    return time.monotonic() - since


def _step(
    networks: nn.ModuleList,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    config: PriorConfig,
    kernel: tuple[int, int],
) -> float:
    """Train on a batch of codes, and return its bits per token."""
    stage = torch.from_numpy(stage_of(batch.shape[2], batch.shape[3], kernel))
    below = torch.zeros(len(batch), config.dim, *batch.shape[2:])
    total = torch.zeros(())
    # Activations and weights have 8 bits at most, which bfloat16 holds exactly.
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        for index, network in enumerate(networks):
            nats, embedded = network(below, batch[:, index], stage)
            total, below = total + nats, below + embedded
    loss = total / batch.numel()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item() / math.log(2)


def _further(
    start: Prior | None, codebooks: Sequence[Tensor], config: PriorConfig, kernel: tuple[int, int]
) -> nn.ModuleList | None:
    """Return the networks of an existing prior; None if there is none or it has other sizes."""
    if start is None or start.kernel != kernel or len(start.codebooks) != len(codebooks):
        return None
    networks = nn.ModuleList()
    arrays = prior_arrays(start)
    for index, vectors in enumerate(codebooks):
        network = _CodebookNetwork(torch.arange(len(vectors)), config, kernel)
        own = {name: arrays[f"{PREFIX}{index}.{name}"] for name in start.codebooks[index].__dataclass_fields__}
        try:
            network.load(own)
        except ValueError:
            return None
        networks.append(network)
    return networks


def _batch(planes: Sequence[Codes], crop: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Cut random crops of equal size, aligned to the pattern of stages: `(batch, num_codebooks, height, width)`."""
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
    """Rank codebook vectors so that similar ones are adjacent, by recursive bisection along the principal axis."""

    def order(rows: Tensor) -> Tensor:
        if len(rows) <= 2:
            return rows
        centered = vectors[rows] - vectors[rows].mean(0)
        axis = torch.linalg.svd(centered, full_matrices=False)[2][0]
        rows = rows[(centered @ axis).argsort()]
        return torch.cat([order(half) for half in rows.tensor_split(2)])

    found = order(torch.arange(len(vectors)))
    return torch.empty_like(found).scatter_(0, found, torch.arange(len(found)))


def _round(x: Tensor, steps: int) -> Tensor:
    """Round to multiples of 1 / steps; the gradient is that of the identity."""
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


MIN_PRIOR_STEPS = 50
ENCODING_SHARE = 1 / 3
"""The largest share of the prior's time for encoding the media that it is fitted to."""
FITTING_SHARE = 0.6
"""The smallest share of the prior's time for fitting it."""


@dataclass(frozen=True)
class LearnedPrior:
    """A fitted prior, and the code counts that it was fitted to.

    Args:
        arrays: The arrays, as `save_model` takes them; empty if there was no time for a useful prior.
        statistics: The counted codes.
    """

    arrays: dict[str, NDArray[Any]]
    statistics: CodeStatistics


def prior_seconds(config: Config, codebook_sizes: Sequence[int], clock: Clock, parents: Mapping[str, Prior]) -> float:
    """Return the seconds to reserve for the priors of a run: 0 for no prior, infinite without a time budget.

    Logs a warning if the time budget is too short for a useful prior.
    """
    prior = config.prior
    if not prior.fit_steps or max(codebook_sizes) > TOTAL:
        return 0.0
    if clock.seconds is None:
        return math.inf
    needed = sum(step_seconds(codebook_sizes, name, prior) for name in config.model.modalities) / FITTING_SHARE
    share = PRIOR_SHARE * clock.seconds
    least = min(MIN_PRIOR_STEPS, prior.fit_steps) * needed
    if share < least and not parents:
        logger.warning(
            "the model gets no prior, which would make token files smaller: on this machine that needs `minutes` "
            "%d or more; vqtok train --init MODEL --prior-only fits one later",
            math.ceil(least / PRIOR_SHARE / 60),
        )
        return 0.0
    return min(share, prior.fit_steps * needed)


def final_prior(
    codec: Codec,
    config: Config,
    items: Sequence[TrainingItem],
    read: Callable[[TrainingItem], Media | None],
    trained_steps: int,
    parent: Prior | None,
    seed: int,
    on_prior: Callable[[int, int, float], None],
    until: float | None = None,
) -> LearnedPrior:
    """Fit the prior of a model that has just been trained, if the run is long enough.

    Args:
        codec: The codec of the trained model.
        config: The training configuration.
        items: The training items.
        read: Decodes an item; returns None if it cannot be read.
        trained_steps: The number of steps that the model was trained.
        parent: The prior of the model that training started from. The fit starts from it, and it is kept if there is
            no time for a fit.
        seed: The seed of the fit.
        on_prior: Called with the number of all steps, of the steps done, and the bits per token.
        until: The deadline of a run with a time budget, by `time.monotonic()`.
    """
    none = LearnedPrior({}, CodeStatistics())
    # A short run fits the prior for few steps, and a trial run does not fit one.
    steps = config.prior.fit_steps if until is not None else min(config.prior.fit_steps, trained_steps // 4)
    if steps >= min(MIN_PRIOR_STEPS, config.prior.fit_steps):
        learned = learn_prior(codec, config, items, read, steps, seed, on_prior, until, parent)
        if learned.arrays or not parent:
            return learned
        none = learned
    if not parent:
        return none
    logger.warning(
        "the run is too short to fit a prior, so the model keeps that of the model it started from; "
        "vqtok train --init MODEL --prior-only fits one later"
    )
    return LearnedPrior(prior_arrays(parent), none.statistics)


def learn_prior(
    codec: Codec,
    config: Config,
    items: Sequence[TrainingItem],
    read: Callable[[TrainingItem], Media | None],
    steps: int,
    seed: int,
    on_prior: Callable[[int, int, float], None],
    until: float | None = None,
    start: Prior | None = None,
) -> LearnedPrior:
    """Encode media in random order up to `config.prior.positions` positions, and fit a prior to their codes.

    Args:
        codec: The codec of the model.
        config: The training configuration.
        items: The training items.
        read: Decodes an item; returns None if it cannot be read.
        steps: The number of steps.
        seed: The seed of the fit.
        on_prior: Called with the number of all steps, of the steps done, and the bits per token.
        until: A deadline by `time.monotonic()`. The prior is dropped if it is then worse than static frequencies.
        start: A prior to start from.

    Raises:
        TrainingError: No item can be read.
    """
    model = codec.tokenizer
    assert isinstance(model, VQModel)
    codes: list[NDArray[np.integer[Any]]] = []
    statistics = CodeStatistics()
    positions = 0
    now = time.monotonic()
    pace = Pace(None if until is None else now + ENCODING_SHARE * (until - now))
    for index in np.random.default_rng(seed).permutation(len(items)):
        media = read(items[index])
        if media is None:
            continue
        if not pace.begins(media.data.size):
            break
        tokens = codec.encode(media)
        pace.done()
        statistics.add(tokens)
        codes.append(tokens.codes)
        positions += codes[-1][0].size
        on_prior(steps, 0, 0.0)
        if positions >= config.prior.positions:
            break
    if not codes:
        raise TrainingError("the prior cannot be fitted: none of the training files can be read")
    found: list[float] = []

    def on_step(step: int, bits: float) -> None:
        found.append(bits)
        on_prior(steps, step, bits)

    vectors = model.quantizer.codebooks()
    arrays = fit_prior(codes, vectors, model.modality, config.prior, steps, seed, on_step, until, start)
    if until is not None and not _is_useful(found, statistics):
        arrays = {}
        if start is None:
            logger.warning(
                "the model gets no prior: %d steps of fitting were too few; vqtok train --init MODEL --prior-only fits "
                "one later",
                len(found),
            )
    return LearnedPrior(arrays, statistics)


def _is_useful(bits: Sequence[float], statistics: CodeStatistics) -> bool:
    """Return whether a prior needs fewer bits in its last steps than the static frequencies of the codes."""
    last = bits[-max(1, len(bits) // 10) :]
    return bool(last) and sum(last) / len(last) < float(np.mean(statistics.entropy_bits))
