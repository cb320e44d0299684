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
COMPILING = 0.5
"""Share of the time, for the progress report, in which networks are compiled; then nothing may disturb."""


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
        data = dataset(self.data)
        images = data.test.images(torch.arange(min(BATCH, len(data.test)))).to(context.device)
        batches = {"batch_64": [images], "batch_1": list(images[:SINGLE_IMAGES].split(1))}
        calls: dict[str, Callable[[], object]] = {}
        for i, name in enumerate(ROWS):
            context.report_progress(COMPILING * i / len(ROWS), f"compiling {name}")
            row = load_row(name, inputs, self.combiner, context.device)
            engine = Predictor(convert_ensemble(row.ensemble, row.rule, data.classes, data.shape, 1))  # not rounded
            for batch, xs in batches.items():
                calls[f"{name} torch {batch}"] = _in_torch(name, row, xs)
                calls[f"{name} engine {batch}"] = _in_engine(engine, xs)
        context.report_progress(COMPILING, "measuring")
        with torch.inference_mode():
            times = measure_latency(calls, rounds=self.rounds, warmup=2)
        latency = {
            name: {
                engine: {
                    batch: to_dict(times[f"{name} {engine} {batch}"].timing(len(xs))) for batch, xs in batches.items()
                }
                for engine in ("torch", "engine")
            }
            for name in ROWS
        }
        facts = {"batch": len(images), "threads": torch.get_num_threads(), "device": str(context.device)}
        write_json(context.output / "latency.json", {**facts, "rows": latency})


def _in_engine(engine: Predictor, batches: list[torch.Tensor]) -> Callable[[], object]:
    arrays = [batch.cpu().numpy() for batch in batches]
    return lambda: [engine.predict(x).labels for x in arrays]


def _in_torch(name: str, row: Row, batches: list[torch.Tensor]) -> Callable[[], object]:
    """Return what is timed: the deployed prediction on each batch, ready on the CPU."""
    if name == "ensemble_dynamic":
        return lambda: [predict_dynamic(row.ensemble, x, row.rule).logits.argmax(1).cpu() for x in batches]
    model = row.ensemble if name == "ensemble_static" else row.ensemble.members[0]
    return lambda: [model(x).argmax(1).cpu() for x in batches]
