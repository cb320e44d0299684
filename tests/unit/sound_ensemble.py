"""A sound ensemble of linear members that stops early, a result of attacks on it, and ways to break either."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import DynamicOutput, Ensemble, combiners
from sparsemble.core.registry import to_dict
from sparsemble.core.results import (
    AttackResult,
    CheckResult,
    Cost,
    EvaluationResult,
    MembersRun,
    MembersTable,
    Passes,
    SecurityCurve,
)
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.evaluation import checks
from tests.example_results import accuracy_of, example_evaluation, interval_of, total, union
from tests.helpers import LinearClassifier

THREAT = ThreatModel(eps=8 / 255)
X, Y = torch.rand(24, 1, 6, 6, generator=seeded(0)), torch.arange(24) % 4


TEAM = Ensemble([LinearClassifier(4, (1, 6, 6), seed=seed) for seed in range(3)], MeanProbability()).eval()
MEMBER = TEAM.members[0]
RIGHT = MEMBER(X).argmax(1).detach()
"""Labels that the first member gives: what it is right on."""


def decide(x: Images) -> DynamicOutput:
    return predict_dynamic(TEAM, x, DIE())


def altered(change: Callable[[Tensor], Tensor]) -> Callable[[Images], DynamicOutput]:
    """The ensemble with changed logits."""

    def broken(x: Images) -> DynamicOutput:
        output = decide(x)
        return DynamicOutput(change(output.logits), output.answered_with, output.members_run)

    return broken


def network() -> nn.Sequential:
    """A small convolutional network in eval mode."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    return body.eval()


def crafted() -> Images:
    return PGD(steps=3)(TEAM, X, Y, THREAT, rng=seeded(1))


def expect(check: CheckResult, number: int, status: str, text: str = "") -> None:
    """Assert a verdict, and that its sentence contains a text."""
    assert (check.number, check.status) == (number, status), check
    assert check.name == checks.NAMES[number]
    assert check.detail
    assert text in check.detail, check


@functools.cache
def ensemble_result(images: int = 40) -> EvaluationResult:
    """Return a sound result, made up, of every attack on an ensemble of three that stops early."""
    others = [combiners.build(name) for name in combiners.names() if name != "mean_probability"]
    suite: list[Any] = [attacks.build(name) for name in ("autoattack", "fmn")]
    suite += full_suite(3, [PGD(steps=50)], others, black_box=[Square(queries=100)])
    rng = seeded(0)
    clean = (torch.rand(images, generator=rng) < 0.9).int()
    results = [an_attack(attack, clean * (torch.rand(images, generator=rng) < 0.8).int()) for attack in suite]
    base = example_evaluation(images=images)
    result = replace(
        base,
        name="digits",
        model=replace(base.model, parameters=1200, nonzeros=300, sparsity=0.75, extra_data="none"),
        data=replace(base.data, name="digits"),
        clean_accuracy=accuracy_of(clean.tolist()),
        clean_interval=interval_of(clean.tolist()),
        clean_correct=tuple(clean.tolist()),
        attacks=tuple(results),
        worst_case=union(clean.tolist(), results),
        passes=total(results),
        members_run=MembersRun(clean=1.2, attacked=1.9, slowdown=2.7),
        cost=Cost(bytes=1500, peak_memory=80_000, macs_dense=9000, macs_nonzero=2000.5, latency=base.cost.latency),
        security_curve=SecurityCurve(attack="pgd40", images=images, eps=(0.0, 8 / 255, 0.5), accuracy=(0.9, 0.5, 0.0)),
        members=MembersTable(
            names=("member 1", "member 2", "member 3"),
            images=images,
            clean=(0.8, 0.8, 0.8),
            robust=(0.3, 0.4, 0.35),
            transfer=((0.3, 0.6, 0.6), (0.6, 0.4, 0.6), (0.6, 0.6, 0.35)),
        ),
        checks=(),
    )
    return result


def an_attack(attack: Attack | Any, correct: Tensor) -> AttackResult:
    """Return the result of an attack with these outcomes."""
    images = len(correct)
    distances = [0.01 * (1 + i) for i in range(images)]
    minimum = attack.name == "fmn"
    return AttackResult(
        label=attack.label,
        kind="ensemble attack" if isinstance(attack, EnsembleAttack) else "attack",
        settings=to_dict(attack),
        robust_accuracy=accuracy_of(correct.tolist()),
        interval=interval_of(correct.tolist()),
        correct=tuple(correct.tolist()),
        distances=(0.03,) * images,
        members_run=(1,) * images,
        passes=Passes(forward=100, backward=90),
        seconds=1.0,
        minimum_distances=(*distances[:-1], None) if minimum else None,
        median_distance=distances[(images - 1) // 2] if minimum else None,
    )


def changed(result: EvaluationResult, path: str, value: Any) -> EvaluationResult:
    """Return a copy with one field, such as `threat.eps` or `attacks.fmn100.correct`, whatever the result checks."""
    altered_copy: EvaluationResult = _changed(result, path.split("."), value)
    return altered_copy


def _changed(part: Any, steps: list[str], value: Any) -> Any:
    if not steps:
        return value
    first, *rest = steps
    if isinstance(part, tuple):
        return tuple(_changed(entry, rest, value) if entry.label == first else entry for entry in part)
    if isinstance(part, dict):
        return part | {first: _changed(part.get(first), rest, value)}
    copied = copy.copy(part)
    object.__setattr__(copied, first, _changed(getattr(part, first), rest, value))
    return copied


def only(result: EvaluationResult, keep: Callable[[AttackResult], bool]) -> EvaluationResult:
    """Return a copy with some of its attacks."""
    return changed(result, "attacks", tuple(attack for attack in result.attacks if keep(attack)))


def single(result: EvaluationResult) -> EvaluationResult:
    """Return a copy that is about a single model."""
    return changed(changed(result, "model.members", 1), "model.rule", None)
