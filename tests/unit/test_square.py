"""Square attack: what it may change, what it costs, and that it finds the worst case of a linear model."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sparsemble.attacks.black_box.square import LinfMoves, PeakMoves, Square, SquareDraw, peaks
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from tests.helpers import LinearClassifier, margin, predicted

LINF = ThreatModel(norm="linf", eps=0.1)
L2 = ThreatModel(norm="l2", eps=0.5)
L1 = ThreatModel(norm="l1", eps=3.0)


def images(count: int, shape: tuple[int, int, int] = (3, 8, 8), low: float = 0.3, high: float = 0.7) -> Tensor:
    return torch.rand(count, *shape, generator=seeded(3)) * (high - low) + low


def test_finds_the_worst_corner_of_a_small_linear_model() -> None:
    shape = (1, 2, 2)
    model, x, threat = LinearClassifier(2, shape, seed=2), images(10, shape), ThreatModel(eps=1e-3)
    y = predicted(model, x)
    x_adv = Square(queries=200)(model, x, y, threat, rng=seeded(0))
    reach = threat.eps * (model.weight[1] - model.weight[0]).abs().sum()
    standing = margin(model, x, y) + reach < 0
    assert standing.sum() > 5
    torch.testing.assert_close(margin(model, x_adv, y)[standing], (margin(model, x, y) + reach)[standing])


@pytest.mark.parametrize("threat", [LINF, L2, L1])
@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 12), (2, 4, 3), (1, 1, 1)])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_stays_inside_whatever_the_shape(threat, shape, classes) -> None:
    model, x = LinearClassifier(classes, shape, seed=classes), images(5, shape, low=0.0, high=1.0)
    y = predicted(model, x)
    x_adv = Square(queries=60)(model, x, y, threat, rng=seeded(0))
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (threat.distance(x_adv, x) <= threat.eps + threat.tolerance).all()
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("threat", [LINF, L2, L1])
def test_a_longer_search_finds_a_larger_margin(threat) -> None:
    model, x = LinearClassifier(2, (3, 8, 8), seed=2), images(10)
    y = predicted(model, x)
    small = ThreatModel(norm=threat.norm, eps=threat.eps / 1000)
    margins = [margin(model, Square(queries=n)(model, x, y, small, rng=seeded(0)), y).mean() for n in (1, 20, 400)]
    assert margins[0] < margins[1] < margins[2]


@pytest.mark.parametrize("threat", [replace(threat, eps=1e-6) for threat in (LINF, L2, L1)])
def test_passes_are_the_clean_one_and_the_queries(threat) -> None:
    model, x = LinearClassifier(4, (3, 8, 8), seed=4), images(6)
    y = predicted(model, x)
    with count_passes(model) as passes:
        Square(queries=25)(model, x, y, threat, rng=seeded(0))
    assert (passes.forward, passes.backward) == (6 * 26, 0)


def test_broken_images_take_no_further_passes() -> None:
    model, x = LinearClassifier(3, (3, 8, 8), seed=3), images(6)
    y = predicted(model, x)
    with count_passes(model) as passes:
        x_adv = Square(queries=2000)(model, x, y, ThreatModel(eps=0.3), rng=seeded(0))
    assert (predicted(model, x_adv) != y).all()
    assert passes.total < 6 * 200
    with count_passes(model) as passes:
        assert torch.equal(Square()(model, x, (y + 1) % 3, LINF, rng=seeded(0)), x)
    assert passes.forward == 6


def test_luck_does_not_hang_on_which_others_are_broken() -> None:
    model, x, threat = LinearClassifier(3, (3, 8, 8), seed=3), images(6), ThreatModel(eps=0.01)
    y = predicted(model, x)
    other = y.clone()
    other[2] = (y[2] + 1) % 3  # wrong as it is: taken out at once
    left = Square(queries=50)(model, x, y, threat, rng=seeded(0))
    right = Square(queries=50)(model, x, other, threat, rng=seeded(0))
    rest = torch.arange(6) != 2
    torch.testing.assert_close(left[rest], right[rest])


def test_a_linf_step_changes_one_square() -> None:
    x = images(4)
    best = LinfMoves().start(x, LINF, seeded(0))
    torch.testing.assert_close((best - x).abs(), torch.full_like(x, LINF.eps))
    tried = LinfMoves().step(best, x, LINF, SquareDraw.sample(x, 3, seeded(1)))
    for before, after in zip(best, tried, strict=True):
        rows, columns = (before != after).any(0).nonzero().unbind(1)
        assert rows.max() - rows.min() < 3
        assert columns.max() - columns.min() < 3


@pytest.mark.parametrize(("threat", "order"), [(L2, 2), (L1, 1)])
def test_a_step_with_peaks_uses_the_whole_budget(threat, order) -> None:
    x, moves = images(4), PeakMoves(order)
    best = moves.start(x, threat, seeded(0))
    tried = moves.step(best, x, threat, SquareDraw.sample(x, 3, seeded(1)))
    torch.testing.assert_close(threat.distance(tried, x), torch.full((4,), threat.eps))
    assert not torch.equal(tried, best)


@pytest.mark.parametrize("order", [1, 2])
def test_peaks_have_unit_length_and_fall_from_the_middle(order) -> None:
    shape = peaks(7, torch.zeros(1), order)
    assert shape.norm(p=order).item() == pytest.approx(1)
    assert shape[1, 3] == shape.max()
    assert shape.min() == shape[5, 3]
    assert (shape[:3] > 0).all()
    assert (shape[3:] < 0).all()


def test_squares_shrink_as_published() -> None:
    whole = Square(queries=10_000)
    sides = [whole.side(query, 32, 32) for query in (0, 12, 52, 202, 502, 1002, 2002, 4002, 6002, 8002)]
    assert sides == [round(math.sqrt(0.8 / 2**i * 1024)) for i in range(10)]
    assert Square(queries=100).side(99, 32, 32) == sides[-1]
    assert Square(queries=100, rescale=False).side(99, 32, 32) == sides[2]
    assert whole.side(0, 3, 50) == 3


@pytest.mark.parametrize("settings", [{"queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}], ids=str)
def test_bad_settings_are_refused(settings) -> None:
    with pytest.raises(InputError):
        Square(**settings)
