"""Run attacks on labelled images and keep the outcome of each image."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Flags, Images, draw_seed, seeded
from sparsemble.data.dataset import Split
from sparsemble.evaluation.attack_shard import AnyAttack, Deployed, attack_shard, predict_clean
from sparsemble.evaluation.inputs import check_classifier
from sparsemble.evaluation.outcome_store import Outcome, OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.work import expected_shard

CLEAN = "clean"
"""Label of the shards that hold the outcomes of clean images."""
VERSION = 3
"""Raised when the same job gets other outcomes, or outcomes have other fields."""
CLASSES = 10
"""Number of classes that the time left is estimated with where it is not known."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What is attacked, on which images and by what: everything that decides the outcomes."""

    model: nn.Module
    """What attacks differentiate: any network, or an `Ensemble`; in eval mode, on the device of the images."""
    rule: StoppingRule | None = None
    """The stopping rule of an ensemble; None: all members always run."""
    split: Split
    """Labelled images in [0, 1]."""
    threat: ThreatModel
    attacks: tuple[AnyAttack, ...]
    """With different labels; attacks on ensembles need an `Ensemble`."""
    classes: int | None = None
    """Number of classes of the data set, where it is known; the model must have as many outputs."""
    seed: int = 0
    shard: int = 100
    """Images attacked at once and stored together, >= 1."""
    search_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the attacks' passes; float32 always decides."""

    def __post_init__(self) -> None:
        labels = [attack.label for attack in self.attacks]
        if not labels:
            raise InputError("there are no attacks; name at least one")
        twice = sorted({label for label in labels if labels.count(label) > 1} | ({CLEAN} & set(labels)))
        if twice:
            raise InputError(f'the label "{twice[0]}" is taken; give each attack a label of its own')
        for attack in self.attacks:
            if not isinstance(attack, EnsembleAttack):
                attack.check_norm(self.threat.norm)
        if self.shard < 1:
            raise InputError(f"shard = {self.shard} must be 1 or more")
        if self.search_dtype not in DTYPES:
            raise InputError(f'search_dtype = "{self.search_dtype}" is not known; use float32 or bfloat16')
        for attack in self.attacks:
            if isinstance(attack, EnsembleAttack) and not isinstance(self.model, Ensemble):
                raise InputError(f"{attack.label} attacks an ensemble; this model is none")

    @property
    def deployed(self) -> Deployed:
        """What is attacked and what decides."""
        rule = self.rule
        if rule is None and isinstance(self.model, Ensemble):
            rule = stopping_rules.build("never")
        return Deployed(self.model, rule, self.threat, DTYPES[self.search_dtype])

    @property
    def members(self) -> int:
        """Number of members; 1 for a single model."""
        return len(self.model.members) if isinstance(self.model, Ensemble) else 1

    @property
    def shards(self) -> tuple[Tensor, ...]:
        """Indices of the images of each shard."""
        return tuple(torch.arange(len(self.split), device=self.split.labels.device).split(self.shard))


@final
@dataclass(frozen=True)
class CraftedImages:
    """Adversarial images crafted in another evaluation of the same images, to be judged by this one's decision."""

    attack: AnyAttack
    outcome: Outcome
    """Of the evaluation in which they were crafted: the source of passes and seconds."""
    images: Images


@final
@dataclass(frozen=True)
class Outcomes:
    """The outcome of each image, clean and under each attack."""

    labels: Tensor
    """(n) true classes."""
    clean: Outcome
    attacks: Mapping[str, Outcome]
    """By the attacks' labels, in the order in which they ran."""
    adversarial: Callable[[str], Images]
    """Reads the adversarial images of an attack."""

    @property
    def worst_case(self) -> Flags:
        """Which images are classified correctly when clean and under every attack."""
        return torch.stack([self.clean.correct, *(outcome.correct for outcome in self.attacks.values())]).all(0)

    @property
    def clean_accuracy(self) -> float:
        """Fraction of clean images classified correctly."""
        return accuracy(self.clean.correct)

    @property
    def robust_accuracy(self) -> float:
        """Fraction of images classified correctly under every attack: the headline."""
        return accuracy(self.worst_case)

    @property
    def strongest(self) -> str:
        """Label of the attack that leaves the fewest images correct; of several, the one that took most passes."""
        return min(self.attacks, key=lambda label: (int(self.attacks[label].correct.sum()), -self.passes(label)))

    def passes(self, label: str) -> int:
        """Return the passes of an attack, forward and backward together."""
        return sum(self.attacks[label].total_passes())


def accuracy(correct: Flags) -> float:
    """Return the fraction of images that are correct."""
    return int(correct.sum()) / len(correct)


def run_attacks(
    job: EvaluationJob,
    store: OutcomeStore | None = None,
    *,
    crafted: Sequence[CraftedImages] = (),
    progress: Progress | None = None,
) -> Outcomes:
    """Run every attack on every image and record, image by image, whether the deployed decision is correct.

    Args:
        job: the model, images and attacks.
        store: where shards are kept, so that a killed evaluation is resumed; None keeps them in memory.
        crafted: images that were crafted elsewhere and are judged, too; they come first in the result.
        progress: follows the work.

    Raises:
        InputError: anything wrong with the classifier or the images, before work begins.
        RunError: an attack left its threat model, or the model returned NaN.
    """
    check_classifier(job.model, job.split, job.classes)
    kept = store or OutcomeStore()
    base, keys = _keys(job)
    if progress and job.attacks[0].label not in progress.steps:
        plan_attacks(job, kept, progress)
    deployed = job.deployed
    clean = Outcome.join([_clean(job, deployed, kept, base, i) for i in range(len(job.shards))])
    attacks = {one.attack.label: _judged(job, deployed, one) for one in crafted}
    for attack in job.attacks:
        key = keys[attack.label]
        attacks[attack.label] = Outcome.join(
            [_attacked(job, deployed, attack, kept, key, i, clean.correct, progress) for i in range(len(job.shards))]
        )
    elsewhere = {one.attack.label: one.images for one in crafted}

    def adversarial(label: str) -> Images:
        if label in elsewhere:
            return elsewhere[label]
        stored = [kept.read(label, i, keys[label]) for i in range(len(job.shards))]
        return torch.cat([entry[1] for entry in stored if entry is not None])

    return Outcomes(job.split.labels.cpu(), clean, attacks, adversarial)


def plan_attacks(job: EvaluationJob, store: OutcomeStore, progress: Progress) -> None:
    """Tell the progress which attacks and shards are not finished yet.

    Args:
        job: the attacks.
        store: what is finished.
        progress: receives the expected work.
    """
    _, keys = _keys(job)
    images, classes = min(job.shard, len(job.split)), job.classes or CLASSES
    for attack in job.attacks:
        missing = sum(not store.has(attack.label, i, keys[attack.label]) for i in range(len(job.shards)))
        progress.plan({attack.label: (expected_shard(attack, job.members, classes, images), missing)})


def _keys(job: EvaluationJob) -> tuple[str, dict[str, str]]:
    """Return the key of the clean images' outcomes, and that of each attack's, by label."""
    base = _fingerprint(job)
    return base, {attack.label: _hash([base, to_dict(attack, versions=True)]) for attack in job.attacks}


def _clean(job: EvaluationJob, deployed: Deployed, store: OutcomeStore, key: str, i: int) -> Outcome:
    """Read or compute the predictions on a shard of clean images."""
    stored = store.read(CLEAN, i, key)
    if stored is None:
        indices = job.shards[i]
        stored = predict_clean(deployed, job.split.images(indices), job.split.labels[indices])
        store.write(CLEAN, i, key, *stored)
    return stored[0]


def _attacked(
    job: EvaluationJob,
    deployed: Deployed,
    attack: AnyAttack,
    store: OutcomeStore,
    key: str,
    i: int,
    clean_correct: Flags,
    progress: Progress | None,
) -> Outcome:
    """Read or compute the outcome of an attack on a shard."""
    stored = store.read(attack.label, i, key)
    if stored is None:
        indices = job.shards[i]
        x, y = job.split.images(indices), job.split.labels[indices]
        correct = clean_correct[indices.cpu()]
        rng = seeded(draw_seed(job.seed, "evaluate", attack.label, str(i)), x.device)
        text = f"{attack.label}: {i}/{len(job.shards)} shards"
        with progress.running(attack.label, text) if progress else contextlib.nullcontext():
            stored = attack_shard(deployed, attack, x, y, correct, rng)
        store.write(attack.label, i, key, *stored)
    return stored[0]


def _judged(job: EvaluationJob, deployed: Deployed, crafted: CraftedImages) -> Outcome:
    """Return the outcome of images crafted elsewhere, shard by shard."""
    parts = []
    for indices in job.shards:
        rows = indices.cpu()
        x, y = job.split.images(indices), job.split.labels[indices]
        parts.append(deployed.judge(crafted.images[rows].to(x.device), x, y))
    crafted_by = crafted.outcome
    judged = Outcome.join(parts)
    return replace(
        judged, minimum=crafted_by.minimum, part=crafted_by.part, passes=crafted_by.passes, seconds=crafted_by.seconds
    )


def _fingerprint(job: EvaluationJob) -> str:
    """Hash what decides the outcomes, beside the attack: model, images, threat model, rule, seed."""
    digest = hashlib.sha256(weights_hash(job.model).encode())
    labels = job.split.labels
    for part in torch.arange(len(labels), device=labels.device).split(1000):
        digest.update(job.split.images(part).cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    deployed = job.deployed
    settings = [VERSION, to_dict(job.threat), to_dict(deployed.rule, versions=True), job.seed, job.shard]
    return _hash([digest.hexdigest(), settings, job.search_dtype, str(labels.device.type)])


def weights_hash(model: nn.Module) -> str:
    """Return a sha256 of a network's printed structure, parameters and buffers."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=source_hash).encode()).hexdigest()[:32]


def source_hash(value: Any) -> str:
    """Return what stands for the model that images are transferred from: the hash of its weights.

    Raises:
        InputError: it is no torch module.
    """
    if isinstance(value, nn.Module):
        return weights_hash(value)
    raise InputError(f"an attack holds a {type(value).__name__}, which cannot be recognised again; use a torch module")
