"""The losses of an ensemble against slow literal versions, and the look inside members."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.losses.dverge import DVERGE, distil_features, feature_layers, features
from sparsemble.ensemble.losses.eed import (
    EED,
    active_share,
    mean_absolute_weight,
    misclassification,
    recorded_activations,
)
from sparsemble.pruning import Mask, prunable_layers
from sparsemble.training.loss import LossOutput
from tests.helpers import tiny_model


def member(seed: int) -> nn.Module:
    return tiny_model(seed=seed)


THREAT = ThreatModel(eps=0.1)
ATTACK = PGD(steps=2, step_size=0.5)
SEARCH = DVERGE(steps=3, attack=ATTACK)


def make_ensemble(members: int = 2) -> Ensemble:
    models = [member(seed) for seed in range(members)]
    for seed, model in enumerate(models):
        rng = seeded(seed)
        layers = prunable_layers(model)
        Mask({n: torch.rand(m.weight.shape, generator=rng) < 0.6 for n, m in layers.items()}).apply_(model)
    return Ensemble(models, MeanProbability())


def batch(images: int = 6) -> tuple[Images, Labels]:
    return torch.rand(images, 1, 8, 8, generator=seeded(9)), torch.arange(images) % 3


class TestFeatures:
    def test_are_the_output_of_one_layer_and_nothing_after_it_runs(self) -> None:
        model, (x, _) = member(0).eval(), batch()
        layers = feature_layers(model)
        assert len(layers) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        ran: list[str] = []
        for name, module in model.named_modules():
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
        found = features(model, layers[0], x)
        first = model.body.norm(model.body.conv((x - 0.5) / 0.3))
        torch.testing.assert_close(found, first)
        assert "body.linear" not in ran

    def test_activations_of_every_relu_are_seen_once(self) -> None:
        model, (x, _) = member(0).eval(), batch()
        with recorded_activations(model) as seen:
            model(x)
        assert len(seen) == sum(isinstance(m, nn.ReLU) for m in model.modules())
        assert all((activation >= 0).all() for activation in seen)
        model(x)
        assert len(seen) == sum(isinstance(m, nn.ReLU) for m in model.modules())

    def test_smooth_share_of_nonzeros_lies_between_none_and_all(self) -> None:
        assert active_share(torch.zeros(4, 5), 0.05) == 0
        assert float(active_share(torch.full((4, 5), 3.0), 0.05)) == pytest.approx(1 / (1 + 0.05**2))
        half = torch.tensor([0.0, 0.0, 7.0, 7.0])
        assert float(active_share(half, 1e-4)) == pytest.approx(0.5)
        assert float(active_share(1e3 * half, 0.3)) == pytest.approx(float(active_share(half, 0.3)))

    def test_smooth_share_falls_when_a_unit_shrinks(self) -> None:
        activation = torch.tensor([0.02, 1.0, 1.0], requires_grad=True)
        (gradient,) = torch.autograd.grad(active_share(activation, 0.05), activation)
        assert gradient[0] > 0


class TestImitate:
    def test_stays_in_the_ball_and_comes_nearer_in_the_features(self) -> None:
        model, (x, _) = member(0).eval(), batch()
        target = x.roll(1, 0)
        for layer in feature_layers(model):
            found = distil_features(model, layer, x, target, THREAT, 10)
            assert float((found - x).abs().max()) <= THREAT.eps + 1e-6
            assert float(found.min()) >= 0
            assert float(found.max()) <= 1
            wanted = features(model, layer, target)
            before = (features(model, layer, x) - wanted).square().flatten(1).sum(1)
            after = (features(model, layer, found) - wanted).square().flatten(1).sum(1)
            assert (after < before).all()
            assert not found.requires_grad

    def test_equals_the_search_step_by_step_on_one_image(self) -> None:
        model, (x, _) = member(0).eval(), batch(2)
        layer, point, velocity = feature_layers(model)[1], x[:1], torch.zeros(1, 1, 8, 8)
        for _ in range(4):
            point = point.detach().requires_grad_()
            distance = (features(model, layer, point) - features(model, layer, x[1:]).detach()).square().sum()
            (gradient,) = torch.autograd.grad(-distance, point)
            velocity = velocity + gradient / gradient.abs().sum()
            moved = point.detach() + 0.1 / 4 * velocity.sign()
            point = torch.max(torch.min(moved, x[:1] + 0.1), x[:1] - 0.1).clamp(0, 1)
        torch.testing.assert_close(distil_features(model, layer, x[:1], x[1:], THREAT, 4), point)


class TestDVERGE:
    @pytest.mark.parametrize("members", [1, 2, 3])
    @pytest.mark.parametrize("beta", [0.0, 0.5])
    def test_equals_a_slow_literal_version(self, members: int, beta: float) -> None:
        ensemble, (x, y) = make_ensemble(members).eval(), batch()
        found = DVERGE(beta=beta, steps=3, attack=ATTACK)(ensemble, x, y, THREAT, rng=seeded(5))
        rng = seeded(5)
        own = [ATTACK(model, x, y, THREAT, rng=rng) for model in ensemble.members]
        robust = sum(float(F.cross_entropy(m(z), y).detach()) for m, z in zip(ensemble.members, own, strict=True))
        diversity = 0.0
        if beta:
            offset = int(torch.randint(1, 6, (), generator=rng))
            names = feature_layers(ensemble.members[0])
            layer = names[int(torch.randint(len(names), (), generator=rng))]
            target, wide = torch.stack([x[(i - offset) % 6] for i in range(6)]), ThreatModel(eps=0.225)
            for j, model in enumerate(ensemble.members):
                weak = distil_features(model, layer, x, target, wide, 3)
                others = [other for i, other in enumerate(ensemble.members) if i != j]
                diversity += sum(float(F.cross_entropy(other(weak), y).detach()) for other in others)
        assert float(found.terms["robust"]) == pytest.approx(robust, rel=1e-4)
        assert float(found.terms["diversity"]) == pytest.approx(diversity, rel=1e-4)
        assert float(found.loss.detach()) == pytest.approx(robust + beta * diversity, rel=1e-4)

    def test_may_craft_once_on_the_whole_ensemble(self) -> None:
        ensemble, (x, y) = make_ensemble().eval(), batch()
        found = DVERGE(beta=0.0, attack=ATTACK, attack_ensemble=True)(ensemble, x, y, THREAT, rng=seeded(5))
        together = ATTACK(ensemble, x, y, THREAT, rng=seeded(5))
        assert torch.equal(found.adversarial, together)
        expected = sum(float(F.cross_entropy(m(together), y).detach()) for m in ensemble.members)
        assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize(
        ("settings", "match"),
        [
            ({"beta": -0.1}, "beta = -0.1 must be 0 or more"),
            ({"beta": math.nan}, "beta = nan must be 0 or more"),
            ({"radius": 0.0}, "radius = 0 must be above 0"),
            ({"radius": math.inf}, "radius = inf must be above 0, and finite"),
            ({"steps": 0}, "steps = 0 must be 1 or more"),
        ],
    )
    def test_settings_that_cannot_be_give_a_sentence(self, settings: dict[str, Any], match: str) -> None:
        with pytest.raises(InputError, match=match):
            DVERGE(**settings)

    def test_an_ensemble_without_batch_norm_gets_a_sentence(self) -> None:
        plain = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(64, 3)) for _ in range(2)], MeanProbability())
        x, y = batch()
        with pytest.raises(InputError, match="the model has no BatchNorm2d"):
            SEARCH(plain, x, y, THREAT, rng=seeded(0))
        assert DVERGE(beta=0.0, attack=ATTACK)(plain, x, y, THREAT, rng=seeded(0)).loss.isfinite()


class TestTerms:
    def test_misclassification_equals_a_slow_literal_version(self) -> None:
        logits, y = 2 * torch.randn(3, 40, 4, generator=seeded(0)), torch.arange(40) % 4
        combined = MeanProbability()(logits)
        total = 0.0
        for n in range(40):
            if int(combined[n].argmax()) == int(y[n]):
                continue
            highest = 0.0
            for i in range(3):
                probabilities = logits[i, n].softmax(0).tolist()
                highest = max(highest, *(p for c, p in enumerate(probabilities) if c != int(y[n])))
            total -= math.log(1 - min(highest, 0.99))
        assert total > 0
        assert float(misclassification(logits, combined, y)) == pytest.approx(total / 40, rel=1e-5)

    def test_misclassification_is_0_where_nothing_is_wrong(self) -> None:
        logits = torch.randn(2, 5, 3, generator=seeded(0))
        right = MeanProbability()(logits).argmax(1)
        assert misclassification(logits, MeanProbability()(logits), right) == 0

    def test_misclassification_is_clipped(self) -> None:
        logits = torch.tensor([[[1e4, 0.0]], [[1e4, 0.0]]], requires_grad=True)
        found = misclassification(logits, MeanProbability()(logits), torch.tensor([1]))
        assert float(found.detach()) == pytest.approx(-math.log(0.01), rel=1e-4)
        (gradient,) = torch.autograd.grad(found, logits)
        assert gradient.isfinite().all()

    def test_mean_weight_is_over_kept_weights_then_over_members(self) -> None:
        ensemble = make_ensemble(3)
        means = []
        for model in ensemble.members:
            kept = torch.cat([layer.weight[layer.weight != 0].abs() for layer in prunable_layers(model).values()])
            means.append(float(kept.detach().mean()))
        assert float(mean_absolute_weight(ensemble).detach()) == pytest.approx(sum(means) / 3)


class TestEED:
    def loss(self, ensemble: Ensemble, **settings: Any) -> LossOutput:
        x, y = batch()
        return EED(base=SEARCH, attack=ATTACK, **settings)(ensemble, x, y, THREAT, rng=seeded(5))

    def test_equals_its_parts_on_images_crafted_against_the_ensemble(self) -> None:
        ensemble, (x, y) = make_ensemble().eval(), batch()
        found = self.loss(ensemble)
        rng = seeded(5)
        base = SEARCH(ensemble, x, y, THREAT, rng=rng)
        x_adv = ATTACK(ensemble, x, y, THREAT, rng=rng)
        shares = []
        for model in ensemble.members:
            with recorded_activations(model) as seen:
                model(x_adv)
            shares.append(sum(float(active_share(a, 0.05).detach()) for a in seen) / len(seen))
        mistakes = misclassification(ensemble.member_logits(x_adv), ensemble(x_adv), y)
        compact = 0.7 * float(mean_absolute_weight(ensemble).detach()) + 0.25 * sum(shares) / 2
        assert torch.equal(found.adversarial, x_adv)
        assert float(found.terms["misclassification"]) == pytest.approx(float(mistakes.detach()), rel=1e-4)
        assert float(found.terms["compactness"]) == pytest.approx(compact, rel=1e-4)
        expected = float((base.loss + 10 * mistakes).detach()) + 4 * compact
        assert float(found.loss.detach()) == pytest.approx(expected, rel=1e-4)

    def test_without_its_own_terms_is_the_base(self) -> None:
        x, y = batch()
        base = SEARCH(make_ensemble().eval(), x, y, THREAT, rng=seeded(5))
        found = self.loss(make_ensemble().eval(), omega=0.0, gamma=0.0)
        assert torch.equal(found.loss, base.loss)
        assert found.terms.keys() == base.terms.keys()

    @pytest.mark.parametrize("attack_ensemble", [False, True])
    def test_changes_nothing_but_batchnorm_statistics(self, attack_ensemble: bool) -> None:
        ensemble = make_ensemble(3).train()
        before = copy.deepcopy(ensemble.state_dict())
        x, y = batch()
        base = DVERGE(steps=2, attack=ATTACK, attack_ensemble=attack_ensemble)
        EED(base=base, attack=ATTACK)(ensemble, x, y, THREAT, rng=seeded(5))
        assert all(parameter.grad is None for parameter in ensemble.parameters())
        assert all(module.training for module in ensemble.modules())
        moved = {n.rpartition(".")[2] for n, t in ensemble.state_dict().items() if not torch.equal(t, before[n])}
        assert moved == {"running_mean", "running_var", "num_batches_tracked"}

    @pytest.mark.parametrize("training", [False, True])
    def test_gradients_are_finite_and_reach_every_weight_of_every_member(self, training: bool) -> None:
        ensemble = make_ensemble(3).train(training)
        self.loss(ensemble).loss.backward()
        for name, parameter in ensemble.named_parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name

    def test_its_misclassification_term_alone_reaches_the_members_that_err(self) -> None:
        logits = torch.zeros(2, 1, 3, requires_grad=True)
        sure: Tensor = logits + torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]])
        (gradient,) = torch.autograd.grad(misclassification(sure, MeanProbability()(sure), torch.tensor([1])), logits)
        assert gradient[0, 0, 0] > 0
        assert (gradient[1] == 0).all()
