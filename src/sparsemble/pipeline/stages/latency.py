"""How long each row takes in torch on this machine, while nothing else runs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import final

import torch

from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.evaluation.latency import measure_latency
from sparsemble.pipeline.rows import ROWS, Row, load_row
from sparsemble.pipeline.stage import WithData, Work, dataset, stages

SINGLE_IMAGES = 16
BATCH = 64


@final
@stages.register("latency")
@dataclass(frozen=True, kw_only=True)
class LatencyStage(WithData):
    """Median over interleaved rounds, one thread, clean test images; batch 1 is a mean over several images."""

    seed: int
    combine: Combiner
    rounds: int = 9

    def run(self, work: Work) -> None:
        """Leave `latency.json`."""
        images = dataset(self.data).test.images(torch.arange(min(BATCH, len(dataset(self.data).test)))).to(work.device)
        rows = {name: load_row(name, work.inputs, self.combine, work.device) for name in ROWS}
        singles = images[:SINGLE_IMAGES]
        calls: dict[str, Callable[[], object]] = {}
        for name, row in rows.items():
            calls[f"{name} 64"] = _call(name, row, [images])
            calls[f"{name} 1"] = _call(name, row, list(singles.split(1)))
        with torch.inference_mode():
            found = measure_latency(calls, rounds=self.rounds, warm_up=2)
        scale = {"64": 1, "1": len(singles)}
        latency = {
            name: {
                f"batch_{batch}": {k: v / scale[batch] for k, v in asdict(found[f"{name} {batch}"]).items()}
                for batch in scale
            }
            for name in rows
        }
        facts = {"batch": len(images), "threads": torch.get_num_threads(), "device": str(work.device), "rows": latency}
        write_json(work.folder / "latency.json", facts)


def _call(name: str, row: Row, batches: list[torch.Tensor]) -> Callable[[], object]:
    """Return what is timed: the deployed answer on each batch, ready on the CPU."""
    if name == "team_dynamic":
        return lambda: [predict_dynamic(row.ensemble, x, row.stop).logits.argmax(1).cpu() for x in batches]
    model = row.ensemble if name == "team_static" else row.ensemble.members[0]
    return lambda: [model(x).argmax(1).cpu() for x in batches]
