"""A classifier that was trained elsewhere takes the place of the dense parent."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_bytes
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset
from sparsemble.evaluation.inputs import check_classifier
from sparsemble.models.architecture import Architecture, Normalised, normalisation
from sparsemble.models.graph import Graph
from sparsemble.models.model_io import ModelSpec, load_weights_, save_model
from sparsemble.pipeline.recipe import Parent
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.training.validation import held_out_probe


@final
@stages.register("load_parent")
@dataclass(frozen=True, kw_only=True)
class LoadParentStage(WithData):
    """Take over a trained network; nothing is trained."""

    seed: int
    model: Architecture
    threat: ThreatModel
    parent: Parent
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `model.safetensors` and an empty `history.jsonl`."""
        data = dataset(self.data).to(work.device)
        model = load_parent(self.model, self.parent, data).to(work.device)
        found = held_out_probe(data.choose, self.held_out_attack, self.threat, lambda: work.rng("probe"))(model)
        clean, robust = (f"{100 * found[f'held_out_{way}']:.1f} %" for way in ("clean", "robust"))
        work.say(f"the parent classifies {clean} of the held-out images rightly, {robust} under attack")
        write_bytes(work.folder / "history.jsonl", b"")
        save_model(model, work.folder, ModelSpec.of(self.model, data))


def load_parent(architecture: Architecture, parent: Parent | None, data: Dataset) -> nn.Module:
    """Return the trained network in eval mode, after trying it on a few images; a fresh one where there is no parent.

    Raises:
        InputError: weights that do not fit, an operation that we cannot prune, or no classifier of these images.
    """
    if parent is None or parent.weights:
        model = ModelSpec.of(architecture, data).build()
        if parent:
            load_weights_(model, Path(parent.weights))
    else:
        body = architecture.build(data.shape[0], len(data.classes))
        model = Normalised(body, *normalisation(architecture, data.mean, data.std), data.shape)
    model = model.to(data.choose.labels.device).float().eval().requires_grad_(True)
    if not Graph(model, data.shape).layers():
        raise InputError(f"{type(model).__name__} has no Conv2d or Linear layer, so there is nothing to prune")
    check_classifier(model, data.choose, len(data.classes))
    return model
