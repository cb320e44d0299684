"""Write the page from the artifacts of a run; measures nothing new."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
from safetensors.numpy import load_file

from sparsemble.core.artifacts import Artifact
from sparsemble.evaluation.environment import machine, source_revision, versions
from sparsemble.pipeline.baselines import ROWS, running_order
from sparsemble.pipeline.recipe import Recipe, resolved
from sparsemble.pipeline.stage import Stage, Work, dataset, stages
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

    def run(self, work: Work) -> None:
        """Leave `index.html`, `report.md`, `summary.json` and the figures."""
        write_report(self._summary(work), self._figures(work), _examples(work), work.folder)

    def _summary(self, work: Work) -> dict[str, Any]:
        """Return the numbers of the run (docs/summary.md)."""
        latency = work.inputs["latency"].json("latency.json")
        rows = work.inputs["evaluate"].json("rows.json")
        for row in rows:
            del row["members_run_counts"]
            found = latency["rows"][row["name"]]
            sizes = ("batch_1", "batch_64")
            row["latency_ms"] = {size: found[size]["median_ms"] for size in sizes}
            row["engine_ms"] = {size: found[f"engine_{size}"]["median_ms"] for size in sizes}
            last = work.inputs[BELONGS_TO[row["name"]]]
            # The small dense network only takes its width from the ensemble; nothing of the ensemble goes into it.
            made_from = [last] if row["name"] == "small_dense" else ancestry(last)
            row["training_passes"] = sum(sum(stage.meta["passes"].values()) for stage in made_from)
            row["seconds"] = sum(stage.meta["seconds"] for stage in made_from)
        select = work.inputs["select"].json("select.json")
        stopping = work.inputs["stop"].json("stopping.json")
        settings = dict(stopping["rule"])
        return {
            "schema": SCHEMA_VERSION,
            "name": self.title,
            "threat": {"norm": self.recipe.threat.norm, "eps": self.recipe.threat.eps},
            "seed": self.seed,
            "command": self.command,
            "rows": sorted(rows, key=lambda row: ROWS.index(row["name"])),
            "checks": work.inputs["evaluate"].json("checks.json"),
            "selection": {
                "ensemble": select["ensemble"],
                "robust_diversity": select["robust_diversity"],
                "threshold": resolved(self.recipe)["select"].get("threshold"),
                "rule": select["reason"],
            },
            "stopping": {
                "rule": settings.pop("name"),
                "settings": settings,
                "order": running_order(work.inputs["ensemble"], work.inputs["stop"]),
                "held_out": {key: stopping[key] for key in ("images", "allowed", "tried", "outcome")}
                | {"static": stopping["full_ensemble"]},
                "sensitivity": stopping["sensitivity"],
            },
            "machine": machine(work.device) | {"latency_threads": latency["threads"]},
            "recipe": resolved(self.recipe),
            "versions": versions(),
            "source": source_revision(),
        }

    def _figures(self, work: Work) -> dict[str, Any]:
        """Return what the plots need."""
        data = dataset(self.recipe.data)
        select = work.inputs["select"].json("select.json")
        rows = {row["name"]: row for row in work.inputs["evaluate"].json("rows.json")}
        counts = rows["ensemble_dynamic"]["members_run_counts"]
        curves = {row: artifact.json("curve.json") for row, artifact in work.pool("curve").items()}
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
            "pool": {label: artifact.json("pruned.json") for label, artifact in _pool(work.inputs["select"]).items()},
            "training": {
                name: [_epoch(record) for record in work.inputs[name].json_lines("history.jsonl")]
                for name in ("dense", "small_dense", "harp", "ensemble")
            },
        }


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


def _examples(work: Work) -> dict[str, np.ndarray]:
    return load_file(work.inputs["evaluate"].file("examples.safetensors"))


def _epoch(record: dict[str, Any]) -> dict[str, Any]:
    keys = ("epoch", "loss", "held_out_clean", "held_out_robust", "learning_rate", "rolled_back", "stopped")
    return {key: record.get(key) for key in keys}
