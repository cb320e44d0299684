"""BPDA: exact predictions, gradients of stand-ins, and what that finds behind decisions."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sparsemble as sp
from sparsemble.attacks import APGD, BPDA, FGSM, PGD, APGDTargeted, CarliniWagner, Margin, Noise, Square
from sparsemble.attacks.bpda import count_stand_ins, with_stand_ins
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Logits, seeded
from tests.helpers import LinearClassifier

MODEL = LinearClassifier(4, (1, 6, 6), seed=1)
OTHER = LinearClassifier(4, (1, 6, 6), seed=2)
X = torch.rand(24, 1, 6, 6, generator=seeded(0))


def gradient(model: Callable[[Images], Logits], x: Images = X) -> Tensor:
    point = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(with_stand_ins(model)(point)[:, 0].sum(), point)
    return slope


def without_gradients(x: Images) -> Images:
    with torch.no_grad():
        return 2 * x


def rounded_in_place(x: Images) -> Images:
    x = 8 * x
    return x.round_() / 8


IDENTITIES = {
    "round": (lambda x: (8 * x).round() / 8, 1.0),
    "round in place": (rounded_in_place, 1.0),
    "floor": (lambda x: (8 * x).floor() / 8, 1.0),
    "division": (lambda x: x // 0.25, 4.0),
    "integers": (lambda x: (255 * x).to(torch.uint8).float() / 255, 1.0),
    "integers added": (lambda x: (8 * x).long() + 0.5, 8.0),
    "detach": (lambda x: 3 * x.detach(), 3.0),
    "data": (lambda x: x.data, 1.0),
    "no_grad": (without_gradients, 2.0),
    "straight-through": (lambda x: x + (x.round() - x).detach(), 1.0),
    "threshold": (lambda x: nn.Threshold(0.5, 0.0)(x), 1.0),
    "shrink": (lambda x: nn.Hardshrink(0.5)(x), 1.0),
    "no step": (lambda x: 2 * x, 2.0),
}


@pytest.mark.parametrize("kind", IDENTITIES)
def test_steps_have_the_gradient_of_the_identity(kind: str) -> None:
    step, slope = IDENTITIES[kind]
    torch.testing.assert_close(gradient(lambda x: MODEL(step(x))), slope * gradient(MODEL))


def test_a_gate_has_the_gradient_of_a_sigmoid() -> None:
    def gate(x: Images) -> Logits:
        return (x.mean((1, 2, 3)) > 0.4).float()[:, None].expand(-1, 2)

    gap = (X.mean((1, 2, 3)) - 0.4).abs()
    one = math.exp(-1) / (1 + math.exp(-1)) ** 2  # slope of the sigmoid at +-1, where each gap lies in units of itself
    torch.testing.assert_close(gradient(gate), (one / gap / 36).view(-1, 1, 1, 1).expand_as(X))


def keep(mask: Callable[[Tensor], Tensor]) -> Callable[[Images], Logits]:
    return lambda x: MODEL((x.flatten(1) * mask(x.flatten(1))).view_as(x))


def set_in_place(x: Images) -> Logits:
    x = x.clone()
    x[x < 0.5] = 0.25
    return MODEL(x)


GATES = {
    "where": lambda x: torch.where((x.mean((1, 2, 3)) > 0.5)[:, None], MODEL(x), OTHER(x)),
    "product": keep(lambda z: z >= 0.5),
    "both": keep(lambda z: (z > 0.2) & ~(z > 0.7)),
    "either": keep(lambda z: torch.logical_or(z < 0.2, z > 0.7)),
    "fill": lambda x: MODEL(x.masked_fill(x < 0.5, 0.25)),
    "fill in place": lambda x: MODEL(x.clone().masked_fill_(x < 0.5, 0.25)),
    "assignment": set_in_place,
    "count": lambda x: MODEL(x) * (x > 0.5).sum((1, 2, 3))[:, None],
    "any": lambda x: MODEL(x) * (x > 0.95).flatten(1).any(1, keepdim=True),
    "largest": keep(lambda z: torch.zeros_like(z).scatter(1, z.topk(9, dim=1).indices, 1.0)),
    "sign": lambda x: MODEL((x - 0.5).sign()),
    "step": lambda x: MODEL(torch.heaviside(x - 0.5, torch.zeros(()))),
    "one-hot": lambda x: OTHER.weight[:, :4].exp() @ nn.functional.one_hot(MODEL(x).argmax(1), 4).float()[..., None],
}


@pytest.mark.parametrize("kind", GATES)
def test_decisions_have_a_gradient_and_predictions_stay_exact(kind: str) -> None:
    def model(x: Images) -> Logits:
        return GATES[kind](x).flatten(1)

    point = X.clone().requires_grad_()
    assert torch.equal(with_stand_ins(model)(point), model(X))
    through = gradient(model)
    assert through.isfinite().all()
    assert (through.flatten(1) != 0).any(1).all()
    logits = model(point)
    if logits.requires_grad and kind != "step":  # heaviside has no gradient at all
        (plain,) = torch.autograd.grad(logits[:, 0].sum(), point, allow_unused=True)
        assert plain is None or not torch.allclose(through, plain)
    assert count_stand_ins(model, X) > 0
    alone = gradient(model, X[:1])
    torch.testing.assert_close(alone, through[:1])


def test_infinite_masks_have_finite_gradients() -> None:
    def masked(x: Images) -> Logits:
        logits = MODEL(x)
        return logits.masked_fill(logits < logits.mean(1, keepdim=True), -math.inf).softmax(1)

    through = gradient(masked)
    assert through.isfinite().all()
    assert through.any()


@pytest.mark.parametrize("model", [MODEL, nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())])
def test_plain_networks_have_no_stand_ins(model: nn.Module) -> None:
    assert count_stand_ins(model, X) == 0


def test_assertions_and_failures_are_no_stand_ins() -> None:
    def careful(x: Images) -> Logits:
        assert x.min() >= 0
        return MODEL(x)

    assert count_stand_ins(careful, X) == 0
    assert count_stand_ins(lambda x: MODEL(x[:, :0]), X) == 0


def test_breaks_what_rounding_hides_as_far_as_the_worst_case_allows() -> None:
    threat = ThreatModel(eps=0.1)
    grid = 1 / 64

    def hidden(x: Images) -> Logits:
        return MODEL((x / grid).round() * grid)

    y = hidden(X).argmax(1)
    found = hidden(BPDA()(hidden, X, y, threat, rng=seeded(0))).argmax(1) != y
    # Rounding moves a pixel by at most half a step, either way.
    possible = MODEL.worst_margin(X, y, ThreatModel(eps=0.1 + grid / 2)) > 0
    certain = MODEL.worst_margin(X, y, ThreatModel(eps=0.1 - grid)) > 0
    assert certain.sum() > 5
    assert not (found & ~possible).any()
    assert found[certain].all()


class Hiding(nn.Module):
    """Looks at signs, beside a trace of a gradient that leads elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.signs = LinearClassifier(4, (1, 6, 6), seed=1)
        self.trace = LinearClassifier(4, (1, 6, 6), seed=2)

    def forward(self, x: Images) -> Logits:
        logits: Logits = self.signs((x > 0.5).float()) + 1e-3 * self.trace(x)
        return logits


def test_an_evaluation_reports_what_only_stand_ins_break() -> None:
    model = Hiding().eval()
    x = torch.rand(20, 1, 6, 6, generator=seeded(3))
    y = model(x).argmax(1)
    result = sp.evaluate(model, (x, y), sp.Linf(0.15), attacks=[PGD(steps=5)])
    status = {check.number: check for check in result.checks}
    assert status[11].status == "failed"
    assert "decisions (gt x1)" in status[11].detail
    assert status[19].status == "failed"
    assert "broken only by gradients of smooth stand-ins" in status[19].detail
    blind = sp.evaluate(model, (x, y), sp.Linf(0.15), attacks=[Noise(draws=10)], access="scores")
    assert "broken only by gradients of smooth stand-ins" in blind.checks[18].detail
    stronger = sp.evaluate(model, (x, y), sp.Linf(0.15), attacks=[PGD(steps=5), BPDA()])
    assert stronger.robust_accuracy < result.robust_accuracy - 0.2


def test_makes_its_own_gradients_of_a_model_that_has_none() -> None:
    """The decisions alone: every gradient is zero, and Square finds less than gradients of stand-ins."""

    class Deciding(Hiding):
        def forward(self, x: Images) -> Logits:
            logits: Logits = self.signs((x > 0.5).float())
            return logits

    model, square = Deciding().eval(), Square(queries=20)
    x = torch.rand(20, 1, 6, 6, generator=seeded(3))
    images = (x, model(x).argmax(1))
    with pytest.raises(InputError, match=r"gradient .* is 0 .*--access scores \(there bpda makes its own"):
        sp.evaluate(model, images, sp.Linf(0.15), attacks=[BPDA()])
    result = sp.evaluate(model, images, sp.Linf(0.15), attacks=[square, BPDA()], access="scores")
    assert result.attack("bpda-pgd40").robust_accuracy < result.attack(square.label).robust_accuracy
    assert result.threat.knowledge == "white-box, with gradients of stand-ins only (bpda-pgd40)"
    with pytest.raises(InputError, match="bpda-pgd40 has no stand-in for anything in the forward pass"):
        sp.evaluate(MODEL.eval(), images, sp.Linf(0.15), attacks=[BPDA()], access="scores")
    with pytest.raises(InputError, match="needs gradients, but attacks may use labels only"):
        sp.evaluate(model, images, sp.Linf(0.15), attacks=[BPDA()], access="labels")


def test_works_in_the_norms_of_its_attack() -> None:
    assert BPDA(attack=CarliniWagner()).norms == ("l2",)
    with pytest.raises(InputError, match="works in l2 only"):
        BPDA(attack=CarliniWagner()).check_norm("linf")


def test_any_attack_on_gradients_may_follow_the_stand_ins() -> None:
    threat, y = ThreatModel(eps=0.1), Hiding()(X).argmax(1)
    weaker = Hiding()(PGD(steps=10)(Hiding(), X, y, threat, rng=seeded(0))).argmax(1) != y
    for attack in (PGD(steps=10, loss=Margin()), APGD(steps=10), APGDTargeted(steps=10, targets=2), FGSM()):
        x_adv = BPDA(attack=attack)(Hiding(), X, y, threat, rng=seeded(0))
        assert int((Hiding()(x_adv).argmax(1) != y).sum()) > int(weaker.sum())
