"""Accuracy of the deployed decision under common corruptions."""

import hashlib
import json
from collections.abc import Sequence

import torch

from sparsemble.core.results.corruptions import CORRUPTIONS, SEVERITIES, CorruptionAccuracy, CorruptionRecord
from sparsemble.core.types import Flags
from sparsemble.evaluation.attack_shard import outcome_of
from sparsemble.evaluation.corrupted_images import CorruptedImages
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.outcome_store import Outcome, OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.run_attacks import accuracy, outcome_keys
from sparsemble.evaluation.work import Work

STEP = "corruptions"
"""Name of this work in the progress."""
VERSION = 1
"""Raised when generated corruptions change."""
SLACK = 1e-6
"""Of a distance, as attacks are allowed it."""


def plan_corruptions(job: EvaluationJob, progress: Progress) -> None:
    """Tell the progress how much work the corruptions are."""
    progress.plan({STEP: (Work(SEVERITIES * len(job.split) * job.members), len(CORRUPTIONS))})


def corruption_accuracy(
    job: EvaluationJob,
    source: CorruptedImages,
    positions: Sequence[int],
    worst_case: Flags,
    store: OutcomeStore,
    progress: Progress,
) -> CorruptionRecord:
    """Return the accuracy under every corruption and severity; finished shards are read from the store.

    Args:
        job: the model, its rule and the images; its attacks do not run.
        source: of the corrupted images.
        positions: of the images in their split.
        worst_case: (n) which images are correct when clean and under every attack.
        store: where outcomes are kept.
        progress: follows the work, which `plan_corruptions` has planned.

    Raises:
        InputError: the arrays cannot be read.
        RunError: the model returned NaN.
    """
    base, _ = outcome_keys(job)
    described = source.record(job.split.images(job.shards[0][:1]))
    missed, inside, rows = torch.zeros_like(worst_case), 0, []
    for name in CORRUPTIONS:
        accuracies = []
        with progress.running(STEP, f"{STEP}: {name}"):
            for severity in range(1, SEVERITIES + 1):
                settings = [base, VERSION, name, severity, list(positions), described]
                key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
                outcome = _outcome(job, source, positions, store, key, name, severity)
                accuracies.append(accuracy(outcome.correct))
                within = outcome.distance <= job.threat.eps + SLACK
                inside += int(within.sum())
                missed |= within & worst_case & ~outcome.correct
        rows.append(CorruptionAccuracy(name=name, accuracy=tuple(accuracies), mean=sum(accuracies) / SEVERITIES))
    return CorruptionRecord(
        **described,
        images=len(job.split),
        corruptions=tuple(rows),
        mean=sum(row.mean for row in rows) / len(rows),
        inside=inside,
        missed=int(missed.sum()),
    )


def _outcome(
    job: EvaluationJob,
    source: CorruptedImages,
    positions: Sequence[int],
    store: OutcomeStore,
    key: str,
    name: str,
    severity: int,
) -> Outcome:
    """Read or compute the outcomes under a corruption, shard by shard."""
    label, parts = f"{name}-{severity}", []
    for i, shard in enumerate(job.shards):
        stored = store.read(label, i, key)
        if stored is None:
            x, y = job.split.subset(shard).tensors()
            corrupted = source.images(name, severity, x, [positions[j] for j in shard.tolist()])
            stored = outcome_of(job, corrupted, x, y), x[:0].cpu()
            store.write(label, i, key, *stored)
        parts.append(stored[0])
    return Outcome.join(parts)
