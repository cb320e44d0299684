"""AutoAttack: its schedule, the part that succeeded, few classes, and the same outcomes as the authors' code."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.attacks import (
    APGD,
    DLR,
    EOT,
    APGDFocused,
    APGDTargeted,
    AutoAttack,
    CrossEntropy,
    Margin,
    Square,
    attacks,
)
from sparsemble.attacks.apgd_focused import remaining
from sparsemble.attacks.best_points import BestPoints
from sparsemble.attacks.black_box.square import search_from
from sparsemble.attacks.losses.margin import margin_of
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from tests.helpers import FULL, predicted

CLASSES = 6


def small_net(classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        return nn.Sequential(
            nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, classes)
        )


def patterns(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images of one faint pattern a class, in noise."""
    prototypes = torch.rand(classes, 2, 8, 8, generator=seeded(100))
    y = torch.arange(count) % classes
    noise = torch.rand(count, 2, 8, 8, generator=seeded(seed))
    return 0.5 * prototypes[y] + 0.5 * noise, y


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = small_net(CLASSES)
    x, y = patterns(240, CLASSES, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def kinds(parts: tuple[object, ...]) -> list[str]:
    return [type(part).__name__ for part in parts]


def test_the_schedule_is_the_published_one() -> None:
    standard = AutoAttack().schedule(10, "linf")
    assert standard[0] == APGD(steps=100, loss=CrossEntropy())
    assert standard[1] == APGDTargeted(steps=100, targets=9)
    assert standard[-1] == Square(queries=5000, rescale=False)
    sparse = AutoAttack().schedule(10, "l1")
    assert sparse[:2] == (APGD(restarts=5), APGDTargeted(targets=5))
    assert sparse[2:] == standard[2:]
    plus = AutoAttack(variant="plus").schedule(10, "linf")
    assert plus[:2] == (APGD(restarts=5), APGD(restarts=5, loss=DLR()))
    rand = AutoAttack(variant="rand").schedule(10, "l2")
    assert rand == tuple(EOT(passes=20, attack=attack) for attack in (APGD(), APGD(loss=DLR())))
    assert AutoAttack(variant="rand").schedule(2, "l2")[1] == EOT(passes=20, attack=APGD(loss=Margin()))


def test_labels_name_variant_and_mode() -> None:
    assert AutoAttack().label == "autoattack"
    assert AutoAttack(mode="fast").label == "autoattack-fast"
    assert AutoAttack(variant="rand").label == "autoattack-rand"
    assert AutoAttack(label="mine").label == "mine"
    assert attacks.build({"name": "autoattack", "mode": "fast"}) == AutoAttack(mode="fast")
    assert to_dict(AutoAttack(), versions=True)["variant"] == "standard"
    with pytest.raises(InputError, match="fast"):
        AutoAttack(variant="plus", mode="fast")


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_cascade_returns_the_part_that_succeeded_on_each_image(trained, mode) -> None:
    x, y = patterns(40, CLASSES, seed=2)
    y = predicted(trained, x)
    y[3] = (y[3] + 1) % CLASSES
    attack, threat = AutoAttack(mode=mode), ThreatModel(eps=0.1)
    x_adv, part = attack.cascade(trained, x, y, threat, rng=seeded(0))
    assert part[3] == -2
    assert torch.equal(x_adv[3], x[3])
    assert torch.equal(predicted(trained, x_adv) == y, part == -1)
    assert set(part.tolist()) - {-1, -2} <= set(range(len(attack.schedule(CLASSES, threat.norm))))
    assert torch.equal(attack(trained, x, y, threat, rng=seeded(0)), x_adv)


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_works_for_any_number_of_classes(classes, norm, mode) -> None:
    model = small_net(classes)
    x, _ = patterns(6, classes, seed=4)
    y, threat = predicted(model, x), ThreatModel(norm=norm, eps=30.0 if norm == "l1" else 1.0)
    x_adv = AutoAttack(mode=mode)(model, x, y, threat, rng=seeded(0))
    assert (predicted(model, x_adv) != y).all()


@pytest.mark.parametrize("mode", [pytest.param("exact", marks=pytest.mark.slow), "fast"])
def test_never_weaker_than_its_first_part(trained, mode) -> None:
    x, y = patterns(24, CLASSES, seed=5)
    threat = ThreatModel(eps=0.05)
    first = predicted(trained, APGD()(trained, x, y, threat, rng=seeded(0))) == y
    whole = predicted(trained, AutoAttack(mode=mode)(trained, x, y, threat, rng=seeded(0))) == y
    assert 3 < first.sum() < 21
    assert not (whole & ~first).any()


def test_log_probabilities_change_nothing(trained) -> None:
    x, y = patterns(30 if FULL else 12, CLASSES, seed=6)
    threat = ThreatModel(eps=0.05)
    same = nn.Sequential(trained, nn.LogSoftmax(1))
    for attack in (AutoAttack(mode="fast"), APGDTargeted()):
        left, right = (predicted(trained, attack(m, x, y, threat, rng=seeded(0))) == y for m in (trained, same))
        assert (left != right).sum() <= 1


def test_model_stays_as_found(trained) -> None:
    x, y = patterns(12, CLASSES, seed=7)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    trained.zero_grad()
    AutoAttack(mode="fast")(trained, x, y, ThreatModel(eps=0.05), rng=seeded(0))
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in trained.parameters())
    assert not trained.training


def masked(model: nn.Module) -> nn.Module:
    """Hide the gradient behind steps too fine to matter."""

    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = model(x)
            return (logits * 200).round() / 200 + 0 * x.sum()

    return Steps()


def test_fast_falls_back_where_gradients_are_masked(trained) -> None:
    x, y = patterns(10, CLASSES, seed=8)
    threat = ThreatModel(eps=0.1)
    y = predicted(trained, x)
    model = masked(trained)
    exact, fast = (
        predicted(model, AutoAttack(mode=mode)(model, x, y, threat, rng=seeded(0))) != y for mode in ("exact", "fast")
    )
    assert exact.sum() > 6
    assert (exact & ~fast).sum() <= 1


@pytest.mark.slow
def test_fast_takes_a_fraction_of_the_passes(trained) -> None:
    x, y = patterns(12, CLASSES, seed=9)
    y, threat = predicted(trained, x), ThreatModel(eps=0.03)
    cost = {}
    for mode in ("exact", "fast"):
        with count_passes(trained) as passes:
            AutoAttack(mode=mode)(trained, x, y, threat, rng=seeded(0))
        cost[mode] = passes.total
    assert cost["fast"] < 0.2 * cost["exact"]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_succeeds_on_the_same_images_as_the_reference(trained, norm) -> None:
    reference = pytest.importorskip("pyautoattack.autopgd_base")
    count = 120 if FULL else 60
    x, y = patterns(count, CLASSES, seed=10)
    y, eps = predicted(trained, x), {"linf": 0.05, "l2": 0.5, "l1": 2.0}[norm]
    settings = {"eps": eps, "norm": norm.capitalize(), "device": "cpu"}
    targeted = reference.APGDAttack_targeted(trained, n_target_classes=5, **settings)
    theirs = {"apgd": reference.APGDAttack(trained, **settings), "apgd_targeted": targeted}
    for other in theirs.values():
        other.use_largereps = norm == "l1"
    for name, other in theirs.items():
        with count_passes(trained) as most, torch.random.fork_rng():
            x_adv = other.perturb(x, y)
        right = predicted(trained, x_adv) == y
        ours = attacks.build(name)
        with count_passes(trained) as passes:
            left = predicted(trained, ours(trained, x, y, ThreatModel(norm=norm, eps=eps), rng=seeded(0))) == y
        assert count // 6 < right.sum() < count - count // 6
        assert (left != right).sum() <= count // 60
        assert passes.total <= most.total


def test_focused_succeeds_as_often_as_targeted_at_less_cost(trained) -> None:
    count = 80 if FULL else 40
    x, y = patterns(count, CLASSES, seed=11)
    y, threat = predicted(trained, x), ThreatModel(eps=0.05)
    standing, cost = {}, {}
    for name, attack in {"focused": APGDFocused(), "targeted": APGDTargeted()}.items():
        with count_passes(trained) as passes:
            standing[name] = predicted(trained, attack(trained, x, y, threat, rng=seeded(0))) == y
        cost[name] = passes.total
    assert count // 8 < standing["targeted"].sum() < count - count // 8
    assert (standing["focused"] & ~standing["targeted"]).sum() <= 1
    assert cost["focused"] < 0.9 * cost["targeted"]


def test_focused_restarts_towards_near_targets_only(trained) -> None:
    x, y = patterns(10, CLASSES, seed=12)
    y, threat = predicted(trained, x), ThreatModel(eps=1e-6)
    # With this penalty a target less than 4e8 away gets two restarts.
    for limit, most, restarts in ((1e-9, 99, 0), (1e9, 99, 2 * (CLASSES - 1)), (1e9, 3, 3)):
        attack = APGDFocused(probe_steps=3, steps=7, max_distance=limit, revisit_penalty=6e8, restarts=most, queries=11)
        with count_passes(trained) as passes:
            attack(trained, x, y, threat, rng=seeded(0))
        assert passes.forward == 10 * (1 + 4 * (CLASSES - 1) + 8 * restarts + 11 * (restarts > 0))
        assert passes.backward == 10 * (3 * (CLASSES - 1) + 7 * restarts)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_focused_ends_with_a_search_from_its_best_points(trained, norm) -> None:
    x, y = patterns(40, CLASSES, seed=13)
    y, threat = predicted(trained, x), ThreatModel(norm=norm, eps={"linf": 0.04, "l2": 0.4}[norm])
    margins = []
    for queries in (0, 300):
        x_adv = APGDFocused(probe_steps=1, steps=1, max_distance=99.0, queries=queries)(
            trained, x, y, threat, rng=seeded(0)
        )
        logits = trained(x_adv).detach()
        margins.append(margin_of(logits, y))
    assert (margins[0] < 0).any()
    assert (margins[1] >= margins[0]).all()
    assert (margins[1] > margins[0]).any()


def test_a_search_from_given_points_corrects_wrong_signs_on_a_linear_model() -> None:
    weights = torch.randn(1, 2, 4, 4, generator=seeded(1))
    x, y, threat = torch.full((3, 2, 4, 4), 0.5), torch.zeros(3, dtype=torch.long), ThreatModel(eps=0.1)

    def model(images: Tensor) -> Tensor:
        ahead = (weights * images).flatten(1).sum(1)
        return torch.stack([torch.full_like(ahead, 1e3), ahead], dim=1)

    flip = torch.where(torch.rand(3, 2, 4, 4, generator=seeded(2)) < 0.2, -1.0, 1.0)
    start = x + threat.eps * flip * weights.sign()
    margin = margin_of(model(start), y)
    before = BestPoints(start, torch.zeros(3, dtype=torch.bool), margin)
    best = search_from(model, before, x, y, threat, 600, rng=seeded(3))
    torch.testing.assert_close(best.images, (x + threat.eps * weights.sign()).expand(3, -1, -1, -1))
    torch.testing.assert_close(before.images, x + threat.eps * flip * weights.sign())


def test_the_remaining_distance_is_a_fraction_of_what_was_gained() -> None:
    clean_gap, margin = torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.tensor([-1.0, -2.0, -4.0, -5.0])
    torch.testing.assert_close(remaining(clean_gap, margin), torch.tensor([1 / 3, 1.0, float("inf"), float("inf")]))


@pytest.mark.parametrize(
    "settings",
    [
        {"probe_steps": 0},
        {"steps": 0},
        {"restarts": 0},
        {"targets": 0},
        {"max_distance": 0.0},
        {"revisit_penalty": 0.0},
        {"queries": -1},
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(InputError):
        APGDFocused(**settings)
