"""`sparsemble bench`: what is timed answers alike, and the numbers belong together. No time is asserted here."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sparsemble.bench import engines, verify_outputs
from sparsemble.bench import timing as module
from sparsemble.bench.engines import Engines, TimedEngine
from sparsemble.bench.models import BenchSettings, random_model
from sparsemble.bench.timing import bench, first_use
from sparsemble.cli import app
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.results import BenchResult, FirstUse
from sparsemble.core.types import seeded
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.quantize import quantize
from sparsemble.models import architectures, build_model
from sparsemble.report import bench_table, draw_bench
from sparsemble.runtime import predictor
from sparsemble.runtime.combiners import log_softmax
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.kernels.jit import lanes
from sparsemble.runtime.network import Convolution, Linear
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.stopping import AtOnce, Never

pytestmark = pytest.mark.usefixtures("cache")
TABLE = {"name": "tiny", "width": 4}
TINY = '{name = "tiny", width = 4}'
ENGINE = """
import onnxruntime

class Engine:
    def __init__(self, model, batch_size, num_cores):
        self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def run(self, inputs):
        return self.session.run(["logits"], {"images": inputs[0]})
"""


def bench_settings(**settings: object) -> BenchSettings:
    return BenchSettings(**{"model": TINY, "image": (1, 8, 8), "batches": (3,), "rounds": 2, **settings})  # type: ignore[arg-type]


def call(*words: str, quiet: bool = True) -> str:
    """Run the command and return what it printed."""
    found = CliRunner().invoke(app, ["bench", *words, *(["-q"] if quiet else [])], catch_exceptions=False)
    assert found.exit_code == 0
    return found.output


def unwanted(*_: object) -> None:
    raise AssertionError("nothing should have been timed")


@pytest.fixture
def deepsparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Return a function that installs a DeepSparse of a version with some code in it."""

    def install(version: str, code: str) -> None:
        for name, file, content in (
            ("deepsparse", "__init__.py", code),
            (
                f"deepsparse-{version}.dist-info",
                "METADATA",
                f"Metadata-Version: 2.1\nName: deepsparse\nVersion: {version}",
            ),
        ):
            (tmp_path / "site" / name).mkdir(parents=True)
            (tmp_path / "site" / name / file).write_text(content, "utf-8")
        monkeypatch.syspath_prepend(tmp_path / "site")

    yield install
    sys.modules.pop("deepsparse", None)


class TestDeepSparse:
    def test_the_empty_package_is_left_out_with_a_sentence(self, deepsparse: Callable[[str, str], None]) -> None:
        deepsparse("1.9.0", "")
        found = bench(bench_settings(batches=(1, 2)), "", lambda text: None)
        assert "deepsparse" not in {row.engine for row in found.rows} | set(found.versions)
        sentence = "1.9.0 has no engine; 1.8 is the last version with one: pip install 'deepsparse==1.8.*'"
        assert found.skipped["deepsparse"] == sentence
        assert f"not timed: deepsparse: {sentence}" in bench_table(found).caption

    def test_the_last_one_with_an_engine_is_timed(self, deepsparse: Callable[[str, str], None]) -> None:
        deepsparse("1.8.0", ENGINE)
        found = bench(bench_settings(), "", lambda text: None)
        assert [row.dense for row in found.rows if row.engine == "deepsparse"] == [False]
        assert found.versions["deepsparse"] == "1.8.0"
        assert "deepsparse" not in found.skipped


class TestBench:
    def test_times_every_engine_in_every_configuration(self) -> None:
        found = bench(bench_settings(batches=(1, 3), threads=(1, 2)), "sparsemble bench", lambda text: None)
        places = [(row.threads, row.batch) for row in found.rows if row.engine == "sparsemble"]
        assert places == [(1, 1), (1, 3), (2, 1), (2, 3)]
        for threads, batch in places:
            rows = [row for row in found.rows if (row.threads, row.batch) == (threads, batch)]
            assert {"torch", "torch, channels last", "onnxruntime", "sparsemble"} <= {row.engine for row in rows}
            dense = [row for row in rows if row.dense]
            assert {"float32", "int8"} <= {row.arithmetic for row in dense}
            fastest = min(row.median_ms for row in dense if row.arithmetic == "float32")
            assert all(row.ratio == pytest.approx(fastest / row.median_ms) for row in rows)
            fastest = min(row.median_ms for row in dense)
            assert all(row.ratio_any_precision == pytest.approx(fastest / row.median_ms) for row in rows)
        assert found.ratio == next(row.ratio for row in found.rows if row.engine == "sparsemble")
        spinning = [row.threads for row in found.rows if row.engine == "onnxruntime, spinning"]
        assert spinning == [2, 2]
        assert {"onnxruntime", "openvino", "torch", "numpy"} <= set(found.versions)
        assert "deepsparse" not in found.versions
        assert found.machine["vectors"] == lanes()
        assert json.loads(found.to_json())["rows"]
        assert bench_table(found).terminal().row_count == len(found.rows)

    def test_an_engine_that_answers_something_else_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(engines: object, batch: int, threads: int) -> list[TimedEngine]:
            return [
                TimedEngine("torch", lambda x: np.ones((batch, 10)), True),
                TimedEngine("other", lambda x: np.zeros((batch, 10)), True),
            ]

        monkeypatch.setattr(Engines, "load", wrong)
        with pytest.raises(
            RunError, match=r"other differs from torch by 1 of the largest logit \(allowed 0.001\); it was"
        ):
            bench(bench_settings(), "", lambda text: None)

    def test_the_command_leaves_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "bench.json"
        words = [
            "bench",
            "--model",
            TINY,
            "--sparsity",
            "0.5",
            "--batch",
            "1",
            "--rounds",
            "2",
            "--json",
            str(path),
            "-q",
        ]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        found = BenchResult.load(path)
        assert found.settings["model"] == TINY
        assert found.ratio > 0

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["--json", "{}"], r"--json = .* is a folder; name a file, as in .*bench\.json"),
            (["--json", "{}/file/bench.json"], r"--json = .*/file/bench\.json: its folder cannot be made \("),
            (["--plot", "{}/b.xyz"], r"--plot = .*/b\.xyz must end in \.png or \.svg"),
            (["--plot", "{}/b"], r"--plot = .*/b must end in \.png or \.svg"),
        ],
    )
    def test_a_file_that_cannot_be_is_refused_before_anything_is_timed(
        self, words: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "bench", unwanted)
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=sentence):
            call("--model", "tiny", *(word.format(tmp_path) for word in words))

    def test_folders_of_files_are_made(self, tmp_path: Path) -> None:
        call("--model", "tiny", "--batch", "1", "--rounds", "2", "--json", f"{tmp_path}/a/b/c.json")
        assert json.loads((tmp_path / "a" / "b" / "c.json").read_text("utf-8"))["ratio"] > 0

    def test_first_answers_leave_the_users_cache_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "untouched"))
        found = first_use(random_model(bench_settings()).network)
        assert [one.batch for one in found] == [lanes(), 1, lanes() + 1]
        assert all(min(one.empty_cache_s, one.filled_cache_s) > 0 for one in found)
        assert not (tmp_path / "untouched").exists()

    def test_first_answers_are_one_line_of_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = (
            FirstUse(batch=16, empty_cache_s=4.24, filled_cache_s=0.337),
            FirstUse(batch=1, empty_cache_s=3.0, filled_cache_s=0.25),
        )
        known: dict[str, Any] = {"command": "", "settings": {}, "network": {}, "machine": {}, "versions": {}}
        found = BenchResult(ratio=1.0, rows=(), first_use=first, **known)
        monkeypatch.setattr(module, "bench", lambda settings, *_: found if settings.first_use else unwanted())
        expected = (
            "first prediction, seconds with an empty cache (a filled one), by images: 4.2 (0.34) for 16, "
            "3.0 (0.25) for 1"
        )
        assert call("--first-use", quiet=False).splitlines()[-1] == expected

    def test_first_answers_are_timed_if_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        timed = FirstUse(batch=3, empty_cache_s=1.0, filled_cache_s=0.5)
        monkeypatch.setattr(module, "first_use", lambda network: [timed])
        assert bench(bench_settings(first_use=True), "", lambda text: None).first_use == (timed,)
        assert bench(bench_settings(), "", lambda text: None).first_use == ()


def pack(path: Path, parent_weights: int = 0) -> PackedEnsemble:
    """Leave a packed ensemble of three; its parent has a member's weights unless given."""
    rng = seeded(0)
    members = [build_model(architectures.build(TABLE), (1, 8, 8), 10, (0.5,), (0.3,), rng=rng) for _ in range(3)]
    ensemble = convert_ensemble(
        Ensemble(members, combiners.build("mean_probability")).eval(),
        Confidence(threshold=0.12),
        tuple("0123456789"),
        (1, 8, 8),
        parent_weights or count_weights(members[0]).total,
        recipe={"data": {"name": "digits"}, "threat": {"norm": "linf", "eps": 0.15}},
    )
    packed.save(ensemble, path)
    return ensemble


class TestEnsembles:
    def test_a_new_process_knows_combiners_and_rules(self) -> None:
        code = (
            "import sparsemble.bench.models; from sparsemble.core.interfaces import combiners, stopping_rules; "
            "print('mean_probability' in combiners.components, 'never' in stopping_rules.components)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["True", "True"]

    def test_a_drawn_ensemble_is_timed_whole_and_stopping_early(self, tmp_path: Path) -> None:
        found = bench(bench_settings(batches=(200,), members=4, members_run=1.6), "", lambda text: None)
        rows = {row.engine: row for row in found.rows}
        assert rows["sparsemble, all members"].members_run == 4
        early = rows["sparsemble, stopping early, drawn decisions"]
        assert early.members_run == pytest.approx(1.6, abs=0.2)
        assert found.ratio == early.ratio
        assert found.network["sparsity"] == pytest.approx(0.975, abs=0.02)
        assert bench_table(found).terminal().row_count == len(found.rows)
        draw_bench(found, tmp_path / "bench.png")
        assert (tmp_path / "bench.png").stat().st_size > 1000

    def test_a_packed_ensemble_is_timed_on_clean_and_slowed_down_images(self, tmp_path: Path) -> None:
        ensemble = pack(tmp_path / "ensemble.sparsemble")
        found = bench(
            bench_settings(target=str(tmp_path / "ensemble.sparsemble"), batches=(40,)), "", lambda text: None
        )
        rows = {row.engine: row for row in found.rows}
        assert {"onnxruntime", "sparsemble", "sparsemble, all members"} <= set(rows)
        clean, slow = (rows[f"sparsemble, stopping early, {what}"] for what in ("clean images", "slowdown attack"))
        assert 1 <= clean.members_run < slow.members_run <= 3
        assert found.ratio == clean.ratio

        target = load_target(str(tmp_path / "ensemble.sparsemble"))
        x = torch.rand(9, 1, 8, 8, generator=seeded(1))
        expected = Predictor(packed.load(tmp_path / "ensemble.sparsemble")).member_logits(x.numpy())
        assert isinstance(target.model, Ensemble)
        np.testing.assert_allclose(target.model.member_logits(x).numpy(), expected, atol=1e-5)
        assert target.claimed_sparsity == ensemble.sparsity

    def test_an_ensemble_that_combines_otherwise_than_in_torch_is_not_timed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(predictor, "build_combiner", lambda settings: lambda logits: log_softmax(logits[0]))
        with pytest.raises(RunError, match=r"all members: differs from torch by 0\..* in a probability.* not timed"):
            bench(bench_settings(members=3, sparsity=0.5), "", lambda text: None)

    def test_an_ensemble_with_a_member_that_differs_from_torch_is_not_timed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = Predictor.member_logits
        monkeypatch.setattr(Predictor, "member_logits", lambda self, images: known(self, images) * 1.01)
        with pytest.raises(RunError, match=r"all members: member 1 differs from torch by 0\.01 of the largest logit"):
            bench(bench_settings(members=3), "", lambda text: None)

    def test_an_ensemble_that_stops_elsewhere_than_in_torch_is_not_timed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pack(tmp_path / "ensemble.sparsemble")
        known = predictor.build_rule
        monkeypatch.setattr(
            predictor, "build_rule", lambda one: AtOnce() if one["name"] == "confidence" else known(one)
        )
        with pytest.raises(RunError, match=r"clean images: stops elsewhere than its rule for \d+ of 40 images; it was"):
            bench(bench_settings(target=str(tmp_path / "ensemble.sparsemble"), batches=(40,)), "", lambda text: None)

    def test_drawn_decisions_are_decided_once_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        known = verify_outputs.decide_with_rule
        other = (np.zeros(3, np.int64),) * 2
        monkeypatch.setattr(
            verify_outputs,
            "decide_with_rule",
            lambda x, rule, combine: known(x, rule, combine) if isinstance(rule, Never) else other,
        )
        with pytest.raises(RunError, match="drawn decisions: stops elsewhere than its rule for 3 of 3 images"):
            bench(bench_settings(members=3), "", lambda text: None)

    def test_members_that_were_shrunk_cannot_stand_for_their_parent(self, tmp_path: Path) -> None:
        pack(tmp_path / "ensemble.sparsemble", parent_weights=99999)
        with pytest.raises(InputError, match=r"its first member has \d+ weights.* the dense parent had 99999; dense"):
            bench(bench_settings(target=str(tmp_path / "ensemble.sparsemble")), "", lambda text: None)

    def test_what_holds_no_ensemble_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"holds no packed ensemble; make one with `sparsemble export "):
            bench(bench_settings(target=str(tmp_path)), "", lambda text: None)
        (tmp_path / "ensemble.sparsemble").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"ensemble\.sparsemble: "):
            bench(bench_settings(target=str(tmp_path / "ensemble.sparsemble")), "", lambda text: None)


class TestArithmetic:
    def test_ours_in_8_bits_is_beside_dense_engines_in_8_bits(self) -> None:
        found = bench(bench_settings(arithmetic="int8", granularity="block-in", sparsity=0.5), "", lambda text: None)
        rows = {row.engine: row for row in found.rows}
        assert rows["sparsemble"].arithmetic == rows["onnxruntime, int8"].arithmetic == "int8"
        assert all(0.5 < (rows[name].agreement or 0) <= 1 for name in ("sparsemble", "onnxruntime, int8"))
        assert rows["torch"].agreement == 1
        assert rows["onnxruntime, int8, channels pruned"].agreement is None
        assert not rows["onnxruntime, channels pruned"].dense
        assert {row.accuracy for row in found.rows} == {None}
        assert (found.ratio, found.ratio_any_precision) == (
            rows["sparsemble"].ratio,
            rows["sparsemble"].ratio_any_precision,
        )
        headline = bench_table(found).caption.splitlines()[0]
        assert f"sparsemble in int8 ({100 * (rows['sparsemble'].agreement or 0):.1f} % of labels" in headline
        assert f"is {found.ratio:.2f} times as fast" in headline
        assert f"and {found.ratio_any_precision:.2f} times as fast as the fastest in any precision" in headline

    def test_an_ensemble_in_8_bits_has_an_accuracy_in_every_arithmetic(self, tmp_path: Path) -> None:
        path = tmp_path / "ensemble.sparsemble"
        rng = seeded(1)
        packed.save(quantize(pack(path), *torch.rand(2, 32, 1, 8, 8, generator=rng)), path, values="int8")
        found = bench(bench_settings(target=str(path), batches=(40,)), "", lambda text: None)
        rows = {row.engine: row for row in found.rows}
        early = "sparsemble, stopping early, {}"
        assert rows[early.format("slowdown attack")].accuracy is None
        known = ("torch", "onnxruntime, int8", "sparsemble", "sparsemble, all members", early.format("clean images"))
        assert all(0 <= (rows[name].accuracy or 0) <= 1 for name in known)
        assert not any(rows[name].accuracy is None for name in known)
        assert {rows[name].arithmetic for name in rows if name.startswith("sparsemble")} == {"int8"}
        assert (rows["sparsemble, all members"].agreement or 0) > 0.8
        assert found.headline == early.format("clean images")
        with pytest.raises(InputError, match=r"computes in int8, and arithmetic = float32; leave it out, or write ano"):
            bench(bench_settings(target=str(path), arithmetic="float32"), "", lambda text: None)

    @pytest.mark.parametrize(
        ("arithmetic", "error", "fits"),
        [("float32", 2e-3, False), ("bfloat16", 0.04, True), ("int8", 0.2, True), ("int8", 0.3, False)],
    )
    def test_logits_are_compared_within_what_the_arithmetic_costs(
        self, arithmetic: str, error: float, fits: bool
    ) -> None:
        one = np.ones((2, 10), np.float32)
        both = [
            TimedEngine("torch", lambda x: one, True),
            TimedEngine("other", lambda x: one * np.float32(1 + error), True, arithmetic),
        ]
        with nullcontext() if fits else pytest.raises(RunError, match="other differs from torch"):
            verify_outputs.verify_engines(both, one)

    def test_what_is_not_installed_is_left_out_with_a_reason(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(engines, "_installed", lambda package: package == "onnx")
        found = bench(bench_settings(sparsity=0.0), "", lambda text: None)
        assert {row.engine for row in found.rows} == {"torch", "torch, channels last", "sparsemble"}
        assert set(found.skipped) == {"onnxruntime", "openvino", "int8", "mnn", "channels pruned"}
        assert "not timed: openvino: not installed: pip install 'sparsemble[bench]'" in bench_table(found).caption
        assert found.ratio == found.ratio_any_precision

    def test_mnn_runs_dense_and_sparse(self) -> None:
        pytest.importorskip("MNN")
        found = bench(bench_settings(), "", lambda text: None)
        assert {row.engine: row.dense for row in found.rows if "mnn" in row.engine} == {
            "mnn": True,
            "mnn, sparse kernels": False,
        }

    def test_channels_are_removed_down_to_the_same_multiply_adds(self) -> None:
        model = random_model(bench_settings(model='{name = "tiny", width = 32}', image=(3, 16, 16), sparsity=0.75))
        assert model.narrow
        shapes = zip(model.narrow.nodes, model.narrow.shapes, strict=True)
        macs = sum(
            node.weight.size * int(np.prod(shape[1:]))
            for node, shape in shapes
            if isinstance(node, Convolution | Linear)
        )
        assert macs == pytest.approx(model.properties["macs_nonzero"], rel=0.1)
        assert all(weight.nonzeros == weight.size for weight in model.narrow.weights())


class TestMasks:
    @pytest.mark.parametrize("granularity", ["weight", "block", "block-in", "channel"])
    def test_have_the_sparsity_asked_for(self, granularity: str) -> None:
        load_bench_model = random_model(
            bench_settings(model='{name = "tiny", width = 16}', granularity=granularity, sparsity=0.8)
        )
        first = next(node for node in load_bench_model.network.nodes if isinstance(node, Convolution))
        if granularity != "channel":
            assert first.weight.nonzeros == first.weight.size
        assert load_bench_model.properties["sparsity"] == pytest.approx(0.8, abs=0.03)

    def test_come_from_a_file_too(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be uniform, erk or a mask.safetensors that exists"):
            random_model(bench_settings(mask=str(tmp_path / "none.safetensors")))
        uniform, erk = random_model(bench_settings(mask="uniform")), random_model(bench_settings(mask="erk"))
        assert erk.properties["sparsity"] == pytest.approx(0.9, abs=0.01)
        counts = [
            [node.weight.nonzeros for node in one.network.nodes if isinstance(node, Convolution)]
            for one in (uniform, erk)
        ]
        assert counts[0] != counts[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": (0,)}, r"threads = \[0\] must be whole numbers, 1 or more"),
        ({"batches": ()}, r"batches = \[\] must be whole numbers"),
        ({"rounds": 1}, "rounds = 1 must be 2 or more"),
        ({"sparsity": 1.0}, r"sparsity = 1 must lie in \[0, 1\)"),
        ({"arithmetic": "int4"}, 'arithmetic = "int4" is not known; use float32 or int8'),
        ({"members": 0}, "members = 0 must be 1 or more"),
        ({"members": 3, "first_use": True}, "first_use is of a single network with drawn weights"),
        ({"target": "ensemble.sparsemble", "first_use": True}, "leave out the target and members"),
        ({"members": 3, "members_run": 4}, r"members_run = 4 must lie in 1..3, the members there are"),
    ],
)
def test_what_cannot_be_gets_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench_settings(**settings)
