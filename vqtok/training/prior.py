"""Fit the context prior to the codes of the training media."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtok.codec.codec import Codec
from vqtok.config import Config
from vqtok.errors import TrainingError
from vqtok.media.media import Media
from vqtok.models.prior import fit_prior
from vqtok.models.vqmodel import VQModel
from vqtok.tokens.statistics import CodeStatistics
from vqtok.training.data import Item


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
