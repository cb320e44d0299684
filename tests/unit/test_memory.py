"""Peak memory against sums done by hand."""

import torch
from torch import nn

from sparsemble.evaluation.cost import peak_memory


def linear(count: int) -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(count)])


class TestPeakMemory:
    def test_of_a_chain_is_its_weights_and_two_neighbouring_activations(self) -> None:
        x = torch.rand(50, 100)
        for count in (2, 3, 7):
            model = linear(count)
            assert peak_memory(model, lambda model=model: model(x)) == count * 40_000 + 2 * 20_000

    def test_work_in_place_and_views_cost_nothing(self) -> None:
        model = nn.Sequential(*linear(1), nn.ReLU(inplace=True), nn.Flatten())
        assert peak_memory(model, lambda: model(torch.ones(50, 100))) == 40_000 + 20_000 + 20_000  # the images as well

    def test_what_is_kept_on_purpose_counts(self) -> None:
        model, x = linear(3), torch.rand(50, 100)

        def keep_all() -> list[torch.Tensor]:
            kept = [x]
            for layer in model:
                kept.append(layer(kept[-1]))
            return kept

        assert peak_memory(model, keep_all) == 3 * 40_000 + 3 * 20_000

    def test_is_the_same_every_time_and_grows_with_the_batch(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
        small, large = torch.rand(1, 3, 8, 8), torch.rand(64, 3, 8, 8)
        found = [peak_memory(model, lambda x=x: model(x)) for x in (small, small, large)]
        assert found[0] == found[1] < found[2]
