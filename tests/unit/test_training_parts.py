"""Inputs of the training loop: batches, the choice of the epoch, learning-rate schedules."""

import copy
import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import TensorSplit
from sparsemble.training import Batches, Callback, Guard, KeepBest, Schedule, fit
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.lr_schedules.multi_step import MultiStep
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.optimisers.sgd import SGD
from sparsemble.training.schedule import lr_schedules
from tests.helpers import random_split as split
from tests.helpers import same_state as same
from tests.helpers import small_network as net

THREAT = ThreatModel(eps=0.1)
SCHEDULE = Schedule(learning_rate=0.2, batch_size=8, lr_schedule=OneCycle())


def batches() -> Batches:
    return Batches(split=split(), batch_size=8, augmentation=Augmentation(crop=1, flip=True))


GRID = [i / 200 for i in range(201)]


class TestLRSchedules:
    def test_cosine_is_half_a_cosine(self) -> None:
        decay = Cosine()
        for progress, factor in ((0, 1), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1, 0)):
            assert decay(progress) == pytest.approx(factor, abs=1e-12)
        for progress in GRID:
            assert decay(progress) == pytest.approx(math.cos(math.pi * progress / 2) ** 2, abs=1e-12)

    @pytest.mark.parametrize("rise", [0.1, 0.3, 0.5])
    def test_one_cycle_goes_up_and_down_in_straight_lines(self, rise: float) -> None:
        decay = OneCycle(rise=rise)
        for progress in GRID:
            up, down = 0.04 + (1 - 0.04) * progress / rise, (1 - progress) / (1 - rise)
            assert decay(progress) == pytest.approx(min(up, down), abs=1e-12)
        assert decay(rise) == 1

    def test_multi_step_falls_at_each_milestone(self) -> None:
        decay = MultiStep(factor=0.1, milestones=(0.25, 0.5, 0.9))
        found = [decay(progress) for progress in (0.0, 0.2499, 0.25, 0.49, 0.5, 0.8999, 0.9, 0.999)]
        assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
        assert MultiStep(milestones=())(0.99) == 1

    def test_multi_step_is_by_default_that_of_the_paper(self) -> None:
        assert [MultiStep()(progress) for progress in (0.4, 0.6, 0.8)] == pytest.approx([1, 1 / 5, 1 / 25])

    @pytest.mark.parametrize("name", sorted(lr_schedules.components))
    def test_every_one_stays_between_0_and_the_peak_which_it_reaches(self, name: str) -> None:
        found = [lr_schedules.build(name)(progress) for progress in GRID[:-1]]
        assert all(0 <= factor <= 1 for factor in found)
        assert max(found) == pytest.approx(1)
        assert found[-1] < 0.1


class TestSchedule:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"learning_rate": 0.0}, "learning_rate = 0 must be above 0"),
            ({"learning_rate": math.nan}, "learning_rate = nan must be above 0"),
            ({"batch_size": 1}, "batch_size = 1 must be 2 or more"),
            ({"learning_rate": math.inf}, "learning_rate = inf must be above 0"),
            ({"warmup": 1.0}, "warmup = 1 must lie in [0, 1)"),
            ({"max_grad_norm": -1.0}, "max_grad_norm = -1 must be 0 or more"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError) as refused:
            Schedule(**settings, lr_schedule=Cosine())
        assert str(refused.value).startswith(message)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: SGD(weight_decay=math.nan),
            lambda: SGD(momentum=0.0, nesterov=True),
            lambda: OneCycle(rise=1.5),
            lambda: OneCycle(rise=-0.5),
            lambda: MultiStep(factor=-1.0),
            lambda: MultiStep(milestones=(50.0, 75.0)),
        ],
        ids=["weight_decay", "nesterov", "late rise", "negative rise", "negative factor", "milestones in epochs"],
    )
    def test_settings_outside_their_documented_range_are_refused(self, make: Any) -> None:
        with pytest.raises(InputError):
            make()

    def test_makes_plain_sgd_of_what_wants_a_gradient(self) -> None:
        model = net()
        model.get_submodule("0").requires_grad_(False)
        (group,) = SGD(momentum=0.7, nesterov=True, weight_decay=0.01)(model.parameters()).param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters() if p.requires_grad]
        assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.7, True, 0.01)


class TestKeepBest:
    def run(self, clean: list[float], robust: list[float], every: int = 1, first: float = 0.0) -> int:
        """Train with a scripted probe and return the epoch whose weights came back."""
        asked: list[int] = []
        weights: list[nn.Module] = []

        class Watch(Callback):
            def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
                weights.append(copy.deepcopy(model))

        def probe(model: nn.Module) -> dict[str, float]:
            assert not model.training
            epoch = len(weights)
            asked.append(epoch)
            return {"held_out_clean": clean[epoch - 1], "held_out_robust": robust[epoch - 1]}

        model = net()
        callbacks = [Watch(), KeepBest(probe, every, first)]
        settings = {"epochs": len(clean), "threat": THREAT, "rng": seeded(5), "callbacks": callbacks}
        unguarded = replace(SCHEDULE, guard=Guard(max_drop=1.0))
        history = fit(model, Standard(), batches(), unguarded, **settings)
        assert asked == [e for e in range(1, len(clean) + 1) if e % every == 0 or e == len(clean)]
        assert [record["epoch"] for record in history if "held_out_robust" in record] == asked
        assert all(kept.training for kept in weights)
        (chosen,) = [epoch for epoch, kept in enumerate(weights, 1) if same(kept, model)]
        return chosen

    def test_takes_the_epoch_with_the_best_held_out_number_whatever_the_loss(self) -> None:
        assert self.run([0.5] * 4, [0.1, 0.4, 0.3, 0.2]) == 2
        assert self.run([0.5] * 4, [0.4, 0.1, 0.3, 0.2]) == 1

    def test_robust_counts_twice_as_much_as_clean(self) -> None:
        assert self.run([0.5, 0.69, 0.3], [0.3, 0.2, 0.2]) == 1
        assert self.run([0.5, 0.71, 0.3], [0.3, 0.2, 0.2]) == 2

    def test_of_equal_epochs_it_takes_the_later(self) -> None:
        assert self.run([0.5] * 4, [0.2, 0.3, 0.3, 0.1]) == 3
        assert self.run([0.0] * 2, [0.0] * 2) == 2

    def test_early_epochs_are_measured_but_not_kept(self) -> None:
        assert self.run([0.5] * 4, [0.9, 0.2, 0.3, 0.1], first=0.5) == 3
        assert self.run([0.5] * 4, [0.9, 0.8, 0.3, 0.1], first=0.5) == 2

    def test_measures_now_and_then_and_at_the_end(self) -> None:
        assert self.run([0.5] * 5, [0.9, 0.1, 0.8, 0.2, 0.3], every=2) == 5


class TestBatches:
    def test_every_image_once_with_its_label_but_the_incomplete_last_batch(self) -> None:
        labels = torch.arange(27)
        pixels = (labels / 100).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
        found = list(Batches(split=TensorSplit(pixels, labels), batch_size=8).epoch(seeded(0)))
        assert [len(y) for _, y in found] == [8, 8, 8]
        assert all(torch.equal((x[:, 0, 0, 0] * 100).round().long(), y) for x, y in found)
        assert max(Counter(torch.cat([y for _, y in found]).tolist()).values()) == 1
        assert len(Batches(split=split(), batch_size=27)) == 1

    def test_every_image_comes_first_about_equally_often(self) -> None:
        rng = seeded(0)
        numbered = Batches(split=TensorSplit(torch.zeros(4, 1, 1, 1), torch.arange(4)), batch_size=1)
        first = Counter(int(next(iter(numbered.epoch(rng)))[1]) for _ in range(400))
        assert min(first.values()) > 60

    def test_order_and_augmentation_are_functions_of_the_generator(self) -> None:
        def epochs(seed: int) -> list[Tensor]:
            rng = seeded(seed)
            return [torch.cat([x for x, _ in batches().epoch(rng)]) for _ in range(2)]

        state = torch.get_rng_state()
        first, second = epochs(0)
        assert torch.equal(first, epochs(0)[0])
        assert torch.equal(second, epochs(0)[1])
        assert not torch.equal(first, second)
        assert not torch.equal(first, epochs(1)[0])
        assert torch.equal(state, torch.get_rng_state())

    def test_leaves_the_split_alone(self) -> None:
        images = split()
        before = images.pixels.clone()
        for x, _ in Batches(split=images, batch_size=8, augmentation=Augmentation(flip=True)).epoch(seeded(0)):
            x.zero_()
        assert torch.equal(images.pixels, before)

    @pytest.mark.parametrize("size", [0, -1, 28])
    def test_a_size_that_cannot_be_is_refused(self, size: int) -> None:
        with pytest.raises(InputError, match=f"batch_size = {size} must be between 1 and the 27 images there are"):
            Batches(split=split(), batch_size=size)
