"""Minimum-norm attacks against the distances of linear models, which are known exactly."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks import FAB, FMN, CarliniWagner, DeepFool, MinimumNorm, attacks
from sparsemble.attacks.decision_boundary import dual_norm, move_to, nearest_boundary_at
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Images, Labels, PerImage, seeded
from tests.helpers import FULL, LinearClassifier, tiny_model

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
ORDER = {"linf": math.inf, "l2": 2, "l1": 1}
CLASSES = 4

# The largest ratio of distance found to distance known that is accepted for half of the images, and for all.
ACCURACY: dict[str, tuple[dict[str, Any], float, float]] = {
    "deepfool": ({}, 1.0201, 1.025),
    "fab": ({"steps": 30}, 1.002, 1.03),
    "fab_targeted": ({"steps": 30}, 1.002, 1.03),
    "fmn": ({}, 1.01, 1.15),
    "carlini_wagner": ({"steps": 60, "searches": 7}, 1.03, 1.3),
    "ddn": ({}, 1.15, 1.3),
    "apgd_minimum": ({"searches": 8, "steps": 8}, 1.01, 1.05),
}
CASES = [(name, norm) for name in ACCURACY for norm in attacks.components[name].norms]


def linear_case(norm: Norm = "l2") -> tuple[LinearClassifier, Images, Labels]:
    """Return a model and images from which the nearest boundary lies inside the box."""
    model = LinearClassifier(CLASSES)
    x = 0.5 + (0.03 if norm == "l1" else 0.12) * torch.randn(24, 3, 4, 4, generator=seeded(2)).clamp(-2.5, 2.5)
    return model, x, model(x).argmax(1)


def network() -> tuple[nn.Module, Images, Labels]:
    model = tiny_model(CLASSES, (3, 8, 8), width=4, std=0.25)
    x = torch.rand(6, 3, 8, 8, generator=seeded(3))
    model.train()(x)
    y = model.eval()(x).argmax(1)
    y[0] = (y[0] + 1) % CLASSES
    return model, x, y


def build(name: str, **more: Any) -> MinimumNorm:
    attack = attacks.build({"name": name, **ACCURACY[name][0], **more})
    assert isinstance(attack, MinimumNorm)
    return attack


def test_every_minimum_norm_attack_is_tested_here() -> None:
    assert {name for name, component in attacks.components.items() if issubclass(component, MinimumNorm)} == set(
        ACCURACY
    )


@pytest.mark.parametrize("norm", NORMS)
class TestMoveTo:
    def plane(self) -> tuple[Images, Images, PerImage]:
        rng = seeded(5)
        return (
            torch.rand(40, 1, 3, 3, generator=rng),
            torch.randn(40, 1, 3, 3, generator=rng),
            torch.randn(40, generator=rng),
        )

    def test_ends_on_the_plane_or_in_the_nearest_corner(self, norm: Norm) -> None:
        points, normal, height = self.plane()
        ends = points + move_to(points, normal, height, norm)
        assert ends.min() >= -1e-6
        assert ends.max() <= 1 + 1e-6
        after = height + (normal * (ends - points)).flatten(1).sum(1)
        corner = (-height.sign().view(-1, 1, 1, 1) * normal > 0).float()
        reach = (normal * (corner - points)).flatten(1).sum(1).abs()
        reachable = reach >= height.abs()
        assert reachable.any()
        torch.testing.assert_close(after[reachable], torch.zeros_like(after[reachable]), atol=1e-5, rtol=0)
        far = move_to(points, normal, 100 * height.sign(), norm) + points
        torch.testing.assert_close(far, corner)

    def test_is_no_longer_than_a_search_over_many_points_of_the_plane(self, norm: Norm) -> None:
        points, normal, height = self.plane()
        threat = ThreatModel(norm=norm)
        move = move_to(points, normal, height, norm)
        length = threat.distance(points + move, points)
        on_plane = (height + (normal * move).flatten(1).sum(1)).abs() < 1e-5
        # Any image of the box on the far side of the plane must be at least as far away.
        other = torch.rand(4000, 1, 1, 3, 3, generator=seeded(6))
        beyond = ((normal * (other - points)).flatten(2).sum(2) + height).sign() != height.sign()
        away = torch.linalg.vector_norm((other - points).flatten(2), ord=ORDER[norm], dim=2)
        assert beyond.any()
        assert (length[on_plane] <= away.masked_fill(~beyond, float("inf")).amin(0)[on_plane] + 1e-5).all()

    def test_without_a_box_in_the_way_is_the_closed_form(self, norm: Norm) -> None:
        points, normal, height = self.plane()
        height = height / 100
        points = 0.25 + points / 2
        length = ThreatModel(norm=norm).distance(points + move_to(points, normal, height, norm), points)
        torch.testing.assert_close(length, height.abs() / dual_norm(normal, norm), atol=1e-6, rtol=1e-3)

    def test_against_a_slow_search_for_the_dual_variable(self, norm: Norm) -> None:
        if norm == "l1":
            return  # coordinates move one after the other, not together
        points, normal, height = self.plane()
        way = -height.sign().view(-1, 1, 1, 1) * normal.sign()
        speed = torch.ones_like(normal) if norm == "linf" else normal.abs()
        low, high = torch.zeros_like(height), torch.full_like(height, 100.0)
        for _ in range(60):
            middle = (low + high) / 2
            ends = (points + middle.view(-1, 1, 1, 1) * way * speed).clamp(0, 1)
            enough = (normal * (ends - points)).flatten(1).sum(1).abs() >= height.abs()
            low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        torch.testing.assert_close(points + move_to(points, normal, height, norm), ends, atol=1e-4, rtol=0)

    def test_a_flat_function_moves_nothing(self, norm: Norm) -> None:
        points, normal, height = self.plane()
        assert not move_to(points, torch.zeros_like(normal), height, norm).any()


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_boundary_is_the_one_of_the_closed_form(norm: Norm) -> None:
    model, x, y = linear_case(norm)
    others = torch.stack([(y + i) % CLASSES for i in range(1, CLASSES)], dim=1)
    boundary = nearest_boundary_at(model, x, y, others, norm)
    torch.testing.assert_close(boundary.height.abs() / dual_norm(boundary.normal, norm), model.distance(x, y, norm))


@pytest.mark.parametrize(("name", "norm"), CASES)
class TestEveryMinimumNormAttack:
    def test_finds_the_distance_of_a_linear_model(self, name: str, norm: Norm) -> None:
        model, x, y = linear_case(norm)
        x_min, success = build(name).minimum(model, x, y, norm, rng=seeded(0))
        assert success.all()
        assert (model(x_min).argmax(1) != y).all()
        distance = model.distance(x, y, norm)
        ratio = ThreatModel(norm=norm).distance(x_min, x) / distance
        ratio = ratio[distance > distance.median() / 5]  # fixed steps cannot follow distances near 0
        _, half, every = ACCURACY[name]
        assert ratio.min() > 0.999
        assert ratio.median() < half
        assert ratio.max() < every

    def test_an_image_that_is_wrong_as_it_is_comes_back(self, name: str, norm: Norm) -> None:
        model, x, y = network()
        x_min, success = build(name).minimum(model, x, y, norm, rng=seeded(0))
        assert success[0]
        assert torch.equal(x_min[0], x[0])
        assert not any(torch.equal(a, b) for a, b in zip(x_min[1:], x[1:], strict=True))

    def test_reports_success_correctly(self, name: str, norm: Norm) -> None:
        model, x, y = network()
        x_min, success = build(name).minimum(model, x, y, norm, rng=seeded(0))
        assert x_min.min() >= 0
        assert x_min.max() <= 1
        assert success.sum() > 3
        assert torch.equal(model(x_min).argmax(1) != y, success)

    def test_finds_nothing_where_the_class_never_changes(self, name: str, norm: Norm) -> None:
        def model(x: Images) -> Tensor:
            rising = (x.flatten(1) @ torch.linspace(-1, 1, x[0].numel())).tanh()
            return torch.stack([10 + rising, -rising], dim=1)

        x = torch.rand(3, 1, 4, 4, generator=seeded(7))
        y = torch.zeros(3, dtype=torch.int64)
        x_min, success = build(name).minimum(model, x, y, norm, rng=seeded(0))
        assert not success.any()
        threat = ThreatModel(norm=norm, eps=0.05)
        x_adv = build(name)(model, x, y, threat, rng=seeded(0))
        before, after = (-model(images).diff(dim=1)[:, 0] for images in (x, x_adv))
        assert (after < before).all()
        assert x_min.isfinite().all()

    def test_a_model_without_gradients_still_gets_an_image_of_the_ball(self, name: str, norm: Norm) -> None:
        def model(x: Images) -> Tensor:
            return torch.stack([x.sum((1, 2, 3)) * 0 + 1, x.sum((1, 2, 3)) * 0], dim=1)

        x, threat = torch.rand(3, 1, 4, 4, generator=seeded(7)), ThreatModel(norm=norm, eps=0.05)
        x_adv = build(name)(model, x, torch.zeros(3, dtype=torch.int64), threat, rng=seeded(0))
        assert (threat.distance(x_adv, x) > 0).all()

    def test_an_image_gets_the_same_alone_and_in_a_batch(self, name: str, norm: Norm) -> None:
        model, x, y = linear_case(norm)
        n = 6 if FULL else 3
        together, _ = build(name).minimum(model, x[:n], y[:n], norm, rng=seeded(0))
        alone = [build(name).minimum(model, x[i : i + 1], y[i : i + 1], norm, rng=seeded(0))[0] for i in range(n)]
        threat = ThreatModel(norm=norm)
        torch.testing.assert_close(
            threat.distance(together, x[:n]), threat.distance(torch.cat(alone), x[:n]), rtol=0.02, atol=1e-5
        )

    def test_works_under_no_grad(self, name: str, norm: Norm) -> None:
        model, x, y = linear_case(norm)
        expected, _ = build(name).minimum(model, x[:4], y[:4], norm, rng=seeded(0))
        with torch.no_grad():
            x_min, _ = build(name).minimum(model, x[:4], y[:4], norm, rng=seeded(0))
        assert torch.equal(x_min, expected)

    def test_a_point_at_the_stop_distance_ends_the_search(self, name: str, norm: Norm) -> None:
        model, x, y = linear_case(norm)
        distance = model.distance(x, y, norm)
        with count_passes(model) as all_the_way:
            build(name).minimum(model, x, y, norm, rng=seeded(0))
        with count_passes(model) as stopped:
            x_min, success = build(name).minimum(
                model, x, y, norm, rng=seeded(0), stop_distance=2 * float(distance.max())
            )
        assert success.all()
        assert (ThreatModel(norm=norm).distance(x_min, x) <= 2 * distance.max() + 1e-6).all()
        if name == "deepfool":  # it stops at its first misclassified point anyway
            assert stopped.total == all_the_way.total
        else:
            assert stopped.total < all_the_way.total / 3

    def test_accepts_no_images_and_refuses_wrong_ones(self, name: str, norm: Norm) -> None:
        model, x, y = linear_case(norm)
        x_min, success = build(name).minimum(model, x[:0], y[:0], norm, rng=seeded(0))
        assert x_min.shape == x[:0].shape
        assert success.shape == (0,)
        with pytest.raises(InputError, match="images must lie in"):
            build(name).minimum(model, x - 1, y, norm, rng=seeded(0))


class TestDeepFool:
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("overshoot", [0.02, 0.1])
    def test_one_step_is_exact_up_to_the_overshoot(self, norm: Norm, overshoot: float) -> None:
        model, x, y = linear_case(norm)
        attack = DeepFool(steps=1, overshoot=overshoot)
        x_min, success = attack.minimum(model, x, y, norm, rng=seeded(0))
        assert success.all()
        distance = ThreatModel(norm=norm).distance(x_min, x)
        torch.testing.assert_close(distance, (1 + overshoot) * model.distance(x, y, norm), rtol=1e-3, atol=1e-5)

    def test_finished_images_leave_and_few_candidates_cost_fewer_passes(self) -> None:
        model, x, y = linear_case()
        for candidates, backward in ((10, CLASSES - 1), (3, 2), (2, 1)):
            with count_passes(model) as passes:
                DeepFool(candidates=candidates).minimum(model, x, y, "l2", rng=seeded(0))
            # One step does for each image if the likeliest classes hold the nearest border.
            if candidates == 10:
                assert passes.backward == backward * len(x)
                assert passes.forward == 3 * len(x)
            assert passes.backward % backward == 0
            assert passes.backward < 4 * backward * len(x)

    @pytest.mark.parametrize("norm", NORMS)
    def test_following_the_nearest_boundaries_only_is_cheaper_and_comes_about_as_near(self, norm: Norm) -> None:
        model, x, y = network()
        distances, passes = {}, {}
        for followed in (1, CLASSES - 1):
            with count_passes(model) as counted:
                images, success = DeepFool(followed=followed).minimum(model, x, y, norm, rng=seeded(0))
            assert success.all()
            distances[followed] = float(ThreatModel(norm=norm).distance(images, x).median())
            passes[followed] = counted.backward
        assert passes[1] < passes[CLASSES - 1]
        assert distances[1] <= 1.05 * distances[CLASSES - 1]

    def test_needs_a_boundary_to_follow(self) -> None:
        with pytest.raises(InputError, match="followed = 0 must be 1 or more"):
            DeepFool(followed=0)


class TestFAB:
    @pytest.mark.parametrize("norm", NORMS)
    def test_more_walks_come_no_less_near(self, norm: Norm) -> None:
        model, x, y = network()
        threat = ThreatModel(norm=norm)
        once, _ = FAB(steps=10).minimum(model, x, y, norm, rng=seeded(0))
        thrice, _ = FAB(steps=10, restarts=3).minimum(model, x, y, norm, rng=seeded(0))
        assert (threat.distance(thrice, x) <= threat.distance(once, x)).all()

    def test_comes_nearer_than_deepfool(self) -> None:
        model, x, y = network()
        threat = ThreatModel(norm="l2")
        fab, _ = FAB(steps=30).minimum(model, x, y, "l2", rng=seeded(0))
        deepfool, _ = DeepFool().minimum(model, x, y, "l2", rng=seeded(0))
        assert threat.distance(fab, x).median() < threat.distance(deepfool, x).median()


class TestCarliniWagner:
    def test_kappa_is_the_margin_of_what_is_found(self) -> None:
        model, x, y = linear_case()
        attack = CarliniWagner(steps=100, searches=6, kappa=2.0)
        x_min, success = attack.minimum(model, x, y, "l2", rng=seeded(0))
        assert success.any()
        logits = model(x_min)[success]
        margin = (
            logits.scatter(1, y[success][:, None], -float("inf")).amax(1) - logits.gather(1, y[success][:, None])[:, 0]
        )
        assert (margin >= 2.0).all()
        loose, _ = CarliniWagner(steps=60, searches=6).minimum(model, x, y, "l2", rng=seeded(0))
        threat = ThreatModel(norm="l2")
        assert threat.distance(loose, x).median() < threat.distance(x_min, x)[success].median()

    def test_linf_is_refused_with_the_attack_to_use(self) -> None:
        model, x, y = linear_case()
        message = 'carlini_wagner works in l2 only, not in linf; use "cw_linf" for linf'
        with pytest.raises(InputError, match=message):
            CarliniWagner().minimum(model, x, y, "linf")
        with pytest.raises(InputError, match=message):
            CarliniWagner()(model, x, y, ThreatModel(norm="linf"))

    def test_images_whose_loss_stands_still_take_no_more_passes(self) -> None:
        model, x, y = linear_case()
        with count_passes(model) as passes:
            CarliniWagner(steps=1000, searches=1).minimum(model, x, y, "l2", rng=seeded(0))
        assert passes.backward < 1000 * len(x)


@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (DeepFool, {"steps": 0}, "steps = 0 must be 1 or more"),
        (DeepFool, {"overshoot": 0.0}, "overshoot = 0 must be above 0"),
        (DeepFool, {"candidates": 1}, "candidates = 1 must be 2 or more"),
        (FAB, {"restarts": 0}, "restarts = 0 must be 1 or more"),
        (FAB, {"alpha_max": 2.0}, r"alpha_max = 2 must lie in \[0, 1\]"),
        (FAB, {"eta": 0.5}, "eta = 0.5 must be 1 or more"),
        (FAB, {"beta": 1.0}, r"beta = 1 must lie in \(0, 1\)"),
        (FMN, {"gamma": 1.0}, r"gamma = 1 must lie in \(0, 1\)"),
        (FMN, {"alpha": 0.0}, "alpha = 0 must be above 0"),
        (CarliniWagner, {"searches": 0}, "searches = 0 must be 1 or more"),
        (CarliniWagner, {"kappa": -1.0}, "kappa = -1 must be 0 or more"),
        (CarliniWagner, {"first_c": 0.0}, "first_c = 0 must be above 0"),
    ],
)
def test_refuses_bad_settings(attack: type[MinimumNorm], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        attack(**settings)


class TestAnotherNorm:
    """`norm`: l2 DeepFool where the threat model is linf, as in papers that report both at one eps."""

    def test_an_image_counts_where_its_boundary_is_within_eps_in_that_norm(self) -> None:
        model, x, y = linear_case("l2")
        distance = model.distance(x, y, "l2")
        threat = ThreatModel(norm="linf", eps=float(distance.median()) * 1.03)
        x_adv = attacks.build("deepfool_l2")(model, x, y, threat, rng=seeded(0))
        clear = (distance / threat.eps - 1).abs() > 0.025
        assert torch.equal((model(x_adv).argmax(1) != y)[clear], (distance < threat.eps)[clear])
        assert (ThreatModel(norm="l2").distance(x_adv, x) <= threat.eps + 1e-6).all()

    def test_labels_name_the_norm(self) -> None:
        assert attacks.build("deepfool_l2").label == "deepfool_l2"
        assert DeepFool(norm="l2").label == "deepfool50-l2"
        assert DeepFool().label == "deepfool50"

    def test_attacks_that_search_in_one_norm_work_in_wider_ones(self) -> None:
        model, x, y = linear_case("l2")
        build("ddn", norm="l2")(model, x, y, ThreatModel(norm="linf", eps=0.1), rng=seeded(0))
        with pytest.raises(InputError, match="deepfool works in l2 and linf only, not in l1"):
            DeepFool(norm="l2")(model, x, y, ThreatModel(norm="l1", eps=1.0), rng=seeded(0))
        with pytest.raises(InputError, match='norm = "linf" is none in which ddn searches: l2'):
            build("ddn", norm="linf")
