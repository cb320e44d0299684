"""APGD, targeted APGD and their losses, against linear models whose worst case is known in closed form."""

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks import APGD, DLR, EOT, KL, APGDTargeted, CrossEntropy, Margin
from sparsemble.attacks.apgd_core import APGDSearch, random_start_at_eps
from sparsemble.attacks.apgd_states import checkpoints
from sparsemble.attacks.apgd_targeted import TargetedDLR
from sparsemble.attacks.attack import likeliest_wrong
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from tests.helpers import LinearClassifier, margin, predicted


def linear(classes: int, *, log_probabilities: bool = False) -> LinearClassifier:
    return LinearClassifier(classes, SHAPE, seed=classes, log_probabilities=log_probabilities)


SHAPE = (2, 4, 5)
LINF = ThreatModel(norm="linf", eps=0.1)
L2 = ThreatModel(norm="l2", eps=0.3)


def images(count: int = 16, low: float = 0.35, high: float = 0.65) -> Tensor:
    return torch.rand(count, *SHAPE, generator=seeded(7)) * (high - low) + low


@pytest.mark.parametrize("loss", [CrossEntropy(), Margin()])
@pytest.mark.parametrize("box", [False, True])
def test_reaches_the_worst_corner_of_a_linear_model(loss, box) -> None:
    model = linear(2)
    x = images(low=0.0, high=1.0) if box else images()
    y = predicted(model, x)
    x_adv = APGD(steps=10, loss=loss, stop_at_success=False)(model, x, y, LINF, rng=seeded(0))
    way = (model.weight[1] - model.weight[0]).view(SHAPE) * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, (x + LINF.eps * way.sign()).clamp(0, 1))
    torch.testing.assert_close(margin(model, x_adv, y), model.worst_margin(x, y, LINF))


def test_reaches_the_worst_point_of_an_l2_ball() -> None:
    model, x = linear(2), images()
    y = predicted(model, x)
    x_adv = APGD(steps=30, loss=Margin(), stop_at_success=False)(model, x, y, L2, rng=seeded(0))
    torch.testing.assert_close(margin(model, x_adv, y), model.worst_margin(x, y, L2), rtol=1e-3, atol=1e-3)


def test_three_targets_reach_the_worst_of_all_classes() -> None:
    model, x = linear(3), images(low=0.0, high=1.0)
    y = predicted(model, x)
    x_adv = APGDTargeted(steps=10, stop_at_success=False)(model, x, y, LINF, rng=seeded(0))
    torch.testing.assert_close(margin(model, x_adv, y), model.worst_margin(x, y, LINF))


@pytest.mark.parametrize("log_probabilities", [False, True])
@pytest.mark.parametrize(("classes", "eps"), [(2, 0.02), (3, 0.02), (4, 0.01), (10, 0.005)])
def test_breaks_what_can_be_broken_and_nothing_else(classes, eps, log_probabilities) -> None:
    model, threat = linear(classes, log_probabilities=log_probabilities), ThreatModel(eps=eps)
    x = images(60)
    y = predicted(model, x)
    worst = model.worst_margin(x, y, threat)
    clear = worst.abs() > 0.05
    assert 5 < (worst > 0.05).sum() < 55
    misclassified = predicted(model, APGDTargeted(steps=20)(model, x, y, threat, rng=seeded(0))) != y
    assert torch.equal(misclassified[clear], worst[clear] > 0)
    # Without a target the search may end at the wrong one of several boundaries.
    misclassified = predicted(model, APGD(steps=20)(model, x, y, threat, rng=seeded(0))) != y
    assert not misclassified[worst < -1e-4].any()
    assert misclassified.sum() >= 0.8 * (worst > 0.05).sum()


@pytest.mark.parametrize("threat", [LINF, L2])
@pytest.mark.parametrize("attack", [APGD(steps=7, restarts=2), APGDTargeted(steps=7, targets=2)])
def test_stays_inside_and_leaves_the_model_alone(attack, threat) -> None:
    model, x = linear(5), images(low=0.0, high=1.0)
    before = model.weight.detach().clone()
    x_adv = attack(model, x, predicted(model, x), threat, rng=seeded(0))
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (threat.distance(x_adv, x) <= threat.eps + 1e-6).all()
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    assert not x_adv.requires_grad


@pytest.mark.parametrize("attack", [APGD(steps=15, loss=DLR()), APGDTargeted(steps=15)])
def test_an_image_does_not_depend_on_the_others(attack, monkeypatch) -> None:
    for module in ("apgd", "apgd_targeted"):
        monkeypatch.setattr(f"sparsemble.attacks.{module}.random_start_at_eps", lambda x, threat, rng: x)
    model, x, threat = linear(6), images(12), ThreatModel(eps=0.02)
    y = predicted(model, x)
    together = attack(model, x, y, threat, rng=seeded(0))
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], threat, rng=seeded(0)) for i in range(len(x))])
    torch.testing.assert_close(together, alone)


def test_passes_are_those_of_the_budget() -> None:
    model, x, threat = linear(4), images(6), ThreatModel(eps=1e-6)
    y = predicted(model, x)
    with count_passes(model) as passes:
        APGD(steps=9, restarts=2)(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (6 * (1 + 2 * 10), 6 * 2 * 9)
    with count_passes(model) as passes:
        APGDTargeted(steps=9)(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (6 * (1 + 3 * 10), 6 * 3 * 9)
    with count_passes(model) as passes:
        EOT(passes=3, attack=APGD(steps=9))(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (6 * 3 * 11, 6 * 3 * 9)


def test_misclassified_images_take_no_further_passes() -> None:
    model, x = linear(2), images(8)
    y = predicted(model, x)
    with count_passes(model) as stopped:
        x_adv = APGD(steps=50)(model, x, y, LINF, rng=seeded(0))
    with count_passes(model) as whole:
        APGD(steps=50, stop_at_success=False)(model, x, y, LINF, rng=seeded(0))
    assert (predicted(model, x_adv) != y).all()
    assert stopped.total < 0.2 * whole.total
    with count_passes(model) as clean_only:
        assert torch.equal(APGD()(model, x, 1 - y, LINF, rng=seeded(0)), x)
    assert (clean_only.forward, clean_only.backward) == (8, 0)


def test_a_failure_returns_the_highest_loss_not_the_clean_image() -> None:
    model, x, threat = linear(2), images(), ThreatModel(eps=1e-3)
    y = predicted(model, x)
    x, y = x[margin(model, x, y) < -0.2], y[margin(model, x, y) < -0.2]
    for attack in (APGD(steps=5), APGDTargeted(steps=5)):
        x_adv = attack(model, x, y, threat, rng=seeded(0))
        torch.testing.assert_close(margin(model, x_adv, y), model.worst_margin(x, y, threat), rtol=1e-4, atol=1e-5)


def test_a_random_model_is_evaluated_by_its_mean() -> None:
    inner, noise = linear(2), seeded(5)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x) + 2 * torch.randn(len(x), 2, generator=noise)

    model, x, threat = Noisy(), images(40, low=0.0, high=1.0), ThreatModel(eps=0.01)
    y = predicted(inner, x)
    x, y = (part[inner.worst_margin(x, y, threat) < -1.5] for part in (x, y))
    assert len(x) > 5
    assert (predicted(model, x) != y).any(), "the noise must be large enough to fool a single pass"
    x, y = x[:6], y[:6]
    with count_passes(model) as passes:
        EOT(passes=80, attack=APGD(steps=5))(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (len(x) * 80 * 7, len(x) * 80 * 5), "no image counts as misclassified"


def test_checkpoints_are_the_published_ones() -> None:
    measured = checkpoints(100, "linf")
    assert list(measured)[:6] == [22, 41, 57, 70, 80, 87]
    assert set(list(measured.values())[-2:]) == {6}
    assert max(measured) <= 100
    assert checkpoints(1, "l2") == {1: 1}
    assert checkpoints(30, "l1") == dict.fromkeys(range(1, 31), 1)
    assert checkpoints(100, "l1") == dict.fromkeys(range(4, 101, 4), 4)


@pytest.mark.parametrize("box", [False, True])
def test_reaches_the_worst_point_of_an_l1_ball_and_the_box(box) -> None:
    """The values of largest weight move first, each as far as the box allows."""
    model, x = linear(2), images(low=0.0, high=1.0) if box else images()
    y, eps = predicted(model, x), 1.5 if box else 0.3
    way = (model.weight[1] - model.weight[0]).detach() * torch.where(y == 0, 1.0, -1.0)[:, None]
    flat = x.flatten(1)
    weight, order = way.abs().sort(dim=1, descending=True)
    room = torch.where(way > 0, 1 - flat, flat).gather(1, order)
    moved = (eps - (room.cumsum(1) - room)).clamp_min(0).minimum(room)
    worst = margin(model, x, y) + (weight * moved).sum(1)
    threat = ThreatModel(norm="l1", eps=eps)
    x_adv = APGD(steps=100, loss=Margin(), stop_at_success=False)(model, x, y, threat, rng=seeded(0))
    torch.testing.assert_close(margin(model, x_adv, y), worst, rtol=0.02, atol=0.04)


def test_a_run_in_l1_goes_through_three_balls_and_counts_points_of_the_last_only() -> None:
    model, x = linear(4), images(6)
    y, distances = predicted(model, x), []
    threat = ThreatModel(norm="l1", eps=0.01)
    model.register_forward_pre_hook(lambda _module, inputs: distances.append(threat.distance(inputs[0], x).max()))
    with count_passes(model) as passes:
        x_adv = APGD(steps=20)(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (6 * (1 + 23), 6 * 20)
    for radius, part in ((3, distances[1:8]), (2, distances[8:15]), (1, distances[15:])):
        assert all(distance <= radius * threat.eps + threat.tolerance for distance in part)
        assert max(part) > (radius - 0.5) * threat.eps
    assert (threat.distance(x_adv, x) <= threat.eps + threat.tolerance).all()


def test_starts_lie_on_the_boundary_of_the_ball() -> None:
    x = images()
    for threat in (LINF, L2):
        start = random_start_at_eps(x, threat, seeded(0))
        torch.testing.assert_close(threat.distance(start, x), torch.full((len(x),), threat.eps))


def test_dlr_ignores_scale_and_shift_and_knows_its_limits() -> None:
    logits, y = torch.randn(9, 5, generator=seeded(1)), torch.arange(9) % 5
    value = DLR()(logits, logits, y)
    torch.testing.assert_close(DLR()(7 * logits - 3, logits, y), value)
    torch.testing.assert_close(DLR()(logits.log_softmax(1), logits, y), value)
    assert torch.equal(value > 0, logits.argmax(1) != y)
    one = torch.tensor([[4.0, 1.0, 3.0, 0.0]])
    by_hand = DLR()(one, one, torch.tensor([0]))
    torch.testing.assert_close(by_hand, torch.tensor([-1.0 / 3.0]))
    with pytest.raises(InputError, match="needs 3 classes"):
        DLR()(logits[:, :2], logits[:, :2], y % 2)


def test_targeted_dlr_follows_its_formula() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 2.0]])
    value = TargetedDLR(torch.tensor([1]), torch.tensor([0]))(logits, torch.tensor([0]))
    torch.testing.assert_close(value, torch.tensor([-3.0 / (4.0 - 1.5)]))
    few = TargetedDLR(torch.tensor([1]), torch.tensor([0]))(logits[:, :3], torch.tensor([0]))
    torch.testing.assert_close(few, torch.tensor([-3.0]))


def test_targets_are_wrong_classes_likeliest_first() -> None:
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0], [4.0, 1.0, 3.0, 0.0]])
    assert likeliest_wrong(logits, torch.tensor([0, 2]), 9).tolist() == [[2, 1, 3], [0, 1, 3]]
    assert likeliest_wrong(logits, torch.tensor([0, 2]), 1).tolist() == [[2], [0]]


def test_kl_is_the_divergence_from_the_clean_prediction() -> None:
    clean, moved = torch.randn(2, 4, 6, generator=seeded(2)).unbind(0)
    p, q = clean.softmax(1), moved.softmax(1)
    torch.testing.assert_close(KL()(moved, clean, torch.zeros(4).long()), (p * (p / q).log()).sum(1))
    assert KL()(clean + 5, clean, torch.zeros(4).long()).abs().max() < 1e-6


@pytest.mark.parametrize("settings", [{"steps": 0}, {"rho": 1.0}, {"rho": 0.0}], ids=lambda settings: str(settings))
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(InputError):
        APGD(**settings)
    with pytest.raises(InputError):
        APGDTargeted(**settings)
    with pytest.raises(InputError):
        APGDSearch(**{"steps": 5, **settings})


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="restarts = 0"):
        APGD(restarts=0)
    with pytest.raises(InputError, match="targets = 0"):
        APGDTargeted(targets=0)
