"""A full, valid result of `sparsemble evaluate`, made up."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsemble.evaluation.statistics import wilson

LABELS = ("autoattack-fast", "pgd50x2-whole", "pgd50x2-mean_logit", "sequential50x2", "hijack50", "slowdown50", "fmn")
STATUSES = {14: "fail", 20: "fail", 5: "waived", 25: "waived", 31: "waived", 45: "waived", 49: "waived"}


def share(outcomes: Sequence[int]) -> dict[str, Any]:
    interval = list(wilson(int(sum(outcomes)), len(outcomes)))
    return {"accuracy": sum(outcomes) / len(outcomes), "interval": interval, "outcomes": list(map(int, outcomes))}


def attack(label: str, outcomes: Sequence[int], rng: np.random.Generator) -> dict[str, Any]:
    counts = share(outcomes)
    n = len(outcomes)
    table: dict[str, Any] = {
        "settings": {"name": label, "steps": 50},
        "kind": "attack" if label.startswith(("auto", "fmn")) else "ensemble attack",
        "mode": "fast" if label.startswith("autoattack") else None,
        "robust_accuracy": counts["accuracy"],
        "interval": counts["interval"],
        "outcomes": counts["outcomes"],
        "distances": [0.0314] * n,
        "members_run": [1 + int(v) for v in rng.integers(0, 3, n)],
        "passes": {"forward": 300 * n, "backward": 250 * n},
        "seconds": 12.5,
    }
    if table["mode"]:
        table["settings"] = {"name": "autoattack", "mode": "fast", "variant": "standard"}
        table["parts"] = {"apgd20": 30, "apgd_focused": 12, "square": 0}
    if label == "fmn":
        found = np.where(np.asarray(outcomes) == 1, 0.0314, 0) + 0.02 * rng.random(n)
        table["minimum_distances"] = [None, *map(float, found[1:])]
        table["median_distance"] = float(np.median(found[1:]))
    return table


def example_result(
    name: str = "digits & <friends>", *, robust: float = 0.5, images: int = 200, members: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Return a result on the same images whatever the seed.

    Args:
        name: of the target.
        robust: about the accuracy under each attack.
        images: test images.
        members: of the ensemble; 1 for a single model without attacks on ensembles.
        seed: decides the outcomes.
    """
    rng = np.random.default_rng(seed)
    clean = (rng.random(images) < 0.85).astype(int)
    strength = rng.random(images)
    labels = LABELS if members > 1 else tuple(label for label in LABELS if label.startswith(("auto", "fmn")))
    attacks = {
        label: attack(label, clean * (strength < robust + 0.02 * i + 0.05 * rng.random(images)), rng)
        for i, label in enumerate(labels)
    }
    worst = np.min([clean, *(found["outcomes"] for found in attacks.values())], axis=0)
    held = share(clean)
    return {
        "schema": 1,
        "kind": "evaluation",
        "name": name,
        "command": f"sparsemble evaluate runs/{name}",
        **asked(images, members),
        "clean_accuracy": held["accuracy"],
        "clean_interval": held["interval"],
        "clean_outcomes": held["outcomes"],
        "attacks": attacks,
        "worst_case": share(worst),
        "checks": [
            {"number": i, "name": f"what check {i} asks", "status": STATUSES.get(i, "pass"), "detail": f"why {i}"}
            for i in range(1, 51)
        ],
        "security_curve": {
            "attack": "pgd40",
            "images": images,
            "eps": [0.0, 4 / 255, 8 / 255, 12 / 255, 16 / 255, 32 / 255, 64 / 255, 0.5],
            "accuracy": [held["accuracy"], 0.62, 0.5, 0.33, 0.2, 0.04, 0.01, 0.0],
        },
        "members": table_of_members(members, rng) if members > 1 else None,
        "members_run": {"clean": 1.21, "attacked": 1.87, "slowdown": 2.64 if members > 1 else None},
        "size": {
            "bytes": 1_330_000,
            "peak_memory": 9_000_000,
            "nonzeros": 2_240_000,
            "macs_dense": 1_670_000_000,
            "macs_nonzero": 122_000_000.5,
        },
        "latency": {
            "batch_1": {"median_ms": 4.1, "spread_ms": 0.2},
            "batch_64": {"median_ms": 101.0, "spread_ms": 3.0},
        },
        "passes": {way: sum(a["passes"][way] for a in attacks.values()) for way in ("forward", "backward")},
        "seconds": 512.0,
        **robustbench(held["accuracy"]),
    }


def asked(images: int, members: int) -> dict[str, Any]:
    return {
        "target": {
            "kind": "run",
            "path": "runs/digits",
            "sha256": "5e" * 32,
            "parameters": 11_200_000,
            "nonzeros": 2_240_000,
            "sparsity": 0.8,
            "members": members,
            "stopping": "die" if members > 1 else None,
            "selected_on": "held-out",
        },
        "data": {
            "name": "cifar10",
            "sha256": "ab" * 32,
            "split": "test",
            "images": images,
            "subset_seed": 4,
            "classes": 10,
            "indices": list(range(0, 3 * images, 3)),
        },
        "threat": {"norm": "linf", "eps": 8 / 255, "eps_text": "8/255", "knowledge": "white-box"},
        "machine": {"processor": "a processor", "cores": 2, "device": "cpu", "platform": "Linux x86_64"},
        "versions": {"sparsemble": "0.1.0", "torch": "2.13.0"},
        "source": "a1b2c3",
        "device": "cpu",
        "dtype": "float32",
        "search": "float32",
        "seeds": {"attacks": 0},
    }


def table_of_members(members: int, rng: np.random.Generator) -> dict[str, Any]:
    transfer = 0.6 + 0.1 * rng.random((members, members))
    robust = [0.4 + 0.02 * i for i in range(members)]
    np.fill_diagonal(transfer, robust)
    return {
        "names": [f"member {i}" for i in range(1, members + 1)],
        "clean": [0.8 + 0.01 * i for i in range(members)],
        "robust": robust,
        "transfer": transfer.tolist(),
    }


def robustbench(clean: float) -> dict[str, Any]:
    return {
        "link": None,
        "authors": None,
        "additional_data": False,
        "number_forward_passes": "1.21",
        "dataset": "cifar10",
        "venue": None,
        "architecture": "Ensemble",
        "eps": "8/255",
        "clean_acc": f"{100 * clean:.2f}",
        "reported": None,
        "autoattack_acc": None,
        "unreliable": False,
        "external": None,
    }


def example_images(channels: int = 3, count: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    clean = rng.random((count, channels, 8, 8), dtype=np.float32)
    return {
        "clean": clean,
        "adversarial": clean * np.float32(0.9),
        "label": np.arange(count),
        "clean_prediction": np.arange(count),
        "adversarial_prediction": (np.arange(count) + np.arange(count) % 2) % 10,
    }
