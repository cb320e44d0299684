"""Write the page from the artifacts of a run; measures nothing new."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import numpy as np
from safetensors.numpy import load_file

from sparsemble.api.context import Context
from sparsemble.core.artifacts import Artifact
from sparsemble.core.config import from_dict
from sparsemble.core.registry import to_dict
from sparsemble.core.results import (
    EpochRecord,
    EvaluationResult,
    Examples,
    HeldOutAccuracy,
    LayerSparsity,
    MaskOverlap,
    RunDetails,
    RunSummary,
    SelectionRecord,
    StoppingRecord,
    SubModelRecord,
    TrainingRecord,
)
from sparsemble.evaluation.compare import paired_test
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.evaluation.inputs import select_images
from sparsemble.evaluation.run_models import running_labels
from sparsemble.evaluation.statistics import chance_level
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Inputs, Stage, dataset, stages, with_prefix
from sparsemble.pipeline.stages.evaluate import EXAMPLES, RESULTS
from sparsemble.report import write_run_report

TRAININGS = ("dense", "small_dense", "harp", "ensemble")


@final
@stages.register("report")
@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Tables, plots and one page."""

    version: ClassVar[int] = 4
    title: str
    """Name of the run."""
    command: str
    """What reproduces it."""
    recipe: Recipe

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `index.html`, `report.md`, `summary.json`, `details.json` and the figures."""
        images = Examples(**load_file(inputs["evaluate"].file(EXAMPLES)))
        write_run_report(self._summary(context, inputs), self._details(inputs), images, context.output)

    def _summary(self, context: Context, inputs: Inputs) -> RunSummary:
        """Return the rows of the run and how they were made."""
        rows = [from_dict(EvaluationResult, row, RESULTS) for row in inputs["evaluate"].json(RESULTS)]
        select = inputs["select"].json("select.json")
        stopping = inputs["stop"].json("stopping.json")
        settings = dict(stopping["rule"])
        stored = {name: stopping[name] for name in STOPPING}
        record = {"rule": settings.pop("name"), "settings": settings, **stored}
        by_name = {row.name: row for row in rows}
        attacked = select_images(dataset(self.recipe.data), self.recipe.evaluate.images)
        return RunSummary(
            name=self.title,
            command=self.command,
            seed=self.seed,
            rows=tuple(replace(row, command=self.command) for row in rows),
            selection=SelectionRecord(
                ensemble=tuple(select["ensemble"]),
                robust_diversity=select["robust_diversity"],
                threshold=to_dict(self.recipe)["select"].get("threshold"),
                reason=select["reason"],
                at_chance=tuple(select["at_chance"]),
            ),
            stopping=from_dict(
                StoppingRecord,
                {**record, "order": running_labels(inputs["ensemble"], inputs["stop"])},
                "stopping",
            ),
            against_parent=paired_test(by_name["ensemble_dynamic"], by_name["dense"]),
            chance=chance_level(attacked.labels.cpu().numpy()),
            machine=machine(context.device) | {"latency_threads": inputs["latency"].json("latency.json")["threads"]},
            recipe=to_dict(self.recipe),
            versions=versions(),
            source=source_revision() or None,
        )

    def _details(self, inputs: Inputs) -> RunDetails:
        """Return layers, masks, sub-models and trainings."""
        select = inputs["select"].json("select.json")
        read = {role: Artifact(inputs["select"].path.parent / f) for role, f in inputs["select"].meta["inputs"].items()}
        sparsity = {
            score.name: tuple(
                np.mean([v for k, v in select["layer_sparsity"].items() if k.startswith(f"{score.name}-")], 0).tolist()
            )
            for score in self.recipe.prune.scores
        }
        return RunDetails(
            classes=tuple(dataset(self.recipe.data).classes),
            layers=LayerSparsity(
                names=tuple(select["layers"]), weights=tuple(select["layer_weights"]), sparsity=sparsity
            ),
            overlap=MaskOverlap(names=tuple(select["pool"]), jaccard=tuple(map(tuple, select["overlap"]))),
            pool=tuple(
                replace(from_dict(SubModelRecord, artifact.json("pruned.json"), "pruned.json"), name=label)
                for label, artifact in with_prefix(read, "pool").items()
            ),
            trainings=tuple(
                TrainingRecord(name=name, epochs=tuple(_epoch(record) for record in history))
                for name in TRAININGS
                if (history := inputs[name].json_lines("history.jsonl"))
            ),
        )


STOPPING = ("images", "allowed", "tried", "outcome", "full_ensemble", "sensitivity")
"""Fields of `stopping.json` that a run's summary holds as they are."""


def _epoch(record: dict[str, Any]) -> EpochRecord:
    """Return one epoch of a history."""
    clean, robust = record.get("held_out_clean"), record.get("held_out_robust")
    return EpochRecord(
        epoch=record["epoch"],
        loss=record["loss"],
        learning_rate=record["learning_rate"],
        held_out=None if clean is None or robust is None else HeldOutAccuracy(clean=clean, robust=robust),
        rolled_back=tuple(record.get("rolled_back") or ()),
        stopped=record.get("stopped"),
    )
