"""Adversarial losses and their weights, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok.config import AdversarialKind
from vqtok.losses.adversarial import (
    Balancer,
    LeCam,
    accuracy,
    adaptive_weight,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    gradient_penalty,
    mean_logits,
)

KINDS: list[AdversarialKind] = ["hinge", "non_saturating", "least_squares"]
REAL = [torch.tensor([2.0, 0.0])]
FAKE = [torch.tensor([-2.0, 0.5])]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_hinge_by_hand() -> None:
    # Originals: max(0, 1 - 2) and max(0, 1 - 0); reconstructions: max(0, 1 - 2) and max(0, 1 + 0.5).
    assert discriminator_loss("hinge", REAL, FAKE).item() == pytest.approx((0.5 + 0.75) / 2)
    assert generator_loss("hinge", FAKE).item() == pytest.approx(0.75)


def test_non_saturating_is_cross_entropy() -> None:
    def entropy(logits: Tensor, target: float) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    expected = (entropy(REAL[0], 1.0) + entropy(FAKE[0], 0.0)) / 2
    torch.testing.assert_close(discriminator_loss("non_saturating", REAL, FAKE), expected)
    torch.testing.assert_close(generator_loss("non_saturating", FAKE), entropy(FAKE[0], 1.0))


def test_least_squares_by_hand() -> None:
    # Originals should be 1: errors 1 and 1; reconstructions 0: errors 4 and 0.25, or for the model 9 and 0.25.
    assert discriminator_loss("least_squares", REAL, FAKE).item() == pytest.approx((1 + 2.125) / 2)
    assert generator_loss("least_squares", FAKE).item() == pytest.approx(9.25 / 2)


@pytest.mark.parametrize(
    ("kind", "undecided", "expected"),
    [("hinge", 0.0, 1.0), ("non_saturating", 0.0, math.log(2)), ("least_squares", 0.5, 0.25)],
)
def test_what_cannot_tell_is_at_a_known_loss(kind: AdversarialKind, undecided: float, expected: float) -> None:
    logits = [torch.full((2, 1, 3, 3), undecided), torch.full((2, 1, 5), undecided)]
    assert discriminator_loss(kind, logits, logits).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_pull_where_they_should(kind: AdversarialKind) -> None:
    real, fake = torch.full((4,), 0.3, requires_grad=True), torch.full((4,), 0.2, requires_grad=True)
    discriminator_loss(kind, [real], [fake]).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad > 0).all()
    fake.grad = None
    generator_loss(kind, [fake]).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_several_discriminators_count_alike_however_many_patches_they_judge(kind: AdversarialKind) -> None:
    real, fake = [noise(2, 1, 9), noise(2, 1, 3, 3, seed=1)], [noise(2, 1, 9, seed=2), noise(2, 1, 4, 4, seed=3)]
    each = [discriminator_loss(kind, [a], [b]) for a, b in zip(real, fake, strict=True)]
    torch.testing.assert_close(discriminator_loss(kind, real, fake), (each[0] + each[1]) / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_accuracy_by_hand(kind: AdversarialKind) -> None:
    border = 0.5 if kind == "least_squares" else 0.0
    # Three of four originals and one of two reconstructions are classified correctly.
    real, fake = [border + torch.tensor([1.0, 0.1, 2.0, -1.0])], [border + torch.tensor([-3.0, 0.1])]
    assert accuracy(kind, real, fake).item() == pytest.approx((0.75 + 0.5) / 2)
    assert accuracy(kind, [torch.full((3,), border)], [torch.full((3,), border)]).item() == 0


def test_feature_matching_by_hand() -> None:
    real = [torch.tensor([2.0, -2.0]), torch.tensor([[4.0]])]
    fake = [torch.tensor([1.0, -2.0]), torch.tensor([[7.0]])]
    # A mean difference of 0.5 where the mean is 2; of 3 where it is 4.
    assert feature_matching_loss(real, fake).item() == pytest.approx((0.25 + 0.75) / 2)
    assert feature_matching_loss(real, [1.0 * feature for feature in real]).item() == 0
    assert feature_matching_loss([torch.zeros(3)], [torch.zeros(3)]).item() == 0


def test_feature_matching_does_not_move_the_originals_features() -> None:
    real, fake = noise(3).requires_grad_(), noise(3, seed=1).requires_grad_()
    feature_matching_loss([real], [fake]).backward()
    assert real.grad is None
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def test_gradient_penalty_by_hand() -> None:
    x = noise(3, 1, 2, 2).requires_grad_()
    weight = torch.tensor([1.0, 2.0, -1.0, 0.0], requires_grad=True)
    # Two patches with logits of w x and 3 w x; their mean has the gradient 2 w. The second discriminator ignores x.
    patches = torch.stack([x.flatten(1) @ weight, 3 * x.flatten(1) @ weight], 1).view(3, 1, 1, 2)
    penalty = gradient_penalty([patches, 0 * patches], x)
    assert penalty.item() == pytest.approx((1 + 4 + 1) / 2)
    penalty.backward()
    torch.testing.assert_close(weight.grad, weight.detach())


def lecam_step(lecam: LeCam, real: list[Tensor], fake: list[Tensor]) -> Tensor:
    loss: Tensor = lecam(real, fake)
    lecam.update(mean_logits(real, fake))
    return loss


def test_lecam_by_hand() -> None:
    lecam = LeCam(1)
    # The first step has no anchors yet; its means are the anchors of the second: originals at 1, others at -1.
    assert lecam_step(lecam, [torch.tensor([2.0, 0.0])], [torch.tensor([-1.0, -1.0])]).item() == 0
    loss = lecam_step(lecam, [torch.tensor([3.0, 3.0])], [torch.tensor([3.0, 0.0, 6.0])])
    # Originals minus -1: 4 and 4; 1 minus reconstructions: below 0, 1, and below 0.
    assert loss.item() == pytest.approx(16 + 1 / 3)
    # Means 3 and 3, so anchors (1 + 3) / 2 = 2 and (-1 + 3) / 2 = 1.
    assert lecam.anchors.flatten().tolist() == pytest.approx([2, 1])
    for _ in range(98):
        lecam_step(lecam, [torch.tensor([2.0])], [torch.tensor([1.0])])
    lecam_step(lecam, [torch.tensor([12.0])], [torch.tensor([1.0])])
    assert lecam.anchors[0].item() == pytest.approx(2 + 0.01 * 10)


def test_lecam_keeps_an_anchor_for_each_discriminator_and_no_gradient_in_it() -> None:
    lecam = LeCam(2)
    real = [noise(4).requires_grad_(), noise(4, seed=1) + 5]
    for _ in range(2):
        loss = lecam_step(lecam, real, [noise(4, seed=2), noise(4, seed=3)])
    loss.backward()
    assert lecam.anchors[0].tolist() == pytest.approx([real[0].mean().item(), real[1].mean().item()])
    assert not lecam.anchors.requires_grad
    assert real[0].grad is not None
    assert real[0].grad.abs().sum() > 0


def test_lecam_forgets_what_is_not_finite() -> None:
    lecam = LeCam(1)
    lecam_step(lecam, [torch.tensor([2.0])], [torch.tensor([1.0])])
    assert not lecam_step(lecam, [torch.tensor([math.nan])], [torch.tensor([1.0])]).isfinite()
    assert lecam.anchors.flatten().tolist() == [2, 1]
    assert lecam.updates.item() == 1


def test_adaptive_weight_by_hand() -> None:
    layer = torch.tensor([1.0, 2.0], requires_grad=True)
    # Gradients (3, 4) and (0, -0.5).
    reconstruction, adversarial = (torch.tensor([3.0, 4.0]) * layer).sum(), -0.5 * layer[1]
    assert adaptive_weight(reconstruction, adversarial, layer, torch.clone) == pytest.approx(5 / (0.5 + 1e-4))
    assert adaptive_weight(reconstruction, 0 * adversarial, layer, torch.clone) == 1e4
    # If another process has the gradients (-3, 0) and (0, 0.5), only that of the reconstruction remains, (0, 2).
    others = iter([torch.tensor([-3.0, 0.0]), torch.tensor([0.0, 0.5])])
    found = adaptive_weight(reconstruction, adversarial, layer, lambda gradient: (gradient + next(others)) / 2)
    assert found == 1e4
    assert layer.grad is None
    (reconstruction + adversarial).backward()  # The graph is kept.


def losses_of(x_hat: Tensor) -> dict[str, Tensor]:
    """Gradients of norm 6, 0.2 and 50 for each of two items."""
    direction = F.normalize(noise(2, 8), dim=1)
    scales = {"l1": 6.0, "mel": 0.2, "adversarial": -50.0}
    return {name: (scale * direction * x_hat).sum() for name, scale in scales.items()}


def measured(balancer: Balancer, losses: dict[str, Tensor], x_hat: Tensor) -> dict[str, float]:
    balancer.measure(losses, x_hat)
    return balancer.norms(losses)


def test_the_balancer_gives_the_stated_shares() -> None:
    shares = {"l1": 1.0, "mel": 2.0, "adversarial": 5.0, "sdr": 0.0}
    balancer = Balancer(shares, torch.clone)
    x_hat = noise(2, 8).requires_grad_()
    losses = losses_of(x_hat)
    weights = balancer.weights(measured(balancer, losses, x_hat))
    for name, loss in losses.items():
        (gradient,) = torch.autograd.grad(weights[name] * loss, x_hat, retain_graph=True)
        torch.testing.assert_close(gradient.norm(dim=1), torch.full((2,), 6 * shares[name]))
    del losses["adversarial"]
    weights = balancer.weights(balancer.norms(losses))
    assert (weights["l1"] * 6, weights["mel"] * 0.2) == pytest.approx((6, 12))


def test_the_balancer_goes_by_the_running_mean_of_norms() -> None:
    balancer, x_hat = Balancer({"l1": 1.0}, torch.clone), torch.ones(1, 1, requires_grad=True)
    assert balancer.norms(["l1"]) == {}
    found = [measured(balancer, {"l1": norm * x_hat.sum()}, x_hat)["l1"] for norm in (2.0, 4.0)]
    assert found == pytest.approx([2, (0.99 * 2 + 4) / (1 + 0.99)])
    # A single spike changes the weights only a little, and one that is not finite has no effect.
    balancer.measure({"l1": math.inf * x_hat.sum()}, x_hat)
    other = Balancer({"l1": 1.0}, torch.clone)
    other.load_state_dict(balancer.state_dict())
    expected = (0.99 * 5.98 + 1) / (0.99 * 1.99 + 1)
    assert measured(other, {"l1": x_hat.sum()}, x_hat)["l1"] == pytest.approx(expected)


def test_a_loss_without_gradient_has_a_finite_weight() -> None:
    x_hat = torch.ones(1, 1, requires_grad=True)
    balancer = Balancer({"l1": 1.0}, torch.clone)
    assert math.isfinite(balancer.weights(measured(balancer, {"l1": 0 * x_hat.sum()}, x_hat))["l1"])
