"""FGSM, noise, decision-based attacks, transfer; and when PGD stops."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks import FGSM, KL, PGD, Attack, HopSkipJump, Noise, Pointwise, RayS, Transfer
from sparsemble.attacks.black_box.query_oracle import QueryOracle
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from tests.helpers import DUAL, PlaneClassifier, margin

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS = {"linf": 0.04, "l2": 0.25, "l1": 0.3}
DECISION_BASED: dict[Norm, type[RayS] | type[HopSkipJump] | type[Pointwise]] = {
    "linf": RayS,
    "l2": HopSkipJump,
    "l1": Pointwise,
}


def linear_case(norm: Norm) -> tuple[PlaneClassifier, Images, Labels, ThreatModel]:
    model = PlaneClassifier()
    x = 0.5 + 0.1 * torch.randn(30, 3, 4, 4, generator=seeded(2)).clamp(-3, 3)
    return model, x, model(x).argmax(1), ThreatModel(norm=norm, eps=EPS[norm] / 2)


@pytest.mark.parametrize("norm", NORMS)
class TestFGSM:
    def test_reaches_the_worst_case_of_a_linear_model(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        dual = torch.linalg.vector_norm(model.weight, ord=DUAL[norm])
        x_adv = FGSM()(model, x, y, threat, rng=seeded(0))
        torch.testing.assert_close(margin(model, x_adv, y), (margin(model, x, y) + 2 * threat.eps * dual).detach())

    def test_takes_one_pass_each_way(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        with count_passes(model) as passes:
            FGSM(random_start=True, step_size=1.25)(model, x, y, threat, rng=seeded(0))
        assert (passes.forward, passes.backward) == (len(x), len(x))

    def test_a_random_start_moves_the_end(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        attack = FGSM(random_start=True, step_size=0.5)
        assert not torch.equal(attack(model, x, y, threat, rng=seeded(0)), attack(model, x, y, threat, rng=seeded(1)))


@pytest.mark.parametrize("norm", NORMS)
class TestNoise:
    def test_is_the_best_of_what_it_draws(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        few, many = (Noise(draws=draws)(model, x, y, threat, rng=seeded(0)) for draws in (1, 300))
        still_correct = margin(model, many, y) < 0
        assert still_correct.any()
        assert (margin(model, many, y) >= margin(model, few, y))[still_correct].all()
        assert (margin(model, many, y) > margin(model, x, y)).all()

    def test_draws_corners_as_well_as_the_inside(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        threat = ThreatModel(norm=norm, eps=threat.eps / 10)
        seen: list[Tensor] = []
        model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        Noise(draws=10)(model, x[:1], y[:1], threat, rng=seeded(0))
        points = seen[1]
        on_boundary = threat.distance(points, x[:1].expand_as(points)) > threat.eps * (1 - 1e-4)
        assert points.shape == (10, *x.shape[1:])
        assert on_boundary[1::2].all()
        if norm == "linf":
            delta = (points - x[:1]).abs()
            torch.testing.assert_close(delta[1::2], torch.full_like(delta[1::2], threat.eps), atol=1e-6, rtol=0)
            assert (delta[::2] < threat.eps * 0.999).any()

    def test_a_misclassified_image_takes_no_more_passes(self, norm: Norm) -> None:
        model, x, y, _ = linear_case(norm)
        large = ThreatModel(norm=norm, eps=5 * EPS[norm])
        with count_passes(model) as passes:
            x_adv = Noise(draws=5000)(model, x, y, large, rng=seeded(0))
        misclassified = margin(model, x_adv, y) > 0
        assert misclassified.float().mean() > 0.5
        assert passes.forward < len(x) * 5001
        assert passes.forward >= int((~misclassified).sum()) * 5001
        assert passes.backward == 0

    def test_an_image_gets_the_same_alone_and_in_a_batch(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        together = Noise(draws=70)(model, x, y, threat, rng=seeded(0))
        alone = torch.cat([Noise(draws=70)(model, x[i : i + 1], y[i : i + 1], threat, rng=seeded(0)) for i in range(5)])
        torch.testing.assert_close(together[:5], alone)


@pytest.mark.parametrize("norm", NORMS)
class TestDecisionBased:
    def test_never_takes_more_queries_than_its_budget_and_uses_no_gradients(self, norm: Norm) -> None:
        model, x, y, _ = linear_case(norm)
        tiny = ThreatModel(norm=norm, eps=1e-5)
        for queries in (1, 10, 300):
            with count_passes(model) as passes:
                DECISION_BASED[norm](queries=queries)(model, x[:1], y[:1], tiny, rng=seeded(0))
            assert 0 < passes.forward <= queries
            assert passes.backward == 0

    def test_uses_predicted_classes_only(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)

        def predicted(images: Images) -> Tensor:
            return nn.functional.one_hot(model(images).argmax(1), 2).float()

        plain, hard = (DECISION_BASED[norm](queries=200)(m, x, y, threat, rng=seeded(0)) for m in (model, predicted))
        assert torch.equal(plain, hard)

    def test_comes_near_the_distance_of_a_linear_model(self, norm: Norm) -> None:
        model, x, y, _ = linear_case(norm)
        distance = model.distance(x, norm)
        threat = ThreatModel(norm=norm, eps=1.6 * float(distance.median()))
        x_adv = DECISION_BASED[norm](queries=3000)(model, x, y, threat, rng=seeded(0))
        misclassified = margin(model, x_adv, y) > 0
        assert not misclassified[distance > threat.eps * 1.001].any()
        assert misclassified[distance < threat.eps / 1.6].float().mean() > 0.9
        one_draw = Noise(draws=3000)(model, x, y, threat, rng=seeded(0))
        assert misclassified.sum() > (margin(model, one_draw, y) > 0).sum()

    def test_a_misclassified_image_takes_no_more_queries(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        near = model.distance(x, norm).argmin()
        x, y = x[near : near + 1], y[near : near + 1]
        with count_passes(model) as passes:
            x_adv = DECISION_BASED[norm](queries=3000)(model, x, y, threat, rng=seeded(0))
        assert margin(model, x_adv, y) > 0
        assert passes.forward < 3000

    def test_an_image_gets_the_same_alone_and_in_a_batch(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        attack = DECISION_BASED[norm](queries=250)
        together = attack(model, x, y, threat, rng=seeded(0))
        still_correct = (margin(model, together, y) < 0).nonzero()[:3, 0]
        for i in still_correct.tolist():
            alone = attack(model, x[i : i + 1], y[i : i + 1], threat, rng=seeded(0))
            assert margin(model, alone, y[i : i + 1]) < 0
            torch.testing.assert_close(alone[0], together[i], atol=1e-3, rtol=0)


def test_an_oracle_counts_its_queries_and_keeps_the_nearest() -> None:
    model, x, y, threat = linear_case("l2")
    oracle = QueryOracle.with_clean(model, x, y, threat, queries=100)
    rows = torch.tensor([3, 5])
    direction = (0.5 - x[rows]) * 2
    t = oracle.bisect(rows, direction, torch.ones(2), 1e-3)
    torch.testing.assert_close(t, torch.full((2,), 0.5), atol=2e-3, rtol=0)
    assert (oracle.used[rows] > 5).all()
    assert oracle.used[0] == 1
    assert (model(oracle.images[rows]).argmax(1) != y[rows]).all()
    assert oracle.distance[0].isinf()


class TestTransfer:
    def test_crafts_on_the_source_alone(self) -> None:
        model, x, y, threat = linear_case("linf")
        source, attack = PlaneClassifier(seed=5), PGD(steps=5, stop_at_success=False)
        moved = Transfer(attack=attack, source=source)
        with count_passes(model) as passes:
            x_adv = moved(model, x, y, threat, rng=seeded(0))
        assert passes.total == 0
        assert torch.equal(x_adv, attack(source, x, y, threat, rng=seeded(0)))
        assert moved.label == "transfer_pgd5"

    def test_from_the_model_itself_it_is_the_attack(self) -> None:
        model, x, y, threat = linear_case("l2")
        attack: Attack = PGD(steps=5)
        same = Transfer(attack=attack, source=model)(PlaneClassifier(seed=6), x, y, threat, rng=seeded(0))
        assert torch.equal(same, attack(model, x, y, threat, rng=seeded(0)))


@pytest.mark.parametrize("norm", NORMS)
class TestPGDStops:
    def test_stopping_changes_no_outcome_and_saves_passes(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        outcomes, totals = [], []
        for rule in (True, False):
            with count_passes(model) as passes:
                x_adv = PGD(restarts=2, stop_at_success=rule)(model, x, y, threat, rng=seeded(0))
            outcomes.append(margin(model, x_adv, y) > 0)
            totals.append(passes.total)
        assert outcomes[0].any()
        assert not outcomes[0].all()
        assert torch.equal(*outcomes)
        assert totals[1] == len(x) * (1 + 2 * (20 + 21))
        assert totals[0] < totals[1] * 0.8

    def test_without_stopping_the_highest_loss_is_returned(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        stopped, full = (PGD(stop_at_success=rule)(model, x, y, threat, rng=seeded(0)) for rule in (True, False))
        assert (margin(model, full, y) >= margin(model, stopped, y) - 1e-6).all()
        assert (margin(model, full, y) > margin(model, stopped, y) + 1e-3).any()

    def test_dropping_images_leaves_the_starts_of_the_others(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        first = PGD(steps=1, restarts=3, step_size=0.01)
        plain = first(model, x, y, threat, rng=seeded(0))
        flipped = y.clone()
        flipped[:10] = 1 - flipped[:10]  # wrong as they are: they leave at once
        other = first(model, x, flipped, threat, rng=seeded(0))
        assert torch.equal(other[:10], x[:10])
        torch.testing.assert_close(other[10:], plain[10:])

    def test_the_clean_image_never_stands_for_a_failure(self, norm: Norm) -> None:
        x, threat = torch.full((1, 1, 2, 2), 0.5), ThreatModel(norm=norm, eps=EPS[norm])

        def peak(images: Images) -> Tensor:
            """Lose most at x; from the clean image beside it a step goes too far."""
            away = (images - x).abs().sum((1, 2, 3)) + 1e-3 * (images - x).sum((1, 2, 3))
            return torch.stack([1 + away, 0 * away], dim=1)

        x_adv = PGD(steps=1, random_start=False)(
            peak, x + 0.01, torch.zeros(1, dtype=torch.int64), threat, rng=seeded(0)
        )
        assert not torch.equal(x_adv, x + 0.01)

    def test_the_last_point_is_the_end_of_a_plain_path(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        point = threat.random_start(x, seeded(0))
        for _ in range(4):
            point = point.detach().requires_grad_()
            nn.functional.cross_entropy(model(point), y, reduction="sum").backward()  # type: ignore[no-untyped-call]
            assert point.grad is not None
            point = threat.project(point.detach() + 0.25 * threat.eps * threat.steepest(point.grad), x)
        x_adv = PGD(steps=4, keep_best=False)(model, x, y, threat, rng=seeded(0))
        torch.testing.assert_close(x_adv, point)

    def test_a_loss_that_compares_with_the_clean_logits_gets_them(self, norm: Norm) -> None:
        model, x, y, threat = linear_case(norm)
        with torch.no_grad():
            clean = model(x)
        x_adv = PGD(steps=4, keep_best=False, loss=KL())(model, x, y, threat, rng=seeded(0))
        start = threat.random_start(x, seeded(0))
        with torch.no_grad():
            assert KL()(model(x_adv), clean, y).sum() > 2 * KL()(model(start), clean, y).sum()


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (FGSM, {"step_size": 0.0}, "step_size = 0 must be above 0"),
        (Noise, {"draws": 0}, "draws = 0 must be 1 or more"),
        (RayS, {"queries": 0}, "queries = 0 must be 1 or more"),
        (HopSkipJump, {"queries": 0}, "queries = 0 must be 1 or more"),
    ],
)
def test_refuses_bad_settings(attack: type[Attack], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attack(**settings)
