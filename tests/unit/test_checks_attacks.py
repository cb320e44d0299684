"""Checks of the attacks pass on sound ones and fail on one broken in just that way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Generator

from sparsemble.attacks.apgd import APGD
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import DynamicOutput
from sparsemble.core.registry import to_dict
from sparsemble.core.results import CheckResult
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, seeded
from sparsemble.evaluation.checks.attacks import (
    agrees_with_reference,
    blind_is_weaker,
    decided_in_float32,
    falls_with_eps,
    headline_is_union,
    inside_threat,
    minimum_norms_reported,
    reproduces,
    square_finds_nothing,
    steps_suffice,
    strength_in_order,
    targeted_and_untargeted,
    transfer_is_weaker,
    validated,
)
from sparsemble.evaluation.checks.path import follow, keeps_best, loss_converged
from tests.helpers import LinearClassifier
from tests.unit.sound_ensemble import (
    MEMBER,
    RIGHT,
    THREAT,
    X,
    Y,
    altered,
    an_attack,
    changed,
    crafted,
    decide,
    ensemble_result,
    expect,
    only,
)

YES, NO = True, False


class TestInsideThreat:
    def test_passes_crafted_images(self) -> None:
        expect(inside_threat([X, crafted()], X, THREAT), 2, "passed")

    @pytest.mark.parametrize(
        "fault",
        [
            lambda x: (x + 9 / 255).clamp(0, 1),
            lambda x: torch.where(x > 0.9, 1.001, x),
            lambda x: torch.where(x < 0.1, -0.001, x),
            lambda x: torch.where(x < 0.1, float("nan"), x),
        ],
        ids=["outside the ball", "above 1", "below 0", "NaN"],
    )
    @pytest.mark.parametrize("last", [False, True])
    def test_fails_a_fault_in_any_set(self, fault: Callable[[Images], Images], last: bool) -> None:
        wide = ThreatModel(eps=0.05) if fault(X).max() > 1 or fault(X).min() < 0 else THREAT
        sets = [X, fault(X)] if last else [fault(X), X]
        expect(inside_threat(sets, X, wide), 2, "failed")

    def test_measures_in_the_norm_of_the_threat(self) -> None:
        moved = (X + 0.01).clamp(0, 1)
        expect(inside_threat([moved], X, ThreatModel(norm="l2", eps=0.07)), 2, "passed")
        expect(inside_threat([moved], X, ThreatModel(norm="l2", eps=0.02)), 2, "failed")

    def test_eps_of_another_table_fails(self) -> None:
        at_8_255 = (X + 8 / 255).clamp(0, 1)
        expect(inside_threat([at_8_255], X, ThreatModel(eps=8 / 255)), 2, "passed")
        expect(inside_threat([at_8_255], X, ThreatModel(eps=0.031)), 2, "failed")

    def test_nothing_stored_is_skipped(self) -> None:
        expect(inside_threat([], X, THREAT), 2, "skipped")


class TestStrength:
    @pytest.mark.parametrize(
        ("strong", "status"), [(0.30, "passed"), (0.40, "passed"), (0.405, "passed"), (0.42, "failed")]
    )
    def test_more_steps_break_more_up_to_noise(self, strong: float, status: str) -> None:
        expect(strength_in_order({"pgd20": 0.40, "pgd50": strong}), 13, status)

    @pytest.mark.parametrize(
        ("last", "status"), [(0.3, "passed"), (0.405, "passed"), (0.45, "failed"), (float("nan"), "failed")]
    )
    def test_no_inversion_along_a_chain(self, last: float, status: str) -> None:
        found = strength_in_order({"fgsm": 0.5, "pgd": 0.4, "autoattack": last})
        expect(found, 13, status, "" if status == "passed" else "autoattack is weaker than pgd")

    def test_one_attack_alone_is_skipped(self) -> None:
        expect(strength_in_order({"fgsm": 0.5}), 13, "skipped")

    @pytest.mark.parametrize(
        ("curve", "status"),
        [
            ([0.9, 0.5, 0.505, 0.0], "passed"),
            ([0.9, 0.5, 0.6, 0.0], "failed"),
            ([0.9, 0.5, 0.3, 0.2], "failed"),
            ([0.89, 0.5, 0.3, 0.0], "failed"),
        ],
        ids=["falls", "rises", "ends above chance", "starts off clean accuracy"],
    )
    def test_curve_falls_from_clean_accuracy_to_chance(self, curve: Sequence[float], status: str) -> None:
        expect(falls_with_eps("ensemble", curve, 0.9, chance=0.1), 14, status)

    @pytest.mark.parametrize(
        ("images", "more", "status"),
        [(100, 0, "passed"), (100, 1, "passed"), (100, 2, "failed"), (1000, 3, "passed"), (1000, 4, "failed")],
    )
    def test_twice_the_steps_change_little(self, images: int, more: int, status: str) -> None:
        usual = [True] * images
        expect(steps_suffice(usual, [False] * more + usual[more:]), 15, status)

    def test_too_few_steps_of_a_real_attack_fail(self) -> None:
        def right(steps: int) -> list[bool]:
            threat = ThreatModel(eps=0.1)
            attack = PGD(steps=steps, step_size=0.05, random_start=False)
            x_adv = attack(MEMBER, X, RIGHT, threat, rng=seeded(0))
            return (MEMBER(x_adv).argmax(1) == RIGHT).tolist()

        expect(steps_suffice(right(3), right(6)), 15, "failed")
        expect(steps_suffice(right(40), right(80)), 15, "passed")


@dataclass(frozen=True, kw_only=True)
class LastPoint(Attack):
    """Returns where it ended, whatever it met on the way."""

    name = "last_point"
    label: str = "last"

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        for attack in (PGD(steps=10), FGSM()):
            model(attack(model, x, y, threat, rng=rng))
        return threat.project(x + 1e-3, x)


@dataclass(frozen=True, kw_only=True)
class CleanOnFailure(Attack):
    """Hands the clean image back where it fails."""

    name = "clean_on_failure"
    label: str = "clean"

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        x_adv = PGD(steps=10)(model, x, y, threat, rng=rng)
        broken = model(x_adv).argmax(1) != y
        return torch.where(broken.view(-1, 1, 1, 1), x_adv, x)


class TestPath:
    weak, strong = ThreatModel(eps=0.01), ThreatModel(eps=0.2)

    @pytest.mark.parametrize("attack", [PGD(steps=20), APGD(steps=20), FGSM()], ids=lambda a: a.name)
    @pytest.mark.parametrize("threat", [weak, strong], ids=str)
    def test_sound_attacks_keep_the_best(self, attack: Attack, threat: ThreatModel) -> None:
        paths = follow(attack, MEMBER, X[:6], RIGHT[:6], threat, rng=seeded(0))
        assert len(paths) == 6
        expect(keeps_best(paths), 17, "passed", "of 6 images")

    def test_the_last_point_in_place_of_the_best_fails(self) -> None:
        paths = follow(LastPoint(), MEMBER, X[:6], RIGHT[:6], self.strong, rng=seeded(0))
        expect(keeps_best(paths), 17, "failed", "6 were misclassified on the path but not in the end")
        paths = follow(LastPoint(), MEMBER, X[:6], RIGHT[:6], ThreatModel(eps=0.001), rng=seeded(0))
        assert not any(path.succeeded for path in paths)
        expect(keeps_best(paths), 17, "failed", "6 at a lower loss than the best")

    def test_the_clean_image_on_failure_fails(self) -> None:
        paths = follow(CleanOnFailure(), MEMBER, X[:6], RIGHT[:6], ThreatModel(eps=0.001), rng=seeded(0))
        expect(keeps_best(paths), 17, "failed", "6 came back clean")

    def test_converged_climb_passes_and_a_short_one_fails(self) -> None:
        def measured(attack: Attack) -> CheckResult:
            return loss_converged(follow(attack, MEMBER, X[:6], RIGHT[:6], self.weak, rng=seeded(0)))

        expect(measured(PGD(steps=20, random_start=False)), 16, "passed", "images that withstand it")
        expect(measured(PGD(steps=20, step_size=0.02, random_start=False)), 16, "failed", "images that withstand it")
        expect(measured(FGSM()), 16, "skipped", "no last tenth")

    def test_all_broken_passes_and_nothing_to_follow_is_skipped(self) -> None:
        paths = follow(PGD(steps=20), MEMBER, X[:4], RIGHT[:4], ThreatModel(eps=0.5), rng=seeded(0))
        expect(loss_converged(paths), 16, "passed", "all of 4 images were misclassified")
        wrong = follow(PGD(steps=20), MEMBER, X[:4], (RIGHT[:4] + 1) % 4, self.weak, rng=seeded(0))
        assert wrong == []
        expect(loss_converged(wrong), 16, "skipped")
        expect(keeps_best(wrong), 17, "skipped")

    def test_a_path_holds_what_was_asked(self) -> None:
        (path,) = follow(PGD(steps=5, random_start=False), MEMBER, X[:1], RIGHT[:1], self.weak, rng=seeded(0))
        clean = MEMBER(X[:1]).detach()
        assert path.clean == pytest.approx(float(CrossEntropy()(clean, clean, RIGHT[:1])))
        assert path.returned == pytest.approx(max(path.losses))
        assert not path.returned_clean


class TestComparisons:
    @pytest.mark.parametrize(("images", "more", "status"), [(500, 1, "passed"), (500, 2, "failed"), (100, 1, "failed")])
    def test_square_finds_nothing_more(self, images: int, more: int, status: str) -> None:
        white = [YES] * images
        expect(square_finds_nothing(white, [NO] * more + white[more:]), 18, status, f"{more} of {images}")
        expect(square_finds_nothing([NO] * images, [NO] * images), 18, "passed")

    def test_blind_attacks_break_nothing_more(self) -> None:
        white = [YES, NO, YES, NO]
        expect(blind_is_weaker(white, [YES, YES, YES, NO], "noise"), 19, "passed")
        expect(blind_is_weaker(white, [NO, YES, YES, YES], "noise"), 19, "failed", "1 of 4")

    def test_transferred_images_break_nothing_more(self) -> None:
        white = [YES, NO, YES, NO]
        expect(transfer_is_weaker(white, [YES, YES, YES, NO], "dense"), 20, "passed")
        found = transfer_is_weaker(white, [YES, YES, NO, YES], "dense")
        expect(found, 20, "failed", "1 of 4 images are broken only by images crafted on dense")

    def test_a_gradient_masked_model_is_caught_by_transfer(self) -> None:
        def masked(x: Images) -> torch.Tensor:
            return MEMBER(x.detach()) + 0 * x.sum((1, 2, 3))[:, None]

        threat, attack = ThreatModel(eps=0.1), PGD(steps=10)

        def right(source: Classifier) -> list[bool]:
            x_adv = attack(source, X, RIGHT, threat, rng=seeded(0))
            return (MEMBER(x_adv).argmax(1) == RIGHT).tolist()

        expect(transfer_is_weaker(right(MEMBER), right(masked), "itself"), 20, "passed")
        expect(transfer_is_weaker(right(masked), right(MEMBER), "the same without the mask"), 20, "failed")


class TestTargets:
    def test_a_cascade_has_both_kinds(self) -> None:
        expect(targeted_and_untargeted(ensemble_result()), 21, "passed", "9 of 9 wrong classes")
        few = changed(ensemble_result(), "data.classes", 3)
        expect(targeted_and_untargeted(few), 21, "passed", "2 of 2 wrong classes")

    @pytest.mark.parametrize(
        ("settings", "classes", "status"),
        [
            ([{"name": "pgd"}], 10, "failed"),
            ([{"name": "apgd_targeted", "targets": 9}], 10, "failed"),
            ([{"name": "pgd"}, {"name": "apgd_targeted", "targets": 9}], 10, "passed"),
            ([{"name": "pgd"}, {"name": "apgd_targeted", "targets": 3}], 10, "failed"),
            ([{"name": "pgd"}, {"name": "apgd_targeted", "targets": 3}], 4, "passed"),
            ([{"name": "autoattack", "variant": "rand"}], 10, "failed"),
        ],
    )
    def test_either_kind_alone_or_too_few_targets_fail(
        self, settings: list[dict[str, Any]], classes: int, status: str
    ) -> None:
        first = ensemble_result().attacks[0]
        attacks = tuple(replace(first, label=str(i), settings=table) for i, table in enumerate(settings))
        result = changed(ensemble_result(), "attacks", attacks)
        expect(targeted_and_untargeted(changed(result, "data.classes", classes)), 21, status)


class TestHeadline:
    def test_union_passes(self) -> None:
        expect(headline_is_union(ensemble_result()), 22, "passed")

    def test_minimum_of_means_in_place_of_mean_of_minimum_fails(self) -> None:
        result = ensemble_result()
        least = min(attack.robust_accuracy for attack in result.attacks)
        assert least > result.worst_case.accuracy
        expect(headline_is_union(changed(result, "worst_case.accuracy", least)), 22, "failed")

    def test_a_minimum_over_outcomes_of_one_attack_fails(self) -> None:
        result = ensemble_result()
        wrong = changed(result, "worst_case.correct", result.strongest.correct)
        wrong = changed(wrong, "worst_case.accuracy", result.strongest.robust_accuracy)
        expect(headline_is_union(wrong), 22, "failed", "outcomes are not the union's")

    def test_other_images_or_nothing_at_all_fail(self) -> None:
        result = ensemble_result()
        expect(headline_is_union(changed(result, "attacks.fmn100.correct", (1, 0))), 22, "failed", "same images")
        expect(headline_is_union(changed(result, "worst_case.correct", ())), 22, "failed", "same images")


class TestAgain:
    def test_stored_images_reproduce_at_another_batch_size(self) -> None:
        x_adv = crafted()
        recorded = decide(x_adv).logits.argmax(1).tolist()
        expect(reproduces(decide, x_adv, recorded, 7), 23, "passed")
        found = reproduces(decide, x_adv, [*recorded[:-1], (recorded[-1] + 1) % 4], 7)
        expect(found, 23, "failed", "1 of 24 predictions differ at batch size 7")

    def test_answers_that_depend_on_the_batch_do_not_reproduce(self) -> None:
        x_adv, odd = crafted(), altered(lambda z: z - z.mean(0))
        recorded = odd(x_adv).logits.argmax(1).tolist()
        expect(reproduces(odd, x_adv, recorded, 2), 23, "failed")

    def test_success_in_fewer_bits_does_not_count(self) -> None:
        def answer(x: Images, dtype: torch.dtype) -> list[bool]:
            return (LinearClassifier(4, (1, 6, 6), seed=0).to(dtype)(x.to(dtype)).argmax(1) == y).tolist()

        def full(x: Images) -> DynamicOutput:
            ones = torch.ones(len(x), dtype=torch.long)
            return DynamicOutput(LinearClassifier(4, (1, 6, 6), seed=0)(x), ones, ones)

        x = torch.rand(2000, 1, 6, 6, generator=seeded(0))
        y = LinearClassifier(4, (1, 6, 6), seed=0)(x).argmax(1)
        in_full, in_few = answer(x, torch.float32), answer(x, torch.bfloat16)
        assert in_full != in_few
        expect(decided_in_float32(full, x, y, in_full), 24, "passed")
        expect(decided_in_float32(full, x, y, in_few), 24, "failed", "outcomes differ in float32")

    def test_a_decision_in_fewer_bits_fails(self) -> None:
        half = altered(lambda z: z.bfloat16())
        right = (half(X).logits.argmax(1) == Y).tolist()
        expect(decided_in_float32(half, X, Y, right), 24, "failed", "bfloat16")

    def test_autocast_is_switched_off(self) -> None:
        right = (decide(X).logits.argmax(1) == Y).tolist()
        with torch.autocast("cpu", torch.bfloat16):
            expect(decided_in_float32(decide, X, Y, right), 24, "passed")


class TestReferences:
    @pytest.mark.parametrize(
        ("on_standard", "known", "status", "words"),
        [
            ({"pgd": 0.0, "autoattack": 0.005}, (0.482, 0.4802), "passed", "published"),
            ({"pgd": 0.0, "autoattack": 0.2}, (0.482, 0.4802), "failed", "autoattack 0.200"),
            ({"pgd": 0.0}, (0.50, 0.4802), "failed", "measured 0.5000"),
            ({"pgd": 0.0}, None, "skipped", "published AutoAttack value"),
            ({"pgd": 0.2}, None, "failed", "withstands"),
            ({}, None, "skipped", "a standard model nor on"),
            ({}, (0.50, 0.48), "failed", "measured"),
        ],
    )
    def test_attacks_break_a_standard_model(
        self, on_standard: dict[str, float], known: tuple[float, float] | None, status: str, words: str
    ) -> None:
        expect(validated(on_standard, known), 25, status, words)

    def test_parity_is_counted_image_by_image(self) -> None:
        ours = {"square": [YES] * 50 + [NO] * 50}
        expect(agrees_with_reference(ours, {"square": [YES] * 50 + [NO] * 50}), 26, "passed", "100.0 % alike")
        expect(agrees_with_reference(ours, {"square": [NO] * 50 + [YES] * 50}), 26, "failed", "0.0 % alike")
        expect(agrees_with_reference(ours, {"square": [YES] * 53 + [NO] * 47}), 26, "failed")
        expect(agrees_with_reference(ours, {}), 26, "skipped")


class TestMinimumNorm:
    def test_distance_and_norm_beside_accuracy_pass(self) -> None:
        expect(minimum_norms_reported(ensemble_result()), 27, "passed", "fmn100")

    @pytest.mark.parametrize(
        "broken",
        [
            lambda r: changed(r, "attacks.fmn100.minimum_distances", None),
            lambda r: changed(r, "attacks.fmn100.median_distance", 0.1),
            lambda r: changed(r, "attacks.fmn100.median_distance", None),
            lambda r: changed(r, "attacks.fmn100.settings.norm", "l2"),
        ],
    )
    def test_what_is_missing_mixed_or_wrong_fails(self, broken: Callable[[Any], Any]) -> None:
        expect(minimum_norms_reported(broken(ensemble_result())), 27, "failed")

    def test_without_such_an_attack_it_is_skipped(self) -> None:
        expect(
            minimum_norms_reported(only(ensemble_result(), lambda attack: attack.label != "fmn100")),
            27,
            "skipped",
        )

    def test_most_images_out_of_reach_have_an_infinite_median(self) -> None:
        attack = an_attack(DeepFool(), torch.ones(3, dtype=torch.int))
        assert attack.settings == to_dict(DeepFool())
        far = replace(attack, minimum_distances=(0.1, None, None), median_distance=None)
        expect(minimum_norms_reported(changed(ensemble_result(), "attacks", (far,))), 27, "passed")
