"""Our attacks beside the reference implementations: wall clock, passes, robust accuracy, agreement image by image.

    pip install --no-deps pyautoattack torchattacks adv-lib
    python benchmarks/attacks.py --data gtsrb32.npz --work WORK --images 500 --only autoattack pyautoattack
    python benchmarks/attacks.py --run runs/digits --row harp --work WORK --norm l2 --eps 0.5 --only ddn adv-lib-ddn

Trains a ResNet-18 of width 8 adversarially on GTSRB at 32x32 once (kept in WORK), then attacks the same test images
with every contender in turn, batch by batch, so that a slow phase of the machine affects all of them. Results of a
reference are stored in WORK and reused. Before and after every run the same plain passes are timed: where they show
that a stored reference was timed on a slower or busier machine, no ratio of seconds is given (delete the file in WORK
and run again). Prints a table and writes `WORK/attacks.json`.

Ours search as an evaluation does, on a copy with BatchNorm folded, and the network itself decides; those called
`-original` search on the network itself. `--run` attacks a row of a run in place of the ResNet-18, at its eps unless
`--eps` is given.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sparsemble.ensemble  # noqa: F401 (registers combiners and stopping rules)
from sparsemble.attacks import attacks
from sparsemble.attacks.minimum_norm import MinimumNorm, minimum_on_copy
from sparsemble.attacks.pgd import PGD
from sparsemble.core.config import from_dict
from sparsemble.core.interfaces import members_of
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.arrays import Arrays
from sparsemble.data.dataset import Dataset, stratified
from sparsemble.evaluation.environment import source_revision
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.search_copy import SearchCopy
from sparsemble.models.architecture import build_model
from sparsemble.models.resnet import ResNet
from sparsemble.training.batches import Batches
from sparsemble.training.fit import fit
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.schedule import Schedule

SEED = 0
SAME_SPEED = 1.25
"""Most by which plain passes may differ in two runs whose seconds are compared."""
TRAINING_ATTACK = PGD(steps=7, step_size=0.35, keep_best=False)

Contender = Callable[[nn.Module, Tensor, Tensor, ThreatModel], Tensor]
"""From model, images, labels and threat model to adversarial images."""


@dataclasses.dataclass
class Result:
    """Cost and outcomes of a contender."""

    seconds: float = 0.0
    forward: int = 0
    backward: int = 0
    plain_seconds: float = 0.0
    """Seconds of the same plain passes, before and after."""
    correct: list[bool] = dataclasses.field(default_factory=list)
    """Whether each image is still classified correctly; of attacks of minimum norm, within eps."""
    distances: list[float] = dataclasses.field(default_factory=list)
    """From each image to the misclassified one that was found; infinite where there is none."""

    def add_(self, other: "Result") -> None:
        """Take over the result of further images."""
        self.seconds += other.seconds
        self.forward += other.forward
        self.backward += other.backward
        self.plain_seconds += other.plain_seconds
        self.correct += other.correct
        self.distances += other.distances


def reference_apgd(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Run APGD of pyautoattack on the cross-entropy, in l1 with its three radii."""
    from pyautoattack.autopgd_base import APGDAttack

    attack = APGDAttack(model, eps=threat.eps, norm=threat.norm.capitalize(), seed=SEED, device=str(x.device))
    attack.use_largereps = threat.norm == "l1"
    adversarial: Tensor = attack.perturb(x, y)
    return adversarial


def ours(name: str, *, original: bool = False, **settings: object) -> Contender:
    """Return one of our attacks as a contender; one of minimum norm searches for the nearest image, at any distance.

    Args:
        name: of the attack.
        original: search on the network itself; else on the copy that an evaluation makes; making it counts, once.
        **settings: of the attack.
    """
    attack, copies = attacks.build({"name": name, **settings}), SearchCopy()

    def run(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        rng = seeded(SEED, x.device)
        searched = model if original else copies.of(model, x)
        if searched is model and not original:
            raise SystemExit("this network has no copy")
        if isinstance(attack, MinimumNorm):
            return minimum_on_copy(attack, searched, model, x, y, threat.norm, rng=rng)[0]
        return attack(searched, x, y, threat, rng=rng)

    return run


def reference_autoattack(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Run pyautoattack, a packaged copy of the authors' code."""
    from pyautoattack import AutoAttack as Reference

    norm = threat.norm.capitalize()
    reference = Reference(model, eps=threat.eps, norm=norm, seed=SEED, version="standard", device=x.device)
    adversarial: Tensor = reference.run_standard_evaluation(x, y, batch_size=len(x))[0]
    return adversarial


def reference_ddn(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Run DDN of adversarial-library, without rounding to 8 bits, as ours does not round."""
    for unused in ("torchvision", "visdom"):  # its perceptual attacks and its live plots need them
        if unused not in sys.modules and importlib.util.find_spec(unused) is None:
            sys.modules[unused] = MagicMock()
    from adv_lib.attacks import ddn

    adversarial: Tensor = ddn(model, x, y, levels=None)
    return adversarial


def reference_carlini_wagner(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Run C&W of torchattacks with its default settings."""
    from torchattacks import CW

    adversarial: Tensor = CW(model)(x, y)
    return adversarial


CARLINI_WAGNER: dict[str, Any] = {"steps": 10, "searches": 1, "first_c": 1.0}
"""The quickest settings that come as near as torchattacks' default."""
CONTENDERS: dict[str, Contender] = {
    "autoattack": ours("autoattack"),
    "autoattack-fast": ours("autoattack", mode="fast"),
    "autoattack-original": ours("autoattack", original=True),
    "autoattack-fast-original": ours("autoattack", original=True, mode="fast"),
    "pyautoattack": reference_autoattack,
    "apgd": ours("apgd"),
    "apgd-original": ours("apgd", original=True),
    "pyautoattack-apgd": reference_apgd,
    "ddn": ours("ddn"),
    "ddn-original": ours("ddn", original=True),
    "adv-lib-ddn": reference_ddn,
    "carlini_wagner": ours("carlini_wagner", **CARLINI_WAGNER),
    "carlini_wagner-original": ours("carlini_wagner", original=True, **CARLINI_WAGNER),
    "torchattacks-cw": reference_carlini_wagner,
}
REFERENCES = {
    "autoattack": "pyautoattack",
    "autoattack-fast": "pyautoattack",
    "apgd": "pyautoattack-apgd",
    "ddn": "adv-lib-ddn",
    "carlini_wagner": "torchattacks-cw",
}
REFERENCES |= {f"{name}-original": reference for name, reference in REFERENCES.items()}
"""What each of our attacks is measured against."""
MINIMUM_NORM = ("ddn", "adv-lib-ddn", "carlini_wagner", "torchattacks-cw")
"""Contenders that search for the nearest misclassified image, in l2, whatever eps is."""


def trained(data: Dataset, threat: ThreatModel, work: Path, epochs: int) -> nn.Module:
    """Return the model in WORK, or train it and keep it there."""
    model = build_model(ResNet(depth=18, width=8), data.shape, len(data.classes), data.mean, data.std, rng=seeded(SEED))
    path = work / f"resnet18-8-{threat.norm}-{threat.eps:.4f}-{epochs}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
    else:
        fit(
            model,
            PGDAT(attack=TRAINING_ATTACK),
            Batches(split=data.train, batch_size=64, augmentation=data.augmentation),
            Schedule(learning_rate=0.2, lr_schedule=OneCycle()),
            epochs=epochs,
            threat=threat,
            rng=seeded(SEED),
        )
        save_file(model.state_dict(), path)
    return model.eval().requires_grad_(False)


def plain_passes(model: nn.Module, x: Tensor) -> float:
    """Return the seconds of forward and backward passes without an attack."""
    started = time.perf_counter()
    for _ in range(10):
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf).sum(), leaf)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Result:
    """Run a contender on some images; the final evaluation of its images is not counted."""
    plain_seconds = plain_passes(model, x)
    with count_passes(*members_of(model)) as passes:
        started = time.perf_counter()
        adversarial = CONTENDERS[name](model, x, y, threat)
        if x.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    plain_seconds += plain_passes(model, x)
    distance = threat.distance(adversarial, x)
    of_minimum_norm = name.removesuffix("-original") in MINIMUM_NORM
    if not of_minimum_norm and float(distance.max()) > threat.eps + 10 * threat.tolerance:
        raise SystemExit(f"{name} left the ball")
    with torch.no_grad():
        correct = model(adversarial).argmax(1) == y
    distance = distance.masked_fill(correct, float("inf"))
    if of_minimum_norm:
        correct = distance > threat.eps
    return Result(seconds, passes.forward, passes.backward, plain_seconds, correct.tolist(), distance.tolist())


def kept(path: Path, compute: Callable[[], Result]) -> Result:
    """Return the stored result, or compute and store it."""
    if path.is_file():
        return Result(**json.loads(path.read_text("utf-8")))
    result = compute()
    path.write_text(json.dumps(dataclasses.asdict(result)), "utf-8")
    return result


def compare(
    names: list[str], model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, work: Path, batch: int
) -> dict[str, Result]:
    """Run the contenders in turn on one batch after another."""
    results = {name: Result() for name in names}
    weights = b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
    for images, labels in zip(x.split(batch), y.split(batch), strict=True):
        what = hashlib.sha256(weights + images.cpu().numpy().tobytes() + str(threat).encode()).hexdigest()[:16]
        for name in names:

            def run(name: str = name, images: Tensor = images, labels: Tensor = labels) -> Result:
                return measure(name, model, images, labels, threat)

            result = kept(work / f"{name}-{what}.json", run) if name in REFERENCES.values() else run()
            results[name].add_(result)
            print(f"{name}: {result.seconds:.1f} s, {sum(result.correct)} of {len(labels)} still correct", flush=True)
    return results


def summary(results: dict[str, Result]) -> list[dict[str, Any]]:
    """Compare each result with its reference."""
    rows = []
    for name, result in results.items():
        row: dict[str, Any] = {
            "name": name,
            "seconds": result.seconds,
            "passes": result.forward + result.backward,
            "robust_accuracy": float(np.mean(result.correct)),
        }
        if name.removesuffix("-original") in MINIMUM_NORM:
            row["median_distance"] = round(float(np.median(result.distances)), 4)
        if (reference := results.get(REFERENCES.get(name, ""))) is not None:
            differ = np.array(result.correct) != np.array(reference.correct)
            speed = reference.plain_seconds / result.plain_seconds
            row |= {
                "reference": REFERENCES[name],
                "machine_was_slower": speed,
                "share_of_seconds": result.seconds / reference.seconds if 1 / SAME_SPEED < speed < SAME_SPEED else None,
                "share_of_passes": (result.forward + result.backward) / (reference.forward + reference.backward),
                "differ": np.flatnonzero(differ).tolist(),
                "only_we_broke": int((differ & np.array(reference.correct)).sum()),
            }
        rows.append(row)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    heads = "robust %", "passes", "of reference", "seconds", "of reference", "differs on", "only we broke", "median l2"
    lines = [f"| attack | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    for row in rows:
        shares = [row.get(key) for key in ("share_of_passes", "share_of_seconds")]
        passes, seconds = ("" if share is None else f"{share:.3f}" for share in shares)
        lines.append(
            f"| {row['name']} | {100 * row['robust_accuracy']:.1f} | {row['passes']:,} | {passes} "
            f"| {row['seconds']:.1f} | {seconds} | {len(row.get('differ', []))} | {row.get('only_we_broke', '')} "
            f"| {row.get('median_distance', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="gtsrb32.npz, as read by the data source `arrays`")
    parser.add_argument("--run", help="folder of a run, whose images, model and threat model are taken instead")
    parser.add_argument("--row", default="ensemble_static", help="of that run")
    parser.add_argument("--work", type=Path, required=True, help="folder for the model and the references' results")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--held-out", action="store_true", help="held-out images instead of test images, for tuning")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--norm", choices=["linf", "l2", "l1"], default="linf", help="of the attacks")
    parser.add_argument("--eps", help="of the attacks, such as 8/255; that of the run, or 8/255, unless given")
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    if bool(options.data) == bool(options.run):
        parser.error("give either --data or --run")
    if options.run:
        target = load_target(options.run, row=options.row, device=options.device)
        assert target.data is not None
        assert target.threat is not None
        data, model = target.data.load(), target.model.requires_grad_(False)
        eps: Any = target.threat.eps
    else:
        data = Arrays(path=str(options.data), crop=2).load()
        model = trained(data, ThreatModel(eps=8 / 255), options.work, options.epochs).to(options.device)
        eps = "8/255"
    threat = from_dict(ThreatModel, {"norm": options.norm, "eps": options.eps or eps}, "threat")
    split = data.selection if options.held_out else data.test
    if options.images < len(split):
        _, part = stratified(split.labels.numpy(), options.images, SEED)
        split = split.subset(torch.from_numpy(part))
    x, y = split.to(options.device).tensors()
    with torch.no_grad():
        clean = float((model(x).argmax(1) == y).float().mean())
    print(f"{len(x)} images, clean accuracy {100 * clean:.1f} %, {threat}")
    rows = summary(compare(options.only, model, x, y, threat, options.work, options.batch))
    machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
    machine["source"] = source_revision()
    machine["target"] = f"{options.run} {options.row}" if options.run else f"resnet18-8 on {options.data}"
    details = {**machine, "threads": options.threads, "images": len(x), "clean_accuracy": clean, "threat": str(threat)}
    (options.work / "attacks.json").write_text(json.dumps({**details, "rows": rows}, indent=1), "utf-8")
    print(json.dumps({**details, "rows": rows}))
    print(table(rows))


if __name__ == "__main__":
    main()
