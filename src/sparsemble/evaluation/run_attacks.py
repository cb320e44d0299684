"""Run attacks on labelled images and keep the outcome of each image."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.tensor_checks import checked_images
from sparsemble.core.types import Flags, Images, draw_seed, seeded
from sparsemble.evaluation.attack_shard import attack_shard, outcome_of
from sparsemble.evaluation.fingerprint import fingerprint, weights_hash
from sparsemble.evaluation.inputs import check_classifier
from sparsemble.evaluation.job import CLEAN, AnyAttack, EvaluationJob
from sparsemble.evaluation.outcome_store import Outcome, OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.work import expected_shard

VERSION = 5
"""Raised when the same job gets other outcomes, or outcomes have other fields."""
CLASSES = 10
"""Number of classes that the time left is estimated with where it is not known."""


@final
@dataclass(frozen=True)
class CraftedImages:
    """Adversarial images crafted in another evaluation of the same images, decided by this one's prediction."""

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

        def rank(label: str) -> tuple[int, int]:
            return int(self.attacks[label].correct.sum()), -sum(self.attacks[label].total_passes())

        return min(self.attacks, key=rank)


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
        crafted: images that were crafted elsewhere and are classified, too; they come first in the result.
        progress: follows the work.

    Raises:
        InputError: anything wrong with the classifier or the images, before work begins.
        RunError: an attack left its threat model, or the model returned NaN.
    """
    check_classifier(job.model, job.split, job.classes)
    store = store or OutcomeStore()
    base, keys = outcome_keys(job)
    if progress and job.attacks[0].label not in progress.steps:
        plan_attacks(job, store, progress)
    shards = range(len(job.shards))
    clean = Outcome.join([_clean(job, store, base, i) for i in shards])
    attacks = {one.attack.label: _crafted_outcome(job, one) for one in crafted}
    for attack in job.attacks:
        key = keys[attack.label]
        parts = [_attacked(job, attack, store, key, i, clean.correct, progress) for i in shards]
        attacks[attack.label] = Outcome.join(parts)
    elsewhere = {one.attack.label: one.images for one in crafted}

    def adversarial(label: str) -> Images:
        if label in elsewhere:
            return elsewhere[label]
        stored = [store.read(label, i, keys[label]) for i in shards]
        return torch.cat([entry[1] for entry in stored if entry is not None])

    return Outcomes(job.split.labels.cpu(), clean, attacks, adversarial)


def plan_attacks(job: EvaluationJob, store: OutcomeStore, progress: Progress) -> None:
    """Tell the progress which attacks and shards are not finished yet.

    Args:
        job: the attacks.
        store: what is finished.
        progress: receives the expected work.
    """
    _, keys = outcome_keys(job)
    images, classes = min(job.shard, len(job.split)), job.classes or CLASSES
    for attack in job.attacks:
        missing = sum(not store.has(attack.label, i, keys[attack.label]) for i in range(len(job.shards)))
        progress.plan({attack.label: (expected_shard(attack, job.members, classes, images), missing)})


def _clean(job: EvaluationJob, store: OutcomeStore, key: str, i: int) -> Outcome:
    """Read or compute the predictions on a shard of clean images."""
    stored = store.read(CLEAN, i, key)
    if stored is None:
        x, y = job.split.subset(job.shards[i]).tensors()
        x = checked_images(x)
        stored = outcome_of(job, x, x, y), x[:0].cpu()
        store.write(CLEAN, i, key, *stored)
    return stored[0]


def _attacked(
    job: EvaluationJob,
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
        x, y = job.split.subset(job.shards[i]).tensors()
        correct = clean_correct[job.shards[i].cpu()]
        rng = seeded(draw_seed(job.seed, "evaluate", attack.label, str(i)), x.device)
        text = f"{attack.label}: {i}/{len(job.shards)} shards"
        with progress.running(attack.label, text) if progress else contextlib.nullcontext():
            stored = attack_shard(job, attack, x, y, correct, rng)
        store.write(attack.label, i, key, *stored)
    return stored[0]


def _crafted_outcome(job: EvaluationJob, crafted: CraftedImages) -> Outcome:
    """Return the outcome of images crafted elsewhere, with the cost that they had there."""
    parts = []
    for indices in job.shards:
        x, y = job.split.subset(indices).tensors()
        parts.append(outcome_of(job, crafted.images[indices.cpu()].to(x.device), x, y))
    there = crafted.outcome
    kept = {"minimum": there.minimum, "part": there.part, "passes": there.passes, "seconds": there.seconds}
    return replace(Outcome.join(parts), **kept)


def outcome_keys(job: EvaluationJob) -> tuple[str, dict[str, str]]:
    """Return hashes of what decides the outcomes of the clean images, and of each attack by label."""
    labels = job.split.labels
    shape = tuple(job.split.images(labels.new_zeros(min(1, len(labels)))).shape[1:])

    def of_model(value: Any) -> str:
        return fingerprint(_as_module(value), shape, labels.device)

    digest = hashlib.sha256(of_model(job.model).encode())
    for part in torch.arange(len(labels), device=labels.device).split(1000):
        digest.update(job.split.images(part).cpu().numpy().tobytes())
    digest.update(labels.cpu().numpy().tobytes())
    settings = [VERSION, to_dict(job.threat), to_dict(job.rule, versions=True), job.seed, job.shard]
    base = _hash([digest.hexdigest(), settings, job.search_dtype, str(labels.device.type)], of_model)
    return base, {attack.label: _hash([base, to_dict(attack, versions=True)], of_model) for attack in job.attacks}


def _hash(value: Any, of_model: Callable[[Any], str]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=of_model).encode()).hexdigest()[:32]


def source_hash(value: Any) -> str:
    """Return what stands for the model that images are transferred from in a result: the hash of its weights."""
    return weights_hash(_as_module(value))


def _as_module(value: Any) -> nn.Module:
    """Return the model that an attack holds.

    Raises:
        InputError: it is no torch module.
    """
    if isinstance(value, nn.Module):
        return value
    raise InputError(f"an attack holds a {type(value).__name__}, which cannot be recognised again; use a torch module")
