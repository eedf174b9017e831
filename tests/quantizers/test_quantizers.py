"""The contract of all quantizers and compositions, and the properties of each kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import vector_quantize_pytorch as reference
from torch import Tensor

from vqtok.config import QuantizerConfig
from vqtok.errors import UsageError
from vqtok.quantizers import BSQ, FSQ, IBQ, LFQ, VQ, Grouped, Projected, Quantizer, Residual, build_quantizer
from vqtok.quantizers import vq as vq_module

CLASSES: dict[str, Callable[[], Quantizer]] = {
    "vq ema l2": lambda: VQ(8, 16),
    "vq ema cosine": lambda: VQ(8, 16, metric="cosine"),
    "vq gradient l2": lambda: VQ(8, 16, learning="gradient"),
    "vq gradient cosine": lambda: VQ(8, 16, metric="cosine", learning="gradient"),
    "fsq": lambda: FSQ([8, 5, 5, 3]),
    "lfq": lambda: LFQ(9),
    "bsq": lambda: BSQ(9),
    "ibq": lambda: IBQ(8, 16),
    "projected vq": lambda: Projected(VQ(4, 16, learning="gradient"), 8),
    "projected cosine vq": lambda: Projected(VQ(4, 16, metric="cosine"), 8),
    "projected fsq": lambda: Projected(FSQ([8, 5, 5]), 8),
    "projected lfq": lambda: Projected(LFQ(6), 8),
    "projected bsq": lambda: Projected(BSQ(6), 8),
    "projected ibq": lambda: Projected(IBQ(6, 16), 8),
    "projected residual vq": lambda: Projected(Residual([VQ(4, 16), VQ(4, 16)]), 8),
    "grouped unequal": lambda: Grouped([VQ(3, 16), VQ(5, 8, learning="gradient")]),
    "grouped kinds": lambda: Grouped([VQ(3, 16), FSQ([5, 4]), LFQ(3)]),
    "grouped residual vq": lambda: Grouped([Residual([VQ(4, 16), VQ(4, 8)]) for _ in range(2)]),
    "residual vq": lambda: Residual([VQ(8, 16), VQ(8, 8), VQ(8, 4)]),
    "residual gradient vq": lambda: Residual([VQ(8, 16, learning="gradient") for _ in range(3)]),
    "residual cosine vq": lambda: Residual([VQ(8, 16, metric="cosine") for _ in range(3)]),
    "residual projected vq": lambda: Residual([Projected(VQ(4, 16, metric="cosine"), 8) for _ in range(3)]),
    "residual grouped vq": lambda: Residual([Grouped([VQ(4, 16), VQ(4, 8)]) for _ in range(2)]),
    "residual fsq": lambda: Residual([FSQ([8, 5, 5]), FSQ([4, 3, 3])]),
    "residual lfq": lambda: Residual([LFQ(6) for _ in range(2)]),
    "residual projected bsq": lambda: Residual([Projected(BSQ(6), 8) for _ in range(2)]),
    "residual kinds": lambda: Residual([VQ(4, 16), FSQ([5, 5, 4, 3]), BSQ(4)]),
}
CONFIGS = {
    "vq": QuantizerConfig(dim=8, codebook_size=16),
    "factorised vq": QuantizerConfig(dim=8, codebook_size=16, projected_dim=4, metric="cosine", learning="gradient"),
    "residual vq": QuantizerConfig(dim=8, codebook_size=16, depth=3),
    "residual grouped projected vq": QuantizerConfig(dim=8, codebook_size=16, depth=2, groups=2, projected_dim=3),
    "fsq": QuantizerConfig(kind="fsq", dim=4, levels=(8, 5, 5, 3)),
    "residual projected fsq": QuantizerConfig(kind="fsq", dim=8, levels=(5, 4, 3), depth=2),
    "residual ibq": QuantizerConfig(kind="ibq", dim=8, codebook_size=16, depth=2),
    "grouped lfq": QuantizerConfig(kind="lfq", dim=8, groups=2),
    "residual projected bsq": QuantizerConfig(kind="bsq", dim=8, depth=2, projected_dim=6),
}
KINDS = CLASSES | {f"config: {name}": partial(build_quantizer, config) for name, config in CONFIGS.items()}


def kinds_with(*classes: type[Quantizer]) -> list[str]:
    return [name for name, make in KINDS.items() if any(isinstance(part, classes) for part in make().modules())]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@cache
def trained(kind: str) -> Quantizer:
    torch.manual_seed(0)
    quantizer = KINDS[kind]().train()
    for _ in range(3):
        quantizer(torch.randn(4, quantizer.dim, 24))
    return quantizer.eval()


@pytest.fixture
def quantizer(kind: str) -> Quantizer:
    """Return a quantizer after three training steps, in evaluation mode."""
    torch.manual_seed(1)
    return copy.deepcopy(trained(kind))


@pytest.fixture(params=[(12,), (3, 4)], ids=["1d", "2d"])
def z(request: pytest.FixtureRequest, quantizer: Quantizer) -> Tensor:
    return torch.randn(4, quantizer.dim, *request.param, requires_grad=True)


def same_state(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class TestContract:
    def test_forward_encode_and_decode_agree(self, quantizer: Quantizer, z: Tensor) -> None:
        quantized, codes, losses = quantizer(z)
        assert quantized.shape == z.shape
        assert quantized.dtype == torch.float32
        assert codes.shape == (z.shape[0], quantizer.num_codebooks, *z.shape[2:])
        assert codes.dtype == torch.int64
        assert not losses
        assert torch.equal(quantizer.encode(z), codes)
        assert torch.equal(quantizer.decode(codes), quantized)

    def test_codes_are_in_the_range_of_their_codebook(self, quantizer: Quantizer, z: Tensor) -> None:
        for codes in (quantizer.encode(z), quantizer.encode(1e4 * z)):
            assert codes.min() >= 0
            assert (codes.movedim(1, -1) < torch.tensor(quantizer.codebook_sizes)).all()

    def test_every_prefix_decodes(self, quantizer: Quantizer, z: Tensor) -> None:
        codes = quantizer.encode(z)
        latents = [quantizer.decode(codes[:, :length]) for length in range(1, quantizer.num_codebooks + 1)]
        assert all(prefix.shape == z.shape and prefix.isfinite().all() for prefix in latents)
        assert all(not torch.equal(prefix, latents[-1]) for prefix in latents[:-1])

    def test_items_do_not_depend_on_their_batch(self, quantizer: Quantizer, z: Tensor) -> None:
        latents, codes, _ = quantizer(z)
        for batch in ([0], [1], [2], [3], [3, 1], [2, 0, 1]):
            other_latents, other_codes, _ = quantizer(z[batch])
            assert torch.equal(other_codes, codes[batch])
            torch.testing.assert_close(other_latents, latents[batch], rtol=0, atol=1e-6)

    def test_bfloat16_gives_the_codes_of_its_float32_copy(self, quantizer: Quantizer, z: Tensor) -> None:
        half = z.bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            quantized, codes, _ = quantizer(half)
            encoded, decoded = quantizer.encode(half), quantizer.decode(codes)
        expected = quantizer(half.float())
        assert torch.equal(codes, expected.codes)
        assert torch.equal(encoded, expected.codes)
        assert torch.equal(decoded, expected.quantized)
        assert torch.equal(quantized, expected.quantized.bfloat16())

    def test_state_restores_codes_and_output(self, kind: str, quantizer: Quantizer, z: Tensor) -> None:
        fresh = KINDS[kind]().eval()
        fresh.load_state_dict(quantizer.state_dict())
        assert all(torch.equal(*pair) for pair in zip(fresh(z)[:2], quantizer(z)[:2], strict=True))

    def test_evaluation_changes_no_state(self, quantizer: Quantizer, z: Tensor) -> None:
        before = copy.deepcopy(quantizer.state_dict())
        quantizer.decode(quantizer.encode(z))
        quantizer(z)
        assert same_state(before, quantizer.state_dict())

    def test_training_gives_finite_losses_and_gradients(self, quantizer: Quantizer, z: Tensor) -> None:
        quantized, _, losses = quantizer.train()(z)
        assert losses.keys() <= {"commitment", "codebook", "entropy"}
        assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
        (quantized.square().mean() + sum(losses.values())).backward()
        learned = [z, *quantizer.parameters()]
        assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in learned)

    @pytest.mark.parametrize("kind", [name for name in KINDS if name not in kinds_with(FSQ, BSQ, IBQ, Projected)])
    @pytest.mark.parametrize("prefix_dropout", [None, 0.0, 1.0], ids=["eval", "full", "prefix"])
    def test_reconstruction_gradient_is_exactly_one(
        self, quantizer: Quantizer, z: Tensor, prefix_dropout: float | None
    ) -> None:
        quantizer.train(prefix_dropout is not None)
        for part in quantizer.modules():
            if isinstance(part, Residual) and prefix_dropout is not None:
                part.prefix_dropout = prefix_dropout
        weights = torch.randn_like(z)
        (quantizer(z).quantized * weights).sum().backward()
        assert torch.equal(z.grad, weights)
        assert all(codebook.grad is None for codebook in quantizer.parameters())

    @pytest.mark.parametrize("kind", kinds_with(VQ, LFQ))
    def test_commitment_of_every_codebook_reaches_the_encoder(self, quantizer: Quantizer, z: Tensor) -> None:
        committed = [part for part in quantizer.modules() if isinstance(part, (VQ, LFQ))]
        for alone in committed:
            with pytest.MonkeyPatch.context() as patch:
                for part in committed:
                    if part is not alone:
                        patch.setattr(part, "losses", lambda z, codes, quantized: {})
                (gradient,) = torch.autograd.grad(quantizer.train()(z).losses["commitment"], z)
            assert (gradient.norm(dim=1) > 0).all()


class TestVQ:
    def test_ema_follows_a_hand_worked_step(self) -> None:
        quantizer = vq_with([[0.0], [10.0]], decay=0.5)
        quantizer(torch.tensor([[[1.0, 2.0, 3.0, 9.0]]]))
        # In units of uniform usage, 2 vectors per code: counts 3 / 2 and 1 / 2, sums (1 + 2 + 3) / 2 and 9 / 2.
        assert quantizer.counts.tolist() == [(1 + 1.5) / 2, (1 + 0.5) / 2]
        assert quantizer.sums.flatten().tolist() == [(0 + 3) / 2, (10 + 4.5) / 2]
        assert quantizer.codebook.flatten().tolist() == pytest.approx([1.5 / 1.25, 7.25 / 0.75])

    def test_losses_pull_each_side_alone(self) -> None:
        quantizer = vq_with([[0.0], [10.0]], learning="gradient")
        z = torch.tensor([[[1.0, 8.0]]], requires_grad=True)
        losses = quantizer(z).losses
        assert losses["commitment"].item() == losses["codebook"].item() == (1 + 4) / 2
        sum(losses.values()).backward()
        assert z.grad.flatten().tolist() == [1, -2]
        assert quantizer.codebook.grad.flatten().tolist() == [-1, 2]

    def test_cosine_decodes_unit_vectors_and_ignores_length(self) -> None:
        torch.manual_seed(0)
        codebook, z = torch.randn(16, 4), torch.randn(2, 4, 30)
        quantizer = vq_with(codebook, metric="cosine").eval()
        quantizer.codebook.copy_(codebook)  # lengths other than 1, as an optimizer leaves them
        quantized, codes, _ = quantizer(z)
        similarity = torch.cosine_similarity(z.movedim(1, -1)[:, :, None], codebook, dim=-1)
        assert torch.equal(codes[:, 0], similarity.argmax(-1))
        torch.testing.assert_close(quantized.norm(dim=1), torch.ones(2, 30))
        assert torch.equal(quantizer.encode(7 * z), codes)

    def test_each_codebook_starts_once_and_is_searched_once_a_step(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kmeans, nearest = Mock(wraps=vq_module.kmeans), Mock(wraps=vq_module.nearest)
        monkeypatch.setattr(vq_module, "kmeans", kmeans)
        quantizer = Residual([VQ(4, 16), VQ(4, 8)])
        assert not quantizer.ready
        quantizer(torch.randn(2, 4, 50))
        assert quantizer.ready
        monkeypatch.setattr(vq_module, "nearest", nearest)
        quantizer(torch.randn(2, 4, 50))
        assert [call.args[1] for call in kmeans.call_args_list] == [16, 8]
        assert nearest.call_count == 2

    def test_residual_start_sees_what_the_level_before_left(self) -> None:
        torch.manual_seed(0)
        z = torch.randn(1, 4, 8)
        quantizer = Residual([VQ(4, 2), VQ(4, 8)], prefix_dropout=0.0)
        # Eight codes for the eight residuals leave no error; initialized from z itself they would.
        torch.testing.assert_close(quantizer(z).quantized, z)

    def test_residual_codebooks_follow_what_the_level_before_left(self) -> None:
        quantizer = Residual([vq_with([[0.0], [10.0]], decay=0.5), vq_with([[0.0], [1.0]], decay=0.5)])
        quantizer(torch.tensor([[[10.0, 11.0]]]))
        coarse, fine = (part.codebook.flatten().tolist() for part in quantizer.parts)
        assert coarse == pytest.approx([0, (10 + 10 + 11) / 3])
        assert fine == [0, 1]

    def test_collapsed_codebook_recovers(self) -> None:
        torch.manual_seed(0)
        quantizer = vq_with(torch.cat([torch.zeros(1, 2), torch.full((63, 2), 1e3)]), decay=0.9)
        usage = [quantizer(torch.randn(4, 2, 64)).codes.unique().numel() / 64 for _ in range(60)]
        assert usage[0] == 1 / 64
        assert usage[-1] > 0.9

    @pytest.mark.parametrize("positions", [64, 512, 8192])
    def test_restarts_do_not_depend_on_the_batch_size(self, positions: int) -> None:
        torch.manual_seed(0)
        used = torch.cartesian_prod(torch.arange(8.0), torch.arange(6.0))
        codebook = torch.cat([used, torch.full((16, 2), 1e3)])
        quantizer = vq_with(codebook, decay=0.9, learning="gradient")
        restarts = []
        for _ in range(40):
            latents = used[torch.randint(48, (positions,))] + torch.empty(positions, 2).uniform_(-0.4, 0.4)
            quantizer(latents.T[None])
            restarts.append((quantizer.codebook != codebook).any(1).nonzero().flatten().tolist())
        # An unused code falls below 3 % of uniform usage after log(0.03) / log(0.9) = 33.3 steps.
        assert restarts[32] == []
        assert restarts[33] == restarts[39] == list(range(48, 64))


class TestIBQ:
    def test_codes_go_by_the_product_and_the_gradient_through_a_softmax(self) -> None:
        quantizer = IBQ(2, 3).train()
        quantizer.codebook.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
        z = torch.tensor([[[0.5, -1.0], [0.1, 0.2]]], requires_grad=True)
        quantized, codes, losses = quantizer(z)
        assert codes.tolist() == [[[2, 1]]]  # (0.5, 0.1) is nearer to the first vector than to the last
        assert torch.equal(quantized[0, :, 0], quantizer.codebook[2])
        found = torch.autograd.grad(quantized.sum(), [z, quantizer.codebook], retain_graph=True)
        soft = torch.softmax(z.mT @ quantizer.codebook.T, -1) @ quantizer.codebook
        for gradient, expected in zip(found, torch.autograd.grad(soft.sum(), [z, quantizer.codebook]), strict=True):
            torch.testing.assert_close(gradient, expected)
        assert losses["commitment"] == losses["codebook"] > 0

    def test_training_moves_the_codebook_to_its_latents(self) -> None:
        torch.manual_seed(0)
        quantizer = IBQ(4, 16)
        optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
        centers = 4 * torch.randn(16, 4)
        z = (centers[:, None] + 0.1 * torch.randn(16, 8, 4)).flatten(0, 1).T[None]
        before = quantizer(z)
        for _ in range(100):
            losses = quantizer(z).losses
            optimizer.zero_grad()
            (losses["codebook"] + 0.1 * losses["entropy"]).backward()
            optimizer.step()
        after = quantizer(z)
        assert after.losses["commitment"] < before.losses["commitment"] / 2


class TestCompositions:
    def test_residual_error_falls_with_every_codebook(self) -> None:
        torch.manual_seed(0)
        quantizer, z = Residual([VQ(4, 16) for _ in range(4)]), torch.randn(4, 4, 100)
        codes = quantizer(z).codes
        errors = [(quantizer.decode(codes[:, :length]) - z).square().mean() for length in range(1, 5)]
        assert errors == sorted(errors, reverse=True)
        assert errors[3] < 0.1 * errors[0]

    def test_prefix_lengths_have_the_stated_shares(self) -> None:
        torch.manual_seed(0)
        items, depth = 20_000, 8
        parts = [VQ(2, 4, learning="gradient", restart_below=0.0) for _ in range(depth)]
        quantizer = Residual(parts, prefix_dropout=0.5)
        quantized, codes, _ = quantizer(torch.randn(items, 2, 1))
        prefixes = [quantizer.decode(codes[:, :length]) for length in range(1, depth + 1)]
        matches = torch.stack([(prefix == quantized).flatten(1).all(1) for prefix in prefixes])
        assert (matches.sum(0) == 1).all()
        shares = matches.float().mean(1).tolist()
        expected = [0.5 * math.log2((n + 1) / n) / math.log2(depth) for n in range(1, depth)]
        assert shares == pytest.approx([*expected, 0.5], abs=0.015)

    def test_groups_quantize_their_own_slice(self) -> None:
        torch.manual_seed(0)
        quantizer, z = Grouped([LFQ(2), LFQ(3)]), torch.randn(2, 5, 6)
        codes = quantizer.encode(z)
        assert torch.equal(quantizer.decode(codes), z.sign())
        assert torch.equal(quantizer.decode(codes[:, :1]), z.sign() * torch.tensor([1, 1, 0, 0, 0])[:, None])

    def test_projected_quantizes_between_its_maps(self) -> None:
        quantizer, z = Projected(LFQ(3), 8).eval(), torch.randn(2, 8, 5)
        signs = quantizer.project_in(z.mT).sign()
        torch.testing.assert_close(quantizer(z).quantized.mT, quantizer.project_out(signs))

    def test_config_composes_in_the_stated_order(self) -> None:
        quantizer = build_quantizer(CONFIGS["residual grouped projected vq"])
        assert quantizer.codebook_sizes == (16,) * 4
        nesting = [type(part) for part in quantizer.modules() if isinstance(part, Quantizer)]
        assert nesting == [Residual, *[Grouped, *[Projected, VQ] * 2] * 2]

    @pytest.mark.parametrize(
        ("config", "setting"),
        [
            (QuantizerConfig(kind="fsq", levels=(8, 2)), "levels"),
            (QuantizerConfig(kind="fsq", levels=(8, 1001)), "levels"),
            (QuantizerConfig(kind="fsq", levels=(8,) * 9), "levels"),
            (QuantizerConfig(kind="lfq", dim=32), "projected_dim"),
            (QuantizerConfig(kind="bsq", dim=32, projected_dim=25), "projected_dim"),
        ],
    )
    def test_oversized_implicit_codebooks_are_refused(self, config: QuantizerConfig, setting: str) -> None:
        with pytest.raises(UsageError, match=f"model.quantizer.{setting}"):
            build_quantizer(config)


class TestFSQ:
    @pytest.mark.parametrize("levels", [3, 4, 5, 8, 16, 999, 1000])
    def test_every_level_is_reached_in_order(self, levels: int) -> None:
        codes = FSQ([levels]).encode(torch.linspace(-10, 10, 20_001)[None, None])
        assert codes.flatten().unique_consecutive().tolist() == list(range(levels))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_every_combination_is_reached(self, dtype: torch.dtype) -> None:
        z = torch.cartesian_prod(*[torch.linspace(-2, 2, 17)] * 4)
        codes = FSQ([8, 5, 4, 3]).encode(z.T[None].to(dtype))
        assert codes.unique().numel() == 8 * 5 * 4 * 3

    def test_gradient_is_that_of_the_bound(self) -> None:
        quantizer, z = FSQ([8, 5]), torch.randn(3, 2, 4, requires_grad=True)
        (expected,) = torch.autograd.grad(quantizer.bound(z.mT).sum(), z)
        (gradient,) = torch.autograd.grad(quantizer(z).quantized.sum(), z)
        torch.testing.assert_close(gradient, expected)


class TestLFQ:
    @pytest.mark.parametrize("bits", [1, 2, 5, 8])
    @pytest.mark.parametrize(("kind", "temperature"), [(LFQ, 1.0), (LFQ, 100.0), (BSQ, 1.0), (BSQ, 20.0)])
    def test_entropy_equals_brute_force(self, kind: type[LFQ], temperature: float, bits: int) -> None:
        torch.manual_seed(0)
        quantizer, z = kind(bits, inverse_temperature=temperature), 0.3 * torch.randn(2, bits, 20)
        assert quantizer(z).losses["entropy"].item() == pytest.approx(entropy_by_all_codes(quantizer, z), abs=1e-4)

    def test_entropy_of_many_bits_bounds_brute_force(self) -> None:
        torch.manual_seed(0)
        quantizer, z = LFQ(11, inverse_temperature=2.0), torch.randn(2, 11, 20)
        assert quantizer(z).losses["entropy"].item() < entropy_by_all_codes(quantizer, z)

    def test_entropy_rewards_decisive_and_diverse_codes(self) -> None:
        quantizer = LFQ(3)
        corners = quantizer.decode(torch.arange(8)[None, None])
        losses = [quantizer(z).losses["entropy"].item() for z in (corners, 0 * corners, corners.abs())]
        assert losses == pytest.approx([-math.log(8), 0, 0], abs=1e-5)

    def test_bsq_lives_on_the_unit_sphere(self) -> None:
        quantizer = BSQ(5).eval()
        codes = torch.arange(32)[None, None]
        vectors = quantizer.decode(codes)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1, 32))
        assert torch.equal(quantizer.encode(vectors), codes)
        torch.testing.assert_close(quantizer.bound(3 * vectors.mT).norm(dim=-1), torch.ones(1, 32))


class TestReference:
    """With the same codebook, codes and latents equal those of vector-quantize-pytorch (whose channels are last)."""

    z = torch.randn(3, 6, 200, generator=torch.Generator().manual_seed(0))

    def check(self, ours: Quantizer, theirs: torch.nn.Module, z: Tensor) -> None:
        quantized, codes, _ = ours.eval()(z)
        expected, expected_codes, *_ = theirs.eval()(z.mT)
        assert torch.equal(codes.mT, expected_codes.long().view_as(codes.mT))
        torch.testing.assert_close(quantized.mT, expected)

    @pytest.mark.parametrize("metric", ["l2", "cosine"])
    def test_vq(self, metric: str) -> None:
        theirs = reference.VectorQuantize(dim=6, codebook_size=64, use_cosine_sim=metric == "cosine")
        self.check(vq_with(theirs._codebook.embed[0], metric=metric), theirs, self.z)

    @pytest.mark.parametrize("metric", ["l2", "cosine"])
    def test_residual(self, metric: str) -> None:
        theirs = reference.ResidualVQ(dim=6, codebook_size=64, num_quantizers=4, use_cosine_sim=metric == "cosine")
        parts = [vq_with(layer._codebook.embed[0], metric=metric) for layer in theirs.layers]
        self.check(Residual(parts), theirs, self.z)

    @pytest.mark.parametrize("levels", [(8, 5, 5, 5), (3, 4, 7), (5,)])
    def test_fsq(self, levels: tuple[int, ...]) -> None:
        self.check(FSQ(levels), reference.FSQ(list(levels)), self.z[:, : len(levels)])

    @pytest.mark.parametrize("kind", [LFQ, BSQ])
    def test_lfq(self, kind: type[LFQ]) -> None:
        self.check(kind(6), reference.LFQ(dim=6, spherical=kind is BSQ), self.z)


def vq_with(codebook: Tensor | list[list[float]], **settings: object) -> VQ:
    """Return a `VQ` with this codebook, as if trained."""
    rows = torch.as_tensor(codebook)
    quantizer = VQ(rows.shape[1], rows.shape[0], **settings)
    quantizer.codebook.data.copy_(rows)
    quantizer.reset_statistics()
    return quantizer


def entropy_by_all_codes(quantizer: LFQ, z: Tensor) -> float:
    """Compute the entropy loss from the softmax over the distances to all codebook vectors."""
    codebook = quantizer.decode(torch.arange(*quantizer.codebook_sizes)[None, None])[0].T.double()
    vectors = quantizer.bound(z.movedim(1, -1)).flatten(0, -2).double()
    assigned = torch.softmax(-quantizer.inverse_temperature * torch.cdist(vectors, codebook).square(), dim=1)
    entropy = torch.special.entr(assigned).sum(1).mean() - torch.special.entr(assigned.mean(0)).sum()
    return entropy.item()


# The beam search through residual codebooks.


def residual_of(*sizes: int, dim: int = 4) -> Residual:
    torch.manual_seed(0)
    parts = [vq_with(torch.randn(size, dim) / 2**depth) for depth, size in enumerate(sizes)]
    return Residual(parts).eval()


def errors(quantizer: Quantizer, z: Tensor, codes: Tensor) -> Tensor:
    return (quantizer.decode(codes) - z).square().sum(1)


def test_a_beam_as_wide_as_all_paths_finds_the_best_one() -> None:
    quantizer, z = residual_of(5, 4), torch.randn(3, 4, 7, 6)
    every = torch.cartesian_prod(torch.arange(5), torch.arange(4)).view(-1, 2, 1, 1)
    best = torch.stack([errors(quantizer, z, code.expand(3, 2, 7, 6)) for code in every]).amin(0)
    codes = quantizer.encode(z, beam=20)
    assert codes.shape == (3, 2, 7, 6)
    torch.testing.assert_close(errors(quantizer, z, codes), best)


def test_a_wider_beam_has_less_error_and_one_path_is_that_of_the_nearest() -> None:
    quantizer, z = residual_of(300, 40, 1100, 20), torch.randn(2, 4, 30, 40)
    found = [errors(quantizer, z, quantizer.encode(z, beam=beam)).mean() for beam in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.9 * found[0]
    vectors = z.movedim(1, -1).flatten(1, -2)
    assert torch.equal(quantizer.search(vectors, 4, 1), quantizer.assign(vectors))


def test_prices_count_like_errors() -> None:
    quantizer, z = residual_of(5, 4), torch.randn(3, 4, 7, 6)
    prices = [torch.rand(5), torch.rand(4)]
    every = torch.cartesian_prod(torch.arange(5), torch.arange(4)).view(-1, 2, 1, 1)
    own = (prices[0][every[:, 0]] + prices[1][every[:, 1]])[:, None]
    costs = torch.stack([errors(quantizer, z, code.expand(3, 2, 7, 6)) for code in every]) + own
    codes = quantizer.encode(z, beam=20, prices=prices)
    found = errors(quantizer, z, codes) + prices[0][codes[:, 0]] + prices[1][codes[:, 1]]
    torch.testing.assert_close(found, costs.amin(0))
    grouped = Grouped([quantizer, residual_of(9, 9)]).eval()
    both = grouped.encode(torch.cat([z, z], 1), beam=20, prices=[*prices, torch.zeros(9), torch.zeros(9)])
    assert torch.equal(both[:, :2], codes)


def test_the_beam_is_for_the_codebooks_that_are_asked_for() -> None:
    quantizer, z = residual_of(20, 20, 20), torch.randn(2, 4, 30, 40)
    few, all_of_them = quantizer.encode(z, 2, beam=4), quantizer.encode(z, beam=4)
    assert few.shape[1] == 2
    assert errors(quantizer, z, few).mean() < errors(quantizer, z, all_of_them[:, :2]).mean()
    # What is found for an item does not depend on the others.
    assert torch.equal(quantizer.encode(z[1:], 2, beam=4), few[1:])


def test_training_follows_paths_to_the_prefix_of_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, z = build_quantizer(QuantizerConfig(dim=6, codebook_size=9, depth=4, beam=4)), torch.randn(3, 6, 4, 4)
    quantizer.train()(z)  # Initializes the codebooks.
    lengths = torch.tensor([1, 2, 4])
    monkeypatch.setattr(quantizer, "_prefix_lengths", lambda z: lengths[:, None, None])
    expected = [quantizer.encode(z, length, beam=4) for length in lengths.tolist()]
    output = quantizer(z)
    for item, length in enumerate(lengths.tolist()):
        assert torch.equal(output.codes[item, :length], expected[item][item])
    assert output.codes.shape == (3, 4, 4, 4)
    assert not torch.equal(quantizer.eval()(z).codes[2], expected[2][2])  # Without training the search is greedy.


def test_training_with_a_beam_has_less_error() -> None:
    found = []
    z = torch.randn(64, 6, 4, 4)
    for beam in (1, 4):
        torch.manual_seed(0)
        quantizer = Residual([VQ(6, 32) for _ in range(4)], prefix_dropout=0, beam=beam).train()
        for _ in range(30):
            quantizer(z)
        found.append(errors(quantizer, z, quantizer.encode(z, beam=4)).mean().item())
    assert found[1] < 0.98 * found[0]


@pytest.mark.parametrize("setting", [{"metric": "cosine"}, {"groups": 2}, {"projected_dim": 3}, {"kind": "ibq"}])
def test_a_beam_in_training_needs_codebooks_that_can_be_searched(setting: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"model\.quantizer\.beam"):
        build_quantizer(replace(QuantizerConfig(dim=6, codebook_size=9, depth=2, beam=2), **setting))


def test_groups_and_projections_of_residual_codebooks_are_searched() -> None:
    grouped = Grouped([residual_of(20, 20, 20), residual_of(9, 9)]).eval()
    z = torch.randn(2, 8, 5, 6)
    codes = grouped.encode(z, beam=4)
    assert codes.shape == (2, 5, 5, 6)
    assert errors(grouped, z, codes).mean() < errors(grouped, z, grouped.encode(z)).mean()
    assert grouped.encode(z, 4, beam=4).shape[1] == 4
    projected = Projected(residual_of(20, 20), 6).eval()
    assert torch.equal(
        projected.encode(z[:, :6], beam=3),
        projected.inner.encode(projected.project_in(z[:, :6].movedim(1, -1)).movedim(-1, 1), beam=3),
    )


@pytest.mark.parametrize("other", [FSQ([4, 4]), vq_with(torch.randn(8, 2), metric="cosine")])
def test_other_kinds_refuse_a_beam(other: Quantizer) -> None:
    with pytest.raises(UsageError, match="needs residual codebooks"):
        other.encode(torch.randn(1, 2, 3, 3), beam=2)
