"""Compare recipes of the digits without touching its test images.

python benchmarks/cross_validate.py --row ensemble --out runs/folds  # the recipe as it is
python benchmarks/cross_validate.py --row ensemble --name three --set members=3 --out runs/folds
python benchmarks/cross_validate.py --out runs/folds --against "ensemble recipe"                       # only the table

The 1,297 training and held-out images are dealt into five folds. Each fold is once what is judged, with a seed of its
own, while the rest trains (and holds out 100 images to choose with), so every one of the 1,297 images is judged once,
and chance in training is averaged, too. Rows: dense, single (the row "harp" of a run, whatever its method) and ensemble
(all members), under PGD-50 with two losses. Stages are kept in OUT, one folder a fold, and a name is judged once:
other settings need another name. A whole run there (`sparsemble run digits --set seed=100 --set "data={name='arrays',
path='OUT/fold0.npz', held_out=100}" --out OUT/fold0`) adds its rows, under the adaptive union. The interval of a
difference is Student's over the folds: it holds chance in images and in training, but not that the folds share
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
from sparsemble.core import seeded
from sparsemble.core.artifacts import Artifact
from sparsemble.core.interfaces import Ensemble
from sparsemble.data.digits import Digits
from sparsemble.models.model_io import load_model
from sparsemble.pipeline.baselines import load_ensemble
from sparsemble.pipeline.engines.local import LocalEngine
from sparsemble.pipeline.method import lay_out
from sparsemble.pipeline.progress import PlainProgress
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import dataset

FOLDS = 5
HELD_OUT = 100
FIRST_SEED = 100
STUDENT = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Half a 95 % interval of a mean of so many values, in its standard errors."""
STRONG = (
    {"name": "pgd", "steps": 50, "step_size": 0.1, "restarts": 2},
    {"name": "pgd", "steps": 50, "step_size": 0.1, "loss": "margin"},
)


Lines = dict[str, dict[int, tuple[float, ...]]]
"""Of each line of the table and fold: clean and worst-case accuracy in percent."""


def fold_file(fold: int, folder: Path) -> Path:
    """Deal the images, each class in proportion, and write a fold as the "test" images of a file."""
    whole = Digits().load()
    parts = [part.tensors() for part in (whole.train, whole.selection, whole.calibration)]
    pixels, labels = (torch.cat(found).numpy() for found in zip(*parts, strict=True))
    order = np.random.default_rng(FOLDS).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    part = {"test": np.sort(order[fold::FOLDS])}
    part["train"] = np.setdiff1d(order, part["test"])
    images = {f"{name}_images": (255 * pixels[where, 0]).round().astype(np.uint8) for name, where in part.items()}
    path = folder / f"fold{fold}.npz"
    images |= {f"{name}_labels": labels[where] for name, where in part.items()}
    np.savez(path, allow_pickle=False, **images)
    return path


def made(recipe: Recipe, row: str, folder: Path) -> nn.Module:
    """Train what the row needs, where that is not there yet, and return it."""
    cpu = torch.device("cpu")
    stages, pool = lay_out(recipe)
    task = stages[{"dense": "dense", "single": "harp", "ensemble": "ensemble"}[row]]
    needed = [stages["dense"], task] if row != "ensemble" else [stages["dense"], *pool.values(), stages["select"], task]
    missing = [one for one in dict.fromkeys(needed) if not (folder / one.folder).is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    LocalEngine(folder, 1, "cpu", PlainProgress(Console(quiet=True), missing, None)).run(missing)
    artifact = Artifact(folder / task.folder)
    return (
        load_ensemble(artifact, recipe.ensemble.combiner, cpu)
        if row == "ensemble"
        else load_model(artifact.path, cpu).eval()
    )


def judge(model: nn.Module, recipe: Recipe) -> np.ndarray:
    """Return which images of the fold are right when clean, and under every attack: (2, N)."""
    x, y = dataset(recipe.data).test.tensors()
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    worst = clean.clone()
    for table in STRONG:
        adversarial = attacks.build(table)(model, x, y, recipe.threat, rng=seeded(FIRST_SEED))
        with torch.no_grad():
            worst &= model(adversarial).argmax(1) == y
    return torch.stack([clean, worst]).numpy()


def read(folder: Path) -> Lines:
    """Return what was judged by this script, and what whole runs in the folders of the folds say."""
    found: Lines = {}
    for path in sorted((folder / "outcomes").glob("*.npz"), key=lambda path: path.stat().st_mtime):
        name, fold = path.stem.rsplit("-", 1)
        with np.load(path, allow_pickle=False) as file:
            found.setdefault(name, {})[int(fold)] = tuple(100 * file["right"].mean(axis=1))
    for number in range(FOLDS):
        path = folder / f"fold{number}" / "report" / "summary.json"
        for row in json.loads(path.read_text("utf-8"))["rows"] if path.exists() else ():
            found.setdefault(f"run: {row['name']}", {})[number] = (100 * row["clean"], 100 * row["worst_case"])
    return found


def table(found: Lines, against: str) -> str:
    """Return the lines as Markdown, each compared with one of them, fold by fold."""
    lines = [f"| | folds | clean % | worst case % | minus {against} | 95 % |", "|---|---:|---:|---:|---:|---:|"]
    base = found.get(against, {})
    for name, folds in found.items():
        clean, worst = np.mean(list(folds.values()), axis=0)
        line = f"| {name} | {len(folds)} | {clean:.1f} | {worst:.1f} |"
        gains = [folds[fold][1] - base[fold][1] for fold in sorted(base.keys() & folds.keys())]
        if len(gains) > 1 and name != against:
            half = STUDENT[len(gains)] * np.std(gains, ddof=1) / len(gains) ** 0.5
            line += f" {np.mean(gains):+.1f} | {np.mean(gains) - half:+.1f} to {np.mean(gains) + half:+.1f} |"
        lines.append(line if line.count("|") == 7 else line + " | |")
    return "\n".join(lines)


def main() -> None:
    """Judge one row of one recipe on some folds, then print the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--row", choices=["dense", "single", "ensemble"])
    asked.add_argument("--recipe", default="digits", help="a recipe of the digits")
    asked.add_argument("--name", default="recipe", help="what the line of the table is called")
    asked.add_argument("--members", type=int, default=0, help="judge only so many of the ensemble's members; 0: all")
    asked.add_argument("--against", default="dense recipe", help="the line that the others are compared with")
    asked.add_argument("--set", action="append", default=[], dest="settings")
    asked.add_argument("--folds", type=int, nargs="*", default=list(range(FOLDS)))
    asked.add_argument("--out", type=Path, required=True)
    given = asked.parse_args()
    outcomes = given.out / "outcomes"
    outcomes.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for fold in given.folds if given.row else ():
        path = outcomes / f"{given.row} {given.name}-{fold}.npz"
        if path.exists():
            continue
        settings = (
            f"seed={FIRST_SEED + fold}",
            f"data={{name='arrays', path='{fold_file(fold, given.out)}', held_out={HELD_OUT}}}",
            *given.settings,
        )
        recipe = load_recipe(given.recipe, settings)[1]
        model = made(recipe, given.row, given.out / f"fold{fold}")
        if given.members and isinstance(model, Ensemble):
            model = Ensemble(model.members[: given.members], model.combiner)
        right = judge(model, recipe)
        np.savez(path, right=right)
        print(path.stem, 100 * right.mean(axis=1), flush=True)
    found = read(given.out)
    (given.out / "folds.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    print(table(found, given.against))


if __name__ == "__main__":
    main()
