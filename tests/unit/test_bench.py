"""`sparsemble bench`: what is timed answers alike, and the numbers belong together. No time is judged here."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sparsemble.cli import app
from sparsemble.core.errors import InputError, RunError
from sparsemble.pipeline import bench as module
from sparsemble.pipeline.bench import Asked, bench, bench_table, drawn
from sparsemble.pipeline.bench_engines import Timed
from sparsemble.runtime.network import Convolution

TINY = '{name = "tiny", width = 4}'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEMBLE_CACHE", str(tmp_path / "cache"))


def asked(**settings: object) -> Asked:
    return Asked(**{"model": TINY, "image": (1, 8, 8), "batches": (3,), "rounds": 2, **settings})  # type: ignore[arg-type]


class TestBench:
    def test_times_every_engine_in_every_configuration(self) -> None:
        found = bench(asked(batches=(1, 3), threads=(1, 2)), "sparsemble bench")
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
            bench(asked(), "")

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


class TestMasks:
    @pytest.mark.parametrize("granularity", ["weight", "block", "channel"])
    def test_have_the_sparsity_asked_for(self, granularity: str) -> None:
        network, facts = drawn(asked(model='{name = "tiny", width = 16}', granularity=granularity, sparsity=0.8))
        first = next(node for node in network.nodes if isinstance(node, Convolution))
        if granularity != "channel":
            assert first.weight.nonzeros == first.weight.size
        assert facts["sparsity"] == pytest.approx(0.8, abs=0.03)

    def test_come_from_a_file_too(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"must be uniform, erk or a mask.safetensors that exists"):
            drawn(asked(mask=str(tmp_path / "none.safetensors")))
        uniform, _ = drawn(asked(mask="uniform"))
        erk, facts = drawn(asked(mask="erk"))
        assert facts["sparsity"] == pytest.approx(0.9, abs=0.01)
        counts = [
            [node.weight.nonzeros for node in one.nodes if isinstance(node, Convolution)] for one in (uniform, erk)
        ]
        assert counts[0] != counts[1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": (0,)}, r"threads = \[0\] must be whole numbers, 1 or more"),
        ({"batches": ()}, r"batches = \[\] must be whole numbers"),
        ({"rounds": 1}, "rounds = 1 must be 2 or more"),
        ({"sparsity": 1.0}, r"sparsity = 1 must lie in \[0, 1\)"),
    ],
)
def test_what_cannot_be_gets_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        asked(**settings)
