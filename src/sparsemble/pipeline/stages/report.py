"""Write the page from the artifacts of a run; measures nothing new."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from safetensors.numpy import load_file

from sparsemble.api.context import Context
from sparsemble.core.artifacts import Artifact
from sparsemble.core.config import from_dict
from sparsemble.core.registry import to_dict
from sparsemble.core.results import SubModelRecord
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.pipeline.baselines import ROWS, running_order
from sparsemble.pipeline.recipe import Recipe, resolved
from sparsemble.pipeline.stage import Inputs, Stage, dataset, stages, with_prefix
from sparsemble.report import write_report
from sparsemble.report.summary import SCHEMA_VERSION

BELONGS_TO = {
    "dense": "dense",
    "small_dense": "small_dense",
    "harp": "harp",
    "best_member": "select",
    "ensemble_static": "ensemble",
    "ensemble_dynamic": "stop",
}
"""The stage that a row's training ends with: everything that it was made of counts as its cost."""


@final
@stages.register("report")
@dataclass(frozen=True, kw_only=True)
class ReportStage(Stage):
    """Tables, plots and one page."""

    version: ClassVar[int] = 2
    seed: int
    title: str
    """Name of the run."""
    command: str
    """What reproduces it."""
    recipe: Recipe

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `index.html`, `report.md`, `summary.json` and the figures."""
        write_report(
            self._summary(context, inputs), self._figures(context, inputs), _examples(context, inputs), context.output
        )

    def _summary(self, context: Context, inputs: Inputs) -> dict[str, Any]:
        """Return the numbers of the run (docs/summary.md)."""
        latency = inputs["latency"].json("latency.json")
        rows = inputs["evaluate"].json("rows.json")
        for row in rows:
            del row["members_run_counts"]
            found = latency["rows"][row["name"]]
            sizes = ("batch_1", "batch_64")
            row["latency_ms"] = {size: found[size]["median_ms"] for size in sizes}
            row["engine_ms"] = {size: found[f"engine_{size}"]["median_ms"] for size in sizes}
            last = inputs[BELONGS_TO[row["name"]]]
            # The small dense network only takes its width from the ensemble; nothing of the ensemble goes into it.
            made_from = [last] if row["name"] == "small_dense" else ancestry(last)
            row["training_passes"] = sum(sum(stage.meta["passes"].values()) for stage in made_from)
            row["seconds"] = sum(stage.meta["seconds"] for stage in made_from)
        select = inputs["select"].json("select.json")
        stopping = inputs["stop"].json("stopping.json")
        settings = dict(stopping["rule"])
        return {
            "schema": SCHEMA_VERSION,
            "name": self.title,
            "threat": {"norm": self.recipe.threat.norm, "eps": self.recipe.threat.eps},
            "seed": self.seed,
            "command": self.command,
            "rows": sorted(rows, key=lambda row: ROWS.index(row["name"])),
            "checks": inputs["evaluate"].json("checks.json"),
            "selection": {
                "ensemble": select["ensemble"],
                "robust_diversity": select["robust_diversity"],
                "threshold": resolved(self.recipe)["select"].get("threshold"),
                "rule": select["reason"],
            },
            "stopping": {
                "rule": settings.pop("name"),
                "settings": settings,
                "order": running_order(inputs["ensemble"], inputs["stop"]),
                "held_out": {key: stopping[key] for key in ("images", "allowed", "tried", "outcome")}
                | {"static": stopping["full_ensemble"]},
                "sensitivity": stopping["sensitivity"],
            },
            "machine": machine(context.device) | {"latency_threads": latency["threads"]},
            "recipe": resolved(self.recipe),
            "versions": versions(),
            "source": source_revision(),
        }

    def _figures(self, context: Context, inputs: Inputs) -> dict[str, Any]:
        """Return what the plots need."""
        data = dataset(self.recipe.data)
        select = inputs["select"].json("select.json")
        rows = {row["name"]: row for row in inputs["evaluate"].json("rows.json")}
        counts = rows["ensemble_dynamic"]["members_run_counts"]
        curves = {row: artifact.json("curve.json") for row, artifact in with_prefix(inputs, "curve").items()}
        first = next(iter(curves.values()), None)
        by_score = {
            score.name: np.mean([v for k, v in select["layer_sparsity"].items() if k.startswith(f"{score.name}-")], 0)
            for score in self.recipe.prune.scores
        }
        return {
            "classes": list(data.classes),
            "curves": {
                "eps": first["eps"],
                "images": first["images"],
                "rows": {row: curve["accuracy"] for row, curve in curves.items()},
            }
            if first
            else {},
            "members_run": {"members": len(counts["clean"]), **counts},
            "layers": {
                "names": select["layers"],
                "weights": select["layer_weights"],
                "sparsity": {score: values.tolist() for score, values in by_score.items()},
            },
            "overlap": {"names": select["pool"], "jaccard": select["overlap"]},
            "pool": {label: _pruned(artifact) for label, artifact in _pool(inputs["select"]).items()},
            "training": {
                name: [_epoch(record) for record in inputs[name].json_lines("history.jsonl")]
                for name in ("dense", "small_dense", "harp", "ensemble")
            },
        }


def _pruned(artifact: Artifact) -> dict[str, Any]:
    record = from_dict(SubModelRecord, artifact.json("pruned.json"), "pruned.json")
    accuracies = {
        when: {"held_out_clean": accuracy.clean, "held_out_robust": accuracy.robust}
        for when, accuracy in (
            ("held_out_before", record.before_finetuning),
            ("held_out_after", record.after_finetuning),
        )
    }
    table: dict[str, Any] = to_dict(record)
    return table | accuracies | {"layers": {"all": [record.nonzeros - record.dead_weights, record.weights]}}


def _pool(select: Artifact) -> dict[str, Artifact]:
    """Return the sub-models that the ensemble was chosen from."""
    beside = select.path.parent
    return {
        role.removeprefix("pool."): Artifact(beside / folder)
        for role, folder in select.meta["inputs"].items()
        if role.startswith("pool.")
    }


def ancestry(artifact: Artifact) -> list[Artifact]:
    """Return an artifact and all it was made from, each once."""
    found: dict[str, Artifact] = {}
    waiting = [artifact]
    while waiting:
        one = waiting.pop()
        if one.path.name not in found:
            found[one.path.name] = one
            waiting += [Artifact(one.path.parent / folder) for folder in one.meta["inputs"].values()]
    return list(found.values())


def _examples(context: Context, inputs: Inputs) -> dict[str, np.ndarray]:
    return load_file(inputs["evaluate"].file("examples.safetensors"))


def _epoch(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("epoch", "loss", "held_out_clean", "held_out_robust", "learning_rate", "rolled_back", "stopped")
    return {key: record.get(key) for key in keys}
