"""Measure how much of its score a trained network keeps in blocks, and what a permutation of its channels gains.

python benchmarks/kept_score.py --target runs/digits
python benchmarks/kept_score.py --target net.safetensors --model '{name = "resnet18", width = 8}' --data gtsrb32.npz

Prints Markdown: the kept score in % of the whole network's, with as many kept weights in every row, for each sparsity
and granularity. Scores that look at images get 256 training images, not attacked. Nothing is trained, and no test image
is used.
"""

import argparse

import torch

import sparsemble.ensemble  # noqa: F401 (a run names its combiner and rule)
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.resolve_data import resolve_data
from sparsemble.models.graph import Graph
from sparsemble.pruning import SparsityTarget, pruning_scores
from sparsemble.pruning.granularities.block import Block
from sparsemble.pruning.granularities.weight import Weight
from sparsemble.pruning.granularity import Granularity
from sparsemble.pruning.permutation import permute_channels
from sparsemble.pruning.score import Scores

IMAGES = 256
ROWS: dict[str, Granularity] = {
    "weight": Weight(),
    "block, 1x4 along inputs": Block(axis="in"),
    "block, 1x4 along inputs, channels permuted": Block(axis="in", permute=True),
    "block, 4x1 along outputs": Block(),
    "block, 4x1 along outputs, channels permuted": Block(permute=True),
}


@torch.no_grad()
def kept_share(model: torch.nn.Module, scores: Scores, target: SparsityTarget) -> float:
    """Return the share of the score that the mask of a target keeps."""
    _, permuted = permute_channels(model, scores, target)
    mask = target.mask(permuted)
    kept = sum(float(permuted[name][keep].sum()) for name, keep in mask.items())
    return kept / sum(float(score.sum()) for score in scores.values())


def main() -> None:
    """Load, score, mask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--target", required=True, help="a run, of which the dense parent is taken, or any dense network"
    )
    parser.add_argument("--model", default="", help="the architecture of a file of weights")
    parser.add_argument("--data", default="", help="its images, where the target does not name them")
    parser.add_argument("--score", default="magnitude", choices=pruning_scores.names())
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    options = parser.parse_args()
    data = resolve_data(options.data).load() if options.data else None
    loaded = load_target(options.target, row="dense", model=options.model, data=data)
    if data is None:
        if loaded.data is None:
            parser.error(f"{options.target} does not say what it was trained on; give images with --data")
        data = loaded.data.load()
    model = loaded.model.eval()
    x, y = data.train.subset(torch.arange(min(IMAGES, len(data.train)))).tensors()
    scores = pruning_scores.build(options.score)(model, lambda: [(x, y)])
    graph = Graph(model, data.shape)
    print(f"| {options.score}, % kept at | {' | '.join(map(str, options.sparsity))} |")
    print(f"|---|{'---:|' * len(options.sparsity)}")
    for name, granularity in ROWS.items():
        targets = (SparsityTarget(graph=graph, sparsity=s, granularity=granularity) for s in options.sparsity)
        shares = [kept_share(model, scores, target) for target in targets]
        print(f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
