"""`sparsemble.select`: the members of the ensemble, from a pool of sub-models (EED main paper, section 4.1)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import nn

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, Model, TrainedModel, as_split, as_table, named_models
from sparsemble.api.training import HELD_OUT_ATTACK
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import read_json, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.module_state import copy_network
from sparsemble.core.registry import to_dict
from sparsemble.core.results import ChanceLevel
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.selection.robust_diversity import RobustDiversity
from sparsemble.ensemble.selection.rule import PoolLogits, Selection, SelectionRule
from sparsemble.ensemble.selection.rule import select as choose_members
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.statistics import chance_level
from sparsemble.pruning.mask import Mask, jaccard
from sparsemble.training.validation import adversarial_images, member_logits

MOST_NAMED = 4
"""Sub-models that an error message names."""


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
    at_chance: tuple[str, ...] = ()
    """Names of those that are no better than chance, when clean or under attack; left out if enough others remain."""
    chance: ChanceLevel | None = None
    """Of the held-out images."""
    macs_nonzero: int
    """Multiply-accumulates of the selected sub-models for one image, non-zero weights only."""
    layers: tuple[str, ...]
    """Names of the prunable layers."""
    layer_weights: tuple[int, ...]
    layer_sparsity: dict[str, tuple[float, ...]]
    """By sub-model, layer by layer."""
    overlap: tuple[tuple[float, ...], ...]
    """Jaccard overlap of every pair of masks."""

    def as_text(self) -> str:
        """Return the members, why they were chosen, and the held-out accuracy of the whole pool, as a table."""
        lines = {"selected": ", ".join(self.ensemble), "reason": self.reason}
        lines["robust diversity"] = f"{self.robust_diversity:.3f}"
        for name, clean, robust in zip(self.pool, self.held_out_clean, self.held_out_robust, strict=True):
            lines[name] = f"clean {clean:.3f}, robust {robust:.3f} (held-out)"
        return as_table("selection", lines)

    def too_few(self, size: int) -> str:
        """Return a sentence where fewer sub-models than `size` are above chance; else an empty one."""
        above = len(self.pool) - len(self.at_chance)
        if self.chance is None or above >= size:
            return ""
        numbers = dict(zip(self.pool, zip(self.held_out_clean, self.held_out_robust, strict=True), strict=True))
        shown = [f"{name} {_percent(*numbers[name])}" for name in self.at_chance[:MOST_NAMED]]
        more = f" and {len(self.at_chance) - MOST_NAMED} more" if len(self.at_chance) > MOST_NAMED else ""
        return (
            f"{above} of {len(self.pool)} sub-models are better than chance on {self.chance.images} held-out images "
            f"and {size} are needed; {self.chance}, and at chance are {', '.join(shown)}{more}"
        )


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
        return self.record.as_text()


def select(
    pool: Mapping[str, Model] | Sequence[Model],
    data: Data,
    threat: ThreatModel,
    *,
    size: int,
    rule: SelectionRule = RobustDiversity(),
    combiner: Combiner = MeanProbability(),
    held_out_attack: Attack = HELD_OUT_ATTACK,
    force: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> SelectedMembers:
    """Select the members of an ensemble by what the sub-models predict on held-out images, clean and attacked.

    Images are crafted against the average of the pool and against each sub-model; the rule sees the logits only. A
    sub-model that is no better than chance (`evaluation.statistics.chance_level`), when clean or under the attack made
    for it, is left out.

    Args:
        pool: sub-models, with names or in a list.
        data: a data set, whose held-out images are used, or images as a split or tensors (x, y).
        threat: what the adversary may do.
        size: members of the ensemble, >= 2; the most there may be, where the rule allows fewer.
        rule: chooses among the ensembles.
        combiner: makes one prediction of the members'.
        held_out_attack: crafts the adversarial images.
        force: where fewer than `size` sub-models are above chance, take the most robust of the others, too.
        seed: of attack starts, >= 0.
        folder: keeps what was measured.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The selected sub-models, a sequence, and what was measured of the whole pool.

    Raises:
        InputError: a size that the pool does not allow, too few sub-models above chance, or a folder that holds another
            result.
    """
    settings = {name: value for name, value in locals().items() if name != "force"}  # it changes no result
    models = named_models(pool)

    def compute(running: Context) -> SelectedMembers:
        split = as_split(data, "selection").to(running.device)
        networks = [copy_network(model.model).to(running.device).eval() for model in models.values()]
        everyone = Ensemble(networks, combiner).eval()

        def against(target: nn.Module, purpose: str) -> MemberLogits:
            x_adv = adversarial_images(target, split, held_out_attack, threat, running.rng(purpose))
            return member_logits(everyone, x_adv)

        with running.counting(*networks):
            logits = {"clean": member_logits(everyone, split.tensors()[0])}
            for number, (name, network) in enumerate(zip(models, networks, strict=True), start=1):
                logits[name] = against(network, "best")
                running.report_progress(number / len(networks), f"attacked {name}")
            measured = _Measured.of(logits, split, size)
            for sentence in measured.left_out():
                running.report_message(sentence)
            average = Ensemble([networks[i] for i in measured.candidates], combiner).eval()
            logits["pool"] = against(average, "select")
        selected = _choose(measured, PoolLogits(logits=logits, y=split.labels, combiner=combiner), size, rule)
        record = _record(models, logits["pool"], measured, selected, split)
        return SelectedMembers(members=tuple(models[name] for name in record.ensemble), record=record)

    def load(path: Path, device: torch.device) -> SelectedMembers:
        record = from_dict(PoolRecord, read_json(path / "select.json"), str(path / "select.json"))
        return SelectedMembers(members=tuple(models[name] for name in record.ensemble), record=record)

    result = resumable("select", settings, compute, load)
    if not force and (too_few := result.record.too_few(size)):
        raise InputError(f"{too_few}; train or prune them otherwise, or select them all the same with force=True")
    return result


@final
@dataclass(frozen=True, kw_only=True)
class _Measured:
    """Accuracy of each sub-model by itself on held-out images, and those among which members are chosen."""

    names: tuple[str, ...]
    clean: tuple[float, ...]
    robust: tuple[float, ...]
    chance: ChanceLevel
    at_chance: tuple[int, ...]
    """Positions of those that are no better than chance."""
    candidates: tuple[int, ...]
    """Positions of the others; where they are too few, with the most robust of those at chance."""

    @classmethod
    def of(cls, logits: Mapping[str, MemberLogits], split: Split, size: int) -> "_Measured":
        """Measure the sub-models, on the images `clean` and on those crafted against each, under its name."""
        names = tuple(name for name in logits if name != "clean")
        correct = {name: (logits[name].argmax(-1) == split.labels).float().mean(1) for name in logits}
        clean, robust = correct["clean"].tolist(), [float(correct[name][i]) for i, name in enumerate(names)]
        chance = chance_level(split.labels.cpu().numpy())
        at_chance = [i for i in range(len(names)) if not (chance.is_beaten(clean[i]) and chance.is_beaten(robust[i]))]
        above = [i for i in range(len(names)) if i not in at_chance]
        best = sorted(at_chance, key=lambda i: (-robust[i], -clean[i]))
        candidates = sorted(above + best[: max(0, size - len(above))])
        return cls(
            names=names,
            clean=tuple(clean),
            robust=tuple(robust),
            chance=chance,
            at_chance=tuple(at_chance),
            candidates=tuple(candidates),
        )

    def left_out(self) -> Iterator[str]:
        """Yield a sentence for each sub-model that is left out."""
        for i in self.at_chance:
            if i not in self.candidates:
                yield (
                    f"{self.names[i]} is left out, as it is no better than chance on {self.chance.images} held-out "
                    f"images {_percent(self.clean[i], self.robust[i])}: {self.chance}"
                )


def _percent(clean: float, robust: float) -> str:
    return f"({100 * clean:.1f} % clean, {100 * robust:.1f} % under attack)"


def _choose(measured: _Measured, pool: PoolLogits, size: int, rule: SelectionRule) -> Selection:
    """Choose among the candidates, by the images that are crafted on them."""
    among = list(measured.candidates)
    crafted = ["clean", "pool", *(measured.names[i] for i in among)]
    selected = choose_members(replace(pool, logits={key: pool.logits[key][among] for key in crafted}), size, rule)
    return replace(selected, members=tuple(among[i] for i in selected.members))


def _record(
    models: Mapping[str, TrainedModel],
    transferred: MemberLogits,
    measured: _Measured,
    selected: Selection,
    split: Split,
) -> PoolRecord:
    """Return what was measured of the pool; sub-models are compared layer by layer, too.

    Args:
        models: the pool.
        transferred: logits of each on images that were crafted against the average of the candidates.
        measured: accuracy of each.
        selected: the members.
        split: the held-out images.
    """
    names = tuple(models)
    masks = {name: Mask.of(model.model) for name, model in models.items()}
    layers = next(iter(masks.values()))
    chosen = tuple(names[i] for i in selected.members)
    channels, height, width = split.images(torch.zeros(1, dtype=torch.long, device=split.labels.device)).shape[1:]
    failures = transferred.argmax(-1) != split.labels
    return PoolRecord(
        ensemble=chosen,
        robust_diversity=selected.robust_diversity,
        reason=selected.reason,
        ensembles_scored=selected.ensembles_scored,
        pool=names,
        held_out_clean=measured.clean,
        held_out_transfer=tuple((1 - failures.float().mean(1)).tolist()),
        held_out_robust=measured.robust,
        best_member=names[int(np.argmax(measured.robust))],
        at_chance=tuple(names[i] for i in measured.at_chance),
        chance=measured.chance,
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
