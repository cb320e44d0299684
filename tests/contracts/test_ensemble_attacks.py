"""Contract of every surrogate and every attack on an ensemble."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import sparsemble.attacks
import sparsemble.ensemble  # noqa: F401 (fills the registries)
from sparsemble.attacks import (
    EnsembleAttack,
    Surrogate,
    ensemble_attacks,
    every_surrogate,
    full_suite,
    surrogates,
)
from sparsemble.attacks.losses import attack_losses
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never

SHAPE = (2, 4, 3)
LINF = ThreatModel(norm="linf", eps=0.08)
L2 = ThreatModel(norm="l2", eps=0.3)
OTHERS = tuple(combiners.build(name) for name in ("mean_logit", "maximum", "soft_vote"))
SHORT = {
    "surrogate_attack": {"attack": {"name": "pgd", "steps": 4}, "surrogate": {"name": "full_ensemble"}},
    "sequential": {"steps": 2},
    "hijack": {"steps": 3, "targets": 2},
    "slowdown": {"steps": 4},
}


def member(seed: int, classes: int) -> nn.Module:
    """Build a small network whose BatchNorm looks trained."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(48, classes)
    )
    rng = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.6)
        model[1].running_mean.copy_(model[0].weight.sum((1, 2, 3)) / 2 + model[0].bias)
        model[-1].bias.zero_()
    return model


def make_ensemble(members: int = 3, classes: int = 4) -> Ensemble:
    return Ensemble([member(seed, classes) for seed in range(members)], MeanProbability()).eval()


def images(ensemble: Ensemble, rule: StoppingRule, count: int = 12) -> tuple[Images, Labels]:
    """Return images, two at the edges of the box, with the deployed answers as labels but for one."""
    x = torch.rand(count, *SHAPE, generator=seeded(5))
    x[0], x[1] = 0, 1
    y = predict_dynamic(ensemble, x, rule).logits.argmax(1)
    y[-1] = (y[-1] + 1) % 2
    return x, y


def every_attack() -> Iterator[EnsembleAttack]:
    """Each component, short; `slowdown` with both labels; `surrogate_attack` on every surrogate."""
    for name in sorted(ensemble_attacks.components):
        yield ensemble_attacks.build({"name": name, **SHORT.get(name, {})})
    yield ensemble_attacks.build({"name": "slowdown", "steps": 4, "keep_label": True})
    for surrogate in every_surrogate(2, OTHERS):
        yield ensemble_attacks.build(
            {"name": "surrogate_attack", "attack": SHORT["surrogate_attack"]["attack"], "surrogate": spec(surrogate)}
        )


def spec(surrogate: Surrogate) -> dict[str, object]:
    table: dict[str, object] = {"name": surrogate.name}
    for key in ("length", "index"):
        if key in vars(surrogate):
            table[key] = vars(surrogate)[key]
    return table | ({"combiner": vars(surrogate)["combiner"].name} if "combiner" in vars(surrogate) else {})


@pytest.mark.parametrize("attack", list(every_attack()), ids=lambda attack: attack.label)
class TestEveryEnsembleAttack:
    @pytest.mark.parametrize(
        ("threat", "members", "classes", "rule"),
        [
            (LINF, 2, 3, DIE()),
            (LINF, 3, 12, DIE(b=128.0, tau_c=0.4)),
            (L2, 2, 2, DIE(b=128.0, tau_c=0.4)),
            (L2, 3, 5, Never()),
            (L2, 1, 3, DIE()),
            (ThreatModel(eps=0.0), 2, 3, DIE()),
        ],
        ids=str,
    )
    def test_stays_inside_box_and_ball(
        self, attack: EnsembleAttack, threat: ThreatModel, members: int, classes: int, rule: StoppingRule
    ) -> None:
        if members == 1 and attack.label.endswith("member2"):
            pytest.skip("there is no second member")
        ensemble = make_ensemble(members, classes)
        x, y = images(ensemble, rule)
        kept = x.clone()
        x_adv = attack(ensemble, rule, x, y, threat, rng=seeded(0))
        assert torch.equal(x, kept)
        assert x_adv.shape == x.shape
        assert not x_adv.requires_grad
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert threat.distance(x_adv, x).max() <= threat.eps + 1e-6

    def test_gives_the_same_again_and_draws_only_from_its_generator(self, attack: EnsembleAttack) -> None:
        ensemble, rule = make_ensemble(), DIE()
        x, y = images(ensemble, rule)
        before = torch.get_rng_state()
        first = attack(ensemble, rule, x, y, LINF, rng=seeded(3))
        assert torch.equal(first, attack(ensemble, rule, x, y, LINF, rng=seeded(3)))
        assert torch.equal(before, torch.get_rng_state())

    def test_leaves_the_ensemble_as_found(self, attack: EnsembleAttack) -> None:
        ensemble, rule = make_ensemble(), DIE()
        x, y = images(ensemble, rule)
        for parameter in ensemble.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, modes = copy.deepcopy(ensemble.state_dict()), [module.training for module in ensemble.modules()]
        attack(ensemble, rule, x, y, LINF, rng=seeded(0))
        assert all(torch.equal(before[name], tensor) for name, tensor in ensemble.state_dict().items())
        assert [module.training for module in ensemble.modules()] == modes
        assert all(torch.equal(p.grad, torch.ones_like(p)) and p.requires_grad for p in ensemble.parameters())

    def test_attacks_each_image_alone(self, attack: EnsembleAttack) -> None:
        ensemble, rule = make_ensemble(), DIE(b=30.0, tau_c=0.7)
        x, y = images(ensemble, rule)
        whole = attack(ensemble, rule, x, y, LINF, rng=seeded(0))
        changed = x.clone()
        changed[6:] = x[6:].flip(0)
        part = attack(ensemble, rule, changed, torch.cat([y[:6], y[6:].flip(0)]), LINF, rng=seeded(0))
        torch.testing.assert_close(part[:6], whole[:6])

    def test_works_where_no_gradients_are_wanted(self, attack: EnsembleAttack) -> None:
        ensemble, rule = make_ensemble(), DIE()
        x, y = images(ensemble, rule)
        expected = attack(ensemble, rule, x, y, LINF, rng=seeded(0))
        with torch.no_grad():
            assert torch.equal(attack(ensemble, rule, x, y, LINF, rng=seeded(0)), expected)

    def test_an_empty_batch_stays_empty(self, attack: EnsembleAttack) -> None:
        x = torch.zeros(0, *SHAPE)
        assert attack(make_ensemble(), DIE(), x, torch.zeros(0, dtype=torch.long), LINF, rng=seeded(0)).shape == x.shape

    def test_refuses_images_outside_the_box(self, attack: EnsembleAttack) -> None:
        with pytest.raises(InputError, match=r"must lie in \[0, 1\], got \[-0.9"):
            attack(
                make_ensemble(),
                DIE(),
                torch.rand(2, *SHAPE, generator=seeded(0)) - 1,
                torch.zeros(2).long(),
                LINF,
                rng=seeded(0),
            )

    def test_nan_is_an_error_and_not_robustness(self, attack: EnsembleAttack) -> None:
        if attack.name == "surrogate_attack":
            pytest.skip("that is for the attack within to say")
        ensemble, rule = make_ensemble(), Never()
        x, y = images(ensemble, rule)
        with torch.no_grad():
            for one in ensemble.members:
                one[-1].weight.fill_(float("nan"))
        with pytest.raises(RunError):
            attack(ensemble, rule, x, y, LINF, rng=seeded(0))

    def test_breaks_or_slows_more_than_noise(self, attack: EnsembleAttack) -> None:
        ensemble, rule = make_ensemble(), DIE(tau_c=0.7)
        x, y = images(ensemble, rule, count=60)
        threat = ThreatModel(eps=0.05)
        found = predict_dynamic(ensemble, attack(ensemble, rule, x, y, threat, rng=seeded(0)), rule)
        noise = predict_dynamic(ensemble, threat.random_start(x, seeded(1)), rule)
        if attack.aims_at_cost:
            assert found.members_run.sum() > noise.members_run.sum()
        else:
            assert wrong(found.logits, y) > wrong(noise.logits, y)


def wrong(logits: Tensor, y: Labels) -> int:
    return int((logits.argmax(1) != y).sum())


class TestTheSuite:
    @pytest.mark.parametrize("size", [1, 2, 4])
    @pytest.mark.parametrize("stops_early", [True, False])
    def test_nothing_stands_in_it_twice(self, size: int, stops_early: bool) -> None:
        suite = full_suite(size, [PGD(steps=2), PGD(steps=9)], (*OTHERS, OTHERS[0]), stops_early=stops_early)
        labels = [attack.label for attack in suite]
        assert len(set(labels)) == len(labels)
        ensemble, x = make_ensemble(size), torch.rand(20, *SHAPE, generator=seeded(5))
        views = every_surrogate(size, OTHERS, stops_early=stops_early)
        rule = DIE(tau_c=0.7) if stops_early else Never()
        seen = [direction(view, ensemble, rule, x) for view in views]
        for i, one in enumerate(seen):
            for other in seen[:i]:
                assert not torch.allclose(one, other, rtol=1e-3, atol=1e-6)

    def test_every_member_prefix_and_combiner_is_attacked(self) -> None:
        labels = [view.label for view in every_surrogate(3, OTHERS)]
        assert labels == [
            *("whole", "reweighted", "mean_logit", "maximum", "soft_vote", "member2", "member3"),
            *("prefix1", "prefix2", "expectation", "deployed", "joint"),
        ]
        static = [view.label for view in every_surrogate(2, stops_early=False)]
        assert static == ["whole", "reweighted", "member1", "member2"]
        assert [attack.label for attack in full_suite(1, [PGD(steps=2)])] == ["pgd2-whole"]

    def test_a_black_box_asks_the_deployed_decision(self) -> None:
        suite = full_suite(2, [], black_box=[PGD(steps=2)])
        expected = ["apgd15+30t3-deployed", "apgd15+30t3-joint", "pgd2-deployed"]
        assert [attack.label for attack in suite[:3]] == expected
        assert {attack.name for attack in suite[3:]} == {"sequential", "slowdown"}


def direction(view: Surrogate, ensemble: Ensemble, rule: StoppingRule, x: Images) -> Tensor:
    """Return logits and gradient of a view; what an attack sees of it."""
    point = x.clone().requires_grad_()
    logits = view(ensemble, rule)(point).log_softmax(1)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), point)
    return torch.cat([logits.detach().flatten(), gradient.flatten()])


@pytest.mark.parametrize("view", every_surrogate(3, OTHERS), ids=lambda view: view.label)
class TestEverySurrogate:
    def test_is_registered_under_its_name(self, view: Surrogate) -> None:
        assert surrogates.build(spec(view)) == view

    @pytest.mark.parametrize("loss", sorted(attack_losses.components))
    def test_no_loss_loses_its_gradient(self, view: Surrogate, loss: str) -> None:
        ensemble, rule = make_ensemble(), DIE(tau_c=0.7)
        x, _ = images(ensemble, rule, count=40)
        point = x.clone().requires_grad_()
        logits = view(ensemble, rule)(point)
        y = logits.detach().argmax(1)
        clean = torch.zeros_like(logits) if loss == "kl" else logits.detach()
        value = attack_losses.build(loss)(logits, clean, y)
        (gradient,) = torch.autograd.grad(value.sum(), point)
        assert gradient.isfinite().all()
        assert (gradient.flatten(1).abs().amax(1) > 0).all()

    def test_asks_no_member_more_than_once_a_pass(self, view: Surrogate) -> None:
        ensemble, rule = make_ensemble(), DIE(tau_c=0.7)
        x, _ = images(ensemble, rule)
        with count_passes(*ensemble.members) as passes:
            view(ensemble, rule)(x)
        assert passes.forward <= 3 * len(x)
