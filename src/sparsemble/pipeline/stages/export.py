"""From a finished run to files that others can run: packed ensemble, ONNX, a folder for model hubs."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch

from sparsemble.api.context import Context
from sparsemble.core.artifacts import write_json
from sparsemble.core.config import from_dict
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.results import ExportResult, RunSummary
from sparsemble.core.types import Images, MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.environment import source_revision, versions
from sparsemble.evaluation.folded import FoldedNetwork
from sparsemble.evaluation.run_models import Row, load_row
from sparsemble.export.agreement import agreement, held_to
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.hub import load_folder, save_folder
from sparsemble.pipeline.recipe import Recipe, resolved
from sparsemble.pipeline.stage import Inputs, Stage, dataset, stages
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.predictor import Predictor
from sparsemble.training.validation import adversarial_images, member_logits

PACKED = "ensemble.sparsemble"
NO_ONNX = "needs onnx and onnxruntime; pip install 'sparsemble[export]'"
CPU = torch.device("cpu")
"""Where an export is made and compared: others will run it there."""


@final
@stages.register("export")
@dataclass(frozen=True, kw_only=True)
class ExportStage(Stage):
    """Fold, round, write, read back, and compare on held-out images: folded with trained, read with rounded."""

    version: ClassVar[int] = 2

    seed: int
    title: str
    """Name of the run."""
    recipe: Recipe

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `ensemble.sparsemble`, `onnx/`, `hub/` and `export.json`."""
        values, combiner = self.recipe.export.values, self.recipe.ensemble.combiner
        row = load_row("ensemble_dynamic", inputs, combiner, CPU)
        parent_weights = count_weights(load_row("dense", inputs, combiner, CPU).ensemble).total
        whole = self._folded(row, parent_weights)
        split = dataset(self.recipe.data).calibration
        x = split.tensors()[0]
        self._check_folded(row.ensemble, whole, x)
        ensemble = packed.round_weights(whole, values)
        path = context.output / PACKED
        packed.save(ensemble, path, values=values)
        reference = _in_torch(ensemble, combiner)
        context.report_progress(0.2, "packed")
        before, x_adv = self._judge(row.ensemble, row, split, context, inputs)
        after, _ = self._judge(reference, row, split, context, inputs)
        images = torch.cat([x, x_adv])
        wanted = member_logits(reference, images)
        context.report_progress(0.6, "measured what rounding does")
        predictor = Predictor(packed.load(path))
        formats = {
            "packed": self._agrees(
                wanted, torch.from_numpy(predictor.member_logits(images.numpy())), row, context, inputs
            )
        }
        formats |= self._onnx(ensemble, wanted, images, row, context, inputs)
        formats["hub"] = self._hub(ensemble, wanted, images, row, context, inputs)
        from_dict(
            ExportResult,
            {
                "values": values,
                "bytes": path.stat().st_size,
                "share_of_dense_float32": path.stat().st_size / (4 * parent_weights),
                "nonzeros": ensemble.nonzeros,
                "sparsity": ensemble.sparsity,
                "held_out_images": len(x),
                "unrounded": before,
                "rounded": after,
                "formats": formats,
                "not_written": {} if "onnx" in formats else {"onnx": NO_ONNX},
            },
        ).save(context.output / "export.json")

    def _folded(self, row: Row, parent_weights: int) -> PackedEnsemble:
        """Return the ensemble as the runtime knows it, its weights not rounded yet."""
        data = dataset(self.recipe.data)
        return convert_ensemble(
            row.ensemble,
            row.rule,
            data.classes,
            data.shape,
            parent_weights,
            recipe=resolved(self.recipe),
            provenance={
                "run": self.title,
                "seed": self.seed,
                "source": source_revision() or "",
                "selected_on": "held-out",
                **({} if self.recipe.parent else {"extra_data": "none"}),
                **versions(),
            },
        )

    def _check_folded(self, trained: Ensemble, whole: PackedEnsemble, x: Images) -> None:
        """Hold each converted member to the trained one: what comes after is compared with the conversion only."""
        found = member_logits(_in_torch(whole, trained.combiner), x)
        for number, (one, other) in enumerate(zip(member_logits(trained, x), found, strict=True), start=1):
            held_to(one, other, f"member {number} converted for the runtime does not answer as the trained one")

    def _judge(
        self, ensemble: Ensemble, row: Row, split: Split, context: Context, inputs: Inputs
    ) -> tuple[dict[str, float], Images]:
        """Return held-out accuracy of the dynamic ensemble, clean and under an attack on all members, and the images."""
        x, y = split.tensors()
        recipe = self.recipe
        x_adv = adversarial_images(ensemble, split, recipe.held_out_attack, recipe.threat, context.rng("export", CPU))
        right = [
            decide_from_logits(member_logits(ensemble, images), ensemble.combiner, row.rule).logits.argmax(1) == y
            for images in (x, x_adv)
        ]
        found = {"clean": float(right[0].double().mean()), "robust": float((right[0] & right[1]).double().mean())}
        return found, x_adv

    def _agrees(
        self, wanted: MemberLogits, found: MemberLogits, row: Row, context: Context, inputs: Inputs
    ) -> dict[str, Any]:
        return asdict(agreement(wanted, found, row.ensemble.combiner, row.rule, rng=context.rng("agreement", CPU)))

    def _hub(
        self, ensemble: PackedEnsemble, wanted: MemberLogits, images: Images, row: Row, context: Context, inputs: Inputs
    ) -> dict[str, Any]:
        """Write the folder for model hubs, and run what it holds."""
        folder = context.output / "hub"
        save_folder(
            ensemble, folder, RunSummary.load(inputs["report"].file("summary.json")), values=self.recipe.export.values
        )
        read = _in_torch(load_folder(folder), row.ensemble.combiner)
        return self._agrees(wanted, member_logits(read, images), row, context, inputs)

    def _onnx(
        self, ensemble: PackedEnsemble, wanted: MemberLogits, images: Images, row: Row, context: Context, inputs: Inputs
    ) -> dict[str, Any]:
        """Write the graphs and try them out, where the packages for that are installed."""
        try:
            import onnx
            import onnxruntime
        except ImportError:
            return {}
        from sparsemble.export.onnx import OPSET, ensemble_graph, member_graph

        folder = context.output / "onnx"
        folder.mkdir()
        logits = []
        for number, member in enumerate(ensemble.members, start=1):
            file = folder / f"member{number}.onnx"
            onnx.save_model(member_graph(member, f"member{number}"), file)
            logits.append(_session(onnxruntime, file).run(["logits"], {"images": images.numpy()})[0])
        onnx.save_model(ensemble_graph(ensemble.members, ensemble.combiner), folder / "ensemble.onnx")
        together = _session(onnxruntime, folder / "ensemble.onnx")
        answer = torch.from_numpy(together.run(["logits"], {"images": images.numpy()})[0])
        one = torch.from_numpy(together.run(["logits"], {"images": images[:1].numpy()})[0])
        manifest = {
            "opset": OPSET,
            "members": [f"member{i}.onnx" for i in range(1, len(logits) + 1)],
            "static_ensemble": "ensemble.onnx",
            "input": {"name": "images", "shape": ["batch", *ensemble.image], "range": [0, 1]},
            "output": "logits",
            "combine": dict(ensemble.combiner),
            "stop": dict(ensemble.rule),
            "classes": list(ensemble.classes),
        }
        write_json(folder / "manifest.json", manifest)
        found = self._agrees(wanted, torch.from_numpy(np.stack(logits)), row, context, inputs)
        static = held_to(
            row.ensemble.combiner(wanted), answer, "the ONNX graph of the ensemble does not answer as the ensemble"
        )
        batch = held_to(answer[:1], one, "the ONNX graph of the ensemble answers one image by itself in another way")
        return {"onnx": {**found, "static_ensemble": static, "batch_of_one": batch}}


def _in_torch(ensemble: PackedEnsemble, combiner: Combiner) -> Ensemble:
    return Ensemble([FoldedNetwork(member) for member in ensemble.members], combiner).eval()


def _session(onnxruntime: Any, file: Any) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
