"""Pointwise attack: pixels of a misclassified image are set back to their clean values (Schott et al. 2019)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Generator

from sparsemble.attacks.attack import Access, Attack, attacks
from sparsemble.attacks.black_box.query_oracle import QueryOracle
from sparsemble.core.argument_checks import check_at_least
from sparsemble.core.threat import Norm, ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@final
@attacks.register("pointwise")
@dataclass(frozen=True, kw_only=True)
class Pointwise(Attack):
    """Decision-based attack for l1; neither logits nor gradients are used, so neither can be masked.

    From a misclassified random image it sets back halves, quarters, ... of the values, drawn at random, and keeps each
    change that leaves the image misclassified; between the sweeps it searches along the line to the clean image. Where
    no point of the ball is misclassified, the nearest misclassified one is projected into it.

    Source: Schott et al. 2019, appendix A.2, there value by value and for l0. Departs: values are set back in groups,
    the same for all images of a batch, and the line search is ours; an image stops at its first misclassified point in
    the ball.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("l1",)
    instead: ClassVar[Mapping[Norm, str]] = {"linf": "rays", "l2": "hop_skip_jump"}
    access: ClassVar[Access] = "labels"

    queries: int = 1000
    """Forward passes for each image at most, >= 1."""

    def __post_init__(self) -> None:
        check_at_least(1, queries=self.queries)
        self._set_label(f"pointwise{self.queries}")

    def perturb(self, model: Classifier, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> Images:
        """Set values back until the queries are used up or every changed value is needed."""
        oracle = QueryOracle.with_clean(model, x, y, threat, self.queries)
        oracle.draw_first_points(rng)
        pixels, groups, used = x[0].numel(), 2, None
        while used is None or not torch.equal(used, oracle.used):
            used = oracle.used.clone()
            order = torch.randperm(pixels, generator=rng, device=x.device)
            for group in order.chunk(min(groups, pixels)):
                rows = oracle.found_rows()
                points, clean = oracle.images[rows].flatten(1), x[rows].flatten(1)
                changed = (points[:, group] != clean[:, group]).any(1)
                points[:, group] = clean[:, group]
                if bool(changed.any()):
                    oracle.query(rows[changed], points[changed].view(-1, *x.shape[1:]))
            oracle.bisect_to_clean(oracle.found_rows())
            groups *= 2
        return oracle.nearest_in_ball(rng)
