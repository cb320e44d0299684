"""A search with squares that goes on from points already found."""

import torch
from torch import Generator

from sparsemble.attacks.apgd_core import Outcome
from sparsemble.attacks.losses.margin import Margin
from sparsemble.attacks.square import LONGEST, Draw, L2Moves, LinfMoves, Moves, Square
from sparsemble.core.pass_counter import for_images
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels

BEGUN = LONGEST // 10
"""Where in the published schedule the search sets in: large squares would undo what was found."""


@torch.no_grad()
def search_on(
    model: Classifier, found: Outcome, x: Images, y: Labels, threat: ThreatModel, queries: int, *, rng: Generator
) -> Outcome:
    """Change one small square at a time and keep what raises the margin.

    Source: Andriushchenko et al. 2020, the moves of algorithms 2 and 3 and the sizes of the last nine tenths of a
    search. Departs: they start from stripes or tiles; here gradients have made the start, and the search corrects
    what they got wrong near it.
    """
    moves: Moves = LinfMoves() if threat.norm == "linf" else L2Moves()
    best = found.only(torch.arange(len(x), device=x.device))
    for query in range(queries):
        rows = (~best.broken).nonzero()[:, 0]
        if not len(rows):
            break
        at = BEGUN + query * (LONGEST - BEGUN) // queries
        draw = Draw.sample(x, Square(queries=LONGEST).side(at, x.shape[2], x.shape[3]), rng)
        tried = moves.step(best.images[rows], x[rows], threat, draw.only(rows))
        with for_images(rows):
            logits = model(tried)
        margin = Margin()(logits, logits, y[rows])
        best.improve_(rows, Outcome(tried, logits.argmax(1) != y[rows], margin, margin))
    return best
