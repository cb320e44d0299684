"""Closed forms of the scores: NIS, ERM, BNSF and ASE."""

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.pruning import prunable_layers
from sparsemble.pruning.score import rescale
from sparsemble.pruning.scores.ase import ASE
from sparsemble.pruning.scores.bnsf import BNSF
from sparsemble.pruning.scores.erm import ERM
from sparsemble.pruning.scores.nis import NIS, neuron_importance

assert_close = torch.testing.assert_close
M = TypeVar("M", bound=nn.Module)


def as_if_trained(model: M) -> M:
    rng = seeded(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5, generator=rng)
            nn.init.uniform_(module.bias, -0.5, 0.5, generator=rng)
            nn.init.uniform_(module.running_mean, -0.5, 0.5, generator=rng)
            nn.init.uniform_(module.running_var, 0.2, 3.0, generator=rng)
    return model.eval()


@pytest.fixture(autouse=True)
def same_weights() -> None:
    torch.manual_seed(0)


class Residual(nn.Module):
    """Two convolutions and a shortcut, each with a BatchNorm."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.side: nn.Module = nn.Identity()
        if stride > 1:
            self.side = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))) + self.side(x))


class PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(2), nn.BatchNorm2d(3)
        self.conv1, self.conv2, self.side = nn.Conv2d(2, 3, 3, 1, 1), nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        active = self.norm1(x).relu()
        return self.conv2(self.norm2(self.conv1(active)).relu()) + self.side(active)


def residual_net() -> nn.Sequential:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    stem = (nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    return as_if_trained(nn.Sequential(*stem, Residual(3, 4, 2), Residual(4, 4, 1), *head))


def batches() -> Iterator[tuple[Images, Labels]]:
    yield torch.rand(6, 2, 8, 8, generator=seeded(2)), torch.tensor([0, 1, 2, 0, 1, 2])


def returned(layer: nn.Conv2d | nn.Linear, outputs: Tensor) -> Tensor:
    """Sum |w_jk| I_j over outputs j and taps."""
    magnitude = layer.weight.detach().double().abs()
    flow = magnitude * outputs.view(-1, *[1] * (magnitude.ndim - 1))
    return flow.transpose(0, 1).flatten(1).sum(1)


def folded(norm: nn.BatchNorm2d) -> Tensor:
    return (norm.weight.abs() / (norm.running_var + norm.eps).sqrt()).detach().double()


class TestNIS:
    @pytest.mark.parametrize("stride", [1, 2])
    def test_importance_is_conserved_by_a_convolution(self, stride: int) -> None:
        conv = nn.Conv2d(3, 5, 3, stride, padding=1)
        model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
        outputs, inputs = neuron_importance(model, (3, 6, 6))
        assert_close(returned(conv, outputs["0"]), inputs["0"])
        assert_close(returned(model[4], outputs["4"]), inputs["4"])
        assert_close(outputs["4"], torch.ones(4, dtype=torch.float64))
        assert_close(inputs["4"], outputs["0"])

    def test_importance_is_conserved_by_a_residual_block(self) -> None:
        model = residual_net()
        block = model[3]
        outputs, inputs = neuron_importance(model, (2, 6, 6))
        both = returned(block.conv1, outputs["3.conv1"]) + returned(block.side[0], outputs["3.side.0"])
        assert_close(inputs["3.conv1"], both)
        assert_close(inputs["3.side.0"], both)
        assert_close(inputs["3.conv2"], returned(block.conv2, outputs["3.conv2"]))
        assert_close(outputs["3.conv1"], folded(block.norm1) * inputs["3.conv2"])
        assert_close(outputs["3.conv2"], folded(block.norm2) * inputs["4.conv1"])
        through_identity = returned(model[4].conv1, outputs["4.conv1"]) + inputs["7"]
        assert_close(inputs["4.conv1"], through_identity)

    def test_equals_the_literal_recursion_on_a_residual_network(self) -> None:
        model = residual_net()
        importance: dict[str, list[float]] = {}

        def through(name: str, arriving: list[float]) -> list[float]:
            """Note I of the outputs; return I_k = sum_j |w_jk| I_j with plain loops."""
            importance[name] = arriving
            weight = model.get_submodule(name).weight.detach().double()
            leaving = [0.0] * weight.shape[1]
            for j, filters in enumerate(weight.reshape(weight.shape[0], weight.shape[1], -1).tolist()):
                for k, taps in enumerate(filters):
                    leaving[k] += sum(abs(tap) for tap in taps) * arriving[j]
            return leaving

        def scale(name: str, arriving: list[float]) -> list[float]:
            norm = model.get_submodule(name)
            channels = zip(norm.weight.tolist(), norm.running_var.tolist(), arriving, strict=True)
            return [abs(gamma) / math.sqrt(variance + norm.eps) * flow for gamma, variance, flow in channels]

        flow = through("7", [1.0] * 3)
        long = through("4.conv1", scale("4.norm1", through("4.conv2", scale("4.norm2", flow))))
        flow = [a + b for a, b in zip(flow, long, strict=True)]
        short = through("3.side.0", scale("3.side.1", flow))
        long = through("3.conv1", scale("3.norm1", through("3.conv2", scale("3.norm2", flow))))
        through("0", scale("1", [a + b for a, b in zip(short, long, strict=True)]))

        outputs, _ = neuron_importance(model, (2, 6, 6))
        scores = NIS()(model, batches)
        assert set(importance) == set(outputs)
        for name, expected in importance.items():
            wanted = torch.tensor(expected, dtype=torch.float64)
            assert_close(outputs[name], wanted, rtol=1e-6, atol=0)
            weight = model.get_submodule(name).weight.detach()
            factor = (wanted / wanted.max()).float().view(-1, *[1] * (weight.ndim - 1))
            assert_close(scores[name], weight.abs() * factor)

    def test_a_dead_layer_gives_a_sentence(self) -> None:
        model = residual_net()
        model[7].weight.data.zero_()
        with pytest.raises(InputError, match=r"importance that reaches layer 0 is 0 or not finite"):
            NIS()(model, batches)


class TestERM:
    def test_equals_its_formula(self) -> None:
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        scores = ERM()(model, batches)
        for name, inputs in (("0", 18), ("4", 3)):
            weight = model.get_submodule(name).weight.detach()
            assert_close(scores[name], math.sqrt(6 / inputs) * weight.abs() / weight.abs().max())

    def test_rescaling_brings_any_score_into_its_range(self) -> None:
        scores = rescale({"conv": torch.rand(4, 2, 3, 3) * 1e6, "linear": torch.rand(5, 7) * 1e-6})
        assert float(scores["conv"].max()) == pytest.approx(math.sqrt(6 / 18))
        assert float(scores["linear"].max()) == pytest.approx(math.sqrt(6 / 7))
        assert rescale({"dead": torch.zeros(2, 2)})["dead"].count_nonzero() == 0


class TestBNSF:
    def test_is_the_magnitude_of_the_weight_with_its_batchnorm_folded_in(self) -> None:
        model = residual_net()
        scores = BNSF()(model, batches)
        norms = {"0": "1", "3.conv1": "3.norm1", "3.conv2": "3.norm2", "3.side.0": "3.side.1"}
        norms |= {"4.conv1": "4.norm1", "4.conv2": "4.norm2"}
        for conv, norm in norms.items():
            plain = torch.nn.utils.fuse_conv_bn_eval(model.get_submodule(conv), model.get_submodule(norm))
            assert_close(scores[conv], plain.weight.detach().abs())
        assert set(scores) - set(norms) == {"7"}
        assert_close(scores["7"], model[7].weight.detach().abs())

    def test_a_convolution_without_a_batchnorm_after_it_counts_by_its_weight(self) -> None:
        model = as_if_trained(PreActivation())
        scores = BNSF()(model, batches)
        for layer in ("conv2", "side"):
            assert torch.equal(scores[layer], model.get_submodule(layer).weight.detach().abs())
        inner = folded(model.norm2).float().view(-1, 1, 1, 1) * model.conv1.weight.detach().abs()
        assert_close(scores["conv1"], inner)

    def test_does_not_change_when_batchnorm_moves_into_the_weights(self) -> None:
        norm = nn.BatchNorm2d(4)
        model = as_if_trained(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), norm))
        before = BNSF()(model, batches)["0"]
        model[0].weight.data *= (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(-1, 1, 1, 1)
        norm.weight.data.fill_(1)
        norm.running_var.fill_(1 - norm.eps)
        assert_close(BNSF()(model, batches)["0"], before)

    @pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(0.5), nn.Sequential(nn.Identity(), nn.Dropout2d())])
    def test_looks_past_what_changes_nothing(self, between: nn.Module) -> None:
        plain = as_if_trained(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))).eval()
        model = nn.Sequential(plain[0], between, plain[1]).eval()
        assert torch.equal(BNSF()(model, batches)["0"], BNSF()(plain, batches)["0"])

    def test_a_batchnorm_without_scale_divides_only(self) -> None:
        norm = nn.BatchNorm2d(4, affine=False)
        nn.init.uniform_(norm.running_var, 0.2, 3.0, generator=seeded(0))
        model = nn.Sequential(nn.Conv2d(2, 4, 3), norm).eval()
        expected = model[0].weight.detach().abs() / (norm.running_var + norm.eps).sqrt().view(-1, 1, 1, 1)
        assert_close(BNSF()(model, batches)["0"], expected)

    @pytest.mark.parametrize("score", [BNSF(), NIS()])
    def test_a_batchnorm_without_statistics_is_refused(self, score: Any) -> None:
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten()).eval()
        with pytest.raises(InputError, match="a BatchNorm without running statistics"):
            score(model, batches)

    @pytest.mark.parametrize("score", [BNSF(), NIS()])
    def test_a_network_that_cannot_be_traced_is_refused_before_images_are_crafted(self, score: Any) -> None:
        class Deciding(nn.Conv2d):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x if x.sum() > 0 else -x)

        with pytest.raises(InputError, match="Deciding decides by its input what it computes"):
            score(Deciding(2, 4, 3), lambda: pytest.fail("images were crafted"))


class TestASE:
    def test_is_the_exact_kfac_diagonal_of_one_linear_layer_and_one_image(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
        x, y = torch.rand(1, 2, 2, 2, generator=seeded(0)), torch.tensor([1])
        score = ASE()(model, lambda: [(x, y)])["1"]
        with torch.no_grad():
            error = model(x).softmax(1)[0] - F.one_hot(y[0], 3)
        for j in range(3):
            for a in range(8):
                expected = 0.5 * error[j] ** 2 * x.flatten()[a] ** 2 * model[1].weight[j, a].detach() ** 2
                assert_close(score[j, a], expected)

    @pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
    def test_sums_squares_over_images_and_positions_of_a_convolution(self, stride: int, padding: int) -> None:
        conv = nn.Conv2d(2, 3, 3, stride, padding)
        model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        x, y = torch.rand(4, 2, 5, 5, generator=seeded(0)), torch.tensor([0, 1, 2, 0])
        score = ASE()(model, lambda: [(x[:2], y[:2]), (x[2:], y[2:])])["0"]
        response = conv(x)
        (gradient,) = torch.autograd.grad(F.cross_entropy(model[1:](response), y, reduction="sum"), response)
        patches = F.unfold(x, 3, padding=padding, stride=stride)  # (B, inputs of a filter, positions)
        squares_in = patches.square().sum((0, 2)).view(1, 2, 3, 3)
        squares_out = gradient.square().sum((0, 2, 3)).view(3, 1, 1, 1)
        assert_close(score, 0.5 * squares_out * squares_in * conv.weight.detach().square())

    def test_crafting_does_not_enter_the_statistics(self) -> None:
        model, threat, rng = residual_net(), ThreatModel(eps=0.1), seeded(3)
        x, y = torch.rand(8, 2, 8, 8, generator=seeded(2)), torch.arange(8) % 3
        attack = PGD(steps=3)
        stored = []

        def crafted() -> Iterator[tuple[Images, Labels]]:
            for part in (slice(0, 4), slice(4, 8)):
                stored.append((attack(model, x[part], y[part], threat, rng=rng), y[part]))
                yield stored[-1]

        live = ASE()(model, crafted)
        again = ASE()(model, lambda: stored)
        assert len(stored) == 2
        for name in prunable_layers(model):
            assert_close(live[name], again[name], rtol=0, atol=0)
            assert (live[name] >= 0).all()
