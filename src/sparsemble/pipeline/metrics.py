"""What an evaluation measures beside its attacks: curve, members, size, latency, examples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images
from sparsemble.data.dataset import Dataset, Split
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.evaluation.latency import measure_latency
from sparsemble.evaluation.memory import peak_memory
from sparsemble.evaluation.packed import save_packed
from sparsemble.evaluation.robustness import Evaluation, evaluate
from sparsemble.evaluation.shard import Decide
from sparsemble.pipeline.loaded_model import LoadedModel

Tell = Callable[[float, str], None]
SAMPLE = 200
"""Images of the security curve and of the members' table, at most."""
CURVE_ATTACK = PGD(steps=40, step_size=0.1, label="pgd40")
EPS_STEPS = (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)
"""Radii of the security curve, in units of the threat model's eps; the largest that makes sense comes last."""
LAST_EPS = {"linf": 1.0, "l2": 5.0}


def first_images(split: Split) -> Split:
    """Return the first images of a split, as many as the curve and the members' table use."""
    return split.subset(torch.arange(min(len(split), SAMPLE), device=split.labels.device))


def security_curve(
    target: LoadedModel, split: Split, threat: ThreatModel, decide: Decide | None, seed: int, folder: Path, tell: Tell
) -> dict[str, Any]:
    """Attack at growing radii until accuracy is zero, on at most 200 of the images."""
    split = first_images(split)
    last = LAST_EPS[threat.norm]
    radii = sorted({min(step * threat.eps, last) for step in EPS_STEPS} | {last})
    accuracy: list[float] = []
    for i, radius in enumerate(radii):
        at = replace(threat, eps=radius)
        found = evaluate(
            target.model,
            split,
            [CURVE_ATTACK],
            at,
            decide=decide,
            seed=seed,
            folder=folder / "ledger" / f"curve-{radius:.6f}",
        )
        accuracy.append(found.robust_accuracy)
        tell((i + 1) / len(radii), f"security curve, eps {radius:g}")
        if accuracy[-1] == 0:
            break
    return {"attack": CURVE_ATTACK.label, "images": len(split), "eps": radii[: len(accuracy)], "accuracy": accuracy}


def members_table(
    target: LoadedModel, split: Split, threat: ThreatModel, seed: int, folder: Path
) -> dict[str, Any] | None:
    """Return each member's own accuracy and what images crafted on it do to the others; None for a single model."""
    ensemble = target.model
    if not isinstance(ensemble, Ensemble) or len(ensemble.members) < 2:
        return None
    part = first_images(split)
    x, y = part.tensors()
    attack = PGD(steps=20, stop_at_success=False, label="pgd20")
    clean, robust, transfer = [], [], []
    for i, member in enumerate(ensemble.members, start=1):
        place = folder / "ledger" / f"member{i}"
        found = evaluate(member, part, [attack], threat, seed=seed, folder=place)
        x_adv = found.images(attack.label).to(x.device)
        clean.append(found.clean_accuracy)
        robust.append(found.robust_accuracy)
        transfer.append([_accuracy(other, x_adv, y) for other in ensemble.members])
    names = [f"member {i}" for i in range(1, len(ensemble.members) + 1)]
    return {"names": names, "clean": clean, "robust": robust, "transfer": transfer, "images": len(part)}


def examples(found: Evaluation, split: Split, count: int = 10) -> dict[str, torch.Tensor]:
    """Return a few images under the strongest attack, those that it broke first."""
    strongest = min(found.attacks, key=lambda label: int(found.attacks[label].right.sum()))
    outcome = found.attacks[strongest]
    fooled = (found.clean.right & ~outcome.right).nonzero()[:, 0][: count // 2]
    held = outcome.right.nonzero()[:, 0][: count - len(fooled)]
    chosen = torch.cat([fooled, held])
    places = chosen.to(split.labels.device)
    adversarial = [found.store.images(strongest, int(i) // found.shard)[int(i) % found.shard] for i in chosen]
    return {
        "clean": split.images(places).cpu(),
        "adversarial": torch.stack(adversarial) if adversarial else split.images(places).cpu(),
        "label": found.labels[chosen],
        "clean_prediction": found.clean.answer[chosen],
        "adversarial_prediction": outcome.answer[chosen],
    }


@torch.no_grad()
def _accuracy(model: torch.nn.Module, x: Images, y: torch.Tensor) -> float:
    return float((model(x).argmax(1) == y).float().mean())


def size(
    target: LoadedModel, data: Dataset, split: Split, found: Evaluation, decide: Decide, folder: Path
) -> dict[str, Any]:
    """Return bytes, memory, non-zero weights and multiply-accumulates; those of a dynamic ensemble as on clean images."""
    parts = list(target.model.members) if isinstance(target.model, Ensemble) else [target.model]
    macs = [count_macs(part, data.shape) for part in parts]
    runs = found.clean.members_run
    path = folder / "size.safetensors"
    total = 0
    for part in parts:
        save_packed(part, path)
        total += path.stat().st_size
    path.unlink()
    return {
        "bytes": total,
        "peak_memory": peak_memory(target.model, lambda: decide(some_images(split))),
        "nonzeros": count_weights(target.model).nonzeros,
        "macs_dense": sum(cost.dense for cost in macs),
        "macs_nonzero": sum(float((runs >= m).float().mean()) * cost.nonzero for m, cost in enumerate(macs, 1)),
    }


def some_images(split: Split) -> Images:
    """Return the large batch that memory and latency are measured on: 64 images, where there are as many."""
    return split.images(torch.arange(min(64, len(split)), device=split.labels.device))


def latency(decide: Decide, split: Split) -> dict[str, Any]:
    """Time the deployed decision on clean images, one and 64 at a time."""
    x = some_images(split)
    calls = {"batch_1": lambda: decide(x[:1]), "batch_64": lambda: decide(x)}
    found = measure_latency(calls, rounds=7, warmup=2)
    return {
        name: {"median_ms": one.median_ms, "spread_ms": one.high_quartile_ms - one.low_quartile_ms}
        for name, one in found.items()
    }
