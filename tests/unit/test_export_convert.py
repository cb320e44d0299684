"""Pools as torch has them become pools of the runtime that answer the same, or are refused with a sentence."""

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.models.convert import convert_model
from sparsemble.models.folded import FoldedNetwork
from sparsemble.pipeline.validate_recipe import check_deployable
from sparsemble.runtime.network import AveragePool, MaxPool, Network

SHAPE = (3, 8, 12)
SAME = {
    "adaptive, same size": nn.AdaptiveAvgPool2d((8, 12)),
    "adaptive, largest, same size": lambda x: F.adaptive_max_pool2d(x, (8, 12)),
    "adaptive, one side kept": nn.AdaptiveAvgPool2d((None, 4)),
    "adaptive, halves": lambda x: F.adaptive_avg_pool2d(x, (4, 6)),
    "adaptive, largest, 2 x 3": nn.AdaptiveMaxPool2d((2, 3)),
    "adaptive, whole plane": nn.AdaptiveAvgPool2d(1),
    "one number in a list": lambda x: F.avg_pool2d(x, [2]),
    "window as large as the model says": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "window of two sizes": lambda x: F.max_pool2d(x, (x.shape[2], x.shape[3])),
    "size before a stride": lambda x: F.avg_pool2d(x, x.shape[2], 2),
    "ceil_mode that adds nothing": lambda x: F.max_pool2d(x, 2, 2, 0, 1, True),
    "every position": lambda x: F.avg_pool2d(x, 3, 2, 1, False, True, None),
    "divisor of the window": nn.AvgPool2d(2, padding=1, count_include_pad=False, divisor_override=4),
    "nothing left out": nn.AvgPool2d(2, count_include_pad=False),
    "mean, axes from the end": lambda x: x.mean((-1, -2), True),
    "mean by name": lambda x: x.mean(dim=[3, 2]),
}
REFUSED = {
    "operation pool pools (8, 12) to (3, 5); the runtime knows adaptive pools": nn.AdaptiveAvgPool2d((3, 5)),
    "pools (8, 12) to (16, 12)": lambda x: F.adaptive_avg_pool2d(x, (16, 12)),
    "operation pool pools with divisor_override = 3": nn.AvgPool2d(2, divisor_override=3),
    "operation (avg_pool2d) pools with divisor_override = 5": lambda x: F.avg_pool2d(x, 2, 2, 0, False, True, 5),
    "operation (avg_pool2d) leaves padding out": lambda x: F.avg_pool2d(x, 3, 2, 1, False, False),
    "leaves padding out": lambda x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    "pools (8, 12) to (4, 6) by ceil_mode": lambda x: F.avg_pool2d(x, 3, 2, 0, True),
    "to (4, 6) by ceil_mode": nn.MaxPool2d(3, 2, ceil_mode=True),
    "operation (max_pool2d) pools with dilation 2": lambda x: F.max_pool2d(x, 3, 2, 1, 2),
    "operation (mean) is a mean over axes (1,)": lambda x: x.mean(1),
    "is a mean over axes (1, 2)": lambda x: x.mean((1, 2)),
}
Pool = Callable[[Tensor], Tensor]


class Pooled(nn.Module):
    """A convolution, then a pool of any kind."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.pool(self.conv(x)), 1)


def pooled(pool: Pool) -> nn.Module:
    torch.manual_seed(0)
    return Pooled(pool).eval()


def pools(network: Network) -> int:
    return sum(isinstance(node, AveragePool | MaxPool) for node in network.nodes)


@pytest.mark.parametrize("what", SAME)
def test_a_pool_answers_as_in_torch(what: str) -> None:
    model, x = pooled(SAME[what]), torch.rand(5, *SHAPE, generator=seeded(1)) - 0.5
    network = convert_model(model, SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(FoldedNetwork(network)(x), model(x), rtol=1e-5, atol=1e-6)
    assert pools(network) == (0 if "same size" in what else 1)


@pytest.mark.parametrize("words", REFUSED)
def test_a_pool_that_the_runtime_does_not_do_is_refused_with_its_place(words: str) -> None:
    with pytest.raises(InputError) as refused:
        convert_model(pooled(REFUSED[words]), SHAPE)
    assert words in str(refused.value)


class Block(nn.Module):
    """Convolutions with something between them that a graph of operations does not show, or shows as something else."""

    def __init__(self, between: Callable[["Block", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.act, self.between = nn.ReLU(inplace=True), between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, self.first(x)).mean((2, 3))


def add_to_alias(own: Block, x: Tensor) -> Tensor:
    same = x
    same += own.second(x.relu())
    return x


def without_result(own: Block, x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return own.second(x) + x


def hooked() -> nn.Module:
    block = Block(lambda own, x: own.second(x.relu()))
    block.second.register_forward_hook(lambda module, inputs, output: output * 2)
    return block


MISREAD: dict[str, nn.Module] = {
    "an addition in place to a tensor that has another name": Block(add_to_alias),
    "a hook": hooked(),
}
IN_PLACE = {
    "ReLU before a skip connection": lambda own, x: x + own.second(own.act(x)),
    "ReLU whose result is not taken": without_result,
    "ReLU as a method": lambda own, x: own.second(x.relu_()) + x,
}


@pytest.mark.parametrize("kind", IN_PLACE)
def test_a_tensor_changed_in_place_is_read_as_changed(kind: str) -> None:
    model, x = Block(IN_PLACE[kind]).eval(), torch.rand(5, *SHAPE, generator=seeded(1)) - 0.5
    with torch.no_grad():
        torch.testing.assert_close(FoldedNetwork(convert_model(model, SHAPE))(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MISREAD)
def test_a_conversion_that_would_answer_otherwise_is_refused(kind: str) -> None:
    with pytest.raises(InputError, match="Block computes something else in the runtime: logits differ by"):
        convert_model(MISREAD[kind], SHAPE)


def test_a_hook_that_changes_nothing_is_let_through() -> None:
    block, seen = Block(lambda own, x: own.second(x.relu())), []
    block.second.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    convert_model(block, SHAPE)
    assert seen


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda own, x: torch.add(x, own.second(x), alpha=2), "operation (add) multiplies by alpha"),
        (lambda own, x: x.add(own.second(x), alpha=0.5), "operation (add) multiplies by alpha"),
        (lambda own, x: F.dropout(own.second(x), 0.5), "operation (dropout) is a dropout that is never off"),
    ],
)
def test_settings_that_make_another_operation_are_named(between: Callable[[Block, Tensor], Tensor], words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        convert_model(Block(between), SHAPE)


def test_a_weight_norm_is_folded() -> None:
    model, x = Block(lambda own, x: own.second(x.relu())).eval(), torch.rand(5, *SHAPE, generator=seeded(1))
    parametrizations.weight_norm(model.second)
    with torch.no_grad():
        torch.testing.assert_close(FoldedNetwork(convert_model(model, SHAPE))(x), model(x), rtol=1e-5, atol=1e-6)
    assert parametrize.is_parametrized(model.second)


class TestBeforeWork:
    def test_what_the_runtime_does_is_let_through_and_left_as_found(self) -> None:
        model = pooled(SAME["adaptive, halves"])
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        check_deployable(model, SHAPE)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def test_what_it_does_not_is_named_with_what_can_be_done(self) -> None:
        with pytest.raises(InputError, match=r"operation pool pools .*; change it, or run `sparsemble evaluate`"):
            check_deployable(pooled(nn.AdaptiveAvgPool2d(5)), SHAPE)

    def test_an_operation_that_becomes_another_is_found_by_its_answers(self) -> None:
        message = r"Block computes something else in the runtime: logits differ by .*; change it, or run `sparsemble"
        with pytest.raises(InputError, match=message):
            check_deployable(Block(add_to_alias).eval(), SHAPE)
