"""Nearest-neighbor search and k-means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vqtok.quantizers.codebook import cluster_sums, kmeans, nearest, pick


@pytest.fixture(autouse=True, params=[True, False], ids=["oneDNN", "BLAS"])
def product(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the search with each of the two libraries for matrix products; without oneDNN, twice with the other."""
    available = request.param and torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)


def brute_force(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    return torch.cdist(vectors.double(), codebook.double()).argmin(1)


@pytest.mark.parametrize(
    ("n", "dim", "size"),
    [(1, 1, 1), (3, 2, 2), (256, 8, 128), (257, 8, 129), (700, 32, 1024), (300, 5, 1025), (100, 16, 5000)],
)
def test_nearest_is_the_nearest(n: int, dim: int, size: int) -> None:
    torch.manual_seed(n + size)
    vectors, codebook = torch.randn(n, dim), torch.randn(size, dim)
    assert torch.equal(nearest(vectors, codebook), brute_force(vectors, codebook))


@pytest.mark.parametrize(("n", "dim", "size"), [(3, 2, 2), (257, 8, 129), (100, 16, 5000)])
def test_the_largest_product_is_found_too(n: int, dim: int, size: int) -> None:
    torch.manual_seed(n + size)
    vectors, codebook = torch.randn(n, dim), torch.randn(size, dim) + 0.5
    assert torch.equal(nearest(vectors, codebook, "dot"), (vectors.double() @ codebook.double().T).argmax(1))


def test_no_vectors_have_no_codes() -> None:
    assert nearest(torch.empty(0, 4), torch.randn(7, 4)).shape == (0,)


def test_of_equal_vectors_the_first_is_taken() -> None:
    codebook = torch.randn(50, 4).repeat(30, 1)
    assert torch.equal(nearest(codebook[:50], codebook), torch.arange(50))
    assert (nearest(torch.randn(10, 4), torch.zeros(2000, 4)) == 0).all()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 600), start=st.integers(0, 599), length=st.integers(1, 300))
def test_a_code_does_not_depend_on_the_other_vectors(n: int, start: int, length: int) -> None:
    torch.manual_seed(0)
    # On a line through a few codes there are many near ties, where the last bit decides.
    codebook = torch.linspace(-1, 1, 1500)[:, None] * torch.tensor([[0.6, 0.8, 0.3]])
    vectors = ((codebook[:-1] + codebook[1:]) / 2).repeat(2, 1)[: 600 + n]
    whole = nearest(vectors, codebook)
    assert torch.equal(nearest(vectors[start : start + length], codebook), whole[start : start + length])
    assert torch.equal(nearest(vectors[start : start + 1].clone(), codebook), whole[start : start + 1])


@pytest.mark.parametrize("size", [2, 3, 7, 8, 20, 129])
@pytest.mark.parametrize("dim", [13, 33, 257])
def test_a_code_does_not_depend_on_the_place_in_the_batch(size: int, dim: int) -> None:
    torch.manual_seed(0)
    # Rows that differ only by rounding: a score that is computed in another order would change the choice.
    codebook = torch.randn(1, dim) * (1 + 1e-7 * torch.randn(size, dim))
    vectors = torch.randn(25, dim)
    codes = nearest(vectors.repeat(41, 1), codebook).view(41, 25)
    assert (codes == codes[0]).all()
    assert torch.equal(torch.cat([nearest(vector[None], codebook) for vector in vectors]), codes[0])


@pytest.mark.parametrize("dim", [1, 8, 48, 256])
def test_a_code_does_not_depend_on_the_number_of_threads(dim: int) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("BLAS does not promise it")
    torch.manual_seed(0)
    codebook = torch.randn(1, dim) * (1 + 1e-7 * torch.randn(1100, dim))
    vectors = torch.randn(1000, dim)
    threads = torch.get_num_threads()
    try:
        codes = [nearest(vectors, codebook) for count in (1, 2, 3, 8) if torch.set_num_threads(count) is None]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(other, codes[0]) for other in codes)


def test_bad_vectors_have_codes_in_range() -> None:
    vectors = torch.tensor([[float("nan"), 0.0], [float("inf"), 0.0], [-float("inf"), 1.0], [3e38, -3e38]])
    for size in (1, 5, 1100):
        codes = nearest(vectors, torch.randn(size, 2))
        assert codes.min() >= 0
        assert codes.max() < size


def test_sums_and_counts() -> None:
    counts, sums = cluster_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert sums.tolist() == [[2.0], [0.0], [5.0], [0.0]]


def test_pick_repeats_only_where_it_must() -> None:
    vectors = torch.arange(5.0)[:, None]
    assert sorted(pick(vectors, 5)[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert set(pick(vectors, 20)[:, 0].tolist()) == {0, 1, 2, 3, 4}


def test_kmeans_finds_separate_clusters() -> None:
    torch.manual_seed(0)
    centers = torch.tensor([[0.0, 0.0], [10.0, 5.0]])
    vectors = (centers.repeat(50, 1) + 0.1 * torch.randn(100, 2))[torch.randperm(100)]
    found, counts = kmeans(vectors, 2)
    assert torch.cdist(centers, found).min(1).values.max() < 0.1
    assert counts.tolist() == [50, 50]


def test_kmeans_leaves_no_cluster_empty_where_vectors_suffice() -> None:
    torch.manual_seed(0)
    vectors = torch.cat([torch.zeros(500, 2), torch.randn(500, 2)])
    _, counts = kmeans(vectors, 64, iterations=30)
    assert (counts > 0).float().mean() > 0.9
