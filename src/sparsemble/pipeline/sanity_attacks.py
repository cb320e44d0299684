"""What the checks ask for beyond the evaluation itself: cheap attacks on a sample, the wrong way round on purpose."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.noise import Noise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import StoppingRule
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Split
from sparsemble.evaluation.robustness import Evaluation, evaluate
from sparsemble.evaluation.shard import Decide
from sparsemble.pipeline.loaded_model import LoadedModel

SAMPLE = 100
"""Images for gradient attacks, at most."""
FEW = 20
"""Images for attacks that only ask for labels, at most: they cost thousands of passes each."""
SINGLE, USUAL, LONGER = FGSM(), PGD(steps=20, label="pgd20"), PGD(steps=80, step_size=0.1, restarts=2, label="pgd80x2")
NOISE = Noise(draws=10_000)
LABELS_ONLY = {
    "linf": RayS(queries=1000, label="hard_label1000"),
    "l2": HopSkipJump(queries=1000, label="hard_label1000"),
}
"""By norm; the label names the stream of random numbers."""
TRANSFERRED = PGD(steps=20, step_size=0.1, stop_at_success=False, label="pgd20")


@final
@dataclass(frozen=True)
class Evidence:
    """Evaluations of the same model on the first images of the same split."""

    gradients: Evaluation
    """One step, 20 steps, 80 steps from two starts."""
    blind: Evaluation
    """Random noise and labels only, on fewer images."""
    transferred: Evaluation | None
    """Images crafted on the dense parent; None where there is no parent."""


def gather(
    target: LoadedModel,
    split: Split,
    threat: ThreatModel,
    *,
    rule: StoppingRule | None,
    decide: Decide | None,
    seed: int,
    folder: Path,
) -> Evidence:
    """Run the attacks that the checks compare; each shard is kept, so that a killed evaluation goes on."""

    def run(name: str, images: int, *attacks: Attack) -> Evaluation:
        part = split.subset(torch.arange(min(images, len(split)), device=split.labels.device))
        return evaluate(
            target.model, part, attacks, threat, rule=rule, decide=decide, seed=seed, folder=folder / "ledger" / name
        )

    transferred = None
    if target.parent is not None:
        transferred = run("transfer", SAMPLE, Transfer(attack=TRANSFERRED, source=target.parent))
    return Evidence(
        gradients=run("sanity", SAMPLE, SINGLE, USUAL, LONGER),
        blind=run("blind", FEW, NOISE, LABELS_ONLY[threat.norm]),
        transferred=transferred,
    )
