"""Ensemble learning of the selected ensemble (EED main paper, sections 4.2 and 4.3)."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.models.architecture import Architecture
from sparsemble.models.model_io import ModelSpec, load_model, save_model
from sparsemble.pipeline import recipe
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.pipeline.train_stage import learn
from sparsemble.pruning.mask import KeepZero, Mask
from sparsemble.training.precision import Precision
from sparsemble.training.validation import adversarial_images, is_correct


@final
@stages.register("ensemble")
@dataclass(frozen=True, kw_only=True)
class EnsembleStage(WithData):
    """Train the members together on all training images, masks held, and put them in running order."""

    parallel: ClassVar[bool] = True

    seed: int
    model: Architecture
    threat: ThreatModel
    ensemble: recipe.Ensemble
    held_out_attack: Attack
    eval_every: int = 1
    precision: Precision = Precision()

    def run(self, work: Work) -> None:
        """Leave `member1.safetensors` .. in running order, `ensemble.json` and `history.jsonl`."""
        data = dataset(self.data).to(work.device)
        pool = work.pool("pool")
        labels: list[str] = work.inputs["select"].json("select.json")["ensemble"]
        members = [load_model(pool[label].path, work.device) for label in labels]
        masks = {f"members.{i}": Mask.of(member) for i, member in enumerate(members)}
        ensemble = Ensemble(members, self.ensemble.combiner)
        learn(
            work,
            ensemble,
            data,
            self.ensemble.loss.with_teacher(load_model(work.inputs["dense"].path, work.device)),
            self.ensemble.schedule,
            epochs=self.ensemble.epochs,
            threat=self.threat,
            held_out_attack=self.held_out_attack,
            eval_every=self.eval_every,
            precision=replace(self.precision, compile=False),  # losses look into members
            callbacks=[KeepZero(masks)],
        )
        y = data.choose.labels
        robust = []
        for member in members:
            with work.counting(member):
                x_adv = adversarial_images(member, data.choose, self.held_out_attack, self.threat, work.rng("order"))
                robust.append(float(is_correct(member, x_adv, y).float().mean()))
        # The most robust member runs first (method.md 2.7); ties keep the order of the selection.
        order = sorted(range(len(members)), key=lambda i: -robust[i])
        for position, i in enumerate(order, start=1):
            save_model(members[i], work.folder, ModelSpec.of(self.model, data), f"member{position}")
        facts = {"members": [labels[i] for i in order], "held_out_robust": [robust[i] for i in order]}
        write_json(work.folder / "ensemble.json", facts)
