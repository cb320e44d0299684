"""Put the attacks of every row together: one evaluation result a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from safetensors.numpy import save_file

from sparsemble.api.context import Context
from sparsemble.attacks.ensemble.ensemble_attack import ensemble_attacks
from sparsemble.core.artifacts import Artifact, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.registry import to_dict
from sparsemble.core.results import EvaluationResult, SecurityCurve, Timing
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.evaluator import EvaluationSettings, data_record, evaluate
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.metrics import examples
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Report
from sparsemble.evaluation.run_attacks import CraftedImages, run_attacks
from sparsemble.evaluation.run_models import ROWS, Row, load_row, row_masks
from sparsemble.pipeline.stage import Inputs, dataset, fingerprint, stages
from sparsemble.pipeline.stages.attack import ATTACK, STORE, RowStage, attacks_on

COMMAND = "sparsemble run recipe.toml"
"""What reproduces a result, in the folder of its run."""
RESULTS, EXAMPLES = "results.json", "examples.safetensors"
BUDGET = 0.1
"""Of the checks of a row, in passes of its headline attack: the rows of a run are checked one after the other."""
ENSEMBLE = 2.5
"""Time of the checks of an ensemble, in those of a single network, for the progress report."""
MADE_BY = {
    "dense": "dense",
    "small_dense": "small_dense",
    "harp": "harp",
    "best_member": "select",
    "ensemble_static": "ensemble",
    "ensemble_dynamic": "stop",
}
"""The stage that a row's training ends with: everything that it was made of counts as its cost."""


@final
@stages.register("evaluate")
@dataclass(frozen=True, kw_only=True)
class EvaluateStage(RowStage):
    """Evaluate every row from the outcomes of its attacks, with curve, members, cost and checks."""

    version: ClassVar[int] = 5

    sparsity: float
    """That the recipe asks for, of the whole ensemble counted against one dense parent."""
    member_sparsity: float
    parent_trained_here: bool = True
    """Whether the dense parent was trained on the data set alone; else its training data are not known."""

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `results.json`, one evaluation result a row, and `examples.safetensors`."""
        results: dict[str, EvaluationResult] = {}
        work = [ENSEMBLE if name.startswith("ensemble") else 1.0 for name in ROWS]
        for i, name in enumerate(ROWS):

            def report(fraction: float, text: str, i: int = i, name: str = name) -> None:
                context.report_progress((sum(work[:i]) + fraction * work[i]) / sum(work), f"{name}: {text}")

            results[name] = self._evaluate(name, results, context, inputs, report)
        write_json(context.output / RESULTS, [to_dict(result) for result in results.values()])

    def _evaluate(
        self, name: str, beside: Mapping[str, EvaluationResult], context: Context, inputs: Inputs, report: Report
    ) -> EvaluationResult:
        """Return the result of a row; its attacks are read from the stages that ran them."""
        data = dataset(self.data)
        row = load_row(name, inputs, self.combiner, context.device)
        job, store = self._attacked(name, row, context, inputs)
        crafted = self._crafted(context, inputs) if name == "ensemble_dynamic" else ()
        settings = EvaluationSettings(
            command=COMMAND,
            budget=BUDGET,
            available=len(data.test),
            curve=_curve(name, inputs),
            latency=_latency(name, inputs),
            training_passes=sum(sum(stage.meta["passes"].values()) for stage in _made_from(name, inputs)),
            training_seconds=sum(stage.meta["seconds"] for stage in _made_from(name, inputs)),
            crafted=crafted,
            beside=dict(beside),
        )
        record = data_record(self.data, fingerprint(self.data), data, self.images)
        result = evaluate(job, self._target(name, row, context, inputs), record, settings, store=store, report=report)
        if name == "ensemble_dynamic":
            outcomes = run_attacks(job, store, crafted=crafted)
            few = {key: np.ascontiguousarray(value) for key, value in vars(examples(outcomes, job.split)).items()}
            save_file(few, context.output / EXAMPLES)
        return result

    def _attacked(self, name: str, row: Row, context: Context, inputs: Inputs) -> tuple[EvaluationJob, OutcomeStore]:
        """Return the job of a row, and a store that reads the outcomes of its finished attacks."""
        artifacts = attacks_on(name, inputs).values()
        attacks = tuple(ensemble_attacks.build(artifact.json(ATTACK)["attack"]) for artifact in artifacts)
        store = OutcomeStore(finished=[artifact.file(STORE) for artifact in artifacts])
        return self.job(row, attacks, context.device), store

    def _crafted(self, context: Context, inputs: Inputs) -> tuple[CraftedImages, ...]:
        """Return what was crafted for the static ensemble: an attack on the dynamic one, too."""
        name = "ensemble_static"
        row = load_row(name, inputs, self.combiner, context.device)
        job, store = self._attacked(name, row, context, inputs)
        outcomes = run_attacks(job, store)
        return tuple(
            CraftedImages(attack, outcomes.attacks[attack.label], outcomes.adversarial(attack.label))
            for attack in job.attacks
        )

    def _target(self, name: str, row: Row, context: Context, inputs: Inputs) -> LoadedModel:
        """Return what is known of a row."""
        dense = load_row("dense", inputs, self.combiner, context.device).ensemble.members[0]
        return LoadedModel(
            name=name,
            kind="run",
            path=inputs[MADE_BY[name]].path.name,
            model=row.ensemble,
            rule=row.rule,
            data=self.data,
            threat=self.threat,
            selected_on="held-out",
            extra_data="none" if self.parent_trained_here or name == "small_dense" else None,
            claimed_sparsity=claimed_sparsity(self.sparsity, self.member_sparsity)[name],
            dense_weights=count_weights(dense).total,
            masks=row_masks(name, inputs, wrapped=True),
            parent=None if name == "dense" else dense,
        )


def claimed_sparsity(sparsity: float, member_sparsity: float) -> dict[str, float]:
    """Return the sparsity that a recipe asks for, by row; of ensembles counted against one dense parent."""
    claimed = {"dense": 0.0, "small_dense": 0.0, "best_member": member_sparsity}
    return {row: claimed.get(row, sparsity) for row in ROWS}


def _curve(name: str, inputs: Inputs) -> SecurityCurve | None:
    """Return the security curve of a row, if the recipe asks for one."""
    artifact = inputs.get(f"curve.{name}")
    return from_dict(SecurityCurve, artifact.json("curve.json"), "curve") if artifact else None


def _latency(name: str, inputs: Inputs) -> dict[str, dict[str, Timing]]:
    """Return the latency of a row, measured while nothing else ran."""
    engines = inputs["latency"].json("latency.json")["rows"][name]
    return {
        engine: {batch: from_dict(Timing, timing, batch) for batch, timing in batches.items()}
        for engine, batches in engines.items()
    }


def _made_from(name: str, inputs: Inputs) -> list[Artifact]:
    """Return the artifacts that a row was made from."""
    last = inputs[MADE_BY[name]]
    # The small dense network only takes its width from the ensemble; nothing of the ensemble goes into it.
    return [last] if name == "small_dense" else ancestry(last)


def ancestry(artifact: Artifact) -> list[Artifact]:
    """Return an artifact and all it was made from, each once."""
    artifacts: dict[str, Artifact] = {}
    waiting = [artifact]
    while waiting:
        one = waiting.pop()
        if one.path.name not in artifacts:
            artifacts[one.path.name] = one
            waiting += [Artifact(one.path.parent / folder) for folder in one.meta["inputs"].values()]
    return list(artifacts.values())
