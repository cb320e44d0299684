"""Training losses, or augmentations, at equal processor time: held-out and test accuracy, clean and under AutoAttack.

    python benchmarks/losses.py --data gtsrb32.npz --minutes 3 --out results/losses-gtsrb.json
    python benchmarks/losses.py --rows augmentations --data gtsrb32.npz --out results/augmentations-gtsrb.json

Every row trains the same fresh network (bfloat16, channels last, one thread) on the same images for the same
processor time: an epoch of each is timed first, and its one-cycle schedule made as long as the time allows. One
thread's processor time is wall-clock time on a free core, and other work on the machine does not change it. The best
epoch is chosen by PGD-10 on one half of the held-out images; AutoAttack (fast) on the other half is what losses
are compared by; the test images are only reported. Finished rows are kept in `--out` and not run again.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.artifacts import write_json
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data import load
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset, Split
from sparsemble.evaluation.environment import machine, source_revision
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.run_attacks import run_attacks
from sparsemble.evaluation.statistics import wilson
from sparsemble.models.architecture import architectures, build_model
from sparsemble.training import EMA, Batches, Guard, KeepBest, Precision, Schedule, fit
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.losses.cutmix import CutMix
from sparsemble.training.losses.n_fgsm import NFGSM
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.optimisers.sgd import SGD

PGD_STEPS = 7
MULTI = {"name": "pgd", "steps": PGD_STEPS, "step_size": 2.5 / PGD_STEPS, "keep_best": False}
PLAIN: dict[str, dict[str, Any]] = {
    "pgd_at": {"name": "pgd_at", "attack": MULTI},
    "trades": {"name": "trades", "attack": {**MULTI, "loss": "kl"}},
    "mart": {"name": "mart", "attack": MULTI},
    "n_fgsm": {"name": "n_fgsm"},
}
EVALUATIONS = 15
"""Evaluations on held-out images in a training."""


@dataclass(frozen=True)
class Row:
    """What is trained in a row of the table."""

    loss: TrainingLoss
    averaging: bool
    augmentation: Augmentation


def losses(shift: int, flip: bool) -> dict[str, Row]:
    """Return the rows that compare losses, by name."""
    plain, made = Augmentation(crop=shift, flip=flip), {}
    for name, spec in PLAIN.items():
        made[name] = Row(training_losses.build(spec), False, plain)
    for name in ("pgd_at", "n_fgsm"):
        made[f"{name} + ema"] = Row(training_losses.build(PLAIN[name]), True, plain)
    for name in ("pgd_at", "n_fgsm"):
        perturbed = {"name": "awp", "inner": PLAIN[name]}
        made[f"{name} + ema + weight perturbation"] = Row(training_losses.build(perturbed), True, plain)
    return made


def augmentations(shift: int, flip: bool) -> dict[str, Row]:
    """Return the rows that compare augmentations of N-FGSM with averaged weights, by name."""
    shifted = Augmentation(crop=shift, flip=flip)
    kinds = {
        "none": Augmentation(),
        f"shift of {shift}": shifted,
        "shift, flip": replace(shifted, flip=True),
        "resized crop from 0.35": Augmentation(random_resized_crop=(0.35, 1.0), flip=flip),
        "resized crop from 0.7": Augmentation(random_resized_crop=(0.7, 1.0), flip=flip),
        "shift, colour jitter": replace(shifted, jitter=(0.3, 0.3, 0.3, 0.05)),
        "shift, rand_augment 0.3": replace(shifted, rand_augment=0.3),
        "shift, cutout": replace(shifted, cutout=8),
    }
    made = {name: Row(NFGSM(), True, kind) for name, kind in kinds.items()}
    return made | {"shift, cutmix": Row(CutMix(inner=NFGSM()), True, shifted)}


def accuracy(model: nn.Module, split: Split, threat: ThreatModel, seed: int) -> dict[str, Any]:
    """Return clean accuracy and accuracy under AutoAttack (fast), with 95 % intervals."""
    attacks = (AutoAttack(mode="fast"),)
    outcomes = run_attacks(EvaluationJob(model=model, split=split, threat=threat, attacks=attacks, seed=seed))
    clean, robust = int(outcomes.clean.correct.sum()), int(outcomes.worst_case.sum())
    return {
        "images": len(split),
        "clean": clean / len(split),
        "clean_interval": list(wilson(clean, len(split))),
        "autoattack": robust / len(split),
        "autoattack_interval": list(wilson(robust, len(split))),
    }


def train(row: Row, data: Dataset, chosen: argparse.Namespace, threat: ThreatModel) -> dict[str, Any]:
    """Train one row for its processor time and evaluate it."""

    def fresh() -> nn.Module:
        spec = architectures.build(json.loads(chosen.model))
        return build_model(spec, data.shape, len(data.classes), data.mean, data.std, rng=seeded(chosen.seed))

    def probe(model: nn.Module) -> dict[str, float]:
        x, y = data.selection.tensors()
        x_adv = PGD(steps=10, stop_at_success=False)(model, x, y, threat, rng=seeded(chosen.seed))
        with torch.no_grad():
            clean, robust = (float((model(images).argmax(1) == y).float().mean()) for images in (x, x_adv))
        return {"held_out_clean": clean, "held_out_robust": robust}

    def run(epochs: int, best: KeepBest | None = None) -> tuple[nn.Module, list[dict[str, Any]]]:
        model = fresh()
        steps = epochs * len(batches)
        # The average spans about a twentieth of the training, whatever its length.
        ema = EMA(decay=max(0.9, 1 - 20 / steps)) if row.averaging else None
        schedule = Schedule(
            learning_rate=chosen.learning_rate,
            batch_size=chosen.batch,
            optimiser=SGD(nesterov=True),
            lr_schedule=OneCycle(),
            ema=ema,
            guard=Guard(),
        )
        history = fit(
            model,
            row.loss,
            batches,
            schedule,
            epochs=epochs,
            threat=threat,
            rng=seeded(chosen.seed + 1),
            callbacks=[best] if best else [],
            precision=Precision(dtype=chosen.precision),
        )
        return model, history

    batches = Batches(split=data.train, batch_size=chosen.batch, augmentation=row.augmentation)
    if chosen.timing_batches < len(batches):
        subset = data.train.subset(torch.arange(chosen.timing_batches * chosen.batch))
        whole, batches = batches, Batches(split=subset, batch_size=chosen.batch, augmentation=row.augmentation)
    else:
        whole = batches
    run(1)  # warm-up: the first steps choose kernels
    started = time.process_time()
    run(1)
    seconds = (time.process_time() - started) / len(batches)
    batches = whole
    epochs = max(1, round(60 * chosen.minutes / (seconds * len(batches))))
    started, clock = time.process_time(), time.perf_counter()
    best = KeepBest(probe, max(1, math.ceil(epochs / EVALUATIONS)), first=0.5)
    model, history = run(epochs, best)
    used, elapsed = time.process_time() - started, time.perf_counter() - clock
    images = len(batches) * chosen.batch * epochs
    test = data.test.subset(torch.arange(min(chosen.images, len(data.test))))
    return {
        "epochs": epochs,
        "processor_seconds": used,
        "wall_seconds": elapsed,
        "images_per_second": images / used,
        "chosen_by": best.best,
        "rolled_back": [message for record in history for message in record.get("rolled_back", [])],
        "held_out": accuracy(model, data.calibration, threat, chosen.seed),
        "test": accuracy(model, test, threat, chosen.seed),
        "history": history,
    }


def show(table: dict[str, Any]) -> None:
    """Print the rows as Markdown."""
    print("\n| row | epochs | images / s | held-out clean | held-out AutoAttack | test clean | test AutoAttack |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in table.items():
        held_out, test = row["held_out"], row["test"]
        low, high = (100 * bound for bound in test["autoattack_interval"])
        print(
            f"| {name} | {row['epochs']} | {row['images_per_second']:.0f} | {held_out['clean']:.1%} | "
            f"{held_out['autoattack']:.1%} | {test['clean']:.1%} | {test['autoattack']:.1%} ({low:.1f} to {high:.1f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="an .npz file of arrays (docs/data.md), or the name of a data set"
    )
    parser.add_argument("--rows", default="losses", choices=["losses", "augmentations"])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3.0, help="processor time of each training")
    parser.add_argument("--model", default='{"name": "resnet18", "width": 8}')
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--learning-rate", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=500, help="first test images that are attacked")
    parser.add_argument("--timing-batches", type=int, default=20)
    parser.add_argument("--crop", type=int, default=4)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--held-out", type=float, default=0.1)
    parser.add_argument("--training-images", type=int, default=0, help="the first ones only; 0: all")
    parser.add_argument("--only", nargs="*", default=[], help="names of rows")
    parser.add_argument("--precision", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = load(chosen.data, **({} if chosen.data == "digits" else {"held_out": chosen.held_out}))
    if chosen.training_images:
        data = replace(data, train=data.train.subset(torch.arange(chosen.training_images)))
    results: dict[str, Any] = json.loads(chosen.out.read_text("utf-8")) if chosen.out.is_file() else {"rows": {}}
    settings = {key: str(value) for key, value in vars(chosen).items() if key not in ("out", "only", "data")}
    if results.setdefault("settings", settings) != settings:
        parser.error(f"{chosen.out} holds rows of other settings: {results['settings']}; name another file")
    results |= {"machine": machine(torch.device("cpu")), "source": source_revision(), "data": Path(chosen.data).name}
    rows = {"losses": losses, "augmentations": augmentations}[chosen.rows](
        0 if chosen.data == "digits" else chosen.crop, chosen.flip
    )
    for name, row in rows.items():
        if name in results["rows"] or (chosen.only and name not in chosen.only):
            continue
        results["rows"][name] = train(row, data, chosen, ThreatModel(eps=chosen.eps))
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(chosen.out, results)
        show({name: results["rows"][name]})
    show(results["rows"])


if __name__ == "__main__":
    main()
