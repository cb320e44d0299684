"""Evaluate one classifier: attacks, curve, members, checks, and the result file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.pgd import PGD
from sparsemble.core.artifacts import write_json
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel, as_fraction
from sparsemble.data.dataset import Dataset, DataSource, Split
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.evaluation.robustness import Evaluation, evaluate, weights_hash
from sparsemble.evaluation.shard import Decide
from sparsemble.evaluation.statistics import wilson
from sparsemble.pipeline.evaluate_checks import all_checks, decided_by
from sparsemble.pipeline.loaded_model import LoadedModel
from sparsemble.pipeline.metrics import Tell, examples, latency, members_table, security_curve, size
from sparsemble.pipeline.sanity_attacks import gather
from sparsemble.pipeline.stage import dataset, fingerprint
from sparsemble.pipeline.stages.attack import SUBSET_SEED, test_images, test_places


@final
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do to a target."""

    data: DataSource
    threat: ThreatModel
    attacks: tuple[Attack | EnsembleAttack, ...] = (AutoAttack(),)
    adaptive: bool = True
    """Add every attack on ensembles and stopping rules, where the target is an ensemble."""
    images: int = 0
    """Test images, stratified; 0 means all."""
    seed: int = 0
    shard: int = 100
    search: str = "float32"
    """Precision of the attacks' passes; float32 decides."""
    device: str = "cpu"


def assess(
    target: LoadedModel, settings: Settings, folder: Path, command: str, tell: Tell
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
    decide, threat = decision(target), settings.threat
    attacks = all_attacks(target, settings)
    found = evaluate(
        target.model,
        split,
        attacks,
        threat,
        rule=rule(target),
        decide=decide,
        classes=len(data.classes),
        seed=settings.seed,
        shard=settings.shard,
        folder=folder / "ledger",
        search=torch.bfloat16 if settings.search == "bfloat16" else torch.float32,
        tell=lambda share, text: tell(0.8 * share, text),
    )
    curve = security_curve(
        target, split, threat, decide, settings.seed, folder, lambda share, text: tell(0.8 + 0.1 * share, text)
    )
    result = {
        **head(target, settings, data, split, command),
        **numbers(found, attacks, len(data.classes)),
        "security_curve": curve,
        "members": members_table(target, split, threat, settings.seed, folder),
        "size": size(target, data, split, found, decided_by(target), folder),
        "latency": latency(decided_by(target), split),
        "seconds": sum(float(outcome.seconds.sum()) for outcome in found.attacks.values()),
        "extra_data": None,
        "quoted": [],
    }
    result |= robustbench(result, target, attacks)
    tell(0.9, "sanity attacks")
    evidence = gather(target, split, threat, rule=rule(target), decide=decide, seed=settings.seed, folder=folder)
    tell(0.97, "checks")
    result["checks"] = all_checks(result, target, data, split, found, evidence, settings.seed)
    write_json(folder / "evaluation.json", result)
    return result, examples(found, split)


def rule(target: LoadedModel) -> StoppingRule | None:
    """Return the deployed stopping rule of an ensemble; None for a single model."""
    return (target.rule or Never()) if isinstance(target.model, Ensemble) else None


def decision(target: LoadedModel) -> Decide | None:
    """Return the deployed decision of an ensemble; None for a single model, whose largest logit decides."""
    return decided_by(target) if isinstance(target.model, Ensemble) else None


def all_attacks(target: LoadedModel, settings: Settings) -> tuple[Attack | EnsembleAttack, ...]:
    """Return the attacks asked for and, for an ensemble, the suite of adaptive ones."""
    if not (settings.adaptive and isinstance(target.model, Ensemble)):
        return settings.attacks
    ensemble, rule = target.model, target.rule or Never()
    others = [combiners.build(name) for name in combiners.names() if name != ensemble.combiner.name]
    climb = PGD(steps=50, step_size=0.1, restarts=2, stop_at_success=False)
    suite = full_suite(
        len(ensemble.members),
        [climb],
        others,
        black_box=[Square(queries=1000)],
        stops_early=not isinstance(rule, Never),
    )
    taken = {attack.label for attack in settings.attacks}
    return (*settings.attacks, *(attack for attack in suite if attack.label not in taken))


def head(target: LoadedModel, settings: Settings, data: Dataset, split: Split, command: str) -> dict[str, Any]:
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
            "stopping": to_dict(target.rule)["name"] if target.rule else None,
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
            **to_dict(settings.threat),
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


def numbers(found: Evaluation, attacks: Sequence[Attack | EnsembleAttack], classes: int) -> dict[str, Any]:
    """Return what came out, attack by attack and in the worst case."""
    clean = int(found.clean.right.sum())
    table = found.to_json()
    for attack in attacks:
        entry = table["attacks"][attack.label]
        # What images are transferred from is told by the hash of its weights.
        entry["settings"] = json.loads(json.dumps(to_dict(attack), default=weights_hash))
        entry["kind"] = "ensemble attack" if isinstance(attack, EnsembleAttack) else "attack"
        entry["mode"] = attack.mode if isinstance(attack, AutoAttack) else None
        if isinstance(attack, AutoAttack):
            broken = found.attacks[attack.label].part
            parts = attack.schedule(classes)
            entry["parts"] = {part.label: int((broken == place).sum()) for place, part in enumerate(parts)}
    runs = {label: float(outcome.members_run.float().mean()) for label, outcome in found.attacks.items()}
    slow = [runs[a.label] for a in attacks if isinstance(a, EnsembleAttack) and a.aims_at_cost]
    totals = [sum(way) for way in zip(*(outcome.total_passes() for outcome in found.attacks.values()), strict=True)]
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


def robustbench(
    result: dict[str, Any], target: LoadedModel, attacks: Sequence[Attack | EnsembleAttack]
) -> dict[str, Any]:
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
