"""What an evaluation measures besides its attacks: security curve, members, cost, examples."""

from dataclasses import replace

import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.pointwise import Pointwise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import members_of
from sparsemble.core.results import Cost, Examples, MembersTable, SecurityCurve, Timing
from sparsemble.core.threat import LARGEST_EPS
from sparsemble.core.types import Images, Labels
from sparsemble.data.dataset import Split
from sparsemble.evaluation.cost import count_macs, packed_bytes, peak_memory
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.latency import measure_latency
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import Outcomes, run_attacks

CURVE_ATTACK = PGD(steps=40, step_size=0.1, label="pgd40")
CURVE_SCORES = Square(queries=300, label="square300")
CURVE_LABELS = {
    "linf": RayS(queries=300, label="rays300"),
    "l2": HopSkipJump(queries=300, label="hop_skip_jump300"),
    "l1": Pointwise(queries=300, label="pointwise300"),
}
MEMBER_ATTACK = PGD(steps=20, stop_at_success=False, label="pgd20")
EPS_MULTIPLES = (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Radii of the security curve, in units of the threat model's eps; the largest that makes sense comes last."""
BATCH = 64
"""Images that memory and latency are measured with."""


def first_images(split: Split, count: int) -> Split:
    """Return the first images of a split, or all if there are fewer."""
    return split.subset(torch.arange(min(len(split), count), device=split.labels.device))


def curve_attack(job: EvaluationJob) -> Attack:
    """Return the attack of the security curve, which uses no more of the model than attacks may."""
    if job.access == "gradients":
        return CURVE_ATTACK
    return CURVE_SCORES if job.access == "scores" else CURVE_LABELS[job.threat.norm]


def curve_radii(job: EvaluationJob) -> tuple[float, ...]:
    """Return the radii of the security curve of a threat model."""
    last = LARGEST_EPS[job.threat.norm]
    return tuple(sorted({min(multiple * job.threat.eps, last) for multiple in EPS_MULTIPLES} | {last}))


def security_curve(
    job: EvaluationJob,
    images: int,
    store: OutcomeStore,
    *,
    attack: Attack | None = None,
    radii: tuple[float, ...] = (),
) -> SecurityCurve:
    """Attack at growing radii until accuracy is zero.

    Args:
        job: what is attacked; its own attacks do not run.
        images: number of images, the first ones of the job's.
        store: where outcomes are kept.
        attack: run at every radius; None: `curve_attack`.
        radii: ascending from 0; empty: multiples of the threat model's eps.
    """
    attack = attack or curve_attack(job)
    part = replace(job, split=first_images(job.split, images), attacks=(attack,))
    eps: list[float] = []
    accuracy: list[float] = []
    for radius in radii or curve_radii(job):
        at = replace(part, threat=replace(job.threat, eps=radius))
        eps.append(radius)
        accuracy.append(run_attacks(at, store.part(f"curve-{radius:.6f}")).robust_accuracy)
        if accuracy[-1] == 0:
            break
    return SecurityCurve(attack=attack.label, images=len(part.split), eps=tuple(eps), accuracy=tuple(accuracy))


def members_table(job: EvaluationJob, images: int, store: OutcomeStore) -> MembersTable:
    """Return the accuracy of each member of an ensemble, and what images crafted against it do to the others.

    Args:
        job: what is attacked; its own attacks do not run.
        images: number of images, the first ones of the job's.
        store: where outcomes are kept.
    """
    members, split = members_of(job.model), first_images(job.split, images)
    y = split.labels
    clean, robust, transfer = [], [], []
    for i, member in enumerate(members, start=1):
        alone = EvaluationJob(model=member, split=split, threat=job.threat, attacks=(MEMBER_ATTACK,), seed=job.seed)
        outcomes = run_attacks(alone, store.part(f"member{i}"))
        x_adv = outcomes.adversarial(MEMBER_ATTACK.label).to(y.device)
        clean.append(outcomes.clean_accuracy)
        robust.append(outcomes.robust_accuracy)
        transfer.append(tuple(_accuracy(other, x_adv, y) for other in members))
    return MembersTable(
        names=tuple(f"member {i}" for i in range(1, len(members) + 1)),
        images=len(split),
        clean=tuple(clean),
        robust=tuple(robust),
        transfer=tuple(transfer),
    )


@torch.no_grad()
def _accuracy(model: nn.Module, x: Images, y: Labels) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def examples(outcomes: Outcomes, split: Split, count: int = 10) -> Examples:
    """Return a few images under the strongest attack, those that it made misclassified first.

    Args:
        outcomes: of the evaluation.
        split: the images that were attacked.
        count: how many images at most.
    """
    strongest = outcomes.strongest
    outcome = outcomes.attacks[strongest]
    fooled = (outcomes.clean.correct & ~outcome.correct).nonzero()[:, 0][: count // 2]
    held = outcome.correct.nonzero()[:, 0][: count - len(fooled)]
    chosen = torch.cat([fooled, held])
    return Examples(
        clean=split.images(chosen.to(split.labels.device)).cpu().numpy(),
        adversarial=outcomes.adversarial(strongest)[chosen].numpy(),
        label=outcomes.labels[chosen].numpy(),
        clean_prediction=outcomes.clean.prediction[chosen].numpy(),
        adversarial_prediction=outcome.prediction[chosen].numpy(),
    )


def measure_cost(job: EvaluationJob, outcomes: Outcomes, latency: dict[str, dict[str, Timing]] | None = None) -> Cost:
    """Return bytes, memory, multiply-accumulates and latency; those of a dynamic ensemble as on clean images.

    Args:
        job: what was attacked.
        outcomes: of the clean images decide how many members run.
        latency: where it was measured before; None measures it now.
    """
    few = torch.arange(min(BATCH, len(job.split)), device=job.split.labels.device)
    x = job.split.images(few)
    channels, height, width = x.shape[1:]
    macs = [count_macs(member, (channels, height, width)) for member in members_of(job.model)]
    runs = outcomes.clean.members_run
    if latency is None:
        calls = {"batch_1": lambda: job.decide(x[:1]), "batch_64": lambda: job.decide(x)}
        latency = {"torch": {n: t.timing() for n, t in measure_latency(calls, rounds=7, warmup=2).items()}}
    return Cost(
        bytes=packed_bytes(job.model),
        peak_memory=peak_memory(job.model, lambda: job.decide(job.split.images(few))),
        macs_dense=sum(cost.dense for cost in macs),
        macs_nonzero=sum(float((runs >= m).float().mean()) * cost.nonzero for m, cost in enumerate(macs, 1)),
        latency=latency,
    )
