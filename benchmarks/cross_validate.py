"""Cross-validate recipes of the digits, without their test images.

python benchmarks/cross_validate.py --row ensemble --out runs/folds  # the recipe as it is
python benchmarks/cross_validate.py --row ensemble --name three --set members=3 --out runs/folds
python benchmarks/cross_validate.py --out runs/folds --against "ensemble recipe"                       # only the table

The 1,297 training and held-out images are split into five folds. Each fold is evaluated once, with a seed of its own,
after training on the others (of which 100 images are held out), so that each of the 1,297 images is evaluated once and
randomness of training is averaged too. Rows: dense, single (the row "harp" of a run, whatever its method) and ensemble
(all members), under PGD-50 with two losses. Stages are stored in OUT, one folder a fold, and results under their name:
other settings need another name. A whole run there (`sparsemble run digits --set seed=100 --set "data={name='arrays',
path='OUT/fold0.npz', held_out=100}" --out OUT/fold0`) adds its rows, under the adaptive union. The interval of a
difference is Student's over the folds: it covers randomness of images and training, but not that the folds share
training images.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from sparsemble.attacks.attack import attacks
from sparsemble.core.artifacts import Artifact
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.results import RunSummary
from sparsemble.core.types import seeded
from sparsemble.data.digits import Digits
from sparsemble.evaluation.run_models import load_ensemble
from sparsemble.models.model_io import load_model
from sparsemble.pipeline.engines.driver import run_tasks
from sparsemble.pipeline.graph import model_tasks
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import dataset

FOLDS = 5
HELD_OUT = 100
FIRST_SEED = 100
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Half width of the 95 % interval of a mean of n values, in its standard errors."""
ATTACKS = (
    {"name": "pgd", "steps": 50, "step_size": 0.1, "restarts": 2},
    {"name": "pgd", "steps": 50, "step_size": 0.1, "loss": "margin"},
)

Accuracies = dict[str, dict[int, tuple[float, ...]]]
"""Clean and worst-case accuracy in percent, by line of the table and fold."""


def fold_file(fold: int, folder: Path) -> Path:
    """Split the images, stratified by class, and write a file in which one fold is the test part."""
    whole = Digits().load()
    parts = [part.tensors() for part in (whole.train, whole.selection, whole.calibration)]
    pixels, labels = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
    order = np.random.default_rng(FOLDS).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    indices = {"test": np.sort(order[fold::FOLDS])}
    indices["train"] = np.setdiff1d(order, indices["test"])
    images = {f"{name}_images": (255 * pixels[part, 0]).round().astype(np.uint8) for name, part in indices.items()}
    path = folder / f"fold{fold}.npz"
    images |= {f"{name}_labels": labels[part] for name, part in indices.items()}
    np.savez(path, allow_pickle=False, **images)
    return path


def train_row(recipe: Recipe, row: str, folder: Path) -> nn.Module:
    """Return the model of a row; stages that are not in the folder are run."""
    cpu = torch.device("cpu")
    stages, pool = model_tasks(recipe)
    task = stages[{"dense": "dense", "single": "harp", "ensemble": "ensemble"}[row]]
    needed = [stages["dense"], task] if row != "ensemble" else [stages["dense"], *pool.values(), stages["select"], task]
    missing = [stage for stage in dict.fromkeys(needed) if not (folder / stage.folder).is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    run_tasks(missing, folder, "cpu", 1, Progress(Console(quiet=True), missing, None))
    artifact = Artifact(folder / task.folder)
    return load_ensemble(artifact, None, cpu).ensemble if row == "ensemble" else load_model(artifact.path, cpu).eval()


def evaluate(model: nn.Module, recipe: Recipe) -> np.ndarray:
    """Return which images of the fold are classified correctly clean, and clean and under every attack: (2, N)."""
    x, y = dataset(recipe.data).test.tensors()
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    worst = clean.clone()
    for settings in ATTACKS:
        adversarial = attacks.build(settings)(model, x, y, recipe.threat, rng=seeded(FIRST_SEED))
        with torch.no_grad():
            worst &= model(adversarial).argmax(1) == y
    return torch.stack([clean, worst]).numpy()


def load(folder: Path) -> Accuracies:
    """Return the results of this script, and those of whole runs in the folders of the folds."""
    accuracies: Accuracies = {}
    for path in sorted((folder / "outcomes").glob("*.npz"), key=lambda path: path.stat().st_mtime):
        name, fold = path.stem.rsplit("-", 1)
        with np.load(path, allow_pickle=False) as file:
            accuracies.setdefault(name, {})[int(fold)] = tuple(100 * file["correct"].mean(axis=1))
    for number in range(FOLDS):
        path = folder / f"fold{number}" / "report" / "summary.json"
        for row in RunSummary.load(path).rows if path.exists() else ():
            accuracies.setdefault(f"run: {row.name}", {})[number] = (
                100 * row.clean_accuracy,
                100 * row.robust_accuracy,
            )
    return accuracies


def table(accuracies: Accuracies, against: str) -> str:
    """Return the accuracies as Markdown, each line compared with one of them, fold by fold."""
    lines = [f"| | folds | clean % | worst case % | minus {against} | 95 % |", "|---|---:|---:|---:|---:|---:|"]
    base = accuracies.get(against, {})
    for name, folds in accuracies.items():
        clean, worst = np.mean(list(folds.values()), axis=0)
        line = f"| {name} | {len(folds)} | {clean:.1f} | {worst:.1f} |"
        gains = [folds[fold][1] - base[fold][1] for fold in sorted(base.keys() & folds.keys())]
        if len(gains) > 1 and name != against:
            half = STUDENT[len(gains)] * np.std(gains, ddof=1) / len(gains) ** 0.5
            line += f" {np.mean(gains):+.1f} | {np.mean(gains) - half:+.1f} to {np.mean(gains) + half:+.1f} |"
        lines.append(line if line.count("|") == 7 else line + " | |")
    return "\n".join(lines)


def main() -> None:
    """Evaluate one row of one recipe on some folds, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=["dense", "single", "ensemble"])
    parser.add_argument("--recipe", default="digits", help="a recipe of the digits")
    parser.add_argument("--name", default="recipe", help="name of the line in the table")
    parser.add_argument(
        "--members", type=int, default=0, help="evaluate only so many of the ensemble's members; 0: all"
    )
    parser.add_argument("--against", default="dense recipe", help="the line that the others are compared with")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    outcomes = options.out / "outcomes"
    outcomes.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for fold in options.folds if options.row else ():
        path = outcomes / f"{options.row} {options.name}-{fold}.npz"
        if path.exists():
            continue
        settings = (
            f"seed={FIRST_SEED + fold}",
            f"data={{name='arrays', path='{fold_file(fold, options.out)}', held_out={HELD_OUT}}}",
            *options.settings,
        )
        recipe = load_recipe(options.recipe, settings)[1]
        model = train_row(recipe, options.row, options.out / f"fold{fold}")
        if options.members and isinstance(model, Ensemble):
            model = Ensemble(model.members[: options.members], model.combiner)
        correct = evaluate(model, recipe)
        np.savez(path, correct=correct)
        print(path.stem, 100 * correct.mean(axis=1), flush=True)
    accuracies = load(options.out)
    (options.out / "folds.json").write_text(json.dumps(accuracies, indent=1) + "\n", "utf-8")
    print(table(accuracies, options.against))


if __name__ == "__main__":
    main()
