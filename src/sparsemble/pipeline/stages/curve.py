"""Accuracy of one row against eps."""

from dataclasses import dataclass
from typing import ClassVar, final

from sparsemble.api.context import Context
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.registry import to_dict
from sparsemble.evaluation.metrics import security_curve
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_models import load_row
from sparsemble.pipeline.stage import Inputs, stages
from sparsemble.pipeline.stages.attack import RowStage


@final
@stages.register("curve")
@dataclass(frozen=True, kw_only=True)
class CurveStage(RowStage):
    """Attack one row at each radius, on the first test images, until accuracy is zero."""

    version: ClassVar[int] = 2

    row: str
    attack: Attack
    eps: tuple[float, ...]
    curve_images: int

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `curve.json`."""
        row = load_row(self.row, inputs, self.combiner, context.device)
        job = self.job(row, (self.attack,), context.device)
        curve = security_curve(job, self.curve_images, OutcomeStore(), attack=self.attack, radii=self.eps)
        write_json(context.output / "curve.json", to_dict(curve))
