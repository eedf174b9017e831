"""Where tiles and chunks lie: windows with real context, each giving what it has all the context for.

A window is `core + 2 * context` grid steps long, one begins every `core` steps from the start of the medium, and the
last ends with the medium. Where the medium begins or ends a network pads with zeros, in a window as in the whole.
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
        context: None where nothing less than the whole will do.

    Returns:
        For each window where it lies, and which part of it is given; the parts join without gap or overlap.
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
    """Cut a sound that comes in pieces `(channels, samples)` into the `windows` that its whole would have.

    Args:
        stride: samples of a grid step.
        padding: what fills the last window up to whole grid steps.

    Returns:
        Each window, and which grid steps of it are given.
    """
    if context is None:
        pieces = [np.concatenate(list(pieces), axis=1)]
    held: NDArray[np.float32] | None = None
    first = 0  # of the grid steps that are given, in the window
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece], axis=1)
        while context is not None and held.shape[1] > (core + 2 * context) * stride:
            yield held[:, : (core + 2 * context) * stride], slice(first, core + context)
            held, first = held[:, core * stride :], context
    assert held is not None
    yield padded(held, stride, padding), slice(first, -(-held.shape[1] // stride))


def padded(item: NDArray[np.float32], stride: int, padding: Padding = "symmetric") -> NDArray[np.float32]:
    """Fill the end of each axis of `(channels, *size)` up to a multiple of the stride: mirrored, or with zeros.

    Args:
        padding: None leaves it as it is.
    """
    if padding is None:
        return item
    missing = [(0, -length % stride) for length in item.shape[1:]]
    return np.pad(item, [(0, 0), *missing], mode=padding)
