"""The other stopping rules, image by image with plain loops, and what an attacker can climb."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsemble.attacks.ensemble.ranking import log_stop_probability
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import StoppingRule, stopping_rules
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.agreement import Agreement
from sparsemble.ensemble.stopping.at_once import AtOnce
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.ensemble.stopping.first_passage import FirstPassage
from tests.unit.test_stopping import averages, quantities, random_logits, sigmoid


def passes_confidence(rule: Confidence, logits: Tensor) -> list[bool]:
    return [max(mean) >= rule.threshold for mean in averages(logits)]


def passes_hazard(rule: FirstPassage, logits: Tensor) -> list[bool]:
    confidence, change = quantities(logits)
    found = []
    for t, (c, u) in enumerate(zip(confidence, change, strict=True)):
        doubt = rule.a * (u - rule.tau_u) if t else 0.0
        found.append(sigmoid(rule.b * (c - rule.tau_c) - doubt) >= 0.5)
    return found


def passes_agreement(rule: Agreement, logits: Tensor) -> list[bool]:
    found = []
    for m, mean in enumerate(averages(logits), start=1):
        first, second = sorted(mean, reverse=True)[:2]
        answer = mean.index(first)
        votes = sum(int(one.argmax()) == answer for one in logits[:m])
        found.append(first - second >= rule.sure if m == 1 else votes >= rule.votes and first - second >= rule.lead)
    return found


CASES: list[tuple[Any, Callable[..., list[bool]]]] = [
    (Confidence(), passes_confidence),
    (Confidence(threshold=0.5), passes_confidence),
    (FirstPassage(), passes_hazard),
    (FirstPassage(a=40.0, b=20.0, tau_c=0.7), passes_hazard),
    (FirstPassage(a=0.0, b=20.0, tau_c=0.4), passes_hazard),
    (Agreement(), passes_agreement),
    (Agreement(sure=0.5, votes=3), passes_agreement),
    (Agreement(sure=2.0, votes=2, lead=0.3), passes_agreement),
    (Agreement(sure=0.2, votes=9), passes_agreement),
]


@pytest.mark.parametrize(("rule", "passes"), CASES, ids=[str(rule) for rule, _ in CASES])
@pytest.mark.parametrize("members", [1, 2, 4])
def test_stops_where_a_plain_loop_says(rule: StoppingRule, passes: Callable[..., list[bool]], members: int) -> None:
    logits = random_logits(members, 200, scale=1.5)
    found = decide_from_logits(logits, MeanProbability(), rule)
    for image in range(200):
        passed = passes(rule, logits[:, image])
        expected = passed.index(True) + 1 if any(passed) else members
        assert int(found.members_run[image]) == expected
        assert int(found.answered_with[image]) == expected


def test_at_once_runs_the_first_member_only() -> None:
    logits = random_logits(4, 50)
    found = decide_from_logits(logits, MeanProbability(), AtOnce())
    assert (found.members_run == 1).all()
    torch.testing.assert_close(found.logits, logits[0].log_softmax(-1))


@pytest.mark.parametrize("rule", [rule for rule, _ in CASES if rule != CASES[-1][0]], ids=str)
def test_an_attacker_sees_a_gradient_of_when_it_stops(rule: StoppingRule) -> None:
    logits = random_logits(4, 60, scale=0.5).requires_grad_()
    later = log_stop_probability(logits, rule, MeanProbability())[1:].logsumexp(0)
    (gradient,) = torch.autograd.grad(later.sum(), logits)
    assert gradient.isfinite().all()
    assert float((gradient.abs().amax((0, 2)) > 0).double().mean()) > 0.9


@pytest.mark.parametrize("name", [name for name in stopping_rules.names() if name not in ("at_once", "never")])
def test_calibration_can_always_fall_back_to_all_members(name: str) -> None:
    logits = random_logits(4, 100, scale=30.0)
    candidates = list(stopping_rules.build(name).candidates(logits, MeanProbability()))
    assert candidates[0] == stopping_rules.build(name)
    assert (decide_from_logits(logits, MeanProbability(), candidates[1]).members_run == 4).all()


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("confidence", {"threshold": 0.0}, "threshold = 0 must be above 0"),
        ("first_passage", {"b": 0.0}, "b = 0 above 0"),
        *(
            (name, {setting: value}, f"{setting} = {value:g} must be")
            for name in ("die", "first_passage")
            for setting in ("tau_u", "tau_c")
            for value in (math.nan, math.inf)
        ),
        *((name, {"tau_c": -0.1}, "tau_c = -0.1 must be 0 or more") for name in ("die", "first_passage")),
        *((name, {"b": math.inf}, "b = inf must be finite") for name in ("die", "first_passage")),
        *(("agreement", {setting: math.nan}, f"{setting} = nan") for setting in ("sure", "lead")),
        ("confidence", {"threshold": math.nan}, "threshold = nan must be above 0"),
        ("agreement", {"votes": 1}, "votes = 1 must be 2 or more"),
        ("agreement", {"sure": -0.5}, "sure = -0.5 must be 0 or more"),
    ],
)
def test_settings_that_cannot_be_give_a_sentence(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        stopping_rules.build({"name": name, **settings})
