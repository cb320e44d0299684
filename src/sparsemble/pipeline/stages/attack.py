"""One attack on one row of the result table."""

import time
from dataclasses import dataclass
from typing import final

import torch
from safetensors.torch import save_file

from sparsemble.attacks.adaptive.surrogate import Surrogate
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset, Split, stratified
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.pipeline.rows import load_row
from sparsemble.pipeline.stage import WithData, Work, dataset, stages

SUBSET_SEED = 50
"""Fixed, so that every run and row is measured on the same test images."""


@final
@stages.register("attack")
@dataclass(frozen=True, kw_only=True)
class AttackStage(WithData):
    """Craft adversarial test images against a surrogate of the row and record what the deployed row answers."""

    seed: int
    threat: ThreatModel
    combine: Combiner
    row: str
    surrogate: Surrogate
    attack: Attack
    images: int = 0
    """Test images, stratified; 0 means all."""

    def run(self, work: Work) -> None:
        """Leave `adversarial.safetensors` and `outcome.json`."""
        split = test_images(dataset(self.data), self.images).to(work.device)
        row = load_row(self.row, work.inputs, self.combine, work.device)
        target = self.surrogate(row.ensemble, row.stop)
        rng = work.rng(f"attack {self.attack.label}")
        started = time.perf_counter()
        crafted, answers, members = [], [], []
        parts = torch.arange(len(split), device=work.device).split(100)
        with work.counting(*row.ensemble.members):
            for i, chosen in enumerate(parts):
                x, y = split.images(chosen), split.labels[chosen]
                crafted.append(self.attack(target, x, y, self.threat, rng=rng))
                output = predict_dynamic(row.ensemble, crafted[-1], row.stop)
                answers.append(output.logits.argmax(1))
                members.append(output.members_run)
                work.tell((i + 1) / len(parts), f"{i + 1}/{len(parts)} batches")
        answer = torch.cat(answers)
        save_file({"images": torch.cat(crafted).cpu()}, work.folder / "adversarial.safetensors")
        write_json(
            work.folder / "outcome.json",
            {
                "answer": answer.tolist(),
                "right": (answer == split.labels).tolist(),
                "members_run": torch.cat(members).tolist(),
                "seconds": time.perf_counter() - started,
            },
        )


def test_images(data: Dataset, images: int) -> Split:
    """Return the test split, or a fixed stratified part of it."""
    if not images or images >= len(data.test):
        return data.test
    _, part = stratified(data.test.labels.cpu().numpy(), images, SUBSET_SEED)
    return data.test.subset(torch.from_numpy(part).to(data.test.labels.device))
