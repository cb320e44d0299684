"""Checks of the model pass on sound networks and fail on one broken in just that way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import DynamicOutput
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.results import CheckResult
from sparsemble.core.types import Images, Logits, seeded
from sparsemble.evaluation.checks.forward import STOPPING, plain_forward
from sparsemble.evaluation.checks.model import (
    agrees_with_differences,
    gradients_flow,
    independent_of_neighbours,
    normalised_once,
    repeatable,
    returns_logits,
    smooth_loss,
)
from tests.helpers import LinearClassifier
from tests.unit.sound_ensemble import MEMBER, RIGHT, TEAM, THREAT, X, Y, altered, decide, expect, network

LEVELS = torch.tensor([-1.2, -0.4, 0.4, 1.2])


class Brightness(nn.Module):
    """Tells four levels of brightness apart, after normalising as often as it is told."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Images) -> Logits:
        for _ in range(self.times):
            x = (x - 0.5) / 0.3
        return -(x.mean((1, 2, 3))[:, None] - LEVELS).square()


def bright(count: int = 40) -> tuple[Images, Tensor]:
    """Images of the four levels, for a model that normalises once."""
    y = torch.arange(count) % 4
    noise = 0.02 * torch.rand(count, 1, 6, 6, generator=seeded(0))
    return (0.5 + 0.3 * LEVELS[y].view(-1, 1, 1, 1) + noise).clamp(0, 1), y


class TestNormalisedOnce:
    def test_normalisation_inside_passes(self) -> None:
        x, y = bright()
        assert (Brightness(1)(x).argmax(1) == y).all()
        expect(normalised_once(Brightness(1), x, y), 2, "passed")

    def test_normalising_twice_fails(self) -> None:
        x, y = bright()
        expect(normalised_once(Brightness(2), x, y), 2, "failed", "with a normalisation undone")

    def test_no_normalisation_inside_fails(self) -> None:
        x, y = bright()
        expect(normalised_once(Brightness(0), x, y), 2, "failed", "normalised beforehand")

    @pytest.mark.parametrize("change", [lambda x: (x - 0.5) / 0.3, lambda x: 255 * x, lambda x: x / 255])
    def test_images_of_another_range_fail(self, change: Callable[[Images], Images]) -> None:
        x, y = bright()
        expect(normalised_once(Brightness(1), change(x), y), 2, "failed", "not [0, 1]")

    def test_a_model_that_refuses_images_outside_cannot_be_tried(self) -> None:
        def careful(x: Images) -> Logits:
            assert x.min() >= 0, "images must lie in [0, 1]"
            assert x.max() <= 1
            return Brightness(0)(x)

        x, y = bright()
        expect(
            normalised_once(careful, x, y), 2, "skipped", "refuses images outside [0, 1] (AssertionError: images must"
        )
        expect(normalised_once(careful, x / 255, y), 2, "failed", "not [0, 1]")

    def test_a_model_that_clamps_images_cannot_be_tried(self) -> None:
        x, y = bright()
        # Among clamped images contrast counts, which normalisation outside raises.
        contrast = lambda x: Brightness(1)(x.clamp(0, 1)) + 0.3 * (x.clamp(0, 1) > 0.9).float().mean((1, 2, 3))[:, None]  # noqa: E731
        expect(normalised_once(contrast, x, y), 2, "skipped", "clamps images to [0, 1]")


class TestNeighbours:
    @pytest.mark.parametrize("model", [TEAM, network(), MEMBER.forward], ids=["ensemble", "BatchNorm", "function"])
    def test_sound_models_pass(self, model: Any) -> None:
        expect(independent_of_neighbours(model, X), 3, "passed", "0 of 24")

    def test_train_mode_batchnorm_fails(self) -> None:
        model = network()
        model[1].train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        expect(independent_of_neighbours(model, X), 3, "failed", "1 is in training mode")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_batchnorm_without_statistics_fails_in_eval_mode(self) -> None:
        model = network()
        model[1] = nn.BatchNorm2d(4, track_running_stats=False).eval()
        expect(independent_of_neighbours(model, X), 3, "failed", "the batch's own")

    @pytest.mark.parametrize(
        "change",
        [
            lambda z: z - z.mean(0),
            lambda z: z.flip(0),
            lambda z: z + 0.1 * len(z),
            lambda z: 1e-3 * (z - z.mean(0)),
            lambda z: z / 0 if len(z) > 1 else z,
        ],
        ids=["mean", "order", "size", "small logits", "NaN"],
    )
    def test_neighbours_that_change_outputs_fail(self, change: Callable[[Tensor], Tensor]) -> None:
        expect(independent_of_neighbours(lambda x: change(TEAM(x)), X), 3, "failed", "24 of 24")

    def test_a_pass_that_moves_a_buffer_fails_and_is_undone(self) -> None:
        class Counting(nn.Module):
            seen: Tensor

            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("seen", torch.zeros(()))

            def forward(self, x: Images) -> Logits:
                self.seen += len(x)
                return MEMBER(x)

        model = Counting().eval()
        expect(independent_of_neighbours(model, X), 3, "failed", "passes changed seen")
        assert model.seen == 0


class TestLogits:
    @pytest.mark.parametrize("model", [TEAM, MEMBER], ids=["log-probabilities", "logits"])
    def test_logits_pass(self, model: nn.Module) -> None:
        expect(returns_logits(model, X), 7, "passed")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda z: z.softmax(1), "probabilities"),
            (lambda z: z / 0, "not finite"),
            (lambda z: torch.full_like(z, float("nan")), "not finite"),
            (lambda z: 1000 * z, "24 images saturate"),
            (lambda z: (1000 * z).log_softmax(1).clamp_min(-300), "saturate"),
        ],
        ids=["probabilities", "infinite", "NaN", "saturated logits", "saturated log-probabilities"],
    )
    def test_what_attacks_cannot_climb_fails(self, change: Callable[[Tensor], Tensor], words: str) -> None:
        expect(returns_logits(lambda x: change(10 * MEMBER(x)), X), 7, "failed", words)


class TestRandomness:
    def test_sound_ensemble_passes(self) -> None:
        expect(repeatable(decide, X), 8, "passed", "0 labels change")

    @pytest.mark.parametrize("size", [0.01, 1.0])
    def test_randomness_fails_whatever_the_scale(self, size: float) -> None:
        rng = seeded(0)
        noisy = altered(lambda z: size * (z + 0.01 * torch.randn(z.shape, generator=rng)))
        expect(repeatable(noisy, X), 8, "failed")

    def test_randomness_in_a_later_pass_fails_even_as_nan(self) -> None:
        values = iter([0.0, 0.0, 0.0, float("nan"), 0.0])
        expect(repeatable(altered(lambda z: z + next(values)), X), 8, "failed")

    def test_a_label_that_flips_within_rounding_fails(self) -> None:
        values = iter([1e-6, -1e-6, 1e-6, 1e-6, 1e-6])

        def tied(x: Images) -> DynamicOutput:
            logits = torch.tensor([[1.0, 1.0 + next(values), 0.0]]).expand(len(x), 3)
            ones = torch.ones(len(x), dtype=torch.long)
            return DynamicOutput(logits, ones, ones)

        expect(repeatable(tied, X), 8, "failed", "24 labels change")


class StraightThrough(torch.autograd.Function):
    """Rounds forwards, and pretends backwards that it did not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (4 * x).round() / 4

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


MASKED = {
    "output rounded": lambda x: (8 * MEMBER(x)).round() / 8,
    "input quantised": lambda x: MEMBER((8 * x).round() / 8),
    "detached": lambda x: MEMBER(x.detach()) + 0 * x.sum((1, 2, 3))[:, None],
    "decided by argmax": lambda x: nn.functional.one_hot(MEMBER(x).argmax(1), 4) + 0 * x.sum((1, 2, 3))[:, None],
}


class TestGradients:
    def test_gradients_flow_through_a_sound_ensemble(self) -> None:
        expect(gradients_flow([TEAM, *TEAM.members], X, Y), 9, "passed", "0 of 192 gradients")
        assert all(parameter.grad is None for parameter in TEAM.parameters())

    @pytest.mark.parametrize(
        "masked",
        [
            *MASKED.values(),
            lambda x: MEMBER(x.detach()),
            torch.no_grad()(MEMBER.forward),
            lambda x: 1e6 * MEMBER(x),
            lambda x: TEAM(x) + 0 * (x - x).sqrt().sum((1, 2, 3))[:, None],  # an infinite slope times 0
        ],
        ids=[*MASKED, "none", "no_grad", "saturated", "NaN"],
    )
    def test_masked_gradients_fail_on_any_surrogate(self, masked: Callable[[Images], Logits]) -> None:
        expect(gradients_flow([TEAM, masked], X, Y), 9, "failed")

    def test_gradients_masked_at_some_points_only_fail_there(self) -> None:
        def flat_above(x: Images) -> Logits:
            return MEMBER(x.clamp_max(0.999))

        expect(gradients_flow([flat_above], 0.9 * X, Y), 9, "passed")
        expect(gradients_flow([flat_above], torch.ones_like(X), Y), 9, "failed", "48 of 48")


class TestDifferences:
    @pytest.mark.parametrize("model", [TEAM, MEMBER, network()], ids=["ensemble", "linear", "network"])
    def test_true_gradients_pass(self, model: nn.Module) -> None:
        expect(agrees_with_differences(model, X, Y, rng=seeded(0)), 10, "passed")

    @pytest.mark.parametrize(
        "masked",
        [
            *MASKED.values(),
            lambda x: TEAM.members[1](x) + (MEMBER(x) - TEAM.members[1](x)).detach(),
            lambda x: MEMBER(StraightThrough.apply(x)),
            lambda x: MEMBER(x) + 0.1 * (1e4 * x.sum((1, 2, 3))[:, None] * torch.arange(4)).sin(),
            lambda x: MEMBER(x.detach()),
        ],
        ids=[*MASKED, "another model's", "straight-through", "jagged", "none"],
    )
    def test_gradients_that_are_not_the_slope_fail(self, masked: Callable[[Images], Logits]) -> None:
        expect(agrees_with_differences(masked, X, Y, rng=seeded(0)), 10, "failed")

    def test_steps_stay_inside_the_allowed_images(self) -> None:
        seen: list[float] = []

        def model(x: Images) -> Logits:
            seen.extend(map(float, x.detach().aminmax()))
            return MEMBER(x.clamp(0, 1))

        black_and_white = X.round()
        expect(agrees_with_differences(model, black_and_white, Y, rng=seeded(0)), 10, "passed")
        assert min(seen) >= 0
        assert max(seen) <= 1

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_logits_of_16_bits_are_too_coarse(self, dtype: torch.dtype) -> None:
        coarse = network().to(dtype)
        check = agrees_with_differences(lambda x: coarse(x.to(dtype)).float(), X, Y, rng=seeded(0))
        expect(check, 10, "skipped", f"computed in {str(dtype)[6:]}")
        expect(independent_of_neighbours(lambda x: coarse(x.to(dtype)).float(), X), 3, "passed")

    def test_half_a_gradient_fails(self) -> None:
        half = agrees_with_differences(lambda x: MEMBER((x + x.detach()) / 2), X, Y, rng=seeded(0))
        expect(half, 10, "failed")


class Stopping(nn.Module):
    """Runs its second layer only where the first is in doubt, and says nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = LinearClassifier(4, (1, 6, 6), seed=0), LinearClassifier(4, (1, 6, 6), seed=1)

    def forward(self, x: Images) -> Logits:
        logits: Logits = self.first(x)
        if logits.softmax(1).amax() < 0.8:
            logits = logits + self.second(x)
        return logits


class Looping(nn.Module):
    """Runs the same layer ten times."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Images) -> Logits:
        for _ in range(10):
            x = self.step(x)
        return MEMBER(x)


class Purifying(nn.Module):
    """Moves the image by a gradient of its own before it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.body = LinearClassifier(4, (1, 6, 6), seed=0)

    def forward(self, x: Images) -> Logits:
        (step,) = torch.autograd.grad(self.body(x).logsumexp(1).sum(), x)
        logits: Logits = self.body(x + 0.01 * step)
        return logits


class Dropping(nn.Module):
    """Drops out in eval mode, too."""

    def forward(self, x: Images) -> Logits:
        return MEMBER(nn.functional.dropout(x, 0.5, training=True))


W = LinearClassifier(4, (1, 6, 6), seed=2)
CONV = nn.Conv2d(1, 1, 3, padding=1)


def keep_largest(x: Images) -> Images:
    flat = x.flatten(1)
    indices = flat.topk(9, dim=1).indices
    return (flat * torch.zeros_like(flat).scatter(1, indices, 1.0)).view_as(x)


def blacken_dark(x: Images) -> Images:
    x = x.clone()
    x[x < 0.5] = 0
    return x


def between_rows(x: Images) -> Images:
    image = torch.zeros_like(x)
    image[:, :, 1:] = x[:, :, :-1]
    return image * (image > 0.5)


class ProductReLU(nn.Module):
    def forward(self, x: Images) -> Images:
        x = x - 0.01
        return x * (x > 0)


DECISIONS = {
    "gate": (lambda x: torch.where((x.mean((1, 2, 3)) > 0.5)[:, None], MEMBER(x), W(x)), "gt"),
    "gate by a number": (lambda x: MEMBER(x) * (x.mean((1, 2, 3)) > 0.5).float()[:, None] + W(x), "gt"),
    "any pixel": (lambda x: torch.where((x > 0.99).flatten(1).any(1)[:, None], MEMBER(x), W(x)), "gt"),
    "count of pixels": (lambda x: MEMBER(x) * (x < 0.5).sum((1, 2, 3))[:, None], "lt"),
    "both": (lambda x: MEMBER(x * ((x > 0.3) & ~(x > 0.6))), "gt"),
    "mask of pixels": (lambda x: MEMBER(x.masked_fill(x <= 0.5, 0)), "le"),
    "mask in place": (lambda x: MEMBER(blacken_dark(x)), "lt"),
    "written in parts": (lambda x: MEMBER(between_rows(x)), "gt"),
    "largest pixels": (lambda x: MEMBER(keep_largest(x)), "topk"),
    "above the ninth": (lambda x: MEMBER(x * (x.flatten(1) >= x.flatten(1).topk(9).values[:, -1:]).view_as(x)), "ge"),
    "smallest by rank": (lambda x: MEMBER(x.flatten(1).scatter(1, x.flatten(1).sort(1).indices[:, :9], 0.0)), "sort"),
    "integers": (lambda x: MEMBER((8 * x).int() / 8) + W(x), "int"),
    "never on these images": (lambda x: torch.where((x.sum((1, 2, 3)) > 1e6)[:, None], W(x), MEMBER(x)), "gt"),
}
THRESHOLDS = {
    "threshold": (lambda x: MEMBER(nn.Threshold(0.5, 0)(x)), "threshold"),
    "shrink": (lambda x: MEMBER(nn.Hardshrink(0.5)(x)), "hardshrink"),
    "floor": (lambda x: MEMBER(x // 0.125 / 8), "floordiv"),
    "round in place": (lambda x: MEMBER((8 * x).round_() / 8), "round"),
}


def projected(z: Tensor) -> Tensor:
    """Project onto the simplex, by sorting, comparing, counting and gathering; continuous."""
    ordered = z.sort(1, descending=True).values
    total = ordered.cumsum(1) - 1
    count = (torch.arange(1, z.shape[1] + 1) * ordered > total).sum(1, keepdim=True)
    return (z - total.gather(1, count - 1) / count).clamp_min(0)


def checked(x: Images) -> Logits:
    assert x.min() >= 0
    if not (x.max() <= 1).item():
        raise ValueError("images must lie in [0, 1]")
    return MEMBER(x)


def guarded_norm(x: Images) -> Images:
    size = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x / torch.where(size == 0, torch.ones_like(size), size)


CONTINUOUS = {
    "leaky ReLU": lambda x: MEMBER(torch.where(CONV(x) > 0, CONV(x), 0.1 * CONV(x))),
    "ReLU by product": lambda x: MEMBER(CONV(x) * (CONV(x) > 0)),
    "ReLU by mask": lambda x: MEMBER(CONV(x).masked_fill(CONV(x) < 0, 0)),
    "hard swish": lambda x: MEMBER(CONV(x) * nn.functional.relu6(CONV(x) + 3) / 6),
    "threshold at its value": lambda x: MEMBER(nn.Threshold(0.1, 0.1)(x)),
    "sorted": lambda x: MEMBER(x.flatten(2).sort(2).values.view_as(x)),
    "mean of the largest": lambda x: MEMBER(x) * x.flatten(1).topk(5).values.mean(1, keepdim=True),
    "projection": lambda x: W.weight.new_ones(1, 1) * MEMBER(projected(x.flatten(1)).view_as(x)),
    "division by a norm": lambda x: MEMBER(guarded_norm(x)),
    "NaN replaced": lambda x: MEMBER(torch.where(x.isnan(), torch.zeros_like(x), x)),
    "padding": lambda x: MEMBER(x) + (torch.zeros_like(x) == 0).float().mean(),
}
LAYERS = [
    *(
        nn.ReLU6(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Hardtanh(),
        nn.SiLU(),
        nn.GELU(),
        nn.Mish(),
        nn.ELU(),
        nn.CELU(),
    ),
    *(nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.Softshrink(), nn.Softplus(), nn.LogSigmoid(), nn.Threshold(0, 0)),
    *(
        nn.MaxPool2d(3, 1, 1),
        nn.LPPool2d(1, 1),
        nn.AdaptiveMaxPool2d(6),
        nn.LocalResponseNorm(3),
        nn.GroupNorm(1, 1),
    ),
    *(nn.Upsample(scale_factor=1.0, mode="bilinear"), nn.Dropout(0.5), nn.InstanceNorm2d(1), nn.Softmax2d()),
]


class TestForward:
    @pytest.mark.parametrize(
        "model",
        [TEAM, network(), nn.Sequential(nn.Dropout(0.5), LinearClassifier(4, (1, 6, 6), seed=0)).eval()],
        ids=["ensemble", "network", "dropout"],
    )
    def test_plain_networks_pass(self, model: nn.Module) -> None:
        expect(plain_forward(model, X), 11, "passed", "undeclared: nothing")

    @pytest.mark.parametrize(
        ("model", "kind"),
        [
            (Stopping(), "early stopping (second"),
            (Stopping(), "control flow (bool"),
            (Looping(), "loops (step x10)"),
            (Purifying(), "gradient calls (grad"),
            (Dropping(), "randomness (dropout"),
            (lambda x: MEMBER(x + 0.01 * torch.randn_like(x)), "randomness (randn_like"),
            (lambda x: MEMBER(StraightThrough.apply(x)), "own backward (StraightThroughBackward"),
            (lambda x: MEMBER(x.detach() + 0 * x), "no gradient (detach"),
            (lambda x: MEMBER(x) * MEMBER(x).argmax(1)[:, None], "no gradient (argmax"),
            (lambda x: MEMBER((8 * x).round() / 8), "no gradient (round"),
            (lambda x: MEMBER(x.data), "no gradient (data"),
            (torch.no_grad()(MEMBER.forward), "no gradient (no_grad"),
            (lambda x: torch.cat([MEMBER(x[x.mean((1, 2, 3)) >= 0]), MEMBER(x)])[-len(x) :], "control flow (mask"),
            (lambda x: MEMBER(x) if x.mean().item() > 0 else MEMBER(-x), "control flow (item"),
        ],
    )
    def test_a_detour_is_named(self, model: Any, kind: str) -> None:
        expect(plain_forward(model, X), 11, "failed", kind)

    @pytest.mark.parametrize("kind", DECISIONS)
    def test_a_decision_is_named(self, kind: str) -> None:
        model, name = DECISIONS[kind]
        expect(plain_forward(model, X), 11, "failed", f"decisions ({name} x1")

    @pytest.mark.parametrize("kind", THRESHOLDS)
    def test_a_step_is_named(self, kind: str) -> None:
        model, name = THRESHOLDS[kind]
        expect(plain_forward(model, X), 11, "failed", f"no gradient ({name} x1")

    @pytest.mark.parametrize("kind", CONTINUOUS)
    def test_comparisons_without_a_jump_are_no_decisions(self, kind: str) -> None:
        expect(plain_forward(CONTINUOUS[kind], X), 11, "passed", "undeclared: nothing")

    @pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
    def test_layers_of_torch_make_no_decisions(self, layer: nn.Module) -> None:
        model = nn.Sequential(CONV, layer, MEMBER).eval()
        expect(plain_forward(model, X), 11, "passed", "undeclared: nothing")

    def test_a_branch_that_only_refuses_images_is_no_control_flow(self) -> None:
        expect(plain_forward(checked, X), 11, "passed", "undeclared: nothing")

    def test_many_decisions_cost_no_more_than_some(self) -> None:
        counts = []
        for layers in (16, 40):
            model = nn.Sequential(*(ProductReLU() for _ in range(layers)), LinearClassifier(4, (1, 6, 6)))
            with count_passes(model) as passes:
                expect(plain_forward(model, X), 11, "passed", "undeclared: nothing")
            counts.append(passes.forward)
        assert counts[1] <= counts[0] == 16 + 16 * 2 * 24

    def test_gradients_disabled_for_weights_alone_are_no_detour(self) -> None:
        member = LinearClassifier(4, (1, 6, 6))
        expect(plain_forward(lambda x: member.half()(x.half()), X), 11, "passed", "undeclared: nothing")

    def test_what_does_not_depend_on_the_image_is_no_detour(self) -> None:
        def masked(x: Images) -> Logits:
            kept = MEMBER.weight.detach()
            return x.flatten(1) @ kept.T if kept.sum() != 0 else MEMBER(x)

        expect(plain_forward(masked, X), 11, "passed")

    def test_an_ensemble_that_stops_early_must_say_so(self) -> None:
        def logits(x: Images) -> Logits:
            return decide(x).logits

        expect(plain_forward(logits, X, layers=TEAM), 11, "failed", "early stopping")
        expect(plain_forward(logits, X, layers=TEAM, declared=STOPPING), 11, "passed", "early stopping")

    def test_the_model_is_left_as_found(self) -> None:
        model = Looping()
        plain_forward(model, X)
        assert not model.step._forward_pre_hooks
        assert model.step.weight.grad is None
        assert model.step.weight.requires_grad

    def test_unknown_kinds_are_refused(self) -> None:
        with pytest.raises(InputError, match='"magic" is no kind of detour'):
            plain_forward(TEAM, X, declared=["magic"])


class TestSmoothness:
    @pytest.mark.parametrize("model", [TEAM, MEMBER, network()], ids=["ensemble", "linear", "network"])
    def test_smooth_models_pass(self, model: nn.Module) -> None:
        expect(smooth_loss(model, X, Y, THREAT, rng=seeded(0)), 12, "passed")

    @pytest.mark.parametrize(
        "rough",
        [
            lambda x: MEMBER(x) + 9 * (1e4 * x.sum((1, 2, 3))[:, None] * torch.arange(4)).sin(),
            lambda x: MEMBER(X) + MEMBER(0.5 + 1000 * (x - X)),
            lambda x: MEMBER(x) / 0,
        ],
        ids=["jagged", "steep", "NaN"],
    )
    def test_rough_models_fail(self, rough: Callable[[Images], Logits]) -> None:
        expect(smooth_loss(rough, X, Y, THREAT, rng=seeded(0)), 12, "failed")


@pytest.mark.parametrize(
    ("check", "forward", "backward"),
    [
        (lambda model: normalised_once(model, X, RIGHT), 72 + 2 * 8, 0),
        (lambda model: independent_of_neighbours(model, X), 72, 0),
        (lambda model: returns_logits(model, X), 24, 0),
        (lambda model: gradients_flow([model], X, Y), 48, 48),
        (lambda model: agrees_with_differences(model, X, Y, rng=seeded(0)), 24 * 19, 24),
        (lambda model: plain_forward(model, X), 16, 0),
        (lambda model: smooth_loss(model, X, Y, THREAT, rng=seeded(0)), 24 * 9, 0),
    ],
)
def test_checks_cost_what_they_say(check: Callable[[nn.Module], CheckResult], forward: int, backward: int) -> None:
    model = network()
    with count_passes(model) as passes:
        expect(check(model), check(network()).number, "passed")
    assert (passes.forward, passes.backward) == (forward, backward)


@pytest.mark.parametrize("classes", [2, 3, 11])
def test_any_number_of_classes(classes: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, classes))
    y = torch.arange(24) % classes
    found = [
        returns_logits(model, X),
        gradients_flow([model], X, y),
        agrees_with_differences(model, X, y, rng=seeded(0)),
        plain_forward(model.eval(), X),
        independent_of_neighbours(model, X),
    ]
    assert all(check.status == "passed" for check in found), found
