"""Passes are counted in images, forward and backward, once for each time that a model runs."""

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.pass_counter import Passes, count_passes, for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.losses.dverge import features
from sparsemble.models import architectures, build_model
from sparsemble.models.architecture import Normalised

ONCE_TOO_OFTEN = "the hook is on the image and is called for every backward pass through it"


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


def images(count: int = 5) -> Tensor:
    return torch.rand(count, 3, 2, 2, generator=seeded(0))


def counts(passes: Passes) -> tuple[int, int]:
    assert passes.total == passes.forward + passes.backward
    return passes.forward, passes.backward


class TestForward:
    def test_counts_images_and_not_calls(self) -> None:
        model = linear()
        with torch.no_grad(), count_passes(model) as passes:
            for count in (5, 1, 0, 7):
                model(images(count))
        assert counts(passes) == (13, 0)

    def test_nothing_is_counted_before_or_after(self) -> None:
        model = linear()
        model(images())
        with count_passes(model) as passes:
            assert counts(passes) == (0, 0)
        model(images()).sum().backward()
        assert counts(passes) == (0, 0)

    def test_of_other_models_are_not_counted(self) -> None:
        model, other = linear(), linear()
        with count_passes(model) as passes:
            other(images()).sum().backward()
        assert counts(passes) == (0, 0)

    def test_one_that_ends_at_a_hidden_layer_counts_as_whole(self) -> None:
        model = build_model(architectures.build("tiny"), (3, 8, 8), 3, (0.5,) * 3, (0.3,) * 3, rng=seeded(0)).eval()
        x = torch.rand(4, 3, 8, 8, generator=seeded(0), requires_grad=True)
        with count_passes(model) as passes:
            features(model, "body.norm", x).sum().backward()
        assert counts(passes) == (4, 4)


class TestBackward:
    def test_to_weights_counts(self) -> None:
        model = linear()
        with count_passes(model) as passes:
            model(images()).sum().backward()
        assert counts(passes) == (5, 5)

    def test_to_images_counts_whether_or_not_weights_learn(self) -> None:
        model, frozen = linear(), linear().requires_grad_(False)
        with count_passes(model, frozen) as passes:
            for net in (model, frozen):
                x = images().requires_grad_()
                torch.autograd.grad(net(x).sum(), x)
        assert counts(passes) == (10, 10)

    def test_to_images_and_weights_at_once_is_one(self) -> None:
        model, x = linear(), images().requires_grad_()
        with count_passes(model) as passes:
            model(x).sum().backward()
        assert counts(passes) == (5, 5)

    def test_without_one_there_is_none(self) -> None:
        model, frozen = linear(), linear().requires_grad_(False)
        with count_passes(model, frozen) as passes:
            model(images().requires_grad_())
            frozen(images())
            with torch.no_grad():
                model(images().requires_grad_())
        assert counts(passes) == (15, 0)

    def test_reaches_images_through_what_stands_before_the_model(self) -> None:
        model = linear()
        with count_passes(model) as passes:
            x = images().requires_grad_()
            torch.autograd.grad(model((x * 0.5).clamp(0, 1)).sum(), x)
        assert counts(passes) == (5, 5)

    def test_of_a_part_of_the_batch_counts_the_images_that_ran(self) -> None:
        """The whole batch goes back, even where the loss looks at one image."""
        model = linear()
        with count_passes(model) as passes:
            model(images())[0].sum().backward()
        assert counts(passes) == (5, 5)

    def test_twice_through_the_same_images_is_two(self) -> None:
        model, x = linear(), images().requires_grad_()
        with count_passes(model) as passes:
            for _ in range(2):
                torch.autograd.grad(model(x).sum(), x)
        assert counts(passes) == (10, 10)

    def test_a_look_without_gradient_at_the_same_images_adds_none(self) -> None:
        model, x = linear(), images().requires_grad_()
        with count_passes(model) as passes:
            with torch.no_grad():
                model(x)
            torch.autograd.grad(model(x).sum(), x)
        assert counts(passes) == (10, 5)

    def test_one_member_of_two_that_saw_the_same_images_is_one(self) -> None:
        first, second, x = linear(), linear(), images().requires_grad_()
        with count_passes(first, second) as passes:
            logits = first(x)
            second(x)
            torch.autograd.grad(logits.sum(), x)
        assert counts(passes) == (10, 5)


class TestNested:
    def make_ensemble(self) -> Ensemble:
        return Ensemble([linear() for _ in range(3)], MeanProbability())

    def test_members_count_each_for_itself(self) -> None:
        make_ensemble = self.make_ensemble()
        with count_passes(*make_ensemble.members) as passes:
            x = images().requires_grad_()
            torch.autograd.grad(make_ensemble(x)[:, 0].sum(), x)
        assert counts(passes) == (15, 15)

    def test_the_ensemble_alone_counts_once(self) -> None:
        make_ensemble = self.make_ensemble()
        with count_passes(make_ensemble) as passes:
            x = images().requires_grad_()
            torch.autograd.grad(make_ensemble(x)[:, 0].sum(), x)
        assert counts(passes) == (5, 5)

    def test_training_counts_every_member(self) -> None:
        make_ensemble = self.make_ensemble()
        with count_passes(*make_ensemble.members) as passes:
            make_ensemble(images())[:, 0].sum().backward()
        assert counts(passes) == (15, 15)

    def test_a_model_around_another_adds_nothing_of_its_own(self) -> None:
        inner = linear()
        outer = Normalised(inner, (0.5,) * 3, (0.3,) * 3)
        x = images().requires_grad_()
        with count_passes(inner) as passes:
            torch.autograd.grad(outer(x).sum(), x)
        assert counts(passes) == (5, 5)

    def test_counters_within_counters_see_the_same(self) -> None:
        model, x = linear(), images().requires_grad_()
        with count_passes(model) as outer:
            model(images())
            with count_passes(model) as inner:
                torch.autograd.grad(model(x).sum(), x)
        assert counts(inner) == (5, 5)
        assert counts(outer) == (10, 5)


class TestLeavesThingsAsFound:
    def hooks(self, model: nn.Module) -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    def test_hooks_are_gone_even_after_an_error(self) -> None:
        model = linear()
        with count_passes(model):
            assert self.hooks(model) > 0
        assert self.hooks(model) == 0
        with pytest.raises(RuntimeError, match="stop here"), count_passes(model):
            raise RuntimeError("stop here")
        assert self.hooks(model) == 0

    def test_hooks_of_others_stay(self) -> None:
        model = linear()
        heard: list[int] = []
        model.register_forward_hook(lambda *_: heard.append(1))
        with count_passes(model):
            model(images())
        model(images())
        assert heard == [1, 1]

    def test_answers_and_gradients_are_the_same(self) -> None:
        model, x = linear(), images()
        plain = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(plain).square().sum(), plain)
        with count_passes(model):
            counted = x.clone().requires_grad_()
            logits = model(counted)
            (gradient,) = torch.autograd.grad(logits.square().sum(), counted)
        assert torch.equal(logits, model(x))
        assert torch.equal(gradient, expected)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_for_training_takes_as_many_passes_as_steps(steps: int, random_start: bool) -> None:
    model = linear().eval()
    attack = PGD(steps=steps, keep_best=False, random_start=random_start)
    with count_passes(model) as passes:
        attack(model, images(), torch.tensor([0, 1, 2, 0, 1]), ThreatModel(eps=0.1), rng=seeded(0))
    assert counts(passes) == (5 * steps, 5 * steps)


class TestByImage:
    def test_contexts_nest_and_rows_may_stand_twice(self) -> None:
        model, x = linear(), images(6)
        with count_passes(model, images=6) as passes:
            model(x)
            with for_images(torch.tensor([1, 3, 5])):
                leaf = x[[1, 3, 5]].requires_grad_()
                torch.autograd.grad(model(leaf).sum(), leaf)
                with for_images(torch.tensor([2, 2])):
                    model(x[[5, 5]])
        assert passes.by_image[:, 0].tolist() == [1, 2, 1, 2, 1, 4]
        assert passes.by_image[:, 1].tolist() == [0, 1, 0, 1, 0, 1]

    def test_backward_belongs_to_the_images_that_went_forward(self) -> None:
        model, x = linear(), images(2).requires_grad_()
        with count_passes(model, images=2) as passes:
            with for_images(torch.tensor([1])):
                logits = model(x[1:])
            torch.autograd.grad(logits.sum(), x)
        assert passes.by_image.tolist() == [[0, 0], [1, 1]]

    def test_who_does_not_say_shares_alike(self) -> None:
        model = linear()
        with count_passes(model, images=4) as passes:
            model(images(2))
        assert passes.by_image[:, 0].tolist() == [0.5] * 4
