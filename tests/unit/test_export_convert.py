"""Pools as torch has them become pools of the runtime that answer the same, or are refused with a sentence."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.evaluation.folded import FoldedNetwork
from sparsemble.export.convert import convert_model
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


class Doubled(nn.Module):
    """Adds twice what the graph takes for an ordinary add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.conv(x), alpha=2).mean((2, 3))


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
        torch.manual_seed(0)
        with pytest.raises(InputError, match="the runtime would not predict what Doubled predicts: logits differ by"):
            check_deployable(Doubled().eval(), SHAPE)
