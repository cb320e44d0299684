"""Evaluate one classifier: attacks, curve, members, checks, and the result file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from sparsemble.attacks.adaptive.suite import full_suite
from sparsemble.attacks.adaptive.team_attack import TeamAttack
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.pgd import PGD
from sparsemble.attacks.square import Square
from sparsemble.core.artifacts import write_json
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.registry import describe
from sparsemble.core.threat import ThreatModel, as_fraction
from sparsemble.core.types import Images
from sparsemble.data.dataset import Dataset, DataSource, Split
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.evaluation.intervals import wilson
from sparsemble.evaluation.latency import measure_latency
from sparsemble.evaluation.packed import save_packed
from sparsemble.evaluation.robustness import Evaluation, evaluate, weights_hash
from sparsemble.evaluation.shard import Decide
from sparsemble.pipeline.assess_checks import all_checks, decided_by
from sparsemble.pipeline.evidence import gather
from sparsemble.pipeline.machine import machine, source_revision, versions
from sparsemble.pipeline.stage import dataset, fingerprint
from sparsemble.pipeline.stages.attack import SUBSET_SEED, test_images, test_places
from sparsemble.pipeline.target import Target

Tell = Callable[[float, str], None]
CURVE_IMAGES = 200
"""Images of the security curve and of the members' table, at most."""
CURVE_ATTACK = PGD(steps=40, step_size=0.1, label="pgd40")
EPS_STEPS = {"linf": (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0), "l2": (0.0, 0.5, 1.0, 1.5, 2.0, 4.0, 8.0)}
"""Radii of the security curve, in units of the threat model's eps; the largest the norm allows comes last."""
LAST_EPS = {"linf": 1.0, "l2": 5.0}


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do to a target."""

    data: DataSource
    threat: ThreatModel
    attacks: tuple[Attack | TeamAttack, ...] = (AutoAttack(),)
    adaptive: bool = True
    """Add every attack on teams and stopping rules, where the target is a team."""
    images: int = 0
    """Test images, stratified; 0 means all."""
    seed: int = 0
    shard: int = 100
    search: str = "float32"
    """Precision of the attacks' passes; float32 decides."""
    device: str = "cpu"


def assess(
    target: Target, settings: Settings, folder: Path, command: str, tell: Tell
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Attack a target and check the evaluation; leaves `evaluation.json` and the ledger in a folder.

    Returns:
        The result (docs/evaluation_json.md), and a few images with the adversarial ones made of them.

    Raises:
        InputError: anything wrong that can be known before work begins.
    """
    data = dataset(settings.data)
    if settings.images > len(data.test):
        raise InputError(f"images = {settings.images} is more than the {len(data.test)} test images of the data set")
    split = test_images(data, settings.images).to(settings.device)
    decide = decision(target)
    attacks = all_attacks(target, settings)
    found = evaluate(
        target.model,
        split,
        attacks,
        settings.threat,
        stop=rule(target),
        decide=decide,
        classes=len(data.classes),
        seed=settings.seed,
        shard=settings.shard,
        folder=folder / "ledger",
        search=torch.bfloat16 if settings.search == "bfloat16" else torch.float32,
        tell=lambda share, text: tell(0.8 * share, text),
    )
    curve = security_curve(target, data, settings, decide, folder, lambda share, text: tell(0.8 + 0.1 * share, text))
    result = {
        **head(target, settings, data, split, command),
        **numbers(found, attacks, len(data.classes)),
        "security_curve": curve,
        "members": members_table(target, settings, split, folder),
        "size": size(target, data, found, folder),
        "latency": latency(decided_by(target), split),
        "seconds": sum(float(outcome.seconds.sum()) for outcome in found.attacks.values()),
        "extra_data": None,
        "quoted": [],
    }
    result |= robustbench(result, target, attacks)
    tell(0.9, "sanity attacks")
    evidence = gather(
        target, split, settings.threat, stop=rule(target), decide=decide, seed=settings.seed, folder=folder
    )
    tell(0.97, "checks")
    result["checks"] = all_checks(result, target, data, split, found, evidence, settings.seed)
    write_json(folder / "evaluation.json", result)
    return result, examples(found, split)


def rule(target: Target) -> StoppingRule | None:
    """Return the deployed stopping rule of a team; None for a single model."""
    return (target.stop or Never()) if isinstance(target.model, Ensemble) else None


def decision(target: Target) -> Decide | None:
    """Return the deployed decision of a team; None for a single model, whose largest logit decides."""
    return decided_by(target) if isinstance(target.model, Ensemble) else None


def all_attacks(target: Target, settings: Settings) -> tuple[Attack | TeamAttack, ...]:
    """Return the attacks asked for and, for a team, the suite of adaptive ones."""
    if not (settings.adaptive and isinstance(target.model, Ensemble)):
        return settings.attacks
    team, stop = target.model, target.stop or Never()
    others = [combiners.build(name) for name in combiners.names() if name != team.combine.name]
    climb = PGD(steps=50, step_size=0.1, restarts=2, stop_at_success=False)
    suite = full_suite(
        len(team.members),
        [climb],
        others,
        black_box=[Square(queries=1000)],
        stops_early=not isinstance(stop, Never),
    )
    taken = {attack.label for attack in settings.attacks}
    return (*settings.attacks, *(attack for attack in suite if attack.label not in taken))


def head(target: Target, settings: Settings, data: Dataset, split: Split, command: str) -> dict[str, Any]:
    """Return what was asked: target, data, threat, machine."""
    model = target.model
    weights = count_weights(model)
    members = len(model.members) if isinstance(model, Ensemble) else 1
    return {
        "schema": 1,
        "kind": "evaluation",
        "name": target.name,
        "command": command,
        "target": {
            "kind": target.kind,
            "path": target.path,
            "sha256": weights_hash(model),
            "parameters": sum(p.numel() for p in model.parameters()),
            "nonzeros": weights.nonzeros,
            "sparsity": weights.sparsity,
            "claimed_sparsity": target.sparsity,
            "members": members,
            "stopping": describe(target.stop)["name"] if target.stop else None,
            "selected_on": target.selected_on,
        },
        "data": {
            "name": settings.data.name,
            "sha256": fingerprint(settings.data),
            "split": "test",
            "images": len(split),
            "subset_seed": SUBSET_SEED if len(split) < len(data.test) else None,
            "classes": len(data.classes),
            "indices": test_places(data, settings.images).tolist(),
        },
        "threat": {
            **describe(settings.threat),
            "eps_text": as_fraction(settings.threat.eps),
            "knowledge": "white-box",
            "targeted": False,
        },
        "seeds": {"attacks": settings.seed},
        "device": settings.device,
        "dtype": "float32",
        "search": settings.search,
        "machine": machine(torch.device(settings.device)),
        "versions": versions(),
        "source": source_revision(),
    }


def numbers(found: Evaluation, attacks: Sequence[Attack | TeamAttack], classes: int) -> dict[str, Any]:
    """Return what came out, attack by attack and in the worst case."""
    clean = int(found.clean.right.sum())
    table = found.to_json()
    for attack in attacks:
        entry = table["attacks"][attack.label]
        entry["settings"] = describe(attack)
        entry["kind"] = "team attack" if isinstance(attack, TeamAttack) else "attack"
        entry["mode"] = attack.mode if isinstance(attack, AutoAttack) else None
        if isinstance(attack, AutoAttack):
            broken = found.attacks[attack.label].part
            parts = attack.parts(classes)
            entry["parts"] = {part.label: int((broken == place).sum()) for place, part in enumerate(parts)}
    runs = {label: float(outcome.members_run.float().mean()) for label, outcome in found.attacks.items()}
    slow = [runs[a.label] for a in attacks if isinstance(a, TeamAttack) and a.aims_at_cost]
    totals = torch.stack([outcome.passes.sum(0) for outcome in found.attacks.values()]).sum(0).tolist()
    return {
        **table,
        "clean_interval": list(wilson(clean, len(found.labels))),
        "clean_outcomes": found.clean.right.int().tolist(),
        "members_run": {
            "clean": float(found.clean.members_run.float().mean()),
            "attacked": max(runs.values()),
            "slowdown": max(slow) if slow else None,
        },
        "passes": dict(zip(("forward", "backward"), totals, strict=True)),
    }


def security_curve(
    target: Target, data: Dataset, settings: Settings, decide: Decide | None, folder: Path, tell: Tell
) -> dict[str, Any]:
    """Attack at growing radii until accuracy is zero, on at most 200 of the images."""
    split = test_images(data, min(settings.images or len(data.test), CURVE_IMAGES)).to(settings.device)
    norm, eps = settings.threat.norm, settings.threat.eps
    radii = sorted({min(step * eps, LAST_EPS[norm]) for step in EPS_STEPS[norm]} | {LAST_EPS[norm]})
    accuracy: list[float] = []
    for i, radius in enumerate(radii):
        at = replace(settings.threat, eps=radius)
        found = evaluate(
            target.model,
            split,
            [CURVE_ATTACK],
            at,
            decide=decide,
            seed=settings.seed,
            shard=settings.shard,
            folder=folder / "ledger" / f"curve-{radius:.6f}",
        )
        accuracy.append(found.robust_accuracy)
        tell((i + 1) / len(radii), f"security curve, eps {radius:g}")
        if accuracy[-1] == 0:
            break
    return {"attack": CURVE_ATTACK.label, "images": len(split), "eps": radii[: len(accuracy)], "accuracy": accuracy}


def members_table(target: Target, settings: Settings, split: Split, folder: Path) -> dict[str, Any] | None:
    """Return each member's own accuracy and what images crafted on it do to the others; None for a single model."""
    team = target.model
    if not isinstance(team, Ensemble) or len(team.members) < 2:
        return None
    part = split.subset(torch.arange(min(len(split), CURVE_IMAGES), device=split.labels.device))
    x, y = part.everything()
    attack = PGD(steps=20, stop_at_success=False, label="pgd20")
    clean, robust, transfer = [], [], []
    for i, member in enumerate(team.members, start=1):
        place = folder / "ledger" / f"member{i}"
        found = evaluate(member, part, [attack], settings.threat, seed=settings.seed, folder=place)
        x_adv = found.images(attack.label).to(x.device)
        clean.append(found.clean_accuracy)
        robust.append(found.robust_accuracy)
        transfer.append([_accuracy(other, x_adv, y) for other in team.members])
    names = [f"member {i}" for i in range(1, len(team.members) + 1)]
    return {"names": names, "clean": clean, "robust": robust, "transfer": transfer, "images": len(part)}


def examples(found: Evaluation, split: Split, count: int = 10) -> dict[str, torch.Tensor]:
    """Return a few images under the strongest attack, those that it broke first."""
    strongest = min(found.attacks, key=lambda label: int(found.attacks[label].right.sum()))
    outcome = found.attacks[strongest]
    fooled = (found.clean.right & ~outcome.right).nonzero()[:, 0][: count // 2]
    held = outcome.right.nonzero()[:, 0][: count - len(fooled)]
    chosen = torch.cat([fooled, held])
    places = chosen.to(split.labels.device)
    adversarial = [found.ledger.images(strongest, int(i) // found.shard)[int(i) % found.shard] for i in chosen]
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


def size(target: Target, data: Dataset, found: Evaluation, folder: Path) -> dict[str, Any]:
    """Return bytes, non-zero weights and multiply-accumulates; those of a dynamic team as expected on clean images."""
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
        "nonzeros": count_weights(target.model).nonzeros,
        "macs_dense": sum(cost.dense for cost in macs),
        "macs_nonzero": sum(float((runs >= m).float().mean()) * cost.nonzero for m, cost in enumerate(macs, 1)),
    }


def latency(decide: Decide, split: Split) -> dict[str, Any]:
    """Time the deployed decision on clean images, one and 64 at a time."""
    x = split.images(torch.arange(min(64, len(split)), device=split.labels.device))
    calls = {"batch_1": lambda: decide(x[:1]), "batch_64": lambda: decide(x)}
    found = measure_latency(calls, rounds=7, warm_up=2)
    return {
        name: {"median_ms": one.median_ms, "spread_ms": one.high_quartile_ms - one.low_quartile_ms}
        for name, one in found.items()
    }


def robustbench(result: dict[str, Any], target: Target, attacks: Sequence[Attack | TeamAttack]) -> dict[str, Any]:
    """Return the fields that RobustBench keeps of a model, with its names and its texts of percent."""
    exact = [a.label for a in attacks if isinstance(a, AutoAttack) and a.mode == "exact" and a.variant == "standard"]
    robust = result["attacks"][exact[0]]["robust_accuracy"] if exact else None
    return {
        "link": None,
        "authors": None,
        "venue": None,
        "additional_data": False,
        "number_forward_passes": f"{result['members_run']['clean']:g}",
        "dataset": result["data"]["name"],
        "architecture": type(target.model).__name__,
        "eps": result["threat"]["eps_text"],
        "clean_acc": f"{100 * result['clean_accuracy']:.2f}",
        "reported": None,
        "autoattack_acc": None if robust is None else f"{100 * robust:.2f}",
        "unreliable": False,
        "external": None,
    }
