"""Combiners against their formulas, and what an attacker's gradient finds behind each of them."""

import math

import pytest
import torch
from torch import Tensor

import sparsemble.ensemble  # noqa: F401 (fills the registries)
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.types import MemberLogits, seeded
from sparsemble.ensemble.combiners.maximum import Maximum
from sparsemble.ensemble.combiners.mean_logit import MeanLogit
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.combiners.soft_vote import SoftVote

COMBINERS = [*(combiners.build(name) for name in combiners.names()), SoftVote(temperature=0.2)]
LOSSES = [attack_losses.build(name) for name in sorted(attack_losses.components)]


def sure_logits(members: int, x: Tensor, lead: float, classes: int = 5) -> MemberLogits:
    """Return what linear members say to images (B, D): they agree on class 0, ahead of the others by about `lead`."""
    rng = seeded(members)
    logits = x @ torch.randn(members, x.shape[1], classes, generator=rng)
    logits = logits + torch.randn(members, len(x), classes, generator=rng)
    return logits + lead * (torch.arange(classes) == 0)


def probabilities(logits: Tensor) -> list[list[float]]:
    """Softmax of each member on one image, with plain loops."""
    found = []
    for row in logits.tolist():
        weights = [math.exp(value) for value in row]
        found.append([weight / sum(weights) for weight in weights])
    return found


def normal(row: list[float]) -> list[float]:
    return [value / sum(row) for value in row]


def literal(combiner: Combiner, logits: Tensor) -> list[float]:
    """Return what the combiner should give on one image, as probabilities."""
    if combiner == MeanLogit():
        product = [math.prod(column) ** (1 / len(logits)) for column in zip(*probabilities(logits), strict=True)]
        return normal(product)
    if combiner == Maximum():
        return normal([max(column) for column in zip(*probabilities(logits), strict=True)])
    sharp = logits / combiner.temperature if isinstance(combiner, SoftVote) else logits
    return normal([sum(column) for column in zip(*probabilities(sharp), strict=True)])


@pytest.mark.parametrize("combiner", COMBINERS, ids=str)
class TestEveryFormula:
    @pytest.mark.parametrize("members", [1, 2, 4])
    def test_is_its_formula_and_a_distribution(self, combiner: Combiner, members: int) -> None:
        logits = torch.randn(members, 6, 5, generator=seeded(0), dtype=torch.float64) * 3
        combined = combiner(logits)
        expected = torch.tensor([literal(combiner, logits[:, i]) for i in range(6)], dtype=torch.float64)
        torch.testing.assert_close(combined.exp(), expected)
        torch.testing.assert_close(combined.logsumexp(1), torch.zeros(6, dtype=torch.float64))

    def test_adding_to_all_logits_of_a_member_changes_nothing(self, combiner: Combiner) -> None:
        logits = torch.randn(3, 6, 5, generator=seeded(1))
        moved = logits + torch.randn(3, 6, 1, generator=seeded(2)) * 10
        torch.testing.assert_close(combiner(moved), combiner(logits), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
    @pytest.mark.parametrize("lead", [0.0, 10.0, 25.0, 40.0])
    @pytest.mark.parametrize("members", [1, 2, 3, 4])
    def test_no_sure_image_hides_its_gradient(
        self, combiner: Combiner, loss: AttackLoss, lead: float, members: int
    ) -> None:
        if isinstance(combiner, SoftVote) and loss in (CrossEntropy(), KL()) and lead > 100 * combiner.temperature:
            pytest.skip("its docstring says so")
        x = torch.zeros(50, 9, requires_grad=True)
        logits = sure_logits(members, x, lead)
        combined = combiner(logits)
        clean = combiner(sure_logits(members, x + 0.01 * torch.randn(50, 9, generator=seeded(1)), lead)).detach()
        y = combined.detach().argmax(1)
        assert lead == 0 or (y == 0).all()
        of_image, gradient = torch.autograd.grad(loss(combined, clean, y).sum(), (x, logits))
        assert of_image.isfinite().all()
        assert (of_image.abs().amax(1) > 0).all()
        # Up the gradient lies a worse image: the loss rises to first order. KL does not know which class is true.
        assert lead == 0 or loss == KL() or (gradient[..., 0].sum(0) < 0).all()


def test_they_disagree_where_they_should() -> None:
    """One member sure of class 0, two a little for class 1."""
    logits = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6]]).log()[:, None]
    assert MeanProbability()(logits).argmax() == 0
    assert MeanLogit()(logits).argmax() == 0
    assert Maximum()(logits).argmax() == 0
    assert SoftVote(temperature=0.05)(logits).argmax() == 1
    sure = torch.tensor([[0.999, 0.001], [0.2, 0.8], [0.2, 0.8]]).log()[:, None]
    assert MeanProbability()(sure).argmax() == 1
    assert MeanLogit()(sure).argmax() == 0  # a product lets one member veto


def test_a_cold_soft_vote_counts_votes_and_a_warm_one_averages() -> None:
    logits = torch.randn(5, 200, 4, generator=seeded(3)) * 2
    votes = torch.nn.functional.one_hot(logits.argmax(-1), 4).float().mean(0)
    cold = SoftVote(temperature=1e-4)(logits).exp()
    torch.testing.assert_close(cold, votes, rtol=0, atol=0.01)
    torch.testing.assert_close(SoftVote(temperature=1.0)(logits), MeanProbability()(logits))


@pytest.mark.parametrize("temperature", [0.0, -1.0, 1.5, math.nan])
def test_refuses_a_temperature_that_is_no_vote(temperature: float) -> None:
    with pytest.raises(InputError, match=r"must lie in \(0, 1\]"):
        combiners.build({"name": "soft_vote", "temperature": temperature})
