"""The positions of tiles and chunks: overlapping windows, of which only the part with its full context is used.

A window is `core + 2 * context` grid steps long. Windows begin every `core` steps, and the last one ends with the
media. At the start and the end of the media a network pads with zeros, in a window as in the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Padding = Literal["symmetric", "constant"] | None


def windows(length: int, core: int, context: int | None) -> Iterator[tuple[slice, slice]]:
    """Cut an axis of `length` grid steps into windows.

    Args:
        context: Grid steps to either side that a step depends on; None if it depends on all.

    Yields:
        The position of each window, and the part of it that is used. These parts cover the axis without overlap.
    """
    if context is None:
        core, context = length, 0
    for start in range(0, max(1, length - 2 * context), core):
        is_last = start + core >= length - 2 * context
        stop = length if is_last else start + core + 2 * context
        yield slice(start, stop), slice(context if start else 0, stop - start if is_last else core + context)


def chunks(
    pieces: Iterable[NDArray[np.float32]],
    core: int,
    context: int | None,
    stride: int,
    padding: Padding = "symmetric",
) -> Iterator[tuple[NDArray[np.float32], slice]]:
    """Cut audio that arrives in pieces `(channels, samples)` into the same `windows` as the whole.

    Args:
        stride: Samples per grid step.
        padding: How the last window is padded to whole grid steps.

    Yields:
        Each window, and the grid steps of it that are used.
    """
    if context is None:
        pieces = [np.concatenate(list(pieces), axis=1)]
    held: NDArray[np.float32] | None = None
    first = 0  # the first used grid step of the window
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece], axis=1)
        while context is not None and held.shape[1] > (core + 2 * context) * stride:
            yield held[:, : (core + 2 * context) * stride], slice(first, core + context)
            held, first = held[:, core * stride :], context
    assert held is not None
    yield padded(held, stride, padding), slice(first, -(-held.shape[1] // stride))


def padded(item: NDArray[np.float32], stride: int, padding: Padding = "symmetric") -> NDArray[np.float32]:
    """Pad the end of each axis of `(channels, *size)` to a multiple of the stride.

    Args:
        padding: Mirrored or with zeros; None does not pad.
    """
    if padding is None:
        return item
    missing = [(0, -length % stride) for length in item.shape[1:]]
    return np.pad(item, [(0, 0), *missing], mode=padding)
