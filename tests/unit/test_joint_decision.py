"""The label and the decision to stop as one classifier: against decisions that are known."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import sparsemble.ensemble  # noqa: F401 (fills the registries)
from sparsemble.attacks import PGD, Deployed, Expectation, FullEnsemble, JointDecision, SurrogateAttack
from sparsemble.core.dynamic import decide_from_logits, predict_dynamic
from sparsemble.core.interfaces import Combiner, Decision, Ensemble, StoppingRule, combiners, stopping_rules
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, seeded
from sparsemble.ensemble.combiners.mean_logit import MeanLogit
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.never import Never
from tests.helpers import random_logits

THREAT = ThreatModel(eps=0.1)
X = torch.full((1, 1, 1, 2), 0.5)
Y = torch.zeros(1, dtype=torch.long)
CLAMP = 1e-12


class Stored(nn.Module):
    """Returns logits that were drawn before, whatever the images."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Images) -> Tensor:
        return self.logits[: len(x)]


@dataclass(frozen=True)
class SecondPixel(StoppingRule):
    """Stops after the first member unless its third logit, which carries the second pixel, is below -10.

    Whoever raises the wrong logits raises the third one, too, away from the second member.
    """

    def __call__(self, member_logits: Tensor, combiner: Combiner, *, last: bool) -> Decision:
        stop = (member_logits[0, :, 2] >= -10) | last
        return Decision(stop=stop, answer_with=torch.full_like(stop, len(member_logits), dtype=torch.long))

    def log_stop_probability(self, member_logits: Tensor, combiner: Combiner) -> Tensor:
        more = -10 * (member_logits[0, :, 2] + 10)
        return nn.functional.logsigmoid(torch.stack([-more, more]))

    def candidates(self, member_logits: Tensor, combiner: Combiner) -> list[StoppingRule]:
        return [self]


class Signal(nn.Module):
    """Class 0 by `lead` nats; the third logit is `base` and rises with the second pixel, by 60 a unit."""

    def __init__(self, lead: float, base: float) -> None:
        super().__init__()
        self.lead, self.base = lead, base

    def forward(self, x: Images) -> Tensor:
        third = self.base + 60 * (x.flatten(1)[:, 1] - 0.5)
        return torch.stack([torch.full_like(third, self.lead), torch.zeros_like(third), third], dim=1)


class Constant(nn.Module):
    """The same logits for every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Images) -> Tensor:
        return self.logits.expand(len(x), -1) + 0 * x.flatten(1)[:, :1]


def gate() -> Ensemble:
    """A first member, right by 60 nats, which the second pixel cannot change, and a second one that is always wrong."""
    return Ensemble([Signal(60.0, -5.0), Constant(0.0, 200.0, 0.0)], MeanLogit()).eval()


def attacked(surrogate: object, ensemble: Ensemble, *, use_deployed_logits: bool = False) -> Tensor:
    pgd = PGD(steps=20, step_size=0.1, random_start=False)
    attack = SurrogateAttack(attack=pgd, surrogate=surrogate, use_deployed_logits=use_deployed_logits)  # type: ignore[arg-type]
    x_adv = attack(ensemble, SecondPixel(), X, Y, THREAT, rng=seeded(0))
    return predict_dynamic(ensemble, x_adv, SecondPixel()).logits.argmax(1)


@pytest.mark.parametrize("name", stopping_rules.names())
@pytest.mark.parametrize("combiner", [combiners.build(name) for name in combiners.names()], ids=lambda one: one.name)
def test_only_the_deployed_prediction_has_a_positive_logit(name: str, combiner: Combiner) -> None:
    rule = stopping_rules.build(name)
    for members, classes, scale in ((1, 4, 2.0), (2, 2, 1.0), (4, 5, 2.0)):
        logits = random_logits(members, 300, classes=classes, scale=scale)
        ensemble = Ensemble([Stored(one) for one in logits], combiner).eval()
        found = JointDecision()(ensemble, rule)(torch.zeros(300, 1, 1, 1))
        deployed = decide_from_logits(logits, combiner, rule).logits
        untied = deployed.topk(2, dim=1).values.diff(dim=1)[:, 0] < 0
        assert torch.equal(found.argmax(1)[untied], deployed.argmax(1)[untied])
        assert torch.equal((found > 0).sum(1)[untied], torch.ones(int(untied.sum()), dtype=torch.long))


def test_a_single_member_is_attacked_by_its_leads() -> None:
    logits = torch.tensor([[3.0, 1.0, -1.0]])
    found = JointDecision()(Ensemble([Stored(logits)], MeanProbability()).eval(), Never())(torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(found, torch.tensor([[2.0, -2.0, -4.0]]))


def test_moves_the_decision_where_no_label_can_move() -> None:
    """The deployed prediction is wrong exactly where the second pixel is below 0.5 - 5 / 60, within the ball."""
    ensemble = gate()
    edge = torch.tensor([[[[0.5, 0.5 - 5 / 60 + 1e-4]]], [[[0.5, 0.5 - 5 / 60 - 1e-4]]]])
    assert predict_dynamic(ensemble, edge, SecondPixel()).logits.argmax(1).tolist() == [0, 1]
    assert attacked(FullEnsemble(), ensemble, use_deployed_logits=True) == 0
    assert attacked(Deployed(), ensemble) == 0
    assert attacked(JointDecision(), ensemble) == 1


def test_the_expected_prediction_keeps_its_gradient_where_the_probability_of_stopping_rounds_to_1() -> None:
    """The second prefix is used with probability e^-50: clamped at 1e-12 it does not depend on the image."""
    ensemble, rule = gate(), SecondPixel()
    leaf = X.clone().requires_grad_()
    logits = Expectation()(ensemble, rule)(leaf)
    (gradient,) = torch.autograd.grad(logits[0, 1] - logits[0, 0], leaf)
    assert gradient.flatten()[1] < -100
    member_logits = ensemble.member_logits(leaf)
    prefixes = torch.stack([ensemble.combiner(member_logits[:m]) for m in (1, 2)]).log_softmax(-1)
    clamped = rule.log_stop_probability(member_logits, ensemble.combiner).exp().clamp_min(CLAMP).log()
    expected = torch.logsumexp(prefixes + clamped.unsqueeze(-1), dim=0)
    (gradient,) = torch.autograd.grad(expected[0, 1] - expected[0, 0], leaf)
    assert gradient.abs().max() < 1e-6
    assert attacked(Expectation(), ensemble, use_deployed_logits=True) == 1
