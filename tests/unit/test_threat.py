"""The threat model: nearest allowed image, distance, random starts and steepest steps, against literal versions."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel, as_fraction, sparse_step
from sparsemble.core.types import Images, seeded
from tests.helpers import DUAL, examples

few = examples(40)
SHAPE = (2, 3, 4)
norms = st.sampled_from(["linf", "l2", "l1"])
radii = st.floats(0.0, 1.0)
seeds = st.integers(0, 9999)


def images(count: int = 5, seed: int = 0) -> Images:
    return torch.rand(count, *SHAPE, generator=seeded(seed))


def elsewhere(x: Images, seed: int = 1, scale: float = 1.0) -> Images:
    return x + scale * torch.randn(x.shape, generator=seeded(seed))


def literal_projection(threat: ThreatModel, x_adv: Images, x: Images) -> Images:
    """Project with plain Python numbers, an image and a pixel at a time."""
    result = []
    for moved, clean in zip(x_adv.double().flatten(1).tolist(), x.double().flatten(1).tolist(), strict=True):
        delta = [a - b for a, b in zip(moved, clean, strict=True)]
        if threat.norm == "linf":
            delta = [min(max(d, -threat.eps), threat.eps) for d in delta]
        elif threat.norm == "l1":
            delta = literal_l1(delta, clean, threat.eps)
        else:
            length = math.sqrt(sum(d * d for d in delta))
            delta = [d * threat.eps / length for d in delta] if length > threat.eps else delta
        result.append([min(max(b + d, 0.0), 1.0) for b, d in zip(clean, delta, strict=True)])
    return torch.tensor(result).view(x.shape)


def literal_l1(delta: list[float], clean: list[float], eps: float) -> list[float]:
    """Bisect the threshold by which every coordinate shrinks."""
    room = [1 - c if d > 0 else c for d, c in zip(delta, clean, strict=True)]

    def shrunk(threshold: float) -> list[float]:
        return [min(max(abs(d) - threshold, 0.0), r) for d, r in zip(delta, room, strict=True)]

    low, high = 0.0, max(abs(d) for d in delta)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shrunk(middle)) > eps else (low, middle)
    threshold = 0.0 if sum(shrunk(0.0)) <= eps else high
    return [math.copysign(s, d) for s, d in zip(shrunk(threshold), delta, strict=True)]


class TestProject:
    @given(norms, radii, seeds, st.sampled_from([0.01, 0.3, 5.0]))
    @few
    def test_equals_a_literal_projection(self, norm, eps, seed, scale) -> None:
        threat, x = ThreatModel(norm=norm, eps=eps), images(seed=seed)
        x_adv = elsewhere(x, seed + 1, scale)
        torch.testing.assert_close(threat.project(x_adv, x), literal_projection(threat, x_adv, x))

    @given(norms, radii, seeds)
    @few
    def test_lands_in_box_and_ball_and_stays_there(self, norm, eps, seed) -> None:
        threat, x = ThreatModel(norm=norm, eps=eps), images(seed=seed)
        once = threat.project(elsewhere(x, seed), x)
        assert once.min() >= 0
        assert once.max() <= 1
        assert (threat.distance(once, x) <= eps + threat.tolerance).all()
        torch.testing.assert_close(threat.project(once, x), once, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_keeps_an_allowed_image(self, norm) -> None:
        threat, x = ThreatModel(norm=norm, eps=0.5), images()
        near = (x + 0.4 * threat.steepest(elsewhere(torch.zeros_like(x)))).clamp(0, 1)
        torch.testing.assert_close(threat.project(near, x), near)

    @pytest.mark.parametrize("norm", ["linf", "l1"])
    @given(seeds)
    @few
    def test_is_the_nearest_allowed_image(self, norm, seed) -> None:
        threat, x = ThreatModel(norm=norm, eps={"linf": 0.2, "l1": 1.5}[norm]), images(1, seed)
        x_adv = elsewhere(x, seed + 1)
        nearest = (threat.project(x_adv, x) - x_adv).norm()
        for other in range(20):
            assert (threat.random_start(x, seeded(other)) - x_adv).norm() >= nearest - 1e-6

    def test_shrinks_an_l2_step_without_turning_it_where_the_box_is_far(self) -> None:
        threat, x = ThreatModel(norm="l2", eps=0.1), torch.full((3, *SHAPE), 0.5)
        step = elsewhere(torch.zeros_like(x))
        delta = threat.project(x + step, x) - x
        torch.testing.assert_close(delta.flatten(1).norm(dim=1), torch.full((3,), 0.1))
        turned = torch.cosine_similarity(delta.flatten(1), step.flatten(1))
        torch.testing.assert_close(turned, torch.ones(3))

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_treats_each_image_alone(self, norm) -> None:
        threat, x = ThreatModel(norm=norm, eps=0.3), images(4)
        x_adv = elsewhere(x) * torch.tensor([0.0, 1.0, 10.0, 1e4]).view(-1, 1, 1, 1)
        single = torch.cat([threat.project(x_adv[i : i + 1], x[i : i + 1]) for i in range(4)])
        assert torch.equal(threat.project(x_adv, x), single)

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_of_no_images_is_no_images(self, norm) -> None:
        threat, x = ThreatModel(norm=norm, eps=0.1), torch.empty(0, *SHAPE)
        assert threat.project(x, x).shape == x.shape


class TestDistance:
    @given(norms, seeds)
    @few
    def test_equals_a_literal_distance_and_is_symmetric(self, norm, seed) -> None:
        threat, x = ThreatModel(norm=norm, eps=0.1), images(seed=seed)
        x_adv = elsewhere(x, seed + 1)
        pairs = zip(x.double().flatten(1).tolist(), x_adv.double().flatten(1).tolist(), strict=True)
        moves = [[abs(a - b) for a, b in zip(*pair, strict=True)] for pair in pairs]
        length = {"linf": max, "l2": lambda move: math.hypot(*move), "l1": sum}[norm]
        expected = [length(move) for move in moves]
        torch.testing.assert_close(threat.distance(x_adv, x), torch.tensor(expected))
        torch.testing.assert_close(threat.distance(x, x_adv), threat.distance(x_adv, x))
        assert (threat.distance(x, x) == 0).all()


class TestRandomStart:
    @given(norms, radii, seeds)
    @few
    def test_is_allowed_and_a_function_of_the_generator(self, norm, eps, seed) -> None:
        threat, x = ThreatModel(norm=norm, eps=eps), images(seed=seed)
        start = threat.random_start(x, seeded(seed))
        assert start.min() >= 0
        assert start.max() <= 1
        assert (threat.distance(start, x) <= eps + threat.tolerance).all()
        assert torch.equal(start, threat.random_start(x, seeded(seed)))
        assert eps < 1e-3 or not torch.equal(start, threat.random_start(x, seeded(seed + 1)))

    def test_leaves_the_global_generator_alone(self) -> None:
        state = torch.get_rng_state()
        for norm in ("linf", "l2", "l1"):
            ThreatModel(norm=norm, eps=0.1).random_start(images(), seeded(0))
        assert torch.equal(state, torch.get_rng_state())

    def test_of_linf_fills_the_cube_evenly(self) -> None:
        x = torch.full((4000, 1, 1, 2), 0.5)
        delta = (ThreatModel(norm="linf", eps=0.2).random_start(x, seeded(0)) - x) / 0.2
        assert abs(float(delta.mean())) < 4 / math.sqrt(3 * 8000)
        for bound in (-0.5, 0.0, 0.5):
            assert abs(float((delta < bound).float().mean()) - (bound + 1) / 2) < 4 * 0.5 / math.sqrt(8000)

    @pytest.mark.parametrize("size", [1, 2, 5])
    @pytest.mark.parametrize("norm", ["l2", "l1"])
    def test_of_l2_and_l1_fills_the_ball_evenly(self, norm, size) -> None:
        """In a ball of n dimensions a share r**n of the volume lies within radius r; directions are balanced."""
        x = torch.full((4000, 1, 1, size), 0.5)
        delta = (ThreatModel(norm=norm, eps=0.2).random_start(x, seeded(0)) - x) / 0.2
        radius = torch.linalg.vector_norm(delta.flatten(1), ord={"l2": 2, "l1": 1}[norm], dim=1)
        for bound in (0.3, 0.6, 0.9):
            assert abs(float((radius < bound).float().mean()) - bound**size) < 4 * 0.5 / math.sqrt(4000)
        assert (delta.mean(0).abs() < 4 / math.sqrt(4000)).all()


class TestSteepest:
    @given(norms, seeds)
    @few
    def test_no_other_unit_step_gains_more_on_a_linear_function(self, norm, seed) -> None:
        threat, gradient = ThreatModel(norm=norm, eps=0.1), elsewhere(torch.zeros(3, *SHAPE), seed)
        step = threat.steepest(gradient)
        torch.testing.assert_close(threat.distance(step, torch.zeros_like(step)), torch.ones(3))
        gain = (step * gradient).flatten(1).sum(1)
        dual = torch.linalg.vector_norm(gradient.flatten(1), ord=DUAL[norm], dim=1)
        torch.testing.assert_close(gain, dual)

    def test_of_linf_is_the_best_corner(self) -> None:
        gradient = torch.tensor([0.3, -2.0, 1e-9]).view(1, 1, 1, 3)
        corners = [torch.tensor(corner).view(1, 1, 1, 3) for corner in itertools.product([-1.0, 1.0], repeat=3)]
        best = max(corners, key=lambda corner: float((corner * gradient).double().sum()))
        assert torch.equal(ThreatModel(norm="linf").steepest(gradient), best)

    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_of_a_zero_gradient_is_no_step(self, norm) -> None:
        step = ThreatModel(norm=norm, eps=0.1).steepest(torch.zeros(2, *SHAPE))
        assert torch.equal(step, torch.zeros(2, *SHAPE))

    def test_does_not_depend_on_the_length_of_the_gradient(self) -> None:
        gradient = elsewhere(torch.zeros(3, *SHAPE))
        for norm in ("linf", "l2", "l1"):
            threat = ThreatModel(norm=norm, eps=0.1)
            torch.testing.assert_close(threat.steepest(gradient), threat.steepest(1e-6 * gradient))

    @pytest.mark.parametrize(
        "norm",
        [
            "linf",
            "l2",
            "l1",
        ],
    )
    def test_a_tiny_gradient_still_gives_a_whole_step(self, norm) -> None:
        """A model sure of itself has gradients of 1e-20: an attack that stalls on them would fake robustness."""
        threat, gradient = ThreatModel(norm=norm, eps=0.1), 1e-20 * elsewhere(torch.zeros(3, *SHAPE))
        step = threat.steepest(gradient)
        torch.testing.assert_close(threat.distance(step, torch.zeros_like(step)), torch.ones(3))


class TestSparseStep:
    @given(seeds, st.floats(0.0, 1.0))
    @few
    def test_moves_the_coordinates_of_largest_gradient_alike(self, seed, fraction) -> None:
        gradient = elsewhere(torch.zeros(3, *SHAPE), seed)
        count = min(max(math.ceil(fraction * 24), 1), 24)
        for step, slope in zip(sparse_step(gradient, torch.full((3,), fraction)), gradient, strict=True):
            moved = step != 0
            assert abs(int(moved.sum()) - count) <= (abs(24 * fraction - round(24 * fraction)) < 1e-4)
            torch.testing.assert_close(step[moved], slope[moved].sign() / moved.sum())
            assert moved.all() or slope[moved].abs().min() > slope[~moved].abs().max()


class TestNoBudget:
    @pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
    def test_allows_the_clean_image_alone(self, norm) -> None:
        threat, x = ThreatModel(norm=norm, eps=0.0), images()
        assert torch.equal(threat.project(elsewhere(x), x), x)
        assert torch.equal(threat.random_start(x, seeded(0)), x)
        assert str(threat) == f"{norm} 0"


class TestSettings:
    def test_eps_8_gets_a_hint(self) -> None:
        with pytest.raises(InputError, match=r'eps = 8 is too large for linf.*at most 1; did you mean "8/255"\?'):
            ThreatModel(eps=8)
        with pytest.raises(InputError, match=r'eps = 8 is too large for l2.*at most 5; did you mean "8/255"\?'):
            ThreatModel(norm="l2", eps=8)

    @pytest.mark.parametrize("eps", [-0.1, -1e-9, math.nan, math.inf, -math.inf])
    def test_what_is_no_distance_is_refused(self, eps) -> None:
        with pytest.raises(InputError, match=f"eps = {eps:g} must be 0 or more"):
            ThreatModel(eps=eps)

    def test_the_largest_eps_is_allowed_and_the_next_is_not(self) -> None:
        for norm, largest in (("linf", 1.0), ("l2", 5.0), ("l1", 1000.0)):
            assert ThreatModel(norm=norm, eps=largest).eps == largest
            with pytest.raises(InputError, match="too large"):
                ThreatModel(norm=norm, eps=math.nextafter(largest, 9999))

    def test_is_a_value(self) -> None:
        assert ThreatModel() == ThreatModel(norm="linf", eps=8 / 255)
        assert len({ThreatModel(), ThreatModel(eps=8 / 255), ThreatModel(norm="l2")}) == 2


class TestAsFraction:
    @given(st.integers(1, 254))
    @few
    def test_writes_255ths(self, n) -> None:
        assert as_fraction(n / 255) == f"{n}/255"

    @pytest.mark.parametrize(
        ("eps", "text"),
        [(0.0, "0"), (1.0, "1"), (0.1, "0.1"), (0.5, "0.5"), (8.5 / 255, "0.0333333"), (8 / 255 + 1e-6, "0.0313735")],
    )
    def test_writes_anything_else_as_a_decimal(self, eps, text) -> None:
        assert as_fraction(eps) == text

    def test_names_the_threat(self) -> None:
        assert str(ThreatModel()) == "linf 8/255"
        assert str(ThreatModel(norm="l2", eps=0.5)) == "l2 0.5"
