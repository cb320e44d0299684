"""How long each row takes on this machine, in torch and in the engine, while nothing else runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sparsemble.api.context import Context
from sparsemble.core.artifacts import write_json
from sparsemble.core.dynamic import predict_dynamic
from sparsemble.core.interfaces import Combiner
from sparsemble.core.registry import to_dict
from sparsemble.evaluation.latency import measure_latency
from sparsemble.evaluation.run_models import ROWS, Row, load_row
from sparsemble.export.convert import convert_ensemble
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages
from sparsemble.runtime.predictor import Predictor

SINGLE_IMAGES = 16
BATCH = 64


@final
@stages.register("latency")
@dataclass(frozen=True, kw_only=True)
class LatencyStage(WithData):
    """Median over interleaved rounds, one thread, clean test images; batch 1 is a mean over several images."""

    version: ClassVar[int] = 3

    combiner: Combiner
    rounds: int = 9

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `latency.json`."""
        images = (
            dataset(self.data).test.images(torch.arange(min(BATCH, len(dataset(self.data).test)))).to(context.device)
        )
        rows = {name: load_row(name, inputs, self.combiner, context.device) for name in ROWS}
        singles = images[:SINGLE_IMAGES]
        calls: dict[str, Callable[[], object]] = {}
        for name, row in rows.items():
            calls[f"{name} 64"] = _call(name, row, [images])
            calls[f"{name} 1"] = _call(name, row, list(singles.split(1)))
            engine = self._engine(row)
            calls[f"{name} engine_64"] = _answers(engine, [images])
            calls[f"{name} engine_1"] = _answers(engine, list(singles.split(1)))
        with torch.inference_mode():
            times = measure_latency(calls, rounds=self.rounds, warmup=2)
        batches = {"batch_64": ("64", 1), "batch_1": ("1", len(singles))}
        latency = {
            name: {
                engine: {
                    batch: to_dict(times[f"{name} {prefix}{key}"].timing(count))
                    for batch, (key, count) in batches.items()
                }
                for engine, prefix in (("torch", ""), ("engine", "engine_"))
            }
            for name in rows
        }
        facts = {
            "batch": len(images),
            "threads": torch.get_num_threads(),
            "device": str(context.device),
            "rows": latency,
        }
        write_json(context.output / "latency.json", facts)

    def _engine(self, row: Row) -> Predictor:
        """Return a row in the engine; its weights are not rounded."""
        data = dataset(self.data)
        return Predictor(convert_ensemble(row.ensemble, row.rule, data.classes, data.shape, 1))


def _answers(engine: Predictor, batches: list[torch.Tensor]) -> Callable[[], object]:
    arrays = [batch.cpu().numpy() for batch in batches]
    return lambda: [engine.predict(x).labels for x in arrays]


def _call(name: str, row: Row, batches: list[torch.Tensor]) -> Callable[[], object]:
    """Return what is timed: the deployed answer on each batch, ready on the CPU."""
    if name == "ensemble_dynamic":
        return lambda: [predict_dynamic(row.ensemble, x, row.rule).logits.argmax(1).cpu() for x in batches]
    model = row.ensemble if name == "ensemble_static" else row.ensemble.members[0]
    return lambda: [model(x).argmax(1).cpu() for x in batches]
