"""What a finished run leaves for others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsemble as sp
from sparsemble import runtime
from sparsemble.api.context import Context
from sparsemble.core.artifacts import Artifact
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.results import RunSummary
from sparsemble.core.types import seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.evaluation.run_models import load_row
from sparsemble.export import export_ensemble, onnx
from sparsemble.export.agreement import check_agreement, check_logits
from sparsemble.export.hub import card, load_folder
from sparsemble.models import convert
from sparsemble.pipeline.stage import stages
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from tests import c_program
from tests.end_to_end.conftest import sparsemble


def told(folder: Path) -> dict:
    return json.loads((folder / "export" / "export.json").read_text("utf-8"))


def one_space(text: str) -> str:
    return " ".join(text.split())


class TestExport:
    def test_every_format_agrees_with_the_rounded_ensemble(self, finished: Path) -> None:
        found = told(finished)
        assert set(found["formats"]) == {"packed", "onnx", "hub"}
        for one in found["formats"].values():
            assert one["logits"] < 1e-4
            assert one["labels"] + one["decisions"] <= 2 * one["near"]
            assert one["images"] == 2 * found["held_out_images"]
        assert found["formats"]["hub"]["logits"] == 0
        assert found["formats"]["onnx"]["static_ensemble"] < 1e-4
        assert found["formats"]["onnx"]["batch_of_one"] < 1e-4
        assert found["bytes"] == (finished / "export" / "ensemble.sparsemble").stat().st_size
        for name in ("clean", "robust"):
            assert found["rounded"][name] == pytest.approx(found["unrounded"][name], abs=0.05)

    def test_the_packed_ensemble_answers_as_the_trained_one(self, finished: Path) -> None:
        (ensemble,) = finished.glob("ensemble-*")
        (rule,) = finished.glob("calibrate-*")
        inputs = {"ensemble": Artifact(ensemble), "stop": Artifact(rule)}
        row = load_row("ensemble_dynamic", inputs, MeanProbability(), torch.device("cpu"))
        x = torch.rand(40, 1, 8, 8, generator=seeded(0))
        expected = predict_dynamic(row.ensemble, x, row.rule)
        found = runtime.load(finished / "export" / "ensemble.sparsemble").predict(x.numpy())
        np.testing.assert_allclose(found.probabilities, expected.logits.detach().softmax(1).numpy(), atol=0.01)
        assert float(np.mean(found.members_run == expected.members_run.numpy())) > 0.9

    def test_the_hub_folder_holds_the_same_ensemble_and_says_what_it_is_worth(self, finished: Path) -> None:
        hub = finished / "export" / "hub"
        packed.save(load_folder(hub), finished.parent / "from_hub.sparsemble")
        one, other = (
            packed.load(p)
            for p in (finished.parent / "from_hub.sparsemble", finished / "export" / "ensemble.sparsemble")
        )
        x = np.random.default_rng(0).random((9, 1, 8, 8), dtype=np.float32)
        logits = [runtime.Predictor(ensemble).member_logits(x) for ensemble in (one, other)]
        assert np.array_equal(*logits)
        text = (hub / "README.md").read_text("utf-8")
        summary = RunSummary.load(finished / "report" / "summary.json")
        assert text == card(other, summary)
        assert text.startswith("---\nlibrary_name: sparsemble")
        for check in summary.row("ensemble_dynamic").checks:
            assert (f"- {check.name}: {check.detail}" in text) == (check.status == "failed")

    def test_may_be_written_again_in_full(self, finished: Path, tmp_path: Path) -> None:
        shutil.copytree(finished, tmp_path / "run")
        result = sparsemble("export", tmp_path / "run", "--values", "float32", "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert found["values"] == "float32"
        assert found["rounded"] == found["unrounded"]
        assert found["bytes"] > told(finished)["bytes"]
        assert packed.describe(tmp_path / "run" / "export" / "ensemble.sparsemble")["values"] == "float32"

    def test_may_be_written_in_a_byte_a_weight(self, finished: Path, tmp_path: Path) -> None:
        shutil.copytree(finished, tmp_path / "run")
        result = sparsemble("export", tmp_path / "run", "--values", "int8")
        assert result.returncode == 0, result.stderr
        found, folder = told(tmp_path / "run"), tmp_path / "run" / "export"
        assert found["values"] == "int8"
        assert found["unrounded"] == told(finished)["unrounded"]
        assert found["bytes"] < told(finished)["bytes"]
        for one in found["formats"].values():
            assert one["logits"] < 1e-4
        for name in ("unrounded", "rounded"):
            clean, robust = (100 * found[name][one] for one in ("clean", "robust"))
            assert f"held-out accuracy, {name} clean {clean:.1f} %, robust {robust:.1f} %" in one_space(result.stdout)
        assert "hub against the rounded ensemble" in result.stdout
        assert "onnx, all members in one graph" in result.stdout
        assert "in a batch of one" in one_space(result.stdout)
        ensemble, hub = packed.load(folder / "ensemble.sparsemble"), load_folder(folder / "hub")
        for one, other in zip(ensemble.members, hub.members, strict=True):
            for a, b in zip(one.weights(), other.weights(), strict=True):
                assert np.array_equal(a.dense(), b.dense())
        assert "in int8; sparsity" in sparsemble("show", folder / "ensemble.sparsemble").stdout

    def test_written_as_c_it_predicts_as_the_packed_file(self, finished: Path, tmp_path: Path) -> None:
        """On all test images; a label or decision may differ where it depends on less than rounding."""
        shutil.copytree(finished, tmp_path / "run", symlinks=True)
        result = sparsemble("export", tmp_path / "run", "--format", "c")
        assert result.returncode == 0, result.stderr
        assert "bytes of RAM" in result.stdout
        images, _ = sp.data.load("digits").test.tensors()
        pixels = np.ascontiguousarray(np.rint(255 * images.numpy()).astype(np.uint8).transpose(0, 2, 3, 1))
        found = c_program.run(tmp_path / "run" / "c", pixels)
        expected = runtime.load(finished / "export" / "ensemble.sparsemble").predict(pixels)
        assert found.labels.tolist() == expected.labels.tolist()
        assert found.members_run.tolist() == expected.members_run.tolist()
        assert found.answered_with.tolist() == expected.answered_with.tolist()
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)

    def test_may_compute_in_8_bits(self, finished: Path, tmp_path: Path) -> None:
        shutil.copytree(finished, tmp_path / "run")
        result = sparsemble("export", tmp_path / "run", "--arithmetic", "int8")
        assert result.returncode == 0, result.stderr
        found, folder = told(tmp_path / "run"), tmp_path / "run" / "export"
        assert (found["values"], found["arithmetic"]) == ("int8", "int8")
        assert found["unrounded"] == told(finished)["unrounded"]
        change = found["change"]
        for arithmetic in ("float32", "int8"):
            by_attack = change[arithmetic]["attacks"]
            assert [label.rsplit("-", 1)[1] for label in by_attack] == ["whole", "deployed", "deployed"]
            assert any(label.startswith("square") for label in by_attack)
            assert change[arithmetic]["robust"] <= min(by_attack.values())
        for name in ("clean", "robust"):
            low, high = change[name]["interval"]
            assert low <= change[name]["difference"] <= high
            difference = change["int8"][name] - change["float32"][name]
            assert change[name]["difference"] == pytest.approx(difference, abs=1e-9)
        assert "change in 8 bits, paired 95 % clean" in one_space(result.stdout)
        assert found["not_written"] == {"onnx": "has no 8-bit arithmetic; the packed file and the hub folder have"}
        assert found["formats"]["hub"]["logits"] == 0
        ensemble, hub = packed.load(folder / "ensemble.sparsemble"), load_folder(folder / "hub")
        assert [member.steps for member in hub.members] == [member.steps for member in ensemble.members]
        assert all(member.steps for member in ensemble.members)
        assert "in int8, computed in 8 bits; sparsity" in sparsemble("show", folder / "ensemble.sparsemble").stdout

    def test_a_folder_that_is_no_run_gives_a_sentence(
        self, in_process: Callable[..., tuple[int, str]], tmp_path: Path, finished: Path
    ) -> None:
        status, said = in_process("export", tmp_path)
        assert status == 2
        assert "is not the folder of a finished run" in said
        status, said = in_process("export", finished, "--values", "float8")
        assert status == 2
        assert "float8" in said
        status, said = in_process("export", finished, "--arithmetic", "int8", "--values", "float16")
        assert status == 2
        assert 'values = "float16" does not fit arithmetic = "int8"' in one_space(said)
        status, said = in_process("export", finished, "--arithmetic", "int4")
        assert status == 2
        assert "int4" in said


class TestWhatIsWrongIsNotExported:
    """Each fault is put where the export would make it; no `export.json` is left."""

    @pytest.fixture
    def export(self, finished: Path, tmp_path: Path) -> Callable[[str], None]:
        stages.register_package("sparsemble.pipeline.stages")
        (made,) = finished.glob("export-*")
        meta = json.loads((made / "meta.json").read_text("utf-8"))
        stage = stages.build(meta["spec"])
        folder = tmp_path / "made"
        folder.mkdir()
        inputs = {role: Artifact(finished / name) for role, name in meta["inputs"].items()}
        context = Context(folder=folder, device=torch.device("cpu"), seed=stage.seed, stream=stage.stream)

        def refused(words: str) -> None:
            with pytest.raises((RunError, InputError), match=words):
                stage.run(context, inputs)
            assert not (folder / "export.json").exists()

        return refused

    def test_a_conversion_that_differs_from_the_trained_ensemble(self, export, monkeypatch) -> None:
        norm = convert._norm
        monkeypatch.setattr(convert, "_norm", lambda module: (norm(module)[0], norm(module)[1] + 0.05))
        export("computes something else in the runtime: logits differ by")

    def test_a_graph_that_leaves_a_member_out(self, export, monkeypatch) -> None:
        graph = onnx.ensemble_graph
        monkeypatch.setattr(onnx, "ensemble_graph", lambda members, combiner: graph(members[:1], combiner))
        export("the ONNX graph of the ensemble differs from the ensemble: logits by")

    def test_a_graph_that_answers_one_image_in_another_way(self, export, monkeypatch) -> None:
        run_graph = export_ensemble.run_graph

        def other(file: Path, images: np.ndarray) -> np.ndarray:
            return run_graph(file, images) + 0.01 * (len(images) == 1)

        monkeypatch.setattr(export_ensemble, "run_graph", other)
        export("run on one image, differs from the same graph on a batch: logits by")

    def test_a_hub_folder_that_holds_another_ensemble(self, export, monkeypatch) -> None:
        save = export_ensemble.save_folder

        def other(ensemble: PackedEnsemble, folder: Path, summary: RunSummary, *, values: str) -> None:
            save(replace(ensemble, members=ensemble.members[::-1]), folder, summary, values=values)

        monkeypatch.setattr(export_ensemble, "save_folder", other)
        export("the exported ensemble differs from its reference")


class TestAgreement:
    def test_what_is_not_a_number_is_refused(self) -> None:
        logits = self.logits()
        with pytest.raises(RunError, match="logits by nan"):
            check_agreement(logits, logits / 0 * 0, MeanProbability(), Confidence(threshold=0.8), rng=seeded(2))
        with pytest.raises(RunError, match="a copy differs from the original: logits by nan"):
            check_logits(logits, logits / 0 * 0, "a copy", "the original")

    def logits(self) -> torch.Tensor:
        return 3 * torch.randn(3, 200, 4, generator=seeded(0))

    def test_rounding_is_no_difference(self) -> None:
        logits = self.logits()
        noise = 2e-6 * torch.randn(logits.shape, generator=seeded(1))
        found = check_agreement(logits, logits + noise, MeanProbability(), Confidence(threshold=0.8), rng=seeded(2))
        assert (found.labels, found.decisions) == (0, 0)
        assert 0 < found.logits < 1e-5

    def test_a_logit_too_far_off_is_refused(self) -> None:
        other = self.logits()
        other[1, 7, 2] += 0.01
        with pytest.raises(RunError, match="logits by"):
            check_agreement(self.logits(), other, MeanProbability(), Confidence(threshold=0.8), rng=seeded(2))

    def test_an_image_on_the_edge_may_go_either_way_and_is_counted(self) -> None:
        logits = torch.zeros(2, 1, 2)
        logits[0, 0, 0] = 1e-6
        found = check_agreement(logits, -logits, MeanProbability(), Confidence(threshold=0.8), rng=seeded(2))
        assert (found.labels, found.near) == (1, 1)
