"""Minimum-norm attacks against torchattacks: images a second and median distance, on one model and one batch.

python benchmarks/minimum_norm.py [--device cuda] [--width 16] [--images 128]      (needs: pip install torchattacks)

Fits a network to random images in seconds, then runs DeepFool and C&W of both packages in l2, first with the same
settings and then with our defaults. Prints Markdown; ratios hold within one run only.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torchattacks
from torch import Tensor, nn

from sparsemble.attacks.apgd_minimum import APGDMinimum
from sparsemble.attacks.carlini_wagner import CarliniWagner
from sparsemble.attacks.ddn import DDN
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.fab import FAB
from sparsemble.attacks.fmn import FMN
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.core.types import Images, Labels, seeded
from sparsemble.models import architectures, build_model

Attack = Callable[[Images, Labels], Tensor]


def trained(images: Images, labels: Labels, width: int) -> nn.Module:
    """Fit a network to the images; how well it fits does not matter here."""
    spec = architectures.build({"name": "resnet18", "width": width})
    model = build_model(spec, tuple(images.shape[1:]), 10, (0.5,) * 3, (0.25,) * 3, rng=seeded(0)).to(images.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images + 0.05 * torch.randn_like(images)), labels).backward()
        optimiser.step()
    return model.eval()


def blobs(count: int, device: str) -> tuple[Images, Labels]:
    """Return random images of ten classes: a pattern for each class, and noise."""
    rng = seeded(1)
    labels = torch.arange(count) % 10
    patterns = nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=rng), size=32, mode="bilinear")
    images = patterns[labels] + 0.1 * torch.randn(count, 3, 32, 32, generator=rng)
    return images.clamp(0, 1).to(device), labels.to(device)


def ours(attack: MinimumNorm, model: nn.Module) -> Attack:
    return lambda x, y: attack.minimum(model, x, y, "l2", rng=seeded(0, x.device))[0]


def measure(attack: Attack, model: nn.Module, x: Images, y: Labels) -> tuple[float, float, float]:
    """Return images a second, the share misclassified, and the median distance (infinite where not misclassified)."""
    attack(x[:2], y[:2])  # warm up
    started = time.perf_counter()
    x_adv = attack(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    with torch.no_grad():
        misclassified = model(x_adv).argmax(1) != y
    distance = (x_adv - x).flatten(1).norm(dim=1)
    return (
        len(x) / seconds,
        float(misclassified.float().mean()),
        float(distance.masked_fill(~misclassified, torch.inf).median()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--images", type=int, default=128)
    chosen = parser.parse_args()
    x, y = blobs(chosen.images, chosen.device)
    model = trained(x, y, chosen.width)
    with torch.no_grad():
        y = model(x).argmax(1)
    rows: dict[str, Attack] = {
        "DeepFool, torchattacks": torchattacks.DeepFool(model, steps=50, overshoot=0.02),
        "DeepFool": ours(DeepFool(), model),
        "C&W 50 steps, torchattacks": torchattacks.CW(model, c=1, kappa=0, steps=50, lr=0.01),
        "C&W 20 steps, one c": ours(CarliniWagner(steps=20, searches=1), model),
        "C&W 50 steps, one c": ours(CarliniWagner(steps=50, searches=1), model),
        "C&W": ours(CarliniWagner(), model),
        "FMN": ours(FMN(), model),
        "DDN": ours(DDN(), model),
        "minimum APGD": ours(APGDMinimum(), model),
        "FAB": ours(FAB(steps=20), model),
    }
    print(
        f"{chosen.images} images, resnet18 of width {chosen.width}, "
        f"{chosen.device}, {torch.get_num_threads()} threads\n"
    )
    print("| attack | images / s | misclassified | median l2 |\n|---|---:|---:|---:|")
    for name, attack in rows.items():
        speed, misclassified, distance = measure(attack, model, x, y)
        print(f"| {name} | {speed:.1f} | {misclassified:.0%} | {distance:.4f} |", flush=True)


if __name__ == "__main__":
    main()
