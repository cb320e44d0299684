"""Contract of every attack: stay inside box and ball, do not change the model, succeed exactly where it is possible."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsemble.attacks
from sparsemble.attacks import PGD, Attack, Margin, attacks
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, seeded
from tests.helpers import FULL, LinearClassifier, tiny_model

QUICK: dict[str, Any] = {
    "steps": 8,
    "searches": 2,
    "queries": 40,
    "draws": 40,
    "passes": 2,
    "mode": "fast",
    "attack": {"name": "pgd", "steps": 8},
}
"""For every attack that has such a field; on a network, where the least will do."""
LINEAR: dict[str, Any] = {
    "steps": 30,
    "queries": 150,
    "draws": 60,
    "passes": 2,
    "mode": "fast",
    "attack": {"name": "pgd", "steps": 30},
}
"""On a linear model, where attacks shall find what there is."""
WITHOUT_GRADIENTS = {"hop_skip_jump", "noise", "pointwise", "rays", "square"}
NORMS: dict[Norm, float] = {"linf": 0.02, "l2": 0.15, "l1": 1.0}
CASES = [
    pytest.param(name, norm, marks=[pytest.mark.slow] if name == "autoattack" else [])
    for name, attack in sorted(attacks.components.items())
    for norm in attack.norms
]
"""Every attack in every norm in which it works; AutoAttack has no cheap settings."""


def build(name: str, settings: dict[str, Any] = QUICK) -> Attack:
    fields = {field.name for field in dataclasses.fields(attacks.components[name])}
    return attacks.build({"name": name, **{key: value for key, value in settings.items() if key in fields}})


def build_for_linear(name: str) -> Attack:
    return build(name, {**LINEAR, **({"steps": 80, "searches": 6} if name == "carlini_wagner" else {})})


def linear_case(classes: int, norm: Norm) -> tuple[LinearClassifier, Images, Labels, ThreatModel, Tensor]:
    """Return a model, images that cannot meet the box, and which of them a ball of the threat model breaks."""
    model = LinearClassifier(classes, scale=0.2)
    x = 0.5 + 0.05 * torch.randn(24, 3, 4, 4, generator=seeded(2)).clamp(-3, 3)
    y = model(x).argmax(1)
    y[:2] = (y[:2] + 1) % classes
    distance = model.distance(x, y, norm)
    threat = ThreatModel(norm=norm, eps=1.2 * float(distance.median()))
    clear = (distance / threat.eps - 1).abs() > 0.05
    possible = (distance <= threat.eps)[clear]
    assert possible.any()
    assert not possible.all()
    return model, x[clear], y[clear], threat, possible


def small_case(norm: Norm) -> tuple[nn.Module, Images, Labels, ThreatModel]:
    """Return a network with BatchNorm and images of which some are misclassified as they are."""
    model = tiny_model(4, (3, 8, 8), width=4, std=0.25)
    x = torch.rand(6, 3, 8, 8, generator=seeded(3))
    model.train()(x)
    model.eval()
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    return model, x, y, ThreatModel(norm=norm, eps=NORMS[norm])


def misclassified(model: Classifier, x: Images, y: Labels) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1) != y


@pytest.mark.parametrize(("name", "norm"), CASES)
class TestEveryAttack:
    def test_stays_inside_and_never_returns_the_clean_image_for_a_failure(self, name: str, norm: Norm) -> None:
        model, x, y, threat = small_case(norm)
        threat = dataclasses.replace(threat, eps=threat.eps / 50)
        x_adv = build(name)(model, x, y, threat, rng=seeded(0))
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert not x_adv.requires_grad
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert (threat.distance(x_adv, x) <= threat.eps + threat.tolerance).all()
        failed = ~misclassified(model, x_adv, y)
        assert failed.any()
        assert (threat.distance(x_adv, x)[failed] > 0).all()

    def test_leaves_the_model_and_the_images_as_found(self, name: str, norm: Norm) -> None:
        model, x, y, threat = small_case(norm)
        parameters = list(model.parameters())
        parameters[0].requires_grad_(False)
        for parameter in parameters[1:]:
            parameter.grad = torch.full_like(parameter, 7.0)
        before, clean, random_state = copy.deepcopy(model.state_dict()), x.clone(), torch.get_rng_state()
        build(name)(model, x, y, threat, rng=seeded(0))
        assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
        assert parameters[0].grad is None
        assert [parameter.requires_grad for parameter in parameters] == [False] + [True] * (len(parameters) - 1)
        assert all(torch.equal(p.grad, torch.full_like(p, 7.0)) for p in parameters[1:] if p.grad is not None)
        assert all(parameter.grad is not None for parameter in parameters[1:])
        assert not any(module.training for module in model.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert torch.equal(x, clean)
        assert torch.equal(random_state, torch.get_rng_state())

    def test_is_the_same_twice_under_no_grad_and_with_the_seed_of_no_generator(self, name: str, norm: Norm) -> None:
        model, x, y, threat = small_case(norm)
        first = build(name)(model, x, y, threat, rng=seeded(0))
        with torch.no_grad():
            assert torch.equal(first, build(name)(model, x, y, threat))

    def test_breaks_what_can_be_misclassified_of_a_linear_model_and_no_more(self, name: str, norm: Norm) -> None:
        model, x, y, threat, possible = linear_case(2, norm)
        success = misclassified(model, build_for_linear(name)(model, x, y, threat, rng=seeded(0)), y)
        assert not (success & ~possible).any()
        assert success[model.distance(x, y, norm) == 0].all()
        if name in WITHOUT_GRADIENTS:  # these need not find everything, but more than the clean errors
            assert success.sum() > (model.distance(x, y, norm) == 0).sum()
        else:
            assert torch.equal(success, possible)

    def test_with_five_classes_log_probabilities_break_as_easily_as_logits(self, name: str, norm: Norm) -> None:
        model, x, y, threat, possible = linear_case(5, norm)
        plain = build_for_linear(name)(model, x, y, threat, rng=seeded(0))
        logged = build_for_linear(name)(lambda images: model(images).log_softmax(1), x, y, threat, rng=seeded(0))
        success = misclassified(model, plain, y)
        assert torch.equal(success, misclassified(model, logged, y))
        assert not (success & ~possible).any()
        assert success[model.distance(x, y, norm) == 0].all()

    def test_a_ball_of_radius_0_holds_the_clean_image_alone(self, name: str, norm: Norm) -> None:
        model, x, y, _ = small_case(norm)
        x_adv = build(name)(model, x, y, ThreatModel(norm=norm, eps=0.0), rng=seeded(0))
        assert torch.equal(x_adv, x)

    def test_takes_one_image_and_none(self, name: str, norm: Norm) -> None:
        model, x, y, threat = small_case(norm)
        assert build(name)(model, x[1:2], y[1:2], threat, rng=seeded(0)).shape == x[1:2].shape
        assert build(name)(model, x[:0], y[:0], threat, rng=seeded(0)).shape == x[:0].shape

    def test_takes_grey_oblong_and_double_images(self, name: str, norm: Norm) -> None:
        threat = ThreatModel(norm=norm, eps=NORMS[norm])
        weight = torch.randn(3, 20, generator=seeded(4), dtype=torch.float64)

        def model(images: Tensor) -> Tensor:
            return images.flatten(1) @ weight.T

        x = torch.rand(3, 1, 4, 5, generator=seeded(5), dtype=torch.float64)
        x_adv = build(name)(model, x, model(x).argmax(1), threat, rng=seeded(0))
        assert x_adv.dtype == x.dtype
        assert x_adv.shape == x.shape

    def test_leaves_alone_a_batch_that_is_wrong_as_it_is(self, name: str, norm: Norm) -> None:
        model, x, _, threat, _ = linear_case(2, norm)
        wrong = 1 - model(x).argmax(1)
        assert misclassified(model, build_for_linear(name)(model, x, wrong, threat, rng=seeded(0)), wrong).all()


def test_every_attack_and_loss_can_be_imported_by_its_class() -> None:
    registries = (
        attacks,
        sparsemble.attacks.attack_losses,
        sparsemble.attacks.ensemble_attacks,
        sparsemble.attacks.surrogates,
    )
    for component in (part for registry in registries for part in registry.components.values()):
        assert component.__name__ in dir(sparsemble.attacks)
        assert getattr(sparsemble.attacks, component.__name__) is component


def test_cw_linf_is_pgd_on_the_margin() -> None:
    assert attacks.build("cw_linf") == PGD(steps=30, loss=Margin(), label="cw_linf")


@pytest.mark.parametrize("name", sorted(attacks.components))
def test_refuses_images_outside_the_box(name: str) -> None:
    model, x, y, threat = small_case(attacks.components[name].norms[0])
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], got"):
        build_for_linear(name)(model, 2 * x, y, threat, rng=seeded(0))


@pytest.mark.parametrize("name", sorted(attacks.components))
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_in_which_it_does_not_work_is_refused_with_the_attack_to_use_instead(name: str, norm: Norm) -> None:
    attack = build(name)
    if norm in attack.norms:
        attack.check_norm(norm)
        return
    model, x, y, threat = small_case(norm)
    for run in (lambda: attack(model, x, y, threat), lambda: attack.check_norm(norm)):
        with pytest.raises(InputError) as refused:
            run()
        works = " and ".join(attack.norms)
        assert str(refused.value).startswith(f"{name} works in {works} only, not in {norm}; use ")
    instead = attacks.build(attack.instead[norm])
    assert f'"{attack.instead[norm]}" for {norm}' in str(refused.value)
    instead.check_norm(norm)


@pytest.mark.parametrize("name", sorted(attacks.components))
def test_has_a_label(name: str) -> None:
    assert build(name).label
    assert dataclasses.replace(build(name), label="mine").label == "mine"


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_passes_are_put_down_to_the_image_that_took_them(name: str, norm: Norm) -> None:
    """What an image takes is its own: whole numbers, and as many when the others are not attacked at all."""
    model, x, y, threat = small_case(norm)
    attack = build(name)

    def taken(labels: Labels) -> Tensor:
        with count_passes(model, images=len(x)) as passes:
            attack(model, x, labels, threat, rng=seeded(5))
        assert passes.by_image.sum(0).tolist() == [passes.forward, passes.backward]
        return passes.by_image

    together = taken(y)
    assert torch.equal(together, together.round())
    assert bool((together[0] <= together[1:]).all()), "the first image is wrong when clean and needs nothing"
    if name == "autoattack":
        return  # its parts draw for the images that are left, so their paths depend on the others
    # DeepFool looks again, without them, when others leave the batch.
    ways = slice(1, 2) if name in ("deepfool", "carlini_wagner") else slice(0, 2)
    others_wrong = (y + 1) % 4
    for i in range(1, len(x)) if FULL else (1, len(x) - 1):
        alone = torch.where(torch.arange(len(x)) == i, y, others_wrong)
        assert torch.equal(taken(alone)[i, ways], together[i, ways])
