"""Adversarial training of the dense parent (EED main paper, eqs. 1-2)."""

from dataclasses import dataclass
from typing import ClassVar, final

from sparsemble.attacks.attack import Attack
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import draw_seed, seeded
from sparsemble.models.architecture import Architecture
from sparsemble.models.model_io import ModelSpec, save_model
from sparsemble.pipeline.recipe import Train
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.pipeline.train_stage import learn
from sparsemble.training.precision import Precision


@final
@stages.register("train")
@dataclass(frozen=True, kw_only=True)
class TrainStage(WithData):
    """Train the architecture from fresh weights."""

    parallel: ClassVar[bool] = True

    seed: int
    model: Architecture
    threat: ThreatModel
    train: Train
    held_out_attack: Attack
    precision: Precision = Precision()

    def run(self, work: Work) -> None:
        """Leave `model.safetensors` and `history.jsonl`."""
        data = dataset(self.data).to(work.device)
        fresh = seeded(draw_seed(self.seed, self.stream, "weights"))
        model = ModelSpec.of(self.model, data).build(rng=fresh)
        model.to(work.device)
        learn(
            work,
            model,
            data,
            self.train.loss,
            self.train.schedule,
            epochs=self.train.epochs,
            threat=self.threat,
            held_out_attack=self.held_out_attack,
            eval_every=self.train.eval_every,
            precision=self.precision,
        )
        save_model(model, work.folder, ModelSpec.of(self.model, data))
