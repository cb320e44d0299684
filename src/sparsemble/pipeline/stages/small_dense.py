"""A small dense network with the ensemble's multiply-accumulates, trained like the parent: the plain alternative."""

import bisect
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

from sparsemble.data.dataset import Dataset
from sparsemble.evaluation.cost import count_macs
from sparsemble.models.architecture import Architecture
from sparsemble.models.model_io import ModelSpec
from sparsemble.models.resnet import ResNet
from sparsemble.pipeline.stage import Stage, Work, dataset, stages
from sparsemble.pipeline.stages.train import TrainStage

PHOTOGRAPH = 64
"""Height and width, in pixels, from which on images are treated as photographs."""


@final
@stages.register("small_dense")
@dataclass(frozen=True, kw_only=True)
class SmallDenseStage(Stage):
    """Narrow the architecture until its dense work is nearest to the selected ensemble's work on kept weights."""

    parallel: ClassVar[bool] = True

    seed: int
    parent: Stage
    """How the parent was trained; only the width changes."""

    def run(self, work: Work) -> None:
        """Leave `model.safetensors` and `history.jsonl`."""
        assert isinstance(self.parent, TrainStage)
        target = work.inputs["select"].json("select.json")["macs_nonzero"]
        data = dataset(self.parent.data)
        wide = widest(self.parent.model, data.shape)
        narrow = _with_width(wide, nearest_width(wide, data, target))
        replace(self.parent, model=narrow).run(work)


def widest(architecture: Architecture, shape: tuple[int, int, int]) -> Architecture:
    """Return the layout that is narrowed: the parent's own, or a ResNet-18 where that has no width to set."""
    if "width" in vars(architecture):
        return architecture
    return ResNet(stem="imagenet" if min(shape[1:]) >= PHOTOGRAPH else "cifar")


def nearest_width(architecture: Architecture, data: Dataset, macs: int) -> int:
    """Return the width whose dense multiply-accumulates are nearest to `macs`."""

    def macs_at(width: int) -> int:
        model = ModelSpec.of(_with_width(architecture, width), data).build()
        return count_macs(model, data.shape).dense

    widest: int = vars(architecture)["width"]
    above = bisect.bisect_left(range(1, widest + 1), macs, key=macs_at) + 1
    return min((max(above - 1, 1), min(above, widest)), key=lambda width: abs(macs_at(width) - macs))


def _with_width(architecture: Any, width: int) -> Architecture:
    """Return the architecture at another width."""
    narrow: Architecture = replace(architecture, width=width)
    return narrow
