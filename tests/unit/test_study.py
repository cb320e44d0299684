"""What a study file asks for, whose parents stand beside it, and what a failed stage takes with it."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from sparsemble.api.context import Context
from sparsemble.core.errors import InputError, RunError
from sparsemble.pipeline.engines import local
from sparsemble.pipeline.progress import BarProgress, PlainProgress, Progress
from sparsemble.pipeline.stage import Inputs, Stage, Task
from sparsemble.pipeline.study import Study, cells, load_study
from sparsemble.pipeline.study_table import rows
from sparsemble.report.study import markdown

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
HEAD = f'recipe = "{SMOKE}"\n'


def study(folder: Path, text: str) -> Study:
    (folder / "study.toml").write_text(HEAD + text, "utf-8")
    return load_study(folder / "study.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes = 3", "axes = 3 must be tables"),
        ("axes = {}", "at least one"),
        ("seeds = [0, 0]\n[axes.a]\nb = []", "names one twice"),
        ('rows = "dense"\nkind = "run"\n[axes.a]\nb = []', "rows = 'dense' must be a list of names"),
        ("title = 3\n[axes.a]\nb = []", "title = 3 must be a text"),
    ],
)
def test_a_wrong_study_gives_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        study(tmp_path, text)


def test_one_score_is_enough_for_single_models(tmp_path: Path) -> None:
    """The recipe's shares = 2 give one sub-model of one score, too few for an ensemble; but none is made here."""
    (_, cell) = cells(study(tmp_path, "set = [\"prune.scores=['erm']\"]\n[axes.a]\nb = []"))
    stage: Any = cell.made["pruned"].stage
    assert stage.prune.folds == 1
    assert stage.sparsity == 0.5


def test_parents_that_differ_by_more_than_their_seed_have_lines_of_their_own(tmp_path: Path) -> None:
    text = """
    seeds = [1, 2]
    [axes.objective]
    madry = []
    natural = ["train.loss={name='natural'}"]
    [axes.sparsity]
    "0.5" = ["sparsity=0.5"]
    "0.8" = ["sparsity=0.8"]
    """
    asked = study(tmp_path, text)
    expanded = cells(asked)
    parents = [cell for cell in expanded if "dense" in cell.made]
    assert [cell.label for cell in parents] == [
        f"dense parent, objective = {loss}, seed {seed}" for seed in (1, 2) for training_loss in ("pgd_at", "standard")
    ]
    result = made_up(asked)
    of_parents = [line for line in result["table"] if line["row"] == "dense"]
    assert [(line["values"], line["seeds"]) for line in of_parents] == [
        ({"objective": "pgd_at"}, 2),
        ({"objective": "standard"}, 2),
    ]
    plain = cells(study(tmp_path, text.replace("train.loss", "prune.loss")))
    assert [cell.label for cell in plain if "dense" in cell.made] == ["dense parent, seed 1", "dense parent, seed 2"]


def made_up(asked: Study) -> dict[str, Any]:
    """Return a result with numbers out of thin air."""
    numbers = {"clean": 0.9, "worst_case": 0.5, "images": 40, "sparsity": 0.0, "nonzeros": 9, "macs_nonzero": 9}
    numbers |= {"training_passes": 1, "seconds": 1.0, "attacks": {}, "members_run": {"clean": 1.5, "attacked": 2.0}}
    told = [
        {"values": cell.values, "seed": cell.seed, "row": row, **numbers}
        for cell in cells(asked)
        for row in (cell.made or asked.rows)
    ]
    result = {
        "title": asked.title,
        "kind": asked.kind,
        "axes": {axis: list(values) for axis, values in asked.axes.items()},
        "seeds": list(asked.seeds),
        "command": "sparsemble study x",
        "machine": {},
        "stage_sources": ["0123456789abcdef"],
        "stage_seconds": 600.0,
        "stages_run": 0,
        "wall_seconds": 1.0,
        "cells": told,
    }
    return result | {"table": rows(result)}


def test_the_table_says_by_what_it_was_made_and_has_as_many_cells_as_titles(tmp_path: Path) -> None:
    for kind, count in (("pruned", 10), ("run", 11)):
        result = made_up(study(tmp_path, f'kind = "{kind}"\n[axes.a]\n"b|c" = []\n[axes.d]\ne = []'))
        text = markdown(result, result["table"])
        assert "0123456789ab." in text
        assert "10.0 min" in text
        lines = [line.replace(r"\|", "") for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {count + 1}
        assert ("1.50 / 2.00" in text) == (kind == "run")


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage):
    """A stage that no worker runs."""

    name: ClassVar[str] = "nothing"
    seed: int

    def run(self, context: Context, inputs: Inputs) -> None:
        raise AssertionError


class FakeWorker:
    """Does what the title says: fail, die, or be done."""

    ran: ClassVar[list[str]] = []

    class Process:
        def wait(self) -> int:
            return -9

    def __init__(self, _folder: Path, _device: str, news: Any) -> None:
        self.news, self.process = news, self.Process()
        self.begin()

    def begin(self) -> None:
        self.task, self.ready = None, False
        self.news.put((self, {"kind": "ready"}))

    def start(self, task: Task) -> None:
        self.task = task
        self.ran.append(task.title)
        what = {"fail": {"kind": "failed", "sentence": "no"}, "die": {"kind": "gone"}}
        self.news.put((self, what.get(task.title.split()[0], {"kind": "done", "seconds": 0.0})))

    def kill(self) -> None:
        pass


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("fault", ["fail", "die"])
def test_a_failed_stage_takes_all_that_waits_for_it_and_nothing_else(
    fault: str, terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks come in any order, as those of a study do: here what comes last stands first."""
    bad = Task(f"{fault} early", Nothing(seed=1), {}, 1)
    child = Task("child", Nothing(seed=2), {"given": bad}, 1)
    grandchild = Task("grandchild", Nothing(seed=3), {"given": child}, 1)
    good = Task("good", Nothing(seed=4), {}, 1)
    after = Task("after", Nothing(seed=5), {"given": good}, 1)
    tasks = [grandchild, child, bad, after, good]
    monkeypatch.setattr(local, "_Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "ran", [])
    console = Console(file=io.StringIO(), force_terminal=terminal)
    progress: Progress = BarProgress(console, tasks) if terminal else PlainProgress(console, tasks)
    engine = local.LocalEngine(tmp_path, 1, "cpu", progress, keep_going=True)
    with progress:
        engine.run(tasks)
    assert sorted(FakeWorker.ran) == sorted([bad.title, "after", "good"])
    assert set(engine.failures) == {bad.hash, child.hash, grandchild.hash}
    assert len(set(engine.failures.values())) == 1
    assert bad.title in engine.failures[grandchild.hash]
    assert progress.done == len(tasks)
    assert progress.share == pytest.approx(1)
    strict = local.LocalEngine(tmp_path, 1, "cpu", PlainProgress(console, tasks))
    with pytest.raises(RunError, match=bad.title):
        strict.run(tasks)
