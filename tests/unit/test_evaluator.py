"""The evaluator: one typed result, checks within their budget, and a fraction done that predicts the time left."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.apgd_targeted import APGDTargeted
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.results import DataRecord, EvaluationResult
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.evaluation.evaluator import EvaluationSettings, evaluate
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.run_attacks import CraftedImages, run_attacks
from sparsemble.evaluation.sanity_attacks import LEAST_BUDGET, lengthened
from sparsemble.evaluation.statistics import wilson
from sparsemble.evaluation.work import Work, expected_work
from tests.helpers import LinearClassifier

THREAT = ThreatModel(norm="linf", eps=0.02)
SHAPE = (1, 6, 6)


class Network(torch.nn.Sequential):
    """A linear classifier made of a layer, so that its weights can be counted."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(36, 4))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
        self.eval()


def images(count: int = 60) -> TensorSplit:
    x = torch.rand(count, *SHAPE, generator=seeded(1))
    y = Network()(x).argmax(1)
    y[::10] = (y[::10] + 1) % 4
    return TensorSplit(x, y)


def evaluated(model: torch.nn.Module, split: TensorSplit, *attacks: Any, **more: Any) -> EvaluationResult:
    """Evaluate with the usual threat model."""
    rule = more.pop("rule", None)
    store, report = more.pop("store", None), more.pop("report", lambda fraction, text: None)
    target = LoadedModel(name="mine", kind="code", path="mine.py", model=model, rule=rule)
    data = DataRecord(name="random", sha256="ab" * 32, images=len(split), classes=4, indices=tuple(range(len(split))))
    job = EvaluationJob(model=model, rule=rule, split=split, threat=THREAT, attacks=attacks, classes=4)
    settings = EvaluationSettings(command="evaluate", available=len(split), **more)
    return evaluate(job, target, data, settings, store=store, report=report)


def statuses(result: EvaluationResult) -> dict[int, str]:
    return {check.number: check.status for check in result.checks}


def test_the_result_is_the_union_with_its_interval_and_all_fifty_checks() -> None:
    split = images()
    result = evaluated(Network(), split, FGSM(), AutoAttack(mode="fast"))
    union = [min(column) for column in zip(result.clean_correct, *(a.correct for a in result.attacks), strict=True)]
    assert list(result.worst_case.correct) == union
    assert result.worst_case.interval == wilson(sum(union), len(split))
    assert [attack.label for attack in result.attacks] == ["fgsm", "autoattack-fast"]
    assert [check.number for check in result.checks] == list(range(1, 51))
    assert 0 < result.robust_accuracy < result.clean_accuracy == 0.9
    assert result.model.nonzeros == 144
    assert result.cost.latency["torch"]["batch_1"].median_ms > 0
    assert result.security_curve is not None
    assert result.security_curve.accuracy[-1] == 0


def test_a_sound_linear_model_fails_no_check() -> None:
    result = evaluated(Network(), images(), AutoAttack(mode="fast"), checks="full")
    assert [f"{check.number} {check.detail}" for check in result.checks_with("failed")] == []
    passed = statuses(result)
    assert passed[15] == passed[14] == passed[22] == "passed"


def test_nothing_passes_without_evidence() -> None:
    skipped = {check.number for check in evaluated(Network(), images(), FGSM()).checks_with("skipped")}
    assert {5, 20, 25, 26, 27, 28, 31, 32, 40, 42, 43, 45, 46, 48, 49, 50} <= skipped


def test_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = evaluated(Network(), images(), FGSM())
    result.save(tmp_path / "evaluation.json")
    assert EvaluationResult.load(tmp_path / "evaluation.json") == result


@pytest.mark.parametrize("members", [1, 3])
def test_checks_take_at_most_the_passes_of_the_headline_attack(members: int) -> None:
    model: torch.nn.Module = Network()
    attacks: list[Any] = [PGD(steps=200, stop_at_success=False)]
    rule = None
    if members > 1:
        model, rule = Ensemble([Network(seed) for seed in range(members)], MeanProbability()).eval(), DIE()
        attacks += full_suite(members, [PGD(steps=5)])[:3]
    split, store = images(), OutcomeStore()
    job = EvaluationJob(model=model, rule=rule, split=split, threat=THREAT, attacks=tuple(attacks), classes=4)
    outcomes = run_attacks(job, store)
    headline = Work.of(outcomes.attacks[outcomes.strongest]).units
    watched = list(model.members) if isinstance(model, Ensemble) else [model]
    with count_passes(*watched) as passes:
        evaluated(model, split, *attacks, rule=rule, store=store, latency={})
    assert Work(passes.forward, passes.backward).units < 1.3 * max(headline, LEAST_BUDGET)


def test_choices_of_the_budget_do_not_depend_on_the_clock() -> None:
    first, second = (evaluated(Network(), images(), PGD(steps=20)) for _ in range(2))
    assert [(c.number, c.status, c.detail) for c in first.checks] == [
        (c.number, c.status, c.detail) for c in second.checks
    ]


def test_images_crafted_elsewhere_are_classified_and_come_first() -> None:
    split = images()
    ensemble = Ensemble([Network(seed) for seed in range(3)], MeanProbability()).eval()
    static = EvaluationJob(model=ensemble, split=split, threat=THREAT, attacks=(PGD(steps=5),), classes=4)
    outcomes = run_attacks(static)
    crafted = CraftedImages(PGD(steps=5), outcomes.attacks["pgd5"], outcomes.adversarial("pgd5"))
    dynamic = EvaluationJob(model=ensemble, rule=DIE(), split=split, threat=THREAT, attacks=(FGSM(),), classes=4)
    both = run_attacks(dynamic, crafted=[crafted])
    assert list(both.attacks) == ["pgd5", "fgsm"]
    again = dynamic.decide(outcomes.adversarial("pgd5"))
    assert torch.equal(both.attacks["pgd5"].prediction, again.logits.argmax(1))
    assert torch.equal(both.attacks["pgd5"].passes, outcomes.attacks["pgd5"].passes)


def test_a_store_reads_what_others_finished(tmp_path: Path) -> None:
    split, model = images(), Network()
    for name, attack in (("a", FGSM()), ("b", PGD(steps=3))):
        one = EvaluationJob(model=model, split=split, threat=THREAT, attacks=(attack,), classes=4)
        run_attacks(one, OutcomeStore(tmp_path / name))
    both = EvaluationJob(model=model, split=split, threat=THREAT, attacks=(FGSM(), PGD(steps=3)), classes=4)
    with count_passes(model) as passes:
        outcomes = run_attacks(both, OutcomeStore(finished=[tmp_path / "a", tmp_path / "b"]))
    assert (passes.forward, passes.backward) == (8, 0)  # the images on which every classifier is tried
    assert list(outcomes.attacks) == ["fgsm", "pgd3"]


@pytest.mark.parametrize(
    ("attack", "labels"),
    [
        (PGD(steps=20), [PGD(steps=40, label="doubled 1")]),
        (FGSM(), []),
        (full_suite(2, [PGD(steps=5)])[0], None),
    ],
    ids=["steps", "no steps", "through an ensemble"],
)
def test_twice_the_steps(attack: Any, labels: list[Any] | None) -> None:
    longer = lengthened(attack, 10, "linf")
    if labels is None:
        assert [getattr(one, "attack").steps for one in longer] == [10]  # noqa: B009
    else:
        assert list(longer) == labels


def test_twice_the_steps_of_autoattack_are_its_parts() -> None:
    longer: list[Any] = list(lengthened(AutoAttack(mode="fast"), 10, "linf"))
    usual: list[Any] = list(AutoAttack(mode="fast").schedule(10, "linf")[:4])
    assert [getattr(one, "steps", 0) for one in longer] == [2 * getattr(one, "steps", 0) for one in usual]
    assert len({one.label for one in longer}) == len(longer)


def test_the_fraction_done_predicts_the_whole_within_a_factor_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """In passes, which stand for time: after a tenth of the work, what is left is known to a factor of two."""
    monkeypatch.setattr("sparsemble.evaluation.progress.SECONDS_BETWEEN_REPORTS", 0)  # at every pass
    model, split = Network(), images()
    seen: list[tuple[int, float]] = []
    with count_passes(model) as passes:
        evaluated(
            model,
            split,
            PGD(steps=100, restarts=2),
            PGD(steps=50, stop_at_success=False),
            latency={},  # timed calls are no work of the evaluation
            report=lambda fraction, text: seen.append((passes.total, fraction)),
        )
    whole = passes.total
    for done, fraction in seen:
        if 0.1 * whole < done < 0.9 * whole:
            predicted = done * (1 - fraction) / fraction
            assert 0.5 <= predicted / (whole - done) <= 2, (done / whole, fraction)


def test_work_of_attacks_grows_with_members_and_steps() -> None:
    assert expected_work(PGD(steps=40), 1, 10).units > 1.9 * expected_work(PGD(steps=20), 1, 10).units
    assert expected_work(PGD(steps=20), 3, 10).units == 3 * expected_work(PGD(steps=20), 1, 10).units
    assert expected_work(APGDFocused(queries=0), 1, 10).units < expected_work(APGDTargeted(steps=100), 1, 10).units
    progress = Progress(Network(), lambda fraction, text: None)
    progress.plan({"a": (Work(10, 10), 1)})
    with progress.running("a"):
        pass
    assert progress.steps["a"].left == 0


def test_a_model_without_layers_has_no_sparsity_but_a_result() -> None:
    result = evaluated(LinearClassifier(4, SHAPE).eval(), images(), FGSM())
    assert (result.model.nonzeros, result.model.sparsity) == (0, 0.0)
    assert result.checks[38].status == "skipped"
