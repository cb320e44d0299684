"""`sparsemble bench`: what is timed answers alike, and the numbers belong together. No time is judged here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sparsemble.cli import app
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.types import seeded
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.export.convert import convert_team
from sparsemble.models import architectures, build_model
from sparsemble.pipeline import bench as module
from sparsemble.pipeline.bench import bench, bench_table
from sparsemble.pipeline.bench_engines import Timed
from sparsemble.pipeline.bench_subject import Asked, drawn
from sparsemble.pipeline.target import load_target
from sparsemble.report.bench import draw_bench
from sparsemble.runtime import packed
from sparsemble.runtime.network import Convolution
from sparsemble.runtime.predictor import Predictor

TABLE = {"name": "tiny", "width": 4}
TINY = '{name = "tiny", width = 4}'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))


def asked(**settings: object) -> Asked:
    return Asked(**{"model": TINY, "image": (1, 8, 8), "batches": (3,), "rounds": 2, **settings})  # type: ignore[arg-type]


class TestBench:
    def test_times_every_engine_in_every_configuration(self) -> None:
        found = bench(asked(batches=(1, 3), threads=(1, 2)), "sparsemble bench", lambda text: None)
        places = [(row["threads"], row["batch"]) for row in found["rows"] if row["engine"] == "sparsemble"]
        assert places == [(1, 1), (1, 3), (2, 1), (2, 3)]
        for threads, batch in places:
            rows = [row for row in found["rows"] if (row["threads"], row["batch"]) == (threads, batch)]
            assert {"torch", "torch, channels last", "onnxruntime", "sparsemble"} <= {row["engine"] for row in rows}
            fastest = min(row["median_ms"] for row in rows if row["dense"])
            assert all(row["ratio"] == pytest.approx(fastest / row["median_ms"]) for row in rows)
        assert found["ratio"] == next(row["ratio"] for row in found["rows"] if row["engine"] == "sparsemble")
        json.dumps(found)
        assert bench_table(found).row_count == len(found["rows"])

    def test_an_engine_that_answers_something_else_is_not_timed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def wrong(network: object, batch: int, threads: int) -> list[Timed]:
            return [
                Timed("torch", lambda x: np.ones((batch, 10)), True),
                Timed("other", lambda x: np.zeros((batch, 10)), True),
            ]

        monkeypatch.setattr(module, "engines", wrong)
        with pytest.raises(RunError, match="other differs from torch by 1 of the largest logit; it was not timed"):
            bench(asked(), "", lambda text: None)

    def test_the_command_leaves_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "bench.json"
        words = [
            "bench",
            "--model",
            "vgg16",
            "--sparsity",
            "0.99",
            "--batch",
            "1",
            "--rounds",
            "2",
            "--json",
            str(path),
            "-q",
        ]
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        found = json.loads(path.read_text("utf-8"))
        assert found["asked"]["model"] == "vgg16"
        assert found["ratio"] > 0


class TestTeams:
    def test_a_drawn_team_is_timed_whole_and_stopping_early(self, tmp_path: Path) -> None:
        found = bench(asked(batches=(200,), members=4, members_run=1.6), "", lambda text: None)
        rows = {row["engine"]: row for row in found["rows"]}
        assert rows["sparsemble, all members"]["members_run"] == 4
        early = rows["sparsemble, stopping early, drawn decisions"]
        assert early["members_run"] == pytest.approx(1.6, abs=0.2)
        assert found["ratio"] == early["ratio"]
        assert found["network"]["sparsity"] == pytest.approx(0.975, abs=0.02)
        assert bench_table(found).row_count == len(found["rows"])
        draw_bench(found, tmp_path / "bench.png")
        assert (tmp_path / "bench.png").stat().st_size > 1000

    def test_a_packed_team_is_timed_on_clean_and_slowed_down_images(self, tmp_path: Path) -> None:
        rng = seeded(0)
        members = [build_model(architectures.build(TABLE), (1, 8, 8), 10, (0.5,), (0.3,), rng=rng) for _ in range(3)]
        team = convert_team(
            Ensemble(members, combiners.build("mean_probability")).eval(),
            Confidence(threshold=0.12),
            tuple("0123456789"),
            (1, 8, 8),
            1000,
            recipe={"data": {"name": "digits"}, "threat": {"norm": "linf", "eps": 0.15}},
        )
        packed.save(team, tmp_path / "team.sparsemble")
        found = bench(asked(target=str(tmp_path / "team.sparsemble"), batches=(40,)), "", lambda text: None)
        rows = {row["engine"]: row for row in found["rows"]}
        assert {"onnxruntime", "sparsemble", "sparsemble, all members"} <= set(rows)
        clean, slow = (rows[f"sparsemble, stopping early, {what}"] for what in ("clean images", "slowdown attack"))
        assert 1 <= clean["members_run"] < slow["members_run"] <= 3
        assert found["ratio"] == clean["ratio"]

        target = load_target(str(tmp_path / "team.sparsemble"))
        x = torch.rand(9, 1, 8, 8, generator=seeded(1))
        expected = Predictor(packed.load(tmp_path / "team.sparsemble")).member_logits(x.numpy())
        assert isinstance(target.model, Ensemble)
        np.testing.assert_allclose(target.model.member_logits(x).numpy(), expected, atol=1e-5)
        assert target.sparsity == team.sparsity

    def test_what_holds_no_team_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"holds no packed team; make one with `sparsemble export "):
            bench(asked(target=str(tmp_path)), "", lambda text: None)
        (tmp_path / "team.sparsemble").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"team\.sparsemble: "):
            bench(asked(target=str(tmp_path / "team.sparsemble")), "", lambda text: None)


class TestMasks:
    @pytest.mark.parametrize("granularity", ["weight", "block", "channel"])
    def test_have_the_sparsity_asked_for(self, granularity: str) -> None:
        subject = drawn(asked(model='{name = "tiny", width = 16}', granularity=granularity, sparsity=0.8))
        first = next(node for node in subject.network.nodes if isinstance(node, Convolution))
        if granularity != "channel":
            assert first.weight.nonzeros == first.weight.size
        assert subject.facts["sparsity"] == pytest.approx(0.8, abs=0.03)

    def test_come_from_a_file_too(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be uniform, erk or a mask.safetensors that exists"):
            drawn(asked(mask=str(tmp_path / "none.safetensors")))
        uniform, erk = drawn(asked(mask="uniform")), drawn(asked(mask="erk"))
        assert erk.facts["sparsity"] == pytest.approx(0.9, abs=0.01)
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
        ({"members": 0}, "members = 0 must be 1 or more"),
        ({"members": 3, "members_run": 4}, r"members_run = 4 must lie in 1..3, the members there are"),
    ],
)
def test_what_cannot_be_gets_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked(**settings)
