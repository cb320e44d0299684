"""What a study file asks for, whose parents stand beside it, and what a failed stage takes with it."""

import io
import itertools
import json
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console

from sparsemble.api.context import Context
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.results import MembersRun, StudyCell, StudyLine, StudyNumbers
from sparsemble.pipeline.engines.driver import Driver
from sparsemble.pipeline.engines.worker import task_file
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.recipe import load_recipe, shipped
from sparsemble.pipeline.stage import Inputs, Stage, Task
from sparsemble.pipeline.study import SINGLE_MODEL, Study, cells, load_study
from sparsemble.pipeline.study_command import study_lines

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
HEAD = f'recipe = "{SMOKE}"\n'


def study(folder: Path, text: str) -> Study:
    (folder / "study.toml").write_text(HEAD + text, "utf-8")
    return load_study(str(folder / "study.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("axes = 3", "axes = 3 must be a table"),
        ("axes = {}", "at least one"),
        ("seeds = [0, 0]\n[axes.a]\nb = []", "names one twice"),
        ('rows = "dense"\nkind = "run"\n[axes.a]\nb = []', "rows = 'dense' must be a list"),
        ("title = 3\n[axes.a]\nb = []", "title = 3 must be a string"),
        ("[axes.a]\nb = [\"kind='both'\"]", 'kind = \'both\' must be "pruned" or "run"'),
        ('rows = ["dense"]\n[axes.a]\nb = ["kind=run"]\nc = []', 'rows names "dense", which has a line of its own'),
    ],
)
def test_a_wrong_study_gives_a_sentence(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        study(tmp_path, text)


@pytest.mark.parametrize("name", sorted(shipped("studies")))
def test_the_settings_of_shipped_studies_exist(name: str) -> None:
    """Without the data of each, so not all that `cells` checks."""
    asked = load_study(name)
    for chosen in itertools.product(*asked.axes.values()):
        values = dict(zip(asked.axes, chosen, strict=True))
        single = SINGLE_MODEL if asked.kind_of(values) == "pruned" else ()
        assert load_recipe(asked.recipe, (*single, *asked.changes(values)))


def test_one_score_is_enough_for_single_models(tmp_path: Path) -> None:
    """The recipe's shares = 2 give one sub-model of one score, too few for an ensemble; but none is made here."""
    (_, cell) = cells(study(tmp_path, "set = [\"prune.scores=['erm']\"]\n[axes.a]\nb = []"))
    stage: Any = cell.made["pruned"].stage
    assert stage.prune.folds == 1
    assert stage.sparsity == 0.5


def test_parents_that_differ_by_more_than_their_seed_have_lines_of_their_own(tmp_path: Path) -> None:
    text = """
    seeds = [1, 2]
    [axes.loss]
    pgd_at = []
    standard = ["train.loss={name='standard'}"]
    [axes.sparsity]
    "0.5" = ["sparsity=0.5"]
    "0.8" = ["sparsity=0.8"]
    """
    asked = study(tmp_path, text)
    expanded = cells(asked)
    parents = [cell for cell in expanded if "dense" in cell.made]
    assert [cell.label for cell in parents] == [
        f"dense parent, loss = {loss}, seed {seed}" for seed in (1, 2) for loss in ("pgd_at", "standard")
    ]
    of_parents = [line for line in made_up(asked) if line.row == "dense"]
    assert [(line.values, line.seeds) for line in of_parents] == [
        ({"loss": "pgd_at"}, 2),
        ({"loss": "standard"}, 2),
    ]
    plain = cells(study(tmp_path, text.replace("train.loss", "prune.loss")))
    assert [cell.label for cell in plain if "dense" in cell.made] == ["dense parent, seed 1", "dense parent, seed 2"]


def test_single_models_and_whole_runs_share_a_table_and_their_stages(tmp_path: Path) -> None:
    text = """
    [axes.method]
    hydra = ["prune.method={name='hydra', epochs=1}"]
    eed = ["kind='run'"]
    """
    asked = study(tmp_path, text)
    assert asked.kinds == "mixed"
    assert asked.rows == ("ensemble_dynamic",)
    parent, hydra, eed = cells(asked)
    assert [line.row for line in made_up(asked)] == ["dense", "pruned", "ensemble_dynamic"]
    assert asked.changes(eed.values) == ()
    assert hydra.report is None
    assert eed.report is not None
    shared = {task.hash for task in eed.tasks} & {task.hash for task in (*parent.tasks, *hydra.tasks)}
    assert {task.hash for task in parent.tasks} <= shared


def made_up(asked: Study) -> tuple[StudyLine, ...]:
    """Return the table of a study with numbers out of thin air."""
    numbers = StudyNumbers(
        clean_accuracy=0.9,
        worst_case=0.5,
        attacks={},
        sparsity=0.0,
        nonzeros=9,
        macs_nonzero=9,
        members_run=MembersRun(clean=1.5, attacked=2.0),
        training_passes=1,
        training_seconds=1.0,
    )
    made = [
        StudyCell(values=cell.values, seed=cell.seed, settings=(), row=row, numbers=numbers, correct=(0, 1) * 20)
        for cell in cells(asked)
        for row in (cell.made or asked.rows)
    ]
    return study_lines(made, list(asked.axes))


@dataclass(frozen=True, kw_only=True)
class Nothing(Stage):
    """A stage that no worker runs."""

    name: ClassVar[str] = "nothing"
    seed: int

    def run(self, context: Context, inputs: Inputs) -> None:
        raise AssertionError


class FakeExecutor(Executor):
    """Ends every stage as its title says: failed, with its process killed, or done."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        folder, stage_hash = args
        title = json.loads(task_file(Path(folder), stage_hash).read_text("utf-8"))["title"]
        self.ran.append(title)
        future: Future = Future()
        if title.split()[0] in ("fail", "die"):
            future.set_exception(RunError(f'the stage "{title}" failed: no'))
        else:
            future.set_result(0.0)
        return future


@pytest.mark.parametrize("terminal", [True, False])
def test_a_failed_stage_takes_all_that_waits_for_it_and_nothing_else(terminal: bool, tmp_path: Path) -> None:
    """Tasks come in any order, as those of a study do: here what comes last stands first."""
    bad = Task("fail early", Nothing(seed=1), {}, 1)
    child = Task("child", Nothing(seed=2), {"given": bad}, 1)
    grandchild = Task("grandchild", Nothing(seed=3), {"given": child}, 1)
    good = Task("good", Nothing(seed=4), {}, 1)
    after = Task("after", Nothing(seed=5), {"given": good}, 1)
    tasks = [grandchild, child, bad, after, good]
    console = Console(file=io.StringIO(), force_terminal=terminal)
    progress = Progress(console, tasks)
    settings = {"folder": tmp_path, "slots": 1, "device": "cpu"}
    executor = FakeExecutor()
    driver = Driver(executor=executor, progress=progress, keep_going=True, **settings)
    with progress:
        driver.run(tasks)
    assert sorted(executor.ran) == sorted([bad.title, "after", "good"])
    assert set(driver.failures) == {bad.hash, child.hash, grandchild.hash}
    assert len(set(driver.failures.values())) == 1
    assert bad.title in driver.failures[grandchild.hash]
    assert progress.done == len(tasks)
    assert progress.share == pytest.approx(1)
    strict = Driver(executor=FakeExecutor(), progress=Progress(console, tasks), **settings)
    with pytest.raises(RunError, match=bad.title):
        strict.run(tasks)
    assert list(tmp_path.iterdir()) == []
