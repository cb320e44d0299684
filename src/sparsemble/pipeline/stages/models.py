"""The stages that make models: train, prune, select, ensemble, calibrate; each calls the API and saves the result."""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from sparsemble import api
from sparsemble.api.context import Context
from sparsemble.api.results import TrainedEnsemble, TrainedModel
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import draw_seed
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.selection.rule import SelectionRule
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.inputs import check_classifier
from sparsemble.models.architecture import Architecture, Normalised
from sparsemble.models.graph import Graph
from sparsemble.models.model_io import ModelSpec
from sparsemble.models.resnet import ResNet
from sparsemble.pipeline import recipe
from sparsemble.pipeline.stage import Inputs, Stage, WithData, dataset, stages, with_prefix
from sparsemble.pruning.folds import data_folds
from sparsemble.pruning.score import PruningScore
from sparsemble.training.precision import Precision
from sparsemble.training.validation import held_out_probe

HELD_OUT = "held_out.json"
"""File with the accuracy of a parent that was trained elsewhere, on held-out images."""
PHOTOGRAPH = 64
"""Height and width, in pixels, from which on images are treated as photographs."""


@dataclass(frozen=True, kw_only=True)
class ModelStage(WithData):
    """A stage that makes models, or selects among them, by what they do on held-out images."""

    threat: ThreatModel
    held_out_attack: Attack

    def shared(self, context: Context) -> dict[str, Any]:
        """Return the arguments that all functions of the API take."""
        shared = {"data": dataset(self.data), "threat": self.threat, "held_out_attack": self.held_out_attack}
        return {**shared, "context": context}


@final
@stages.register("train")
@dataclass(frozen=True, kw_only=True)
class TrainStage(ModelStage):
    """Train the architecture from fresh weights (EED main paper, eqs. 1-2)."""

    parallel: ClassVar[bool] = True

    model: Architecture
    train: recipe.Train
    precision: Precision = Precision()

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `model.safetensors` and `history.jsonl`."""
        trained = api.train(self.model, **vars(self.train), precision=self.precision, **self.shared(context))
        trained.save(context.output)


@final
@stages.register("load_parent")
@dataclass(frozen=True, kw_only=True)
class LoadParentStage(ModelStage):
    """A classifier that was trained elsewhere takes the place of the dense parent, fine-tuned where asked for."""

    parallel: ClassVar[bool] = True

    version: ClassVar[int] = 2

    model: Architecture
    parent: recipe.Parent
    finetune: recipe.Train | None = None
    """How it is trained further; None: not at all."""
    precision: Precision = Precision()

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `model.safetensors`, `history.jsonl` (empty where nothing was trained) and `held_out.json`."""
        data = dataset(self.data).to(context.device)
        model = load_parent(self.model, self.parent, data).to(context.device)
        for note in model.changes.notes:
            context.report_message(note)
        parent = TrainedModel(model=model, spec=ModelSpec.of(self.model, data))
        probe = held_out_probe(data.selection, self.held_out_attack, self.threat, lambda: context.rng("probe"))
        measured = probe(model)
        context.report_message(f"the parent classifies {_as_text(measured)}")
        if self.finetune:
            tuned = api.train(model, **vars(self.finetune), precision=self.precision, **self.shared(context))
            parent = replace(parent, model=tuned.model, history=tuned.history)
            measured = probe(tuned.model)
            context.report_message(f"after fine-tuning it classifies {_as_text(measured)}")
        write_json(context.output / HELD_OUT, measured)
        parent.save(context.output)


def _as_text(measured: Mapping[str, float]) -> str:
    clean, robust = (f"{100 * accuracy:.1f} %" for accuracy in measured.values())
    return f"{clean} of the held-out images correctly, {robust} under attack"


def load_parent(architecture: Architecture, parent: recipe.Parent | None, data: Dataset) -> Normalised:
    """Return the trained network in eval mode, after trying it on a few images; a fresh one where there is no parent.

    Args:
        architecture: its layout, or the code that makes it.
        parent: where its weights are.
        data: its images.

    Raises:
        InputError: the network cannot be pruned, or its weights are computed from others and would be trained.
    """
    spec = ModelSpec.of(architecture, data)
    if parent is None:
        model = spec.build()
        model.changes.refuse_computed()
    else:
        model = spec.build_trained(Path(parent.weights) if parent.weights else None, mean=parent.mean, std=parent.std)
    model = model.to(data.selection.labels.device).float().eval().requires_grad_(True)
    if not Graph(model, data.shape).layers():
        raise InputError(f"{type(model).__name__} has no Conv2d or Linear layer, so there is nothing to prune")
    check_classifier(model, data.selection, len(data.classes))
    return model


@final
@stages.register("prune")
@dataclass(frozen=True, kw_only=True)
class PruneStage(ModelStage):
    """Prune the dense parent with one score on one fold of the images, then fine-tune what is left."""

    parallel: ClassVar[bool] = True
    version: ClassVar[int] = 3

    prune: recipe.Prune
    score: PruningScore
    fold: int
    """Number of the data fold, counted from 1."""
    sparsity: float
    """Of this sub-model, in [0, 1)."""
    eval_every: int = 1
    precision: Precision = Precision()

    @property
    def stream(self) -> str:
        """Sub-models differ in their randomness as well as in their images."""
        return f"prune {self.score.name} {self.fold} {self.sparsity:.6f}"

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `model.safetensors`, `mask.safetensors`, `pruned.json`, `learning.jsonl` and `history.jsonl`."""
        data = dataset(self.data)
        # The partition is drawn anew for every score and is the same for its sub-models.
        partition = np.random.default_rng(draw_seed(self.seed, "shares", self.score.name))
        folds = data_folds(data.train.labels, self.prune.folds, partition)
        fold = replace(data, train=data.train.subset(folds[self.fold - 1]))
        pruned = api.prune(
            TrainedModel.load(inputs["dense"].path, context.device),
            sparsity=self.sparsity,
            score=self.score,
            **{name: value for name, value in vars(self.prune).items() if name not in ("scores", "folds")},
            eval_every=self.eval_every,
            precision=self.precision,
            name=f"{self.score.name}-{self.fold}",
            **{**self.shared(context), "data": fold},
        )
        pruned.save(context.output)


@final
@stages.register("select")
@dataclass(frozen=True, kw_only=True)
class SelectStage(ModelStage):
    """Select the members of the ensemble (EED main paper, section 4.1)."""

    version: ClassVar[int] = 4

    select: SelectionRule
    members: int
    combiner: Combiner

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `select.json`; that too few sub-models are above chance is for the gate of the run."""
        pool = with_prefix(inputs, "pool")
        models = {name: TrainedModel.load(artifact.path, context.device) for name, artifact in pool.items()}
        selection = api.select(
            models, size=self.members, rule=self.select, combiner=self.combiner, force=True, **self.shared(context)
        )
        selection.save(context.output)


@final
@stages.register("ensemble")
@dataclass(frozen=True, kw_only=True)
class EnsembleStage(ModelStage):
    """Train the members together, masks held, and put them in running order (EED main paper, sections 4.2 and 4.3)."""

    parallel: ClassVar[bool] = True
    version: ClassVar[int] = 2

    ensemble: recipe.Ensemble
    eval_every: int = 1
    precision: Precision = Precision()

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `member1.safetensors` .. in running order, `ensemble.json` and `history.jsonl`."""
        pool = with_prefix(inputs, "pool")
        names: list[str] = inputs["select"].json("select.json")["ensemble"]
        ensemble = api.train_ensemble(
            {name: TrainedModel.load(pool[name].path, context.device) for name in names},
            parent=TrainedModel.load(inputs["dense"].path, context.device),
            **vars(self.ensemble),
            eval_every=self.eval_every,
            precision=self.precision,
            **self.shared(context),
        )
        ensemble.save(context.output)


@final
@stages.register("calibrate")
@dataclass(frozen=True, kw_only=True)
class CalibrateStage(ModelStage):
    """Choose the settings of the stopping rule, and which member runs first, on held-out images."""

    version: ClassVar[int] = 7

    stopping: recipe.Stopping

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `stopping.json` and the member logits that the rule was set on."""
        ensemble = TrainedEnsemble.load(inputs["ensemble"].path, context.device)
        calibrated = api.calibrate(ensemble, **vars(self.stopping), **self.shared(context))
        # The order counts from the ensemble's artifact, which keeps the members.
        calibrated.save_rule(context.output, inputs["ensemble"].path.name)


@final
@stages.register("small_dense")
@dataclass(frozen=True, kw_only=True)
class SmallDenseStage(Stage):
    """A dense network with the ensemble's multiply-accumulates, trained like the parent: the plain alternative."""

    parallel: ClassVar[bool] = True

    parent: Stage
    """How the parent was trained; only the width changes."""

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `model.safetensors` and `history.jsonl`."""
        assert isinstance(self.parent, TrainStage)
        macs = inputs["select"].json("select.json")["macs_nonzero"]
        data = dataset(self.parent.data)
        replace(self.parent, model=narrowed(self.parent.model, data, macs)).run(context, inputs)


def narrowed(architecture: Architecture, data: Dataset, macs: int) -> Architecture:
    """Return an architecture at the width whose dense multiply-accumulates are nearest to `macs`.

    Args:
        architecture: the widest; a ResNet-18 takes the place of one without a width to set.
        data: its images.
        macs: of one image.
    """
    widest: Any = architecture
    if "width" not in vars(widest):
        widest = ResNet(stem="imagenet" if min(data.shape[1:]) >= PHOTOGRAPH else "cifar")

    def at(width: int) -> Architecture:
        narrow: Architecture = replace(widest, width=width)
        return narrow

    def macs_at(width: int) -> int:
        return count_macs(ModelSpec.of(at(width), data).build(), data.shape).dense

    largest: int = widest.width
    above = bisect.bisect_left(range(1, largest + 1), macs, key=macs_at) + 1
    return at(min((max(above - 1, 1), min(above, largest)), key=lambda width: abs(macs_at(width) - macs)))
