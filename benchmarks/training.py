"""Our training loop against a plain one: images per second of PGD training, interleaved in one run.

    pip install --no-deps torchattacks requests
    python benchmarks/training.py [--width 16] [--rounds 7] [--compile] [--device cuda] [--json speed.json]

The plain loop is a straightforward one: eager, float32, NCHW, a DataLoader that crops and flips, torchattacks' PGD
with as many steps, SGD. Ours does the same work through `fit`: PGD with as many steps from random starts, the data
set as one tensor, crop and flip on it, BatchNorm in eval mode while crafting, SGD. Each round times the same number
of steps of every loop in turn; a row is the median over the rounds, its ratio the median of the rounds' ratios.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchattacks
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparsemble.attacks.pgd import PGD
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.cost import count_macs
from sparsemble.evaluation.environment import processor, source_revision
from sparsemble.models.architecture import build_model
from sparsemble.models.resnet import ResNet
from sparsemble.training.batches import Batches
from sparsemble.training.fit import fit
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule

EPS = 8 / 255
BF16_PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 multiply-adds a second times two, from the makers' data sheets."""


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Images cropped and flipped one by one."""

    def __init__(self, pixels: Tensor, labels: Tensor) -> None:
        self.pixels = pixels
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = F.pad(self.pixels[i].float() / 255, (4, 4, 4, 4))
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        return (image.flip(2) if torch.rand(()) < 0.5 else image), self.labels[i]


def plain_loop(model: nn.Module, split: TensorSplit, batch: int, steps: int, device: str) -> Callable[[], None]:
    """Return a function that trains one epoch without this package."""
    loader = DataLoader(
        Augmented(split.pixels, split.labels), batch_size=batch, shuffle=True, drop_last=True, num_workers=0
    )
    attack = torchattacks.PGD(model, eps=EPS, alpha=2.5 * EPS / steps, steps=steps, random_start=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)

    def epoch() -> None:
        model.train()
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            x_adv = attack(x, y)  # leaves the model in training mode
            optimiser.zero_grad()
            F.cross_entropy(model(x_adv), y).backward()
            optimiser.step()

    return epoch


def our_loop(
    model: nn.Module, split: TensorSplit, batch: int, steps: int, device: str, precision: Precision
) -> Callable[[], None]:
    """Return a function that trains one epoch through `fit`."""
    training_loss = PGDAT(attack=PGD(steps=steps, step_size=2.5 / steps, keep_best=False))
    batches = Batches(split=split.to(device), batch_size=batch, augmentation=Augmentation(crop=4, flip=True))
    schedule = Schedule(learning_rate=0.01, batch_size=batch, lr_schedule=Cosine())

    def epoch() -> None:
        fit(
            model,
            training_loss,
            batches,
            schedule,
            epochs=1,
            threat=ThreatModel(eps=EPS),
            rng=seeded(0, device),
            precision=precision,
        )

    return epoch


def loops(model: nn.Module, split: TensorSplit, chosen: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Return the loops to be timed, by name; each trains a copy of its own."""
    settings = {
        "ours, float32 NCHW": Precision(channels_last=False),
        "ours, float32": Precision(),
        "ours, bfloat16": Precision(dtype="bfloat16"),
    }
    if chosen.compile:
        settings["ours, float32, compiled"] = Precision(compile=True)
        settings["ours, bfloat16, compiled"] = Precision(dtype="bfloat16", compile=True)
    common = (split, chosen.batch, chosen.steps, chosen.device)
    rows = {"plain loop": plain_loop(copy.deepcopy(model), *common)}
    return rows | {name: our_loop(copy.deepcopy(model), *common, value) for name, value in settings.items()}


def measure(rows: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of an epoch of each loop in each round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, epoch in rows.items():
            started = time.perf_counter()
            epoch()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def operations(model: nn.Module, steps: int) -> float:
    """Return the floating-point operations of a training step on one image: 2 passes an attack step, 3 an update."""
    return 2.0 * count_macs(model, (3, 32, 32)).dense * (2 * steps + 3)


def table(seconds: dict[str, list[float]], images: int, work: float, device: str) -> dict[str, dict[str, float]]:
    """Return speed, ratio to the plain loop and throughput of each loop."""
    reference = seconds["plain loop"]
    rows = {}
    for name, times in seconds.items():
        speed = images / statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(reference, times, strict=True))
        rows[name] = {"images_per_second": speed, "ratio": ratio, "teraflops": speed * work / 1e12}
        peak = next((p for key, p in BF16_PEAK.items() if device in key or key in device), None)
        if peak:
            rows[name]["share_of_bf16_peak"] = speed * work / peak
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--batches", type=int, default=4, help="steps of an epoch that is timed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    images = chosen.batch * chosen.batches
    rng = seeded(1)
    split = TensorSplit(
        torch.randint(0, 256, (images, 3, 32, 32), generator=rng, dtype=torch.uint8),
        torch.randint(0, 10, (images,), generator=rng),
    )
    spec = ResNet(depth=18, width=chosen.width)
    model = build_model(spec, (3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3, rng=seeded(0)).to(chosen.device)
    device = torch.cuda.get_device_name(chosen.device) if chosen.device.startswith("cuda") else processor()
    rows = table(
        measure(loops(model, split, chosen), chosen.rounds, chosen.device),
        images,
        operations(model, chosen.steps),
        device,
    )
    hardware = (
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    )
    print(f"PGD-{chosen.steps}, resnet18 of width {chosen.width}, 32x32, batch {chosen.batch}; {hardware}\n")
    print("| loop | images / s | times the plain loop | TFLOP / s |\n|---|---:|---:|---:|")
    for name, row in rows.items():
        peak = f" ({row['share_of_bf16_peak']:.0%} of bf16 peak)" if "share_of_bf16_peak" in row else ""
        print(f"| {name} | {row['images_per_second']:.0f} | {row['ratio']:.2f} | {row['teraflops']:.3f}{peak} |")
    if chosen.json:
        metadata: dict[str, Any] = {"settings": {k: str(v) for k, v in vars(chosen).items()}, "machine": hardware}
        metadata["source"] = source_revision()
        chosen.json.write_text(json.dumps(metadata | {"rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
