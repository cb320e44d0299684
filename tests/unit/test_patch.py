"""The adversarial patch: one square changes, where and how much a linear model allows."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsemble.attacks import Patch
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.pipeline.evaluate_command import EvaluationOptions, prepare
from tests.helpers import LinearClassifier, margin, predicted

SHAPE = (2, 8, 8)


def case(scale: float = 1.0) -> tuple[LinearClassifier, Images, Labels]:
    model, x = LinearClassifier(2, SHAPE, seed=3, scale=scale), torch.rand(12, *SHAPE, generator=seeded(4))
    return model, x, predicted(model, x)


def test_changes_one_square_of_the_area_and_no_other_pixel() -> None:
    model, x, y = case()
    attack = Patch(area=0.14, steps=6)
    assert attack.side(8, 8) == 3
    x_adv = attack(model, x, y, rng=seeded(0))
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    for before, after in zip(x, x_adv, strict=True):
        rows, columns = (before != after).any(0).nonzero().unbind(1)
        assert 0 <= rows.max() - rows.min() < 3
        assert 0 <= columns.max() - columns.min() < 3


def best_square(model: LinearClassifier, x: Images, y: Labels, side: int) -> Tensor:
    """Return the largest margin of a linear model over all places of a square, whose best content is black or white."""
    way = (model.weight[1] - model.weight[0]).detach().view(SHAPE) * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    gain = (way * ((way > 0).float() - x)).sum(1, keepdim=True)
    return margin(model, x, y) + torch.nn.functional.avg_pool2d(gain, side, stride=1).flatten(1).amax(1) * side**2


def test_breaks_most_of_what_a_patch_can_break_and_nothing_else() -> None:
    model, x, y = case()
    possible = best_square(model, x, y, 1) > 0
    assert possible.any()
    assert not possible.all()
    broken = predicted(model, Patch(area=0.02, steps=40, restarts=6)(model, x, y, rng=seeded(0))) != y
    assert not (broken & ~possible).any()
    assert broken.sum() >= 0.7 * possible.sum()


def test_a_failure_has_a_larger_margin_and_the_same_seed_gives_the_same() -> None:
    model, x, y = case()
    attack = Patch(area=0.02, steps=10)
    x_adv = attack(model, x, y)
    assert torch.equal(x_adv, attack(model, x, y, rng=seeded(0)))
    assert (margin(model, x_adv, y) > margin(model, x, y)).all()


def test_needs_no_passes_for_images_that_are_wrong_and_takes_none_and_refuses_others() -> None:
    model, x, y = case()
    with count_passes(model, images=len(x)) as passes:
        assert torch.equal(Patch()(model, x, 1 - y), x)
    assert passes.total == len(x)
    assert Patch()(model, x[:0], y[:0]).shape == x[:0].shape
    with pytest.raises(InputError, match="images must lie in"):
        Patch()(model, x + 1, y)


def test_leaves_the_model_as_found() -> None:
    model, x, y = case()
    before, clean = model.weight.detach().clone(), x.clone()
    Patch(steps=3)(model, x, y)
    assert torch.equal(model.weight, before)
    assert model.weight.grad is None
    assert torch.equal(x, clean)


def test_is_refused_among_the_attacks_of_an_evaluation() -> None:
    with pytest.raises(InputError, match="lies in no ball"):
        prepare(EvaluationOptions(target="x", data="digits", attacks="patch"))


@pytest.mark.parametrize("settings", [{"area": 0.0}, {"area": 1.5}, {"steps": 0}, {"restarts": 0}, {"step_size": 0.0}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Patch(**settings)
