"""Attack a classifier on labelled images and keep what happened to each image."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Flags, Images
from sparsemble.data.dataset import Split
from sparsemble.evaluation.inputs import check_classifier
from sparsemble.evaluation.outcome_store import Outcome, OutcomeStore
from sparsemble.evaluation.shard import Decide, EvaluationJob, answer_clean, attack_shard, largest_logit
from sparsemble.evaluation.statistics import wilson

CLEAN = "clean"
"""Label of the shards that hold the clean images' answers."""
VERSION = 2
"""Raised when the same question gets another answer, or answers keep other fields."""
WAYS = "forward", "backward"


@final
@dataclass(frozen=True)
class Evaluation:
    """What became of each image under each attack."""

    threat: ThreatModel
    labels: Tensor
    """(n) true classes."""
    clean: Outcome
    attacks: Mapping[str, Outcome]
    """By the attacks' labels, in the order in which they ran."""
    store: OutcomeStore
    shard: int

    @property
    def worst_case(self) -> Flags:
        """Which images are answered rightly when clean and under every attack."""
        return torch.stack([self.clean.right, *(outcome.right for outcome in self.attacks.values())]).all(0)

    @property
    def clean_accuracy(self) -> float:
        """Share of clean images answered rightly."""
        return accuracy(self.clean.right)

    @property
    def robust_accuracy(self) -> float:
        """Share of images answered rightly under every attack: the headline."""
        return accuracy(self.worst_case)

    def images(self, label: str) -> Images:
        """Return the adversarial images of an attack, all in memory."""
        count = math.ceil(len(self.labels) / self.shard)
        return torch.cat([self.store.images(label, i) for i in range(count)])

    def to_json(self) -> dict[str, Any]:
        """Return every attack's numbers and outcomes, image by image, as plain values."""
        return {
            "clean_accuracy": self.clean_accuracy,
            "attacks": {label: outcome_to_json(outcome) for label, outcome in self.attacks.items()},
            "worst_case": {**_share(self.worst_case), "outcomes": self.worst_case.int().tolist()},
        }


def accuracy(right: Flags) -> float:
    """Return the share of images that are right."""
    return int(right.sum()) / len(right)


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    """Return an attack's numbers and outcomes, image by image, as plain values (infinite distances as null)."""
    table: dict[str, Any] = {
        "robust_accuracy": accuracy(outcome.right),
        "interval": _share(outcome.right)["interval"],
        "outcomes": outcome.right.int().tolist(),
        "distances": [round(value, 7) for value in outcome.distance.tolist()],
        "members_run": outcome.members_run.tolist(),
        "passes": dict(zip(WAYS, outcome.total_passes(), strict=True)),
        "passes_by_image": {way: _short(outcome.passes[:, i]) for i, way in enumerate(WAYS)},
        "seconds": float(outcome.seconds.sum()),
    }
    if not outcome.minimum.isnan().any():
        median = float(outcome.minimum.median())
        table["median_distance"] = median if math.isfinite(median) else None
        table["minimum_distances"] = [value if math.isfinite(value) else None for value in outcome.minimum.tolist()]
    return table


def _short(values: Tensor) -> list[float]:
    return [int(value) if value == int(value) else round(value, 3) for value in values.tolist()]


def evaluate(
    model: nn.Module,
    data: Split,
    attacks: Sequence[Attack | EnsembleAttack],
    threat: ThreatModel,
    *,
    rule: StoppingRule | None = None,
    decide: Decide | None = None,
    classes: int | None = None,
    seed: int = 0,
    shard: int = 100,
    folder: Path | None = None,
    search: torch.dtype = torch.float32,
    tell: Callable[[float, str], None] = lambda share, text: None,
) -> Evaluation:
    """Run every attack on every image and record, image by image, whether the deployed decision survives.

    Args:
        model: what attacks differentiate, in eval mode, on the device of `data`: any network, or an `Ensemble`.
        data: labelled images in [0, 1].
        attacks: with different labels; attacks on ensembles need an `Ensemble` and `stop`.
        threat: how far an image may move.
        rule: the stopping rule of an ensemble that stops early.
        decide: the deployed decision, if it is not the model's largest logit.
        classes: the data set's number of classes, to be compared with the model's.
        seed: of all randomness; each shard of each attack has its own stream, so that a resumed evaluation gives what
            an uninterrupted one gives.
        shard: images attacked at once and kept together, >= 1.
        folder: where shards are kept; an evaluation of the same question goes on there. None: in memory.
        search: precision of the attack's passes; whether an image is broken is always decided in float32.
        tell: hears the share done, in [0, 1], and a few words.

    Raises:
        InputError: anything wrong with the classifier, the images or the attacks, before work begins.
        RunError: an attack left its threat model.
    """
    _check_attacks(attacks, model, rule, shard)
    check_classifier(model, data, classes)
    job = EvaluationJob(model, decide or largest_logit(model), rule, data, threat, seed, search)
    store = OutcomeStore(folder)
    base = _fingerprint(job, shard)
    parts = list(torch.arange(len(data), device=data.labels.device).split(shard))
    clean: list[Outcome] = []
    for i, chosen in enumerate(parts):
        clean.append(_kept(store, CLEAN, i, base, partial(answer_clean, job, chosen)))
    right = Outcome.join(clean).right
    found: dict[str, Outcome] = {}
    for j, attack in enumerate(attacks):
        key = _hash([base, to_dict(attack, versions=True)])
        shards = []
        for i, chosen in enumerate(parts):
            tell((j + i / len(parts)) / len(attacks), f"{attack.label}: {i}/{len(parts)} shards")
            make = partial(attack_shard, job, attack, i, chosen, right)
            shards.append(_kept(store, attack.label, i, key, make))
        found[attack.label] = Outcome.join(shards)
    tell(1.0, "done")
    return Evaluation(threat, data.labels.cpu(), Outcome.join(clean), found, store, shard)


def _kept(store: OutcomeStore, label: str, i: int, key: str, make: Callable[[], tuple[Outcome, Images]]) -> Outcome:
    """Read a shard, or make it."""
    outcome = store.read(label, i, key)
    if outcome is None:
        outcome, images = make()
        store.write(label, i, key, outcome, images)
    return outcome


def _check_attacks(
    attacks: Sequence[Attack | EnsembleAttack], model: nn.Module, rule: StoppingRule | None, shard: int
) -> None:
    labels = [attack.label for attack in attacks]
    if not labels:
        raise InputError("there are no attacks; name at least one")
    twice = sorted({label for label in labels if labels.count(label) > 1} | ({CLEAN} & set(labels)))
    if twice:
        raise InputError(f'the label "{twice[0]}" is taken; give each attack a label of its own')
    if shard < 1:
        raise InputError(f"shard = {shard} must be 1 or more")
    for attack in attacks:
        if isinstance(attack, EnsembleAttack) and (rule is None or not isinstance(model, Ensemble)):
            raise InputError(f"{attack.label} attacks an ensemble with a stopping rule; this target is neither")


def _fingerprint(job: EvaluationJob, shard: int) -> str:
    """Hash what decides the outcomes, beside the attack: model, images, threat model, rule, seed."""
    digest = hashlib.sha256(weights_hash(job.model).encode())
    labels = job.data.labels
    for part in torch.arange(len(labels), device=labels.device).split(1000):
        digest.update(job.data.images(part).cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    settings = [VERSION, to_dict(job.threat), to_dict(job.rule, versions=True), job.seed, shard]
    return _hash([digest.hexdigest(), settings, str(job.search), str(labels.device.type)])


def weights_hash(model: nn.Module) -> str:
    """Return a sha256 of a network's printed structure, parameters and buffers."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_source_hash).encode()).hexdigest()[:32]


def _source_hash(value: Any) -> str:
    """Stand for the model that images are transferred from."""
    if isinstance(value, nn.Module):
        return weights_hash(value)
    raise InputError(f"an attack holds a {type(value).__name__}, which cannot be recognised again; use a torch module")


def _share(right: Flags) -> dict[str, Any]:
    return {"accuracy": accuracy(right), "interval": list(wilson(int(right.sum()), len(right)))}
