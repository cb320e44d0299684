"""Every one of the fifty checks passes, fails and is skipped: one line each."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from sparsemble.attacks.fmn import FMN
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import DynamicOutput, combiners
from sparsemble.core.results import CheckResult, EvaluationResult, FormatAgreement
from sparsemble.core.types import Images, Logits, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.evaluation import checks
from sparsemble.evaluation.checks import attacks, dynamic, ensemble, forward, model, path, reporting, sparsity
from tests.example_results import example_corruptions
from tests.unit.sound_ensemble import (
    MEMBER,
    RIGHT,
    TEAM,
    THREAT,
    X,
    Y,
    altered,
    changed,
    crafted,
    decide,
    ensemble_result,
    expect,
    network,
    only,
    single,
)

Make = Callable[[], CheckResult]
YES, NO = [True] * 100, [False] * 100
AGREES = FormatAgreement(images=10, logits=0.0, labels=0, decisions=0, near=0)
CONDITIONS = dict.fromkeys(("runtime", "dtype", "compiled", "device", "threads", "batch"), 1)
DENSE = {"accuracy": 0.4, "nonzeros": 1000.0, "macs": 100.0}


def result(path: str = "", value: Any = None) -> EvaluationResult:
    return changed(ensemble_result(), path, value) if path else ensemble_result()


def without(name: str) -> EvaluationResult:
    """The result without attacks in whose settings a component occurs."""
    return only(ensemble_result(), lambda attack: name not in str(attack.settings))


def masked(x: Images) -> Logits:
    return MEMBER(x.detach()) + 0 * x.sum((1, 2, 3))[:, None]


def probabilities(x: Images) -> Logits:
    return MEMBER(x).softmax(1)


def noisy(x: Images) -> DynamicOutput:
    return altered(lambda logits: logits + torch.rand_like(logits))(x)


def spiky(x: Images) -> Logits:
    return 1000 * (1000 * MEMBER(x)).sin()


def train_mode() -> torch.nn.Module:
    return network().train()


def curve(*accuracy: float) -> EvaluationResult:
    eps = tuple(0.1 * i for i in range(len(accuracy)))
    return changed(result("security_curve.eps", eps), "security_curve.accuracy", accuracy)


def followed(steps: int, threat: float = 0.01) -> list[Any]:
    attack = PGD(steps=steps, step_size=0.25 if steps > 10 else 0.02, random_start=False)
    return path.follow(attack, MEMBER, X[:4], RIGHT[:4], replace(THREAT, eps=threat), rng=seeded(0))


def pruned_mask() -> dict[str, torch.Tensor]:
    return {"4": torch.ones(4, 64, dtype=torch.bool)}


def stops_at(rule: Any) -> Callable[[Images], DynamicOutput]:
    return lambda x: predict_dynamic(TEAM, x, rule)


def edge(rule: DIE) -> CheckResult:
    """Judge on labels that only the rule itself predicts."""
    images = torch.rand(200, 1, 6, 6, generator=seeded(3))
    labels = stops_at(rule)(images).logits.argmax(1)
    others = torch.stack([stops_at(r)(images).logits.argmax(1) != labels for r in dynamic.nudged(rule).values()]).any(0)
    return dynamic.no_knifes_edge(stops_at, rule, images[others], labels[others], "held-out")


OTHERS = [name for name in combiners.names() if name != "mean_probability"]

PASSES: dict[int, Make] = {
    1: lambda: reporting.threat_recorded(result()),
    2: lambda: attacks.inside_threat([crafted()], X, THREAT),
    3: lambda: model.independent_of_neighbours(network(), X),
    4: lambda: reporting.images_recorded(result(), 1000),
    5: lambda: reporting.fairly_selected(result()),
    6: lambda: reporting.one_eps([result(), result()]),
    7: lambda: model.returns_logits(MEMBER, X),
    8: lambda: model.repeatable(decide, X),
    9: lambda: model.gradients_flow([MEMBER], X, RIGHT),
    10: lambda: model.agrees_with_differences(MEMBER, X, RIGHT, rng=seeded(0)),
    11: lambda: forward.plain_forward(network(), X),
    12: lambda: model.smooth_loss(MEMBER, X, RIGHT, replace(THREAT, eps=0.005), rng=seeded(0)),
    13: lambda: attacks.strength_in_order({"fgsm": 0.5, "pgd": 0.4}),
    14: lambda: attacks.falls_with_eps("a", [0.9, 0.4, 0.0], 0.9, chance=0.1),
    15: lambda: attacks.steps_suffice(YES, YES, "autoattack"),
    16: lambda: path.loss_converged(followed(20)),
    17: lambda: path.keeps_best(followed(20)),
    18: lambda: attacks.square_finds_nothing(YES, YES),
    19: lambda: attacks.blind_is_weaker(YES, YES, "noise"),
    20: lambda: attacks.transfer_is_weaker(YES, YES, "dense"),
    21: lambda: attacks.targeted_and_untargeted(result()),
    22: lambda: attacks.headline_is_union(result()),
    23: lambda: attacks.reproduces(decide, X, decide(X).logits.argmax(1).tolist(), 7),
    24: lambda: attacks.decided_in_float32(decide, X, Y, (decide(X).logits.argmax(1) == Y).tolist()),
    25: lambda: attacks.validated({"pgd": 0.0}, (0.5, 0.5)),
    26: lambda: attacks.agrees_with_reference({"square": YES}, {"square": YES}),
    27: lambda: attacks.minimum_norms_reported(result()),
    28: lambda: ensemble.combiners_attacked(result(), "mean_probability", OTHERS),
    29: lambda: ensemble.members_attacked(result()),
    30: lambda: ensemble.members_reported(result()),
    31: lambda: ensemble.single_models_beside(DENSE, DENSE, DENSE),
    32: lambda: ensemble.ablations_reported({"combiner only", "no regularisers", "no stopping rule", "dense members"}),
    33: lambda: dynamic.stopping_attacked(result()),
    34: lambda: dynamic.hijack_counted(result()),
    35: lambda: dynamic.cost_under_attack(result()),
    36: lambda: dynamic.speed_beside_cost(result()),
    37: lambda: steady("held-out"),
    38: lambda: dynamic.independent_of_batch(decide, X),
    39: lambda: sparsity.weights_recounted(network(), 4 * 9 + 4 * 64),
    40: lambda: sparsity.masks_hold(network(), pruned_mask()),
    41: lambda: sparsity.costs_apart(result()),
    42: lambda: sparsity.exports_agree({"packed": AGREES}),
    43: lambda: sparsity.speed_up_is_fair({**CONDITIONS, "model": "dense parent"}, CONDITIONS),
    44: lambda: reporting.result_is_complete(result()),
    45: lambda: reporting.seeds_behind([0.5, 0.51, 0.52], claims=True),
    46: lambda: reporting.extra_data_declared(result()),
    47: lambda: reporting.curve_reaches_zero(curve(0.9, 0.4, 0.0)),
    48: lambda: reporting.quotes_have_sources(result("quoted", ({"accuracy": 0.5, "source": "a paper"},))),
    49: lambda: reporting.wider_tests(result("corruptions", example_corruptions(40))),
    50: lambda: reporting.open_checks_shown([checks.skipped(45, "one seed")], "0 failed, 1 skipped"),
}
FAILS: dict[int, Make] = {
    1: lambda: reporting.threat_recorded(result("threat.knowledge", "")),
    2: lambda: attacks.inside_threat([(X + 9 / 255).clamp(0, 1)], X, THREAT),
    3: lambda: model.independent_of_neighbours(train_mode(), X),
    4: lambda: reporting.images_recorded(result("data.subset_seed", None), 1000),
    5: lambda: reporting.fairly_selected(result("model.selected_on", "test")),
    6: lambda: reporting.one_eps([result(), result("threat.eps", 0.031)]),
    7: lambda: model.returns_logits(probabilities, X),
    8: lambda: model.repeatable(noisy, X),
    9: lambda: model.gradients_flow([masked], X, RIGHT),
    10: lambda: model.agrees_with_differences(masked, X, RIGHT, rng=seeded(0)),
    11: lambda: forward.plain_forward(masked, X),
    12: lambda: model.smooth_loss(spiky, X, RIGHT, THREAT, rng=seeded(0)),
    13: lambda: attacks.strength_in_order({"fgsm": 0.4, "pgd": 0.5}),
    14: lambda: attacks.falls_with_eps("a", [0.9, 0.95, 0.0], 0.9, chance=0.1),
    15: lambda: attacks.steps_suffice(YES, [*NO[:2], *YES[2:]], "autoattack"),
    16: lambda: path.loss_converged(followed(10)),
    17: lambda: path.keeps_best([replace(one, returned=one.clean, returned_clean=True) for one in followed(20)]),
    18: lambda: attacks.square_finds_nothing(YES, [False, *YES[1:]]),
    19: lambda: attacks.blind_is_weaker(YES, [False, *YES[1:]], "noise"),
    20: lambda: attacks.transfer_is_weaker(YES, [False, *YES[1:]], "dense"),
    21: lambda: attacks.targeted_and_untargeted(without("autoattack")),
    22: lambda: attacks.headline_is_union(result("worst_case.accuracy", 0.9)),
    23: lambda: attacks.reproduces(decide, X, (decide(X).logits.argmax(1) + 1).tolist(), 7),
    24: lambda: attacks.decided_in_float32(decide, X, Y, (decide(X).logits.argmax(1) != Y).tolist()),
    25: lambda: attacks.validated({"pgd": 0.2}, (0.5, 0.5)),
    26: lambda: attacks.agrees_with_reference({"square": YES}, {"square": NO}),
    27: lambda: attacks.minimum_norms_reported(result(f"attacks.{FMN().label}.minimum_distances", None)),
    28: lambda: ensemble.combiners_attacked(without("maximum"), "mean_probability", OTHERS),
    29: lambda: ensemble.members_attacked(without("sequential")),
    30: lambda: ensemble.members_reported(result("members.robust", (0.3, 0.5, 0.35))),
    31: lambda: ensemble.single_models_beside(DENSE, {**DENSE, "nonzeros": 500.0}, DENSE),
    32: lambda: ensemble.ablations_reported({"combiner only"}),
    33: lambda: dynamic.stopping_attacked(without("expectation")),
    34: lambda: dynamic.hijack_counted(without("joint_decision")),
    35: lambda: dynamic.cost_under_attack(result("members_run.slowdown", None)),
    36: lambda: dynamic.speed_beside_cost(result("members_run.slowdown", None)),
    37: lambda: edge(DIE()),
    38: lambda: dynamic.independent_of_batch(altered(lambda logits: logits.flip(0)), X),
    39: lambda: sparsity.weights_recounted(network(), 7),
    40: lambda: sparsity.masks_hold(network(), {"4": torch.zeros(4, 64, dtype=torch.bool)}),
    41: lambda: sparsity.costs_apart(result("cost.bytes", 1)),
    42: lambda: sparsity.exports_agree({"packed": replace(AGREES, labels=3)}),
    43: lambda: sparsity.speed_up_is_fair({**CONDITIONS, "model": "dense parent"}, {**CONDITIONS, "threads": 8}),
    44: lambda: reporting.result_is_complete(result("model.sha256", "unknown")),
    45: lambda: reporting.seeds_behind([0.5], claims=True),
    46: lambda: reporting.extra_data_declared(result("model.extra_data", "some")),
    47: lambda: reporting.curve_reaches_zero(curve(0.9, 0.4)),
    48: lambda: reporting.quotes_have_sources(result("quoted", ({"accuracy": 0.5},))),
    49: lambda: reporting.wider_tests(result("corruptions", replace(example_corruptions(40), missed=1))),
    50: lambda: reporting.open_checks_shown([checks.verdict(14, False, "rises")], "all is well"),
}
SKIPS: dict[int, Make] = {
    2: lambda: attacks.inside_threat([], X, THREAT),
    4: lambda: reporting.images_recorded(result("data.subset_seed", None), None),
    5: lambda: reporting.fairly_selected(result("model.selected_on", None)),
    13: lambda: attacks.strength_in_order({"fgsm": 0.5}),
    16: lambda: path.loss_converged([]),
    17: lambda: path.keeps_best([]),
    18: lambda: attacks.only_by_square([], {}, {}),
    25: lambda: attacks.validated({}),
    26: lambda: attacks.agrees_with_reference({}, {}),
    27: lambda: attacks.minimum_norms_reported(without("fmn")),
    28: lambda: ensemble.combiners_attacked(single(result()), "mean_probability", OTHERS),
    29: lambda: ensemble.members_attacked(single(result())),
    30: lambda: ensemble.members_reported(result("members", None)),
    31: lambda: ensemble.single_models_beside(DENSE, None, DENSE),
    32: lambda: ensemble.ablations_reported(()),
    33: lambda: dynamic.stopping_attacked(single(result())),
    34: lambda: dynamic.hijack_counted(single(result())),
    35: lambda: dynamic.cost_under_attack(single(result())),
    36: lambda: dynamic.speed_beside_cost(single(result())),
    37: lambda: steady(None),
    40: lambda: sparsity.masks_hold(network(), {}),
    41: lambda: sparsity.costs_apart(result("cost.latency", {})),
    42: lambda: sparsity.exports_agree({}),
    43: lambda: sparsity.speed_up_is_fair(None, None),
    45: lambda: reporting.seeds_behind([0.5], claims=False),
    46: lambda: reporting.extra_data_declared(result("model.extra_data", None)),
    47: lambda: reporting.curve_reaches_zero(result("security_curve", None)),
    48: lambda: reporting.quotes_have_sources(result()),
    49: lambda: reporting.wider_tests(result()),
    50: lambda: reporting.open_checks_shown([], ""),
}
"""Checks that look for their own evidence; the others are skipped where they were not run."""


def steady(tuned_on: str | None) -> CheckResult:
    """Judge on images that no rule nearby decides otherwise."""
    images = torch.rand(100, 1, 6, 6, generator=seeded(3))
    labels = stops_at(DIE())(images).logits.argmax(1)
    same = torch.stack(
        [stops_at(rule)(images).logits.argmax(1) == labels for rule in dynamic.nudged(DIE()).values()]
    ).all(0)
    return dynamic.no_knifes_edge(stops_at, DIE(), images[same], labels[same], tuned_on)


@pytest.mark.parametrize("number", checks.NAMES)
def test_passes(number: int) -> None:
    expect(PASSES[number](), number, "passed")


@pytest.mark.parametrize("number", checks.NAMES)
def test_fails(number: int) -> None:
    expect(FAILS[number](), number, "failed")


@pytest.mark.parametrize("number", checks.NAMES)
def test_is_skipped_without_evidence(number: int) -> None:
    expect(checks.complete([])[number - 1], number, "skipped", checks.REASONS.get(number, checks.NOT_RUN))
    if number in SKIPS:
        expect(SKIPS[number](), number, "skipped")
