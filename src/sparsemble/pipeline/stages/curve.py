"""Accuracy of one row against eps."""

from dataclasses import dataclass, replace
from typing import final

from sparsemble.api.context import Context
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.core.threat import ThreatModel
from sparsemble.pipeline.baselines import load_row
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages
from sparsemble.pipeline.stages.attack import test_images
from sparsemble.training.validation import adversarial_images, is_correct


@final
@stages.register("curve")
@dataclass(frozen=True, kw_only=True)
class CurveStage(WithData):
    """Attack one row at each radius, on the same images, with the same starts."""

    seed: int
    threat: ThreatModel
    combiner: Combiner
    row: str
    attack: Attack
    eps: tuple[float, ...]
    images: int

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `curve.json`."""
        split = test_images(dataset(self.data), self.images).to(context.device)
        ensemble = load_row(self.row, inputs, self.combiner, context.device).ensemble
        accuracy = []
        for i, eps in enumerate(self.eps):
            threat = replace(self.threat, eps=eps)
            x_adv = adversarial_images(ensemble, split, self.attack, threat, context.rng("curve"))
            accuracy.append(float(is_correct(ensemble, x_adv, split.labels).float().mean()))
            context.report_progress((i + 1) / len(self.eps), f"eps {eps:g}")
        write_json(context.output / "curve.json", {"eps": list(self.eps), "accuracy": accuracy, "images": len(split)})
