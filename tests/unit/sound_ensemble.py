"""A sound ensemble of linear members that stops early, a result of attacks on it, and ways to break either."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.ensemble.suite import full_suite
from sparsemble.attacks.pgd import PGD
from sparsemble.attacks.black_box.square import Square
from sparsemble.core.interfaces import DynamicOutput, Ensemble, combiners
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.evaluation import checks
from sparsemble.evaluation.statistics import wilson
from tests.helpers import LinearClassifier

THREAT = ThreatModel(eps=8 / 255)
X, Y = torch.rand(24, 1, 6, 6, generator=seeded(0)), torch.arange(24) % 4


TEAM = Ensemble([LinearClassifier(4, (1, 6, 6), seed=seed) for seed in range(3)], MeanProbability()).eval()
MEMBER = TEAM.members[0]
RIGHT = MEMBER(X).argmax(1).detach()
"""Labels that the first member gives: what it is right on."""


def decide(x: Images) -> DynamicOutput:
    return predict_dynamic(TEAM, x, DIE())


def altered(change: Callable[[Tensor], Tensor]) -> Callable[[Images], DynamicOutput]:
    """The ensemble with changed logits."""

    def broken(x: Images) -> DynamicOutput:
        output = decide(x)
        return DynamicOutput(change(output.logits), output.answered_with, output.members_run)

    return broken


def network() -> nn.Sequential:
    """A small convolutional network in eval mode."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    return body.eval()


def crafted() -> Images:
    return PGD(steps=3)(TEAM, X, Y, THREAT, rng=seeded(1))


def expect(found: checks.Check, number: int, status: str, words: str = "") -> None:
    """Assert a verdict, and that its sentence holds some words."""
    assert (found.number, found.status) == (number, status), found
    assert found.name == checks.NAMES[number]
    assert found.detail
    assert words in found.detail, found


def ensemble_result(images: int = 40) -> dict[str, Any]:
    """Return a sound result, made up, of every attack on an ensemble of three that stops early."""
    others = [combiners.build(name) for name in combiners.names() if name != "mean_probability"]
    suite: list[Any] = [attacks.build(name) for name in ("autoattack", "fmn")]
    suite += full_suite(3, [PGD(steps=50)], others, black_box=[Square(queries=100)])
    rng = seeded(0)
    clean = (torch.rand(images, generator=rng) < 0.9).int()
    table = {}
    for attack in suite:
        right = clean * (torch.rand(images, generator=rng) < 0.8).int()
        table[attack.label] = an_attack(attack, right)
    worst = torch.tensor([one["outcomes"] for one in table.values()]).amin(0) * clean
    return {
        "kind": "evaluation",
        "command": "sparsemble evaluate runs/digits",
        "source": "a1b2c3",
        "target": {
            "kind": "run",
            "path": "runs/digits",
            "sha256": "5e" * 32,
            "parameters": 1200,
            "nonzeros": 300,
            "sparsity": 0.75,
            "members": 3,
            "stopping": "die",
            "selected_on": "held-out",
        },
        "data": {
            "name": "digits",
            "sha256": "ab" * 32,
            "split": "test",
            "images": images,
            "subset_seed": 4,
            "classes": 10,
            "indices": list(range(images)),
        },
        "threat": {"norm": "linf", "eps": 8 / 255, "eps_text": "8/255", "knowledge": "white-box", "targeted": False},
        "clean_accuracy": float(clean.float().mean()),
        "clean_outcomes": clean.tolist(),
        "attacks": table,
        "worst_case": share(worst),
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "dtype": "float32",
        "seeds": {"attacks": 0},
        "seconds": 12.5,
        "passes": {"forward": 100 * len(table), "backward": 90 * len(table)},
        "extra_data": None,
        "additional_data": False,
        "external": None,
        "reported": None,
        "unreliable": False,
        "quoted": [],
        "security_curve": {"eps": [0.0, 8 / 255, 0.5], "accuracy": [0.9, 0.5, 0.0]},
        "members": {
            "clean": [0.8, 0.8, 0.8],
            "robust": [0.3, 0.4, 0.35],
            "transfer": [[0.3, 0.6, 0.6], [0.6, 0.4, 0.6], [0.6, 0.6, 0.35]],
        },
        "members_run": {"clean": 1.2, "attacked": 1.9, "slowdown": 2.7},
        "size": {"bytes": 1500, "nonzeros": 300, "macs_dense": 9000, "macs_nonzero": 2000.5, "peak_memory": 80_000},
        "latency": {
            "batch_1": {"median_ms": 4.1, "spread_ms": 0.2},
            "batch_64": {"median_ms": 101.0, "spread_ms": 3.0},
        },
    }


def an_attack(attack: Attack | Any, right: Tensor) -> dict[str, Any]:
    """Return an attack's entry."""
    found = share(right)
    entry = {
        "settings": to_dict(attack),
        "robust_accuracy": found["accuracy"],
        "interval": found["interval"],
        "outcomes": found["outcomes"],
        "passes": {"forward": 100, "backward": 90},
        "seconds": 1.0,
    }
    if attack.name == "fmn":
        distances = [0.01 * (1 + i) for i in range(len(right))]
        entry |= {"minimum_distances": [*distances[:-1], None], "median_distance": distances[(len(right) - 1) // 2]}
    return entry


def share(right: Tensor) -> dict[str, Any]:
    """Return an accuracy with its interval and outcomes."""
    count = int(right.sum())
    return {"accuracy": count / len(right), "interval": list(wilson(count, len(right))), "outcomes": right.tolist()}


def changed(result: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a result with one field, such as `threat.eps`, set to a value."""
    copied = copy.deepcopy(result)
    *steps, last = path.split(".")
    place = copied
    for step in steps:
        place = place[step]
    place[last] = value
    return copied


def without(result: dict[str, Any], path: str) -> dict[str, Any]:
    """Return a copy of a result that lacks a field."""
    copied = copy.deepcopy(result)
    *steps, last = path.split(".")
    place = copied
    for step in steps:
        place = place[step]
    del place[last]
    return copied


def only(result: dict[str, Any], keep: Callable[[str, dict[str, Any]], bool]) -> dict[str, Any]:
    """Return a copy of a result with some of its attacks."""
    copied = copy.deepcopy(result)
    copied["attacks"] = {label: one for label, one in copied["attacks"].items() if keep(label, one)}
    return copied


def single(result: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a result that is about a single model."""
    return changed(changed(result, "target.members", 1), "target.stopping", None)
