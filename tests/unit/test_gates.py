"""Gates: what is no better than chance is left out or ends the run with its numbers, whatever made it."""

import json
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sparsemble as sp
from sparsemble.api import PoolRecord
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.core.results import ChanceLevel
from sparsemble.core.types import Images, Labels
from sparsemble.pipeline import run as pipeline
from sparsemble.pipeline.engines import driver
from sparsemble.pipeline.gates import Gates
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.recipe import Recipe, load_recipe
from sparsemble.pipeline.stage import Task

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
CHANCE = ChanceLevel(images=149, largest_class=15, least=25)
"""Of the 149 held-out digits that choose epochs, 15 of each of nine classes."""
GOOD, AT_CHANCE = (
    {"held_out_clean": 120 / 149, "held_out_robust": 60 / 149},
    dict.fromkeys(("held_out_clean", "held_out_robust"), 24 / 149),
)
NOT_ROBUST = {**GOOD, "held_out_robust": 0.0}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(str(SMOKE))[1]


def write(folder: Path, task: Task, name: str, text: str) -> None:
    (folder / task.folder).mkdir(exist_ok=True)
    (folder / task.folder / name).write_text(text, "utf-8")


def history(accuracies: Mapping[str, float], epochs: int = 2) -> str:
    """Return the history of a training whose last epoch, the one it keeps, has these accuracies."""
    records = [{"epoch": epoch, "held_out_clean": 0.0, "held_out_robust": 0.0} for epoch in range(1, epochs)]
    return "".join(json.dumps(record) + "\n" for record in [*records, {"epoch": epochs, **accuracies}])


def gates(folder: Path, *, force: bool = False) -> tuple[Gates, list[str]]:
    reported: list[str] = []
    return Gates(folder=folder, force=force, report=reported.append), reported


class TestParent:
    def dense(self, recipe: Recipe, folder: Path, accuracies: Mapping[str, float]) -> Task:
        task = build_graph(recipe, "", "").until["train"][0]
        write(folder, task, "history.jsonl", history(accuracies))
        return task

    def test_one_that_learned_passes_without_a_word(self, recipe: Recipe, tmp_path: Path) -> None:
        gate, reported = gates(tmp_path)
        gate.check(self.dense(recipe, tmp_path, GOOD))
        assert not reported

    @pytest.mark.parametrize(
        ("accuracies", "words"),
        [(AT_CHANCE, ["has not learned", "16.1 %"]), (NOT_ROBUST, ["is not robust", "80.5 %", "0.0 % under attack"])],
    )
    def test_one_at_chance_stops_the_run_with_numbers_and_advice(
        self, accuracies: Mapping[str, float], words: list[str], recipe: Recipe, tmp_path: Path
    ) -> None:
        task = self.dense(recipe, tmp_path, accuracies)
        with pytest.raises(InputError) as stopped:
            gates(tmp_path)[0].check(task)
        advice = ["149 held-out images", "10.1 %", "16.8 %", "threat.eps = 0.1", "train.epochs = 2", "--force"]
        for word in [*words, *advice, str(tmp_path)]:
            assert word in str(stopped.value)

    def test_where_minutes_decide_the_epochs_more_of_them_are_advised(self, recipe: Recipe, tmp_path: Path) -> None:
        gate = Gates(folder=tmp_path, force=False, report=print, minutes=5)
        with pytest.raises(InputError, match=r"more minutes \(minutes = 5 gave train\.epochs = 2\)"):
            gate.check(self.dense(recipe, tmp_path, AT_CHANCE))

    def test_by_force_it_goes_on_and_says_so_once(self, recipe: Recipe, tmp_path: Path) -> None:
        gate, reported = gates(tmp_path, force=True)
        for _ in range(2):
            gate.check(self.dense(recipe, tmp_path, AT_CHANCE))
        assert len(reported) == 1
        assert "has not learned" in reported[0]

    def test_the_epoch_that_was_kept_counts(self, recipe: Recipe, tmp_path: Path) -> None:
        task = self.dense(recipe, tmp_path, AT_CHANCE)
        best_first = [{"epoch": 1, **GOOD}, {"epoch": 2, **AT_CHANCE}]  # of 2 epochs, both may be chosen
        write(tmp_path, task, "history.jsonl", "".join(json.dumps(record) + "\n" for record in best_first))
        gates(tmp_path)[0].check(task)

    def loaded(self, folder: Path, accuracies: Mapping[str, float], epochs: int = 0) -> Task:
        with_parent = load_recipe(str(SMOKE), (f"parent={{finetune_epochs={epochs}}}",))[1]
        task = build_graph(with_parent, "", "").until["train"][0]
        write(folder, task, "held_out.json", json.dumps(accuracies))
        return task

    def test_one_from_elsewhere_need_not_be_robust_but_that_is_said(self, tmp_path: Path) -> None:
        gate, reported = gates(tmp_path)
        gate.check(self.loaded(tmp_path, NOT_ROBUST))
        (sentence,) = reported
        for word in ("the given parent is not robust", "0.0 % under attack", "parent.finetune_epochs = 0"):
            assert word in sentence

    def test_one_that_was_fine_tuned_has_to_be(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"the fine-tuned parent is not robust.*parent\.finetune_epochs = 3"):
            gates(tmp_path)[0].check(self.loaded(tmp_path, NOT_ROBUST, epochs=3))
        gates(tmp_path)[0].check(self.loaded(tmp_path, GOOD, epochs=3))

    def test_one_from_elsewhere_that_does_not_know_the_classes_stops_the_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"does not know the classes of digits.*same order.*parent\.mean"):
            gates(tmp_path)[0].check(self.loaded(tmp_path, AT_CHANCE))


def pool_record(at_chance: int, names: tuple[str, ...] = ("nis-1", "erm-1", "ase-1", "bnsf-1")) -> PoolRecord:
    clean = tuple(0.1 if i < at_chance else 0.9 for i in range(len(names)))
    empty: dict[str, Any] = {"layers": (), "layer_weights": (), "layer_sparsity": {}, "overlap": ()}
    return PoolRecord(
        ensemble=names[-2:],
        robust_diversity=0.5,
        reason="",
        ensembles_scored=1,
        pool=names,
        held_out_clean=clean,
        held_out_transfer=clean,
        held_out_robust=clean,
        best_member=names[-1],
        at_chance=names[:at_chance],
        chance=CHANCE,
        macs_nonzero=1,
        **empty,
    )


class TestPoolAndEnsemble:
    @pytest.mark.parametrize("at_chance", [0, 2])
    def test_enough_sub_models_pass(self, at_chance: int, recipe: Recipe, tmp_path: Path) -> None:
        task = build_graph(recipe, "", "").until["select"][0]
        write(tmp_path, task, "select.json", json.dumps(to_dict(pool_record(at_chance))))
        gates(tmp_path)[0].check(task)

    def test_too_few_are_named(self, recipe: Recipe, tmp_path: Path) -> None:
        task = build_graph(recipe, "", "").until["select"][0]
        write(tmp_path, task, "select.json", json.dumps(to_dict(pool_record(3))))
        with pytest.raises(InputError) as stopped:
            gates(tmp_path)[0].check(task)
        for word in ("1 of 4 sub-models", "2 are needed", "nis-1 (10.0 % clean", "0.75", "finetune_epochs = 2"):
            assert word in str(stopped.value)

    def test_an_ensemble_that_fails_in_training_stops_the_run(self, recipe: Recipe, tmp_path: Path) -> None:
        task = build_graph(recipe, "", "").until["ensemble"][0]
        write(tmp_path, task, "history.jsonl", history(AT_CHANCE))
        with pytest.raises(InputError, match=r"the trained ensemble .*learning_rate = 0\.1"):
            gates(tmp_path)[0].check(task)


class Instant(Executor):
    """Leaves an artifact whose training ended at chance, whatever the stage."""

    folder: Path
    started: list[str]

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        folder, stage_hash = args
        task = json.loads(driver.task_file(Path(folder), stage_hash).read_text("utf-8"))
        self.started.append(task["title"])
        artifact = Path(folder) / task["folder"]
        artifact.mkdir()
        (artifact / "history.jsonl").write_text(history(AT_CHANCE), "utf-8")
        (artifact / "meta.json").write_text('{"files": {}}', "utf-8")
        future: Future = Future()
        future.set_result(1.0)
        return future


class TestRun:
    """The whole run, its stages replaced by files that say that training failed."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        titles: list[str] = []
        Instant.started = titles
        monkeypatch.setattr(driver, "LocalExecutor", lambda slots: Instant())
        return titles

    def run(self, recipe: Recipe, folder: Path, until: str, **options: Any) -> None:
        pipeline.run(
            recipe, "", "", pipeline.RunOptions(folder=folder, device="cpu", until=until, quiet=True, **options)
        )

    def test_a_failed_parent_is_the_last_stage_that_runs_and_again_at_a_restart(
        self, started: list[str], recipe: Recipe, tmp_path: Path
    ) -> None:
        for _ in range(2):
            with pytest.raises(InputError, match="the dense parent has not learned"):
                self.run(recipe, tmp_path, "export")
            assert started == ["train the dense parent"]
        self.run(recipe, tmp_path, "prune", force=True)
        assert len(started) == 5

    def test_the_command_that_made_it_fails_too(self, started: list[str], recipe: Recipe, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="the dense parent has not learned"):
            self.run(recipe, tmp_path, "train")
        self.run(recipe, tmp_path, "train", force=True)
        assert started == ["train the dense parent"]


def test_too_few_held_out_images_are_refused_before_work(recipe: Recipe, tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 2
    arrays = tmp_path / "few.npz"
    np.savez(arrays, train_images=x, train_labels=y, test_images=x, test_labels=y)
    few = load_recipe(str(SMOKE), (f"data={{name='arrays', path='{arrays}', held_out=8}}",))[1]
    with pytest.raises(InputError, match=r"has 4, too few to tell a network from chance; raise data\.held_out"):
        gates(tmp_path)[0].check_images(few)
    gates(tmp_path, force=True)[0].check_images(few)


def brightest_pixel(*, constant: bool = False) -> nn.Module:
    """Return a network that names the brightest of four pixels, or one class for every image."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4, bias=False)).eval()
    network[1].weight.data.copy_(torch.full((4, 4), 0.5) if constant else torch.eye(4))
    return network


def four_classes(images: int = 80) -> tuple[Images, Labels]:
    """Return images of 2 x 2 pixels, of which one is 0.6 brighter than the others: robust up to eps 0.3."""
    y = torch.arange(images) % 4
    return (0.2 + 0.6 * torch.eye(4)[y]).reshape(images, 1, 2, 2), y


POOL = {"one": brightest_pixel(), "two": brightest_pixel(), "three": brightest_pixel(constant=True)}


class TestSelect:
    def test_a_sub_model_at_chance_is_left_out_and_named(self) -> None:
        record = sp.select(POOL, four_classes(), sp.Linf(0.2), size=2).record
        assert (record.ensemble, record.at_chance) == (("one", "two"), ("three",))
        assert record.held_out_robust == (1.0, 1.0, 0.25)
        assert record.chance == ChanceLevel(images=80, largest_class=20, least=30)

    def test_what_remains_is_selected_as_if_it_had_never_been_there(self) -> None:
        given = {name: POOL[name] for name in ("one", "two")}
        with_it, without = (sp.select(pool, four_classes(), sp.Linf(0.2), size=2).record for pool in (POOL, given))
        assert with_it.held_out_transfer[:2] == without.held_out_transfer
        assert with_it.robust_diversity == without.robust_diversity
        assert with_it.ensembles_scored == without.ensembles_scored == 1

    def test_robust_accuracy_counts_too(self) -> None:
        with pytest.raises(InputError, match=r"0 of 3 sub-models .* one \(100\.0 % clean, 0\.0 % under attack\)"):
            sp.select(POOL, four_classes(), sp.Linf(0.35), size=2)

    def test_too_few_are_refused_unless_forced_and_the_best_fill_the_places(self, tmp_path: Path) -> None:
        given: dict[str, Any] = {"pool": POOL, "data": four_classes(), "threat": sp.Linf(0.2), "size": 3}
        with pytest.raises(InputError, match=r"2 of 3 sub-models .* 3 are needed.*three \(25\.0 % clean.*force=True"):
            sp.select(**given, folder=tmp_path / "selected")
        forced = sp.select(**given, folder=tmp_path / "selected", force=True)  # reads what was kept
        assert forced.record.ensemble == ("one", "two", "three")
        assert forced.record.at_chance == ("three",)


def test_an_eps_that_changes_what_photographs_show_needs_force(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(60):
            image = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / label / f"{i}.png")
    folder = str(tmp_path / "photos").replace("\\", "/")
    changes = (f"data.root={folder}", "data.size=16", "data.held_out=0.5", "data.near_duplicates=false")
    large = load_recipe("photos", (*changes, "threat.eps=17/255"))[1]
    with pytest.raises(InputError, match=r"threat\.eps = 17/255 is above 16/255"):
        gates(tmp_path)[0].check_images(large)
    gates(tmp_path, force=True)[0].check_images(large)
    gates(tmp_path)[0].check_images(load_recipe("photos", (*changes, "threat.eps=16/255"))[1])
