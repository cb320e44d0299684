"""From a finished run to files that others can run: packed team, ONNX, a folder for model hubs."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch

from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner, Ensemble
from sparsemble.core.types import Images, MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.dynamic import answer_dynamic
from sparsemble.evaluation.cost import count_weights
from sparsemble.export.agreement import agreement, held_to
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.folded import FoldedNetwork
from sparsemble.export.hub import load_folder, save_folder
from sparsemble.pipeline.validation import adversarial_images, logits_of
from sparsemble.pipeline.environment import source_revision, versions
from sparsemble.pipeline.recipe import Recipe, resolved
from sparsemble.pipeline.baselines import Row, load_row
from sparsemble.pipeline.stage import Stage, Work, dataset, stages
from sparsemble.runtime import packed
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.packed_ensemble import PackedEnsemble

PACKED = "team.sparsemble"
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

    def run(self, work: Work) -> None:
        """Leave `team.sparsemble`, `onnx/`, `hub/` and `export.json`."""
        values, combine = self.recipe.export.values, self.recipe.ensemble.combine
        row = load_row("team_dynamic", work.inputs, combine, CPU)
        parent_weights = count_weights(load_row("dense", work.inputs, combine, CPU).ensemble).total
        whole = self._folded(row, parent_weights)
        split = dataset(self.recipe.data).calibrate
        x = split.everything()[0]
        self._check_folded(row.ensemble, whole, x)
        team = packed.rounded(whole, values)
        path = work.folder / PACKED
        packed.save(team, path, values=values)
        reference = _in_torch(team, combine)
        work.tell(0.2, "packed")
        before, x_adv = self._judge(row.ensemble, row, split, work)
        after, _ = self._judge(reference, row, split, work)
        images = torch.cat([x, x_adv])
        wanted = logits_of(reference, images)
        work.tell(0.6, "measured what rounding does")
        predictor = Predictor(packed.load(path))
        formats = {"packed": self._agrees(wanted, torch.from_numpy(predictor.member_logits(images.numpy())), row, work)}
        formats |= self._onnx(team, wanted, images, row, work)
        formats["hub"] = self._hub(team, wanted, images, row, work)
        write_json(
            work.folder / "export.json",
            {
                "values": values,
                "bytes": path.stat().st_size,
                "share_of_dense_float32": path.stat().st_size / (4 * parent_weights),
                "nonzeros": team.nonzeros,
                "sparsity": team.sparsity,
                "held_out_images": len(x),
                "unrounded": before,
                "rounded": after,
                "formats": formats,
            },
        )

    def _folded(self, row: Row, parent_weights: int) -> PackedEnsemble:
        """Return the team as the runtime knows it, its weights not rounded yet."""
        data = dataset(self.recipe.data)
        return convert_ensemble(
            row.ensemble,
            row.stop,
            data.classes,
            data.shape,
            parent_weights,
            recipe=resolved(self.recipe),
            provenance={"run": self.title, "seed": self.seed, "source": source_revision() or "", **versions()},
        )

    def _check_folded(self, trained: Ensemble, whole: PackedEnsemble, x: Images) -> None:
        """Hold each converted member to the trained one: what comes after is compared with the conversion only."""
        found = logits_of(_in_torch(whole, trained.combine), x)
        for number, (one, other) in enumerate(zip(logits_of(trained, x), found, strict=True), start=1):
            held_to(one, other, f"member {number} converted for the runtime does not answer as the trained one")

    def _judge(self, team: Ensemble, row: Row, split: Split, work: Work) -> tuple[dict[str, float], Images]:
        """Return held-out accuracy of the dynamic team, clean and under an attack on all members, and the images."""
        x, y = split.everything()
        recipe = self.recipe
        x_adv = adversarial_images(team, split, recipe.held_out_attack, recipe.threat, work.rng("export", CPU))
        right = [
            answer_dynamic(logits_of(team, images), team.combine, row.stop).logits.argmax(1) == y
            for images in (x, x_adv)
        ]
        found = {"clean": float(right[0].double().mean()), "robust": float((right[0] & right[1]).double().mean())}
        return found, x_adv

    def _agrees(self, wanted: MemberLogits, found: MemberLogits, row: Row, work: Work) -> dict[str, Any]:
        return asdict(agreement(wanted, found, row.ensemble.combine, row.stop, rng=work.rng("agreement", CPU)))

    def _hub(self, team: PackedEnsemble, wanted: MemberLogits, images: Images, row: Row, work: Work) -> dict[str, Any]:
        """Write the folder for model hubs, and run what it holds."""
        folder = work.folder / "hub"
        save_folder(team, folder, work.inputs["report"].json("summary.json"), values=self.recipe.export.values)
        read = _in_torch(load_folder(folder), row.ensemble.combine)
        return self._agrees(wanted, logits_of(read, images), row, work)

    def _onnx(self, team: PackedEnsemble, wanted: MemberLogits, images: Images, row: Row, work: Work) -> dict[str, Any]:
        """Write the graphs and try them out, where the packages for that are installed."""
        try:
            import onnx
            import onnxruntime
        except ImportError:
            return {"onnx": "not written: needs onnx and onnxruntime; pip install 'sparsemble[export]'"}
        from sparsemble.export.onnx import OPSET, member_graph, ensemble_graph

        folder = work.folder / "onnx"
        folder.mkdir()
        logits = []
        for number, member in enumerate(team.members, start=1):
            file = folder / f"member{number}.onnx"
            onnx.save_model(member_graph(member, f"member{number}"), file)
            logits.append(_session(onnxruntime, file).run(["logits"], {"images": images.numpy()})[0])
        onnx.save_model(ensemble_graph(team.members, team.combine), folder / "team.onnx")
        together = _session(onnxruntime, folder / "team.onnx")
        answer = torch.from_numpy(together.run(["logits"], {"images": images.numpy()})[0])
        one = torch.from_numpy(together.run(["logits"], {"images": images[:1].numpy()})[0])
        manifest = {
            "opset": OPSET,
            "members": [f"member{i}.onnx" for i in range(1, len(logits) + 1)],
            "static_team": "team.onnx",
            "input": {"name": "images", "shape": ["batch", *team.image], "range": [0, 1]},
            "output": "logits",
            "combine": dict(team.combine),
            "stop": dict(team.stop),
            "classes": list(team.classes),
        }
        write_json(folder / "manifest.json", manifest)
        found = self._agrees(wanted, torch.from_numpy(np.stack(logits)), row, work)
        static = held_to(row.ensemble.combine(wanted), answer, "the ONNX graph of the team does not answer as the team")
        batch = held_to(answer[:1], one, "the ONNX graph of the team answers one image by itself in another way")
        return {"onnx": {**found, "static_team": static, "batch_of_one": batch}}


def _in_torch(team: PackedEnsemble, combine: Combiner) -> Ensemble:
    return Ensemble([FoldedNetwork(member) for member in team.members], combine).eval()


def _session(onnxruntime: Any, file: Any) -> Any:
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
