"""`sparsemble.select`: the members of the ensemble, from a pool of sub-models (EED main paper, section 4.1)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, Model, TrainedModel, as_split, as_table, named_models
from sparsemble.api.training import HELD_OUT_ATTACK
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import read_json, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.module_state import copy_network
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.selection.robust_diversity import RobustDiversity
from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule
from sparsemble.ensemble.selection.rule import select as choose_members
from sparsemble.evaluation.cost import count_macs
from sparsemble.pruning.mask import Mask, jaccard
from sparsemble.training.validation import adversarial_images, member_logits


@final
@dataclass(frozen=True, kw_only=True)
class PoolRecord:
    """What was measured of a pool of sub-models, and what was selected: `select.json`."""

    ensemble: tuple[str, ...]
    """Names of the selected sub-models, in the order of the pool."""
    robust_diversity: float
    reason: str
    ensembles_scored: int
    pool: tuple[str, ...]
    """Names of all sub-models."""
    held_out_clean: tuple[float, ...]
    """Clean accuracy of each, on held-out images."""
    held_out_transfer: tuple[float, ...]
    """Accuracy of each on images that were crafted against the average of the pool."""
    held_out_robust: tuple[float, ...]
    """Accuracy of each on images that were crafted against it."""
    best_member: str
    """Name of the most robust sub-model."""
    macs_nonzero: int
    """Multiply-accumulates of the selected sub-models for one image, non-zero weights only."""
    layers: tuple[str, ...]
    """Names of the prunable layers."""
    layer_weights: tuple[int, ...]
    layer_sparsity: dict[str, tuple[float, ...]]
    """By sub-model, layer by layer."""
    overlap: tuple[tuple[float, ...], ...]
    """Jaccard overlap of every pair of masks."""


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class SelectedMembers(Sequence[TrainedModel]):
    """The sub-models that were selected, and what the selection knew of the whole pool."""

    members: tuple[TrainedModel, ...]
    record: PoolRecord

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: Any) -> Any:
        return self.members[index]

    def __iter__(self) -> Iterator[TrainedModel]:
        return iter(self.members)

    def save(self, folder: Path) -> None:
        """Write `select.json`."""
        write_json(folder / "select.json", to_dict(self.record))

    def to_json(self) -> str:
        """Return what the selection knew of the pool as JSON."""
        return json.dumps(to_dict(self.record))

    def __repr__(self) -> str:
        record = self.record
        lines = {"selected": ", ".join(record.ensemble), "reason": record.reason}
        lines["robust diversity"] = f"{record.robust_diversity:.3f}"
        for name, clean, robust in zip(record.pool, record.held_out_clean, record.held_out_robust, strict=True):
            lines[name] = f"clean {clean:.3f}, robust {robust:.3f} (held-out)"
        return as_table("selection", lines)


def select(
    pool: Mapping[str, Model] | Sequence[Model],
    data: Data,
    threat: ThreatModel,
    *,
    size: int,
    rule: SelectionRule = RobustDiversity(),
    combiner: Combiner = MeanProbability(),
    held_out_attack: Attack = HELD_OUT_ATTACK,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> SelectedMembers:
    """Select the members of an ensemble by what the sub-models predict on held-out images, clean and attacked.

    Images are crafted against the average of the pool and against each sub-model; the rule sees the logits only.

    Args:
        pool: sub-models, with names or in a list.
        data: a data set, whose held-out images are used, or images as a split or tensors (x, y).
        threat: what the adversary may do.
        size: members of the ensemble, >= 2; the most there may be, where the rule allows fewer.
        rule: chooses among the ensembles.
        combiner: makes one prediction of the members'.
        held_out_attack: crafts the adversarial images.
        seed: of attack starts, >= 0.
        folder: keeps what was measured.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The selected sub-models, a sequence, and what was measured of the whole pool.

    Raises:
        InputError: a size that the pool does not allow, or a folder that holds another result.
    """
    settings = dict(locals())
    models = named_models(pool)

    def compute(running: Context) -> SelectedMembers:
        split = as_split(data, "selection").to(running.device)
        logits = _attacked_logits(models, split, threat, combiner, held_out_attack, running)
        pool_logits = PoolLogits(logits=logits, y=split.labels, combiner=combiner)
        record = _record(models, pool_logits, choose_members(pool_logits, size, rule), split)
        return SelectedMembers(members=tuple(models[name] for name in record.ensemble), record=record)

    def load(path: Path, device: torch.device) -> SelectedMembers:
        record = from_dict(PoolRecord, read_json(path / "select.json"), str(path / "select.json"))
        return SelectedMembers(members=tuple(models[name] for name in record.ensemble), record=record)

    return resumable("select", settings, compute, load)


def _attacked_logits(
    models: Mapping[str, TrainedModel],
    split: Split,
    threat: ThreatModel,
    combiner: Combiner,
    attack: Attack,
    running: Context,
) -> dict[str, MemberLogits]:
    """Return the logits of all models on clean images, on those crafted against the pool and against each model."""
    networks = {name: copy_network(model.model).to(running.device).eval() for name, model in models.items()}
    pool = Ensemble(networks.values(), combiner).eval()

    def against(target: nn.Module, purpose: str) -> MemberLogits:
        return member_logits(pool, adversarial_images(target, split, attack, threat, running.rng(purpose)))

    with running.counting(*networks.values()):
        logits = {"clean": member_logits(pool, split.tensors()[0]), "pool": against(pool, "select")}
        for number, (name, network) in enumerate(networks.items(), start=1):
            logits[name] = against(network, "best")
            running.report_progress(number / len(networks), f"attacked {name}")
    return logits


def _record(
    models: Mapping[str, TrainedModel], pool_logits: PoolLogits, selected: Selection, split: Split
) -> PoolRecord:
    """Return what was measured of the pool; sub-models are compared layer by layer, too."""
    names = tuple(models)
    correct = {name: pool_logits.logits[name].argmax(-1) == pool_logits.y for name in ("clean", *names)}
    robust = torch.stack([correct[name][i].float().mean() for i, name in enumerate(names)])
    masks = {name: Mask.of(model.model) for name, model in models.items()}
    layers = next(iter(masks.values()))
    chosen = tuple(names[i] for i in selected.members)
    channels, height, width = split.images(torch.zeros(1, dtype=torch.long, device=split.labels.device)).shape[1:]
    return PoolRecord(
        ensemble=chosen,
        robust_diversity=selected.robust_diversity,
        reason=selected.reason,
        ensembles_scored=selected.ensembles_scored,
        pool=names,
        held_out_clean=tuple(correct["clean"].float().mean(1).tolist()),
        held_out_transfer=tuple((1 - pool_logits.failures.float().mean(1)).tolist()),
        held_out_robust=tuple(robust.tolist()),
        best_member=names[int(robust.argmax())],
        macs_nonzero=sum(count_macs(models[name].model, (channels, height, width)).nonzero for name in chosen),
        layers=tuple(layers),
        layer_weights=tuple(keep.numel() for keep in layers.values()),
        layer_sparsity={
            name: tuple(1 - float(k.float().mean()) for k in mask.values()) for name, mask in masks.items()
        },
        overlap=tuple(tuple(_overlap(a, b) for b in masks.values()) for a in masks.values()),
    )


def _overlap(a: Mask, b: Mask) -> float:
    """Return the Jaccard overlap of two masks; 0 for networks of different layers."""
    return jaccard(a, b) if {n: k.shape for n, k in a.items()} == {n: k.shape for n, k in b.items()} else 0.0
