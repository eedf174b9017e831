"""Windows over an axis, and over audio that arrives in pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vqtok.media.tiling import chunks, padded, windows

SIZES = {"core": st.integers(1, 20), "context": st.none() | st.integers(0, 8)}


@given(length=st.integers(1, 100), **SIZES)
def test_windows_have_their_context_and_their_parts_join(length: int, core: int, context: int | None) -> None:
    given = []
    for lies, part in windows(length, core, context):
        assert 0 <= lies.start < lies.stop <= length
        first, last = lies.start + part.start, lies.start + part.stop
        assert context is not None or (lies.start, lies.stop) == (0, length)
        assert lies.start <= max(0, first - (context or 0))
        assert lies.stop >= min(length, last + (context or 0))
        assert context is None or lies.stop - lies.start <= core + 2 * context
        given += range(first, last)
    assert given == list(range(length))


@given(samples=st.integers(1, 200), stride=st.integers(1, 5), cuts=st.lists(st.integers(0, 200)), **SIZES)
def test_chunks_are_the_windows_of_the_whole(
    samples: int, stride: int, cuts: list[int], core: int, context: int | None
) -> None:
    sound = np.arange(2 * samples, dtype=np.float32).reshape(2, samples)
    whole = padded(sound, stride)
    found = list(chunks(np.split(sound, sorted(cuts), axis=1), core, context, stride))
    expected = list(windows(whole.shape[1] // stride, core, context))
    assert [given for _, given in found] == [given for _, given in expected]
    for (chunk, _), (lies, _) in zip(found, expected, strict=True):
        if context or len(found) == 1:  # A window without context may be too short to mirror.
            assert np.array_equal(chunk, whole[:, lies.start * stride : lies.stop * stride])


def test_padding_mirrors() -> None:
    assert padded(np.float32([[1, 2, 3, 4, 5]]), 3).tolist() == [[1, 2, 3, 4, 5, 5]]
    assert padded(np.float32([[1]]), 4).tolist() == [[1, 1, 1, 1]]
    assert padded(np.float32([[[1, 2], [3, 4]]]), 2).tolist() == [[[1, 2], [3, 4]]]
