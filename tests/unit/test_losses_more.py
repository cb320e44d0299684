"""TRADES, MART, single-step training and distillation against slow literal versions, with their gradients."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.losses.awp import AWP
from sparsemble.training.losses.distillation import Distillation
from sparsemble.training.losses.fgsm_rs import FGSMRS
from sparsemble.training.losses.mart import MART, boosted_cross_entropy
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.losses.trades import TRADES
from tests.unit.test_losses import (
    L2,
    LINF,
    STEP_SIZE,
    STEPS,
    batch,
    literal_cross_entropy,
    literal_walk,
    literal_worst,
    net,
)

Literal = Callable[[nn.Module, Images, Labels, ThreatModel], Tensor]
SEED = 4
SHORT = PGD(steps=STEPS, step_size=STEP_SIZE, keep_best=False)
SMOOTHING = 0.2


def log_probabilities(row: Tensor) -> list[Tensor]:
    total = torch.stack([value.exp() for value in row]).sum()
    return [value - total.log() for value in row]


def literal_divergence(true: Tensor, model: Tensor) -> Tensor:
    """KL(p || q) of two rows of logits, a class at a time."""
    p, q = log_probabilities(true), log_probabilities(model)
    return torch.stack([a.exp() * (a - b) for a, b in zip(p, q, strict=True)]).sum()


def literal_smooth(logits: Tensor, y: Labels) -> Tensor:
    """Cross-entropy to (1 - s) of the label and s / K of every class."""
    total = torch.zeros(())
    for row, label in zip(logits, y.tolist(), strict=True):
        logs = log_probabilities(row)
        for k, value in enumerate(logs):
            total = total - (SMOOTHING / len(logs) + (1 - SMOOTHING) * (k == label)) * value
    return total / len(y)


def near(x: Images) -> Images:
    """x + 0.001 N(0, 1), in the box."""
    return (x + 0.001 * torch.randn(x.shape, generator=seeded(SEED), dtype=x.dtype)).clamp(0, 1)


def literal_trades(model: nn.Module, x: Images, y: Labels, threat: ThreatModel) -> Tensor:
    """Zhang et al. 2019, eq. 5."""
    quiet = copy.deepcopy(model).eval()
    clean = [quiet(image)[0].detach() for image in x.split(1)]
    x_adv = literal_walk(model, x, near(x), threat, lambda z, i: literal_divergence(clean[i], z[0]))
    before, after = model(x), model(x_adv)
    far = torch.stack([literal_divergence(a, b) for a, b in zip(before, after, strict=True)]).mean()
    return literal_smooth(before, y) + 6 * far


def literal_mart(model: nn.Module, x: Images, y: Labels, threat: ThreatModel) -> Tensor:
    """Wang et al. 2020: boosted cross-entropy and weighted divergence."""
    x_adv = literal_walk(model, x, near(x), threat, lambda z, i: literal_cross_entropy(z, y[i : i + 1]))
    after, before = model(x_adv), model(x)
    total = torch.zeros(())
    for a, b, label in zip(after, before, y.tolist(), strict=True):
        p, q = [v.exp() for v in log_probabilities(a)], [v.exp() for v in log_probabilities(b)]
        rival = max((value for k, value in enumerate(p) if k != label), key=lambda value: float(value.detach()))
        total = total - p[label].log() - (1 - rival).log() + 5 * literal_divergence(b, a) * (1 - q[label])
    return total / len(y)


def literal_fgsm_rs(model: nn.Module, x: Images, y: Labels, threat: ThreatModel) -> Tensor:
    """Wong et al. 2020, algorithm 3."""
    return literal_smooth(model(literal_worst(model, x, y, threat, SEED, steps=1, step_size=1.25)), y)


def literal_n_fgsm(model: nn.Module, x: Images, y: Labels, threat: ThreatModel) -> Tensor:
    """De Jorge et al. 2022: noise of 2 eps, a step of eps, in the box only."""
    quiet, result = copy.deepcopy(model).eval(), []
    wide = ThreatModel(norm=threat.norm, eps=2 * threat.eps).random_start(x, seeded(SEED))
    for noisy, label in zip(wide.split(1), y.split(1), strict=True):
        leaf = noisy.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(literal_cross_entropy(quiet(leaf), label), leaf)
        step = gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()
        result.append((noisy + threat.eps * step).clamp(0, 1))
    return literal_smooth(model(torch.cat(result)), y)


def teacher() -> nn.Module:
    other = net().eval().requires_grad_(False)
    for parameter in other.parameters():
        parameter += 0.3 * torch.randn(parameter.shape, generator=seeded(9))
    return other


def literal_distillation(model: nn.Module, x: Images, y: Labels, threat: ThreatModel) -> Tensor:
    """Goldblum et al. 2020: alpha T^2 KL(teacher(x) || student(x_adv)) + (1 - alpha) CE(student(x))."""
    after, wanted = model(literal_worst(model, x, y, threat, SEED)), teacher().to(x.dtype)(x)
    far = torch.stack([literal_divergence(t / 3, s / 3) for t, s in zip(wanted, after, strict=True)]).mean()
    return 0.7 * 9 * far + (1 - 0.7) * literal_smooth(model(x), y)


CASES: dict[str, tuple[TrainingLoss, Literal, int]] = {
    "trades": (
        TRADES(attack=replace(SHORT, start_noise=0.001, loss=KL()), label_smoothing=SMOOTHING),
        literal_trades,
        2,
    ),
    "mart": (MART(attack=replace(SHORT, start_noise=0.001)), literal_mart, 2),
    "fgsm_rs": (FGSMRS(label_smoothing=SMOOTHING), literal_fgsm_rs, 1),
    "n_fgsm": (NFGSM(label_smoothing=SMOOTHING), literal_n_fgsm, 1),
    "distillation": (
        Distillation(alpha=0.7, temperature=3.0, attack=SHORT, label_smoothing=SMOOTHING).with_teacher(teacher()),
        literal_distillation,
        2,
    ),
}


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_loss_gradient_and_batchnorm_of_a_literal_version(name: str, threat: ThreatModel) -> None:
    """In 64 bits: near the clean image the divergence's gradient is a difference of nearly equal numbers."""
    training_loss, literal_loss, passes = CASES[name]
    training_loss = training_loss.with_teacher(teacher().double())
    ours, literal = net().double(), net().double()
    x, y = batch()[0].double(), batch()[1]
    output = training_loss(ours, x, y, threat, rng=seeded(SEED))
    output.loss.backward()
    expected = literal_loss(literal, x, y, threat)
    expected.backward()
    torch.testing.assert_close(output.loss, expected)
    for (part, parameter), other in zip(ours.named_parameters(), literal.parameters(), strict=True):
        assert other.grad is not None
        assert other.grad.abs().max() > 0, part
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=part)
    for (part, tensor), same in zip(ours.named_buffers(), literal.buffers(), strict=True):
        torch.testing.assert_close(tensor, same, msg=part)
        assert not part.endswith("num_batches_tracked") or int(tensor) == passes


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch_norm", ["eval", "train"])
class TestEach:
    def test_changes_nothing_but_batchnorm(self, name: str, batch_norm: str) -> None:
        training_loss: Any = replace(CASES[name][0], batch_norm=batch_norm).with_teacher(teacher())
        model = net()
        before, state = copy.deepcopy(dict(model.named_parameters())), torch.get_rng_state()
        x, y = batch()
        output = training_loss(model, x, y, LINF, rng=seeded(SEED))
        assert all(torch.equal(before[part], parameter) for part, parameter in model.named_parameters())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert all(module.training for module in model.modules())
        assert torch.equal(x, batch()[0])
        assert torch.equal(state, torch.get_rng_state())
        assert not any(term.requires_grad for term in output.terms.values())
        counted = [int(tensor) for part, tensor in model.named_buffers() if part.endswith("num_batches_tracked")]
        assert counted == [CASES[name][2]] * len(counted), "crafting does not count"

    def test_the_loss_can_be_taken_again_on_the_same_images(self, name: str, batch_norm: str) -> None:
        training_loss: Any = replace(CASES[name][0], batch_norm=batch_norm).with_teacher(teacher())
        x, y = batch()
        model, rng = net(), seeded(SEED)
        loss = training_loss.prepare(model, x, y, LINF, rng=rng)
        drawn = rng.get_state()
        once = loss()
        for parameter in model.parameters():
            parameter.data += 0.1
        twice = loss()
        assert torch.equal(once.adversarial, twice.adversarial)
        assert once.loss != twice.loss
        assert torch.equal(drawn, rng.get_state())
        called = training_loss(net(), x, y, LINF, rng=seeded(SEED))
        assert torch.equal(called.loss, once.loss)


def test_the_default_preparation_repeats_the_draws() -> None:
    x, y = batch()
    rng = seeded(SEED)
    loss = Standard().prepare(net(), x, y, LINF, rng=rng)
    assert torch.equal(loss().loss, Standard()(net(), x, y, LINF, rng=rng).loss)


class TestTRADES:
    def test_without_beta_is_natural(self) -> None:
        x, y = batch()
        found = TRADES(beta=0.0)(net(), x, y, LINF, rng=seeded(0)).loss
        assert torch.equal(found, Standard()(net(), x, y, LINF, rng=seeded(0)).loss)

    def test_parts_add_up_and_the_search_finds_a_divergence(self) -> None:
        x, y = batch()
        output = TRADES(beta=2.0)(net(), x, y, LINF, rng=seeded(0))
        torch.testing.assert_close(output.loss, output.terms["standard"] + 2 * output.terms["divergence"])
        still = TRADES(beta=2.0)(net(), x, y, ThreatModel(eps=0.0), rng=seeded(0))
        assert float(still.terms["divergence"]) == pytest.approx(0, abs=1e-6)
        assert output.terms["divergence"] > still.terms["divergence"] + 1e-3


class TestMART:
    def test_boosted_cross_entropy_of_known_probabilities(self) -> None:
        """-log 0.7 - log(1 - 0.2), and -log 0.1 - log(1 - 0.6)."""
        logits = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1]]).log()
        expected = -(math.log(0.7) + math.log(0.8) + math.log(0.1) + math.log(0.4)) / 2
        assert float(boosted_cross_entropy(logits, torch.tensor([0, 2]))) == pytest.approx(expected)

    @pytest.mark.parametrize("confidence", [50.0, 1e4])
    def test_stays_finite_where_a_wrong_class_is_certain(self, confidence: float) -> None:
        """1 - p rounds to 0 there; in logarithms it does not."""
        logits = torch.tensor([[confidence, 0.0, 0.0]]).requires_grad_()
        loss = boosted_cross_entropy(logits, torch.tensor([1]))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(2 * confidence - math.log(2), rel=1e-6)
        assert logits.grad is not None
        torch.testing.assert_close(logits.grad, torch.tensor([[2.0, -1.5, -0.5]]))

    def test_without_weight_the_clean_answer_plays_no_part(self) -> None:
        x, y = batch()
        output = MART(weight=0.0, attack=SHORT)(net(), x, y, LINF, rng=seeded(SEED))
        logits = net()(literal_worst(net(), x, y, LINF, SEED))
        torch.testing.assert_close(output.loss, boosted_cross_entropy(logits, y))


class TestDistillation:
    def test_a_student_that_answers_like_its_teacher_has_nothing_to_learn(self) -> None:
        x, y = batch()
        own = teacher()
        still = ThreatModel(eps=0.0)
        loss = Distillation().with_teacher(own)(copy.deepcopy(own), x, y, still, rng=seeded(0)).loss
        assert float(loss.detach()) == pytest.approx(0, abs=1e-3)
        assert Distillation().with_teacher(own)(net(), x, y, still, rng=seeded(0)).loss > 0.1

    def test_needs_a_teacher_before_it_crafts(self) -> None:
        x, y = batch()
        model = net()
        for loss in (Distillation(), AWP(inner=Distillation())):
            with count_passes(model) as passes, pytest.raises(InputError, match="distillation needs a teacher"):
                loss(model, x, y, LINF, rng=seeded(0))
            assert passes.total == 0

    def test_the_teacher_is_no_setting(self) -> None:
        taught = Distillation(alpha=0.5).with_teacher(teacher())
        assert taught == Distillation(alpha=0.5)
        assert hash(taught) == hash(Distillation(alpha=0.5))
        assert to_dict(taught) == to_dict(Distillation(alpha=0.5))
        assert repr(taught) == repr(Distillation(alpha=0.5))
        with pytest.raises(InputError, match="teacher is not a known setting"):
            training_losses.build({"name": "distillation", "teacher": "resnet"}, "objective")

    def test_others_do_without(self) -> None:
        madry = PGDAT()
        assert madry.with_teacher(teacher()) is madry


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (TRADES, {"beta": -1.0}, "beta = -1 must be 0 or more"),
        (MART, {"weight": math.nan}, "weight = nan must be 0 or more"),
        (FGSMRS, {"step_size": 0.0}, "step_size = 0 must be above 0"),
        (NFGSM, {"noise": -0.5}, "noise = -0.5 must be 0 or more"),
        (NFGSM, {"step_size": 0.0}, "step_size = 0 must be above 0"),
        (Distillation, {"alpha": 1.5}, r"alpha = 1.5 must lie in \[0, 1\]"),
        (Distillation, {"temperature": 0.0}, "temperature = 0 must be above 0"),
        *[(kind, {"label_smoothing": 1.0}, "label_smoothing") for kind in (TRADES, FGSMRS, NFGSM, Distillation)],
    ],
)
def test_refuses_settings_out_of_range(kind: type[Any], settings: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        kind(**settings)


@pytest.mark.parametrize("name", CASES)
def test_losses_are_taken_in_32_bits(name: str) -> None:
    """A model that answers in 16 bits gets the loss that its answers have in 32."""
    half = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).bfloat16()
    still = ThreatModel(eps=0.0)

    class Coarse(nn.Module):
        def __init__(self, widen: bool) -> None:
            super().__init__()
            self.inner, self.widen = half, widen

        def forward(self, x: Images) -> Tensor:
            answer: Tensor = self.inner(x.bfloat16())
            return answer.float() if self.widen else answer

    x, y = batch()
    found, expected = (CASES[name][0](Coarse(widen), x, y, still, rng=seeded(SEED)).loss for widen in (False, True))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
