"""From a finished run to files that others can run: packed ensemble, ONNX, a folder for model hubs."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import torch

from sparsemble.api.context import Context
from sparsemble.api.quantization import in_8_bits
from sparsemble.attacks.ensemble.suite import BLACK_BOX
from sparsemble.core.interfaces import stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.core.results import ArithmeticChange, RunSummary
from sparsemble.data.dataset import Dataset
from sparsemble.evaluation.arithmetic import arithmetic_change, attacks_on_both
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.environment import source_revision, versions
from sparsemble.evaluation.run_models import Row, load_row
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.export_ensemble import export_ensemble
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.pipeline.recipe import Recipe
from sparsemble.pipeline.stage import Inputs, Stage, dataset, stages
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble

CPU = torch.device("cpu")
"""Where an export is made and checked: it is for CPUs."""


@final
@stages.register("export")
@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """Fold, round, write, read back, and compare on held-out images: folded with trained, read with rounded."""

    version: ClassVar[int] = 2

    title: str
    """Name of the run."""
    recipe: Recipe

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `ensemble.sparsemble`, `onnx/`, `hub/` and `export.json`."""
        recipe, data, combiner = self.recipe, dataset(self.recipe.data), self.recipe.ensemble.combiner
        row = load_row("ensemble_dynamic", inputs, combiner, CPU)
        converted = convert_ensemble(
            row.ensemble,
            row.rule,
            data.classes,
            data.shape,
            count_weights(load_row("dense", inputs, combiner, CPU).ensemble).total,
            preprocessing=data.preprocessing,
            recipe=to_dict(recipe),
            provenance={
                "run": self.title,
                "seed": self.seed,
                "source": source_revision() or "",
                "selected_on": "held-out",
                **({} if recipe.parent else {"extra_data": "none"}),
                **versions(),
            },
        )
        quantized, done = None, 0.0
        if recipe.export.arithmetic == "int8":
            done = 0.5  # of the work, when the ensemble is in 8 bits
            quantized = in_8_bits(
                row.ensemble,
                converted,
                data,
                recipe.threat,
                held_out_attack=recipe.held_out_attack,
                context=replace(context, device=CPU),
                **vars(recipe.stopping),
            )
        result = export_ensemble(
            row.ensemble,
            row.rule,
            converted,
            context.output,
            held_out=data.calibration,
            attack=recipe.held_out_attack,
            threat=recipe.threat,
            to_torch=to_torch_ensemble,
            make_rng=lambda purpose: context.rng(purpose, CPU),
            values=recipe.export.values or "float16",
            quantized=quantized,
            summary=RunSummary.load(inputs["report"].file("summary.json")),
            report_progress=lambda share, text: context.report_progress(done + (1 - done) * share, text),
        )
        if quantized:
            result = replace(result, change=self._change(row, quantized, data))
        result.save(context.output / "export.json")

    def _change(self, row: Row, quantized: PackedEnsemble, data: Dataset) -> ArithmeticChange:
        """Attack the ensemble in both arithmetics."""
        recipe = self.recipe
        return arithmetic_change(
            row,
            Row(to_torch_ensemble(quantized), stopping_rules.build(dict(quantized.rule))),
            data.calibration,
            recipe.threat,
            attacks_on_both(recipe.held_out_attack, recipe.evaluate.black_box or BLACK_BOX),
            seed=self.seed,
        )
