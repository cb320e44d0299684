"""AdversarialLoss inside training: what the attack sees, and that everything is left as found."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.pgd import PGD
from sparsemble.core.distributed_rng import normal_like, uniform_like
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels, seeded
from sparsemble.training.loss import craft
from sparsemble.training.losses.pgd_at import PGDAT
from tests.unit.test_losses import L2, LINF, batch, literal_cross_entropy, net
from tests.unit.test_losses_more import CASES


class TestCraft:
    @pytest.mark.parametrize("training", [False, True])
    def test_leaves_the_mode_as_found_even_after_an_error(self, training: bool) -> None:
        model = net().train(training)
        x, y = batch()
        craft(model, PGD(steps=1), x, y, LINF, rng=seeded(0))
        assert all(module.training == training for module in model.modules())
        with pytest.raises(InputError, match="images must lie in"):
            craft(model, PGD(steps=1), x + 2, y, LINF, rng=seeded(0))
        assert all(module.training == training for module in model.modules())

    def test_leaves_a_part_in_eval_mode_where_it_was(self) -> None:
        model = net()
        frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        craft(model, PGD(steps=1), *batch(), LINF, rng=seeded(0))
        assert model.training
        assert not frozen.training

    def test_does_not_move_batchnorm(self) -> None:
        model = net()
        before = copy.deepcopy(model.state_dict())
        craft(model, PGD(steps=2), *batch(), LINF, rng=seeded(0))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_climbs_another_target_where_given(self) -> None:
        x, _ = batch()

        def brighter(images: Images) -> Tensor:
            light = images.flatten(1).sum(1)
            return torch.stack([torch.zeros_like(light), light], dim=1)

        attack = PGD(steps=1, step_size=1.0, random_start=False, keep_best=False, loss=Margin())
        made = craft(net(), attack, x, torch.zeros(len(x)).long(), LINF, rng=seeded(0), target=brighter)
        torch.testing.assert_close(made, (x + LINF.eps).clamp_max(1))


@dataclass(frozen=True, kw_only=True)
class Looks(Attack):
    """Goes once through the model and back, and notes which gradients it could have."""

    name: ClassVar[str] = "looks"

    wanted: list[bool]
    label: str = ""

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        point = x.clone().requires_grad_()
        model(point).sum().backward()
        assert point.grad is not None
        self.wanted.append(bool(point.grad.abs().max() > 0))
        return x


MODES: list[Literal["eval", "train"]] = ["eval", "train"]


@pytest.mark.parametrize("batch_norm", MODES)
class TestBatchNormWhileCrafting:
    def test_leaves_everything_as_found(self, batch_norm: Literal["eval", "train"]) -> None:
        model = net()
        frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
        still = next(model.parameters()).requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
        craft(model, PGD(steps=2), *batch(), LINF, rng=seeded(0), batch_norm=batch_norm)
        with pytest.raises(InputError, match="images must lie in"):
            craft(model, PGD(steps=1), batch()[0] + 2, batch()[1], LINF, rng=seeded(0), batch_norm=batch_norm)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert not frozen.training
        assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))
        assert all(parameter.requires_grad == (parameter is not still) for parameter in model.parameters())
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters() if p.grad is not None)

    def test_no_gradient_of_weights_is_computed(self, batch_norm: Literal["eval", "train"]) -> None:
        """A backward pass that would fill every gradient fills those of the images only."""
        model = net()
        attack = Looks(wanted=[])
        craft(model, attack, *batch(), LINF, rng=seeded(0), batch_norm=batch_norm)
        assert attack.wanted == [True]
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_decides_what_the_attack_sees(self, batch_norm: Literal["eval", "train"]) -> None:
        """One step from the clean images, against a copy in that mode."""
        x, y = batch()
        attack = PGD(steps=1, step_size=0.5, random_start=False, keep_best=False)
        made = craft(net(), attack, x, y, L2, rng=seeded(0), batch_norm=batch_norm)
        copied = net().train(batch_norm == "train")
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(literal_cross_entropy(copied(leaf), y), leaf)
        moved = [x[i] + 0.5 * L2.eps * gradient[i] / gradient[i].norm() for i in range(len(x))]
        torch.testing.assert_close(made, torch.stack(moved).clamp(0, 1), rtol=1e-4, atol=1e-5)
        made_by_madry = PGDAT(attack=attack, batch_norm=batch_norm)(net(), x, y, L2, rng=seeded(0)).adversarial
        assert torch.equal(made, made_by_madry if made_by_madry is not None else x)

    def test_a_frozen_batchnorm_stays_frozen(self, batch_norm: Literal["eval", "train"]) -> None:
        x, y = batch()
        made = [craft(net().eval(), PGD(steps=2), x, y, L2, rng=seeded(0), batch_norm=mode) for mode in MODES]
        assert torch.equal(made[MODES.index(batch_norm)], made[0])


@pytest.mark.parametrize("name", CASES)
def test_every_objective_hands_its_setting_on(name: str) -> None:
    x, y = batch()
    training_losses: list[Any] = [replace(CASES[name][0], batch_norm=mode).with_teacher(net().eval()) for mode in MODES]
    by_statistics, by_batch = (o(net(), x, y, L2, rng=seeded(0)).adversarial for o in training_losses)
    assert by_statistics.shape == by_batch.shape
    assert not torch.allclose(by_statistics, by_batch, atol=1e-3)


def test_draws_follow_the_generator() -> None:
    x = torch.zeros(5, 1, 2, 2, dtype=torch.float64)
    for draw, plain in ((uniform_like, torch.rand), (normal_like, torch.randn)):
        found = draw(x, seeded(3))
        assert torch.equal(found, plain(5, 1, 2, 2, generator=seeded(3), dtype=torch.float64))
        assert found.dtype == x.dtype
