"""Cutout: one square an image, anywhere, drawn from the generator."""

import pytest
import torch

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation


@pytest.mark.parametrize(("side", "height", "width"), [(1, 5, 7), (3, 8, 8), (4, 8, 6), (20, 6, 6)])
def test_covers_one_square_that_may_hang_over_the_border(side: int, height: int, width: int) -> None:
    x = torch.ones(200, 2, height, width)
    covered = Augmentation(cutout=side)(x, seeded(0)) == 0
    assert torch.equal(covered[:, 0], covered[:, 1])
    for one in covered[:, 0]:
        rows, columns = one.any(1).nonzero()[:, 0], one.any(0).nonzero()[:, 0]
        assert len(rows) >= min((side + 1) // 2, height)
        assert len(rows) <= side
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert int(one.sum()) == len(rows) * len(columns)
    assert covered.any(0).all()  # every place is covered in some image
    assert torch.equal(x, torch.ones_like(x))


def test_without_it_nothing_is_drawn() -> None:
    x, rng = torch.rand(4, 1, 6, 6), seeded(0)
    before = rng.get_state()
    assert torch.equal(Augmentation()(x, rng), x)
    assert torch.equal(before, rng.get_state())


def test_negative_pixels_are_refused() -> None:
    with pytest.raises(InputError, match="cutout = -1 must be 0 or more pixels"):
        Augmentation(cutout=-1)
