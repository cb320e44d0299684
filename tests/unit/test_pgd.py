"""PGD against linear models, whose worst case is known exactly, and against everything that its path saw."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.losses.cross_entropy import CrossEntropy
from sparsemble.attacks.losses.kl import KL
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from tests.helpers import predicted

SHAPE = (2, 3, 3)
SIZE = math.prod(SHAPE)
LINF = ThreatModel(norm="linf", eps=0.1)
L2 = ThreatModel(norm="l2", eps=0.3)
LOSSES = [CrossEntropy(), Margin()]


class Linear(nn.Module):
    """Two classes; the margin of class 1 over class 0 is linear in the image."""

    def __init__(self, *, log_probabilities: bool = False, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(SHAPE, generator=seeded(3)))
        self.log_probabilities, self.bias = log_probabilities, bias

    def forward(self, x: Tensor) -> Tensor:
        margin = ((x - 0.5) * self.weight).flatten(1).sum(1) + self.bias
        logits = torch.stack([-margin / 2, margin / 2], dim=1)
        return logits.log_softmax(1) if self.log_probabilities else logits


class Bumpy(nn.Module):
    """A small network of sines: many local worst points."""

    def __init__(self, frequency: float = 6.0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(SIZE, 12), nn.Linear(12, 4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=seeded(parameter.numel()))
        self.frequency = frequency

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(torch.sin(self.frequency * self.first(x.flatten(1))))
        return logits


class Seeing(nn.Module):
    """Remembers every image that it saw, in order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        logits: Tensor = self.model(x)
        return logits


def images(count: int = 8, low: float = 0.35, high: float = 0.65) -> Tensor:
    return torch.rand(count, *SHAPE, generator=seeded(7)) * (high - low) + low


@torch.no_grad()
def height(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the cross-entropy of each image, far below what float32 could tell apart."""
    return nn.functional.cross_entropy(copy.deepcopy(model).double()(x.double()), y, reduction="none")


def corner(model: Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
    away = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    return (x + eps * away * model.weight.detach().sign()).clamp(0, 1)


class TestWorstCaseOfALinearModel:
    @pytest.mark.parametrize("log_probabilities", [False, True])
    @pytest.mark.parametrize("random_start", [False, True])
    @pytest.mark.parametrize("keep_best", [False, True])
    @pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
    def test_linf_reaches_the_worst_corner_of_box_and_ball(
        self, loss, keep_best, random_start, log_probabilities
    ) -> None:
        model, x = Linear(log_probabilities=log_probabilities), images(low=0.0, high=1.0)
        attack = PGD(steps=9, loss=loss, keep_best=keep_best, random_start=random_start, stop_at_success=False)
        for y in (predicted(model, x), 1 - predicted(model, x), torch.arange(len(x)) % 2):
            x_adv = attack(model, x, y, LINF, rng=seeded(0))
            torch.testing.assert_close(x_adv, corner(model, x, y, LINF.eps))

    @pytest.mark.parametrize("keep_best", [False, True])
    @pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
    def test_l2_reaches_the_worst_point_of_the_ball(self, loss, keep_best) -> None:
        model, x = Linear(), images()
        y = predicted(model, x)
        attack = PGD(steps=40, loss=loss, keep_best=keep_best, stop_at_success=False)
        way = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * model.weight.detach() / model.weight.detach().norm()
        torch.testing.assert_close(attack(model, x, y, L2, rng=seeded(0)), x + L2.eps * way, rtol=0, atol=2e-3)

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_breaks_exactly_what_can_be_broken(self, norm) -> None:
        model, x = Linear(), images(200)
        y = predicted(model, x)
        margin = (model(x)[:, 1] - model(x)[:, 0]).abs().detach()
        weight = model.weight.detach()
        reach = float(margin.median())
        threat = ThreatModel(norm=norm, eps=reach / float(weight.abs().sum() if norm == "linf" else weight.norm()))
        clear = (margin - reach).abs() > 0.02 * reach
        assert clear.sum() > 180
        broken = predicted(model, PGD(steps=20)(model, x, y, threat, rng=seeded(0))) != y
        assert torch.equal(broken[clear], (margin < reach)[clear])


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_is_the_literal_loop(threat) -> None:
    """An image and a step at a time, from Madry et al. 2018, section 2.1."""
    model, x, rng = Bumpy(), images(4), seeded(5)
    y = predicted(model, x)
    start = threat.random_start(x, seeded(5))
    expected = []
    for clean, label, point in zip(x.split(1), y.split(1), start.split(1), strict=True):
        for _ in range(3):
            leaf = point.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(-model(leaf).log_softmax(1)[0, int(label)], leaf)
            step = gradient.sign() if threat.norm == "linf" else gradient / gradient.norm()
            delta = point + 0.3 * threat.eps * step - clean
            if threat.norm == "linf":
                delta = delta.clamp(-threat.eps, threat.eps)
            elif delta.norm() > threat.eps:
                delta = delta * threat.eps / delta.norm()
            point = (clean + delta).clamp(0, 1)
        expected.append(point)
    x_adv = PGD(steps=3, step_size=0.3, keep_best=False)(model, x, y, threat, rng=rng)
    torch.testing.assert_close(x_adv, torch.cat(expected))


class TestKeepBest:
    @pytest.mark.parametrize("threat", [LINF, L2], ids=str)
    @pytest.mark.parametrize("restarts", [1, 3])
    def test_returns_the_best_point_of_the_whole_path(self, threat, restarts) -> None:
        model, x = Bumpy(), images()
        y = predicted(model, x)
        seeing = Seeing(model)
        attack = PGD(steps=6, step_size=0.7, restarts=restarts, stop_at_success=False)
        x_adv = attack(seeing, x, y, threat, rng=seeded(1))
        path = [point for point in seeing.seen if not torch.equal(point, x)]
        assert len(path) == 7 * restarts  # the last point of every restart was looked at too
        for i in range(len(x)):
            label = y[i : i + 1].expand(len(path))
            points = torch.stack([point[i] for point in path])
            ranks = 1e6 * (predicted(model, points) != label) + height(model, points, label)
            found = 1e6 * (predicted(model, x_adv[i : i + 1]) != y[i]) + height(model, x_adv[i : i + 1], y[i : i + 1])
            assert any(torch.equal(x_adv[i], point) for point in points)
            torch.testing.assert_close(found[0], ranks.max())

    def test_a_path_that_passes_the_worst_point_comes_back_to_it(self) -> None:
        """The loss of one pixel is highest at 0.5; long steps jump over it to and fro."""

        def hill(x: Tensor) -> Tensor:
            top = 0.1 - (x.flatten(1).sum(1) - 0.5).abs()
            return torch.stack([torch.zeros_like(top), top], dim=1)

        x, threat = torch.full((1, 1, 1, 1), 0.36), ThreatModel(eps=0.2)
        for steps, last in ((2, 0.36), (3, 0.51)):
            settings = {"steps": steps, "step_size": 0.75, "random_start": False, "stop_at_success": False}
            for keep_best, expected in ((False, last), (True, 0.51)):
                attack = PGD(keep_best=keep_best, **settings)
                x_adv = attack(hill, x, torch.tensor([0]), threat, rng=seeded(0))
                assert float(x_adv) == pytest.approx(expected)

    def test_more_restarts_never_do_worse_and_break_more(self) -> None:
        model, x, threat = Bumpy(), images(60), ThreatModel(eps=0.02)
        y = predicted(model, x)
        once, often = (
            PGD(steps=2, restarts=restarts, stop_at_success=False)(model, x, y, threat, rng=seeded(0))
            for restarts in (1, 8)
        )
        broken_once, broken_often = predicted(model, once) != y, predicted(model, often) != y
        assert (broken_often >= broken_once).all()
        same = broken_often == broken_once
        assert (height(model, often, y) >= height(model, once, y) - 1e-6)[same].all()
        assert broken_often.sum() > broken_once.sum()


class TestNeverTheCleanImage:
    @pytest.mark.parametrize("threat", [LINF, L2], ids=str)
    @pytest.mark.parametrize("random_start", [False, True])
    def test_where_nothing_can_be_broken_the_loss_still_rises(self, threat, random_start) -> None:
        model, x = Linear(bias=8.0), images()
        y = predicted(model, x)
        x_adv = PGD(steps=5, random_start=random_start)(model, x, y, threat, rng=seeded(0))
        assert torch.equal(predicted(model, x_adv), y)
        assert (height(model, x_adv, y) > height(model, x, y)).all()

    @pytest.mark.parametrize("random_start", [False, True])
    def test_where_the_clean_image_is_the_worst_one(self, random_start) -> None:
        x = images()

        def peak(images: Tensor) -> Tensor:
            away = 1 + (images - x).abs().flatten(1).sum(1) + 1e-3 * images.flatten(1).sum(1)
            return torch.stack([away, torch.zeros_like(away)], dim=1)

        attack = PGD(steps=1, random_start=random_start)
        x_adv = attack(peak, x, torch.zeros(len(x), dtype=torch.long), LINF, rng=seeded(0))
        assert (LINF.distance(x_adv, x) > 1e-3).all()

    def test_where_the_gradient_is_zero(self) -> None:
        def flat(images: Tensor) -> Tensor:
            return 0 * images.flatten(1)[:, :3] + torch.tensor([1.0, 0.0, 0.0])

        x = images()
        x_adv = PGD(steps=3)(flat, x, torch.zeros(len(x), dtype=torch.long), LINF, rng=seeded(0))
        assert (LINF.distance(x_adv, x) > 0).all()


class TestPromises:
    @pytest.mark.parametrize("threat", [LINF, L2], ids=str)
    @pytest.mark.parametrize("stop", [False, True])
    def test_each_image_is_attacked_alone(self, stop, threat) -> None:
        model, x = Bumpy(), images()
        y = predicted(model, x)
        attack = PGD(steps=4, random_start=False, stop_at_success=stop)
        single = [attack(model, x[i : i + 1], y[i : i + 1], threat, rng=seeded(0)) for i in range(len(x))]
        torch.testing.assert_close(attack(model, x, y, threat, rng=seeded(0)), torch.cat(single))

    @pytest.mark.parametrize("keep_best", [False, True])
    def test_climbs_a_loss_that_compares_with_the_clean_answer(self, keep_best) -> None:
        model, x = Bumpy(1.0), images()
        y, clean = predicted(model, x), model(x).detach()
        attack = PGD(steps=10, loss=KL(), keep_best=keep_best, stop_at_success=False)
        x_adv = attack(model, x, y, LINF, rng=seeded(0))
        random = LINF.random_start(x, seeded(9))
        with torch.no_grad():
            assert (KL()(model(x_adv), clean, y) > KL()(model(random), clean, y)).all()


class TestRefuses:
    def test_a_model_that_returns_nan(self) -> None:
        """With `keep_best` off, which is for training, `fit` finds the NaN itself."""
        model, x = Linear(), images()
        model.weight.data[0, 0, 0] = math.nan
        with pytest.raises(RunError, match="NaN"):
            PGD(steps=3)(model, x, torch.ones(len(x)).long(), LINF, rng=seeded(0))

    @pytest.mark.parametrize(
        "threat",
        [
            LINF,
            L2,
        ],
        ids=str,
    )
    def test_a_model_whose_gradient_is_nan(self, threat) -> None:
        def broken(images: Tensor) -> Tensor:
            rooted = (0 * images.flatten(1)[:, :2]).sqrt()  # 0 forward, infinity times 0 backward
            return rooted + torch.tensor([1.0, 0.0])

        x = images()
        with pytest.raises(RunError, match="NaN"):
            PGD(steps=3)(broken, x, torch.zeros(len(x)).long(), threat, rng=seeded(0))

    @pytest.mark.parametrize("value", [-0.01, 1.01, 255.0, math.nan, math.inf])
    def test_images_outside_0_to_1(self, value) -> None:
        x = images()
        x[0, 0, 0, 0] = value
        with pytest.raises(InputError, match=r"images must lie in \[0, 1\], got \["):
            PGD()(Linear(), x, torch.zeros(len(x)).long(), LINF, rng=seeded(0))

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"steps": 0}, "steps = 0 must be 1 or more"),
            ({"restarts": 0}, "restarts = 0 must be 1 or more"),
            ({"step_size": 0.0}, "step_size = 0 must be above 0"),
            ({"step_size": -1.0}, "step_size = -1 must be above 0"),
            ({"step_size": math.nan}, "step_size = nan must be above 0"),
            ({"restarts": 2, "random_start": False}, "restarts = 2 need random_start and keep_best"),
            ({"restarts": 2, "keep_best": False}, "restarts = 2 need random_start and keep_best"),
        ],
    )
    def test_bad_settings(self, settings, words) -> None:
        with pytest.raises(InputError) as refused:
            PGD(**settings)
        assert str(refused.value).startswith(words)

    def test_its_label_says_its_size_unless_it_has_one(self) -> None:
        assert PGD(steps=7).label == "pgd7"
        assert PGD(steps=7, restarts=3).label == "pgd7x3"
        assert PGD(label="mine").label == "mine"


def test_a_start_near_the_clean_image() -> None:
    """The first point seen is the clean image with normal noise, in the box."""
    x = torch.rand(50, 1, 4, 4, generator=seeded(0))
    seen: list[Tensor] = []

    def flat(images: Tensor) -> Tensor:
        seen.append(images.detach())
        return images.flatten(1)[:, :3]

    PGD(steps=1, start_noise=0.001, keep_best=False)(flat, x, torch.zeros(50).long(), ThreatModel(), rng=seeded(1))
    expected = (x + 0.001 * torch.randn(x.shape, generator=seeded(1))).clamp(0, 1)
    torch.testing.assert_close(seen[0], expected)
    for settings in ({"start_noise": 0.0}, {"start_noise": 0.1, "random_start": False}):
        with pytest.raises(InputError, match=r"start_noise = .* must be above 0 and needs random_start"):
            PGD(**settings)
