"""Watching a training: the file of epochs, the table, the log, TensorBoard, and the report's training part."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from torch import nn

from sparsemble.core.artifacts import read_json_lines
from sparsemble.core.errors import InputError
from sparsemble.pipeline.epochs import LAST, epochs_table, line
from sparsemble.pipeline.progress import LONG_EPOCH, BarProgress, PlainProgress
from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.tensorboard import Board
from sparsemble.report.page import taken_back, training_table
from sparsemble.training import Show, WriteHistory
from tests.unit.test_stage import Bake


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": 9, "loss": 2.5 / epoch, "rate": 0.1, "seconds": 1.5, **more}


def task() -> Task:
    return Task("train the dense parent", Bake(), {}, cost=1)


def text_of(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class TestWriteHistory:
    def test_the_file_always_equals_the_history(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        history = [record(1), record(2)]
        callback = WriteHistory(path)
        for now in ([], [], history[:1], history, history[:1], [*history[:1], record(2, rolled_back=["it fell"])]):
            callback.after_keep(now)
            assert read_json_lines(path) == now

    def test_an_epoch_more_is_appended_so_that_a_reader_can_follow(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        callback = WriteHistory(path)
        callback.after_keep([record(1)])
        with path.open() as follower:
            follower.read()
            callback.after_keep([record(1), record(2)])
            assert '"epoch": 2' in follower.read()

    def test_a_resumed_training_writes_over_what_it_does_not_know(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch"', "utf-8")
        WriteHistory(path).after_keep([record(1)])
        assert read_json_lines(path) == [record(1)]

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "history.jsonl").write_text("{", "utf-8")
        with pytest.raises(InputError, match=r"history\.jsonl cannot be read as one JSON value a line"):
            read_json_lines(tmp_path / "history.jsonl")


def test_show_hands_on_new_epochs_only() -> None:
    seen: list[dict[str, Any]] = []
    show = Show(seen.append)
    show.after_keep([record(1)])  # resumed: nothing was trained yet
    assert seen == []
    show.after_epoch(nn.Identity(), 2, 9, {})
    show.after_keep([record(1), record(2)])
    assert [one["epoch"] for one in seen] == [2]


class TestTable:
    def test_one_training_shows_its_last_epochs(self) -> None:
        records = [record(e, held_out_clean=0.5, held_out_robust=0.25) for e in range(1, 10)]
        table = epochs_table({"train the dense parent": records})
        assert table is not None
        shown = text_of(table)
        assert [f"{e}/9" in shown for e in range(1, 10)] == [False] * (9 - LAST) + [True] * LAST
        assert "50.0" in shown
        assert "25.0" in shown

    def test_several_show_one_row_each(self) -> None:
        table = epochs_table({"prune nis-1": [record(1), record(2)], "prune erm-1": [record(3)], "idle": []})
        assert table is not None
        assert table.row_count == 2

    def test_there_is_none_before_the_first_epoch(self) -> None:
        assert epochs_table({}) is None
        assert epochs_table({"prune nis-1": []}) is None


class TestProgress:
    def log(self, *records: dict[str, Any]) -> str:
        console = Console(file=io.StringIO(), width=120)
        with PlainProgress(console, [task()]) as progress:
            for one in records:
                progress.epoch(task(), one)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def test_a_log_gets_a_line_for_a_long_epoch_only(self) -> None:
        assert self.log(record(1)) == ""
        long = record(2, seconds=LONG_EPOCH, held_out_clean=0.5, held_out_robust=0.25)
        assert self.log(long) == line("train the dense parent", long) + "\n"
        assert "held-out clean 50.0 %, robust 25.0 %" in self.log(long)

    def test_what_the_guard_did_is_printed_and_the_epochs_it_took_back_are_gone(self) -> None:
        console = Console(file=io.StringIO(), width=120, force_terminal=True)
        with BarProgress(console, [task()]) as progress:
            progress.started(task())
            for one in (record(1), record(2), record(3), record(2, rolled_back=["it fell in epoch 4"])):
                progress.epoch(task(), one)
            assert [one["epoch"] for one in progress.trainings["train the dense parent"]] == [1, 2]
            progress.finished(task(), 1.0)
            assert not progress.trainings
        assert isinstance(console.file, io.StringIO)
        assert "train the dense parent: it fell in epoch 4" in console.file.getvalue()


class TestBoard:
    def test_writes_what_tensorboard_reads(self, tmp_path: Path) -> None:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        board = Board(tmp_path)
        for epoch in (1, 2):
            board.write("train the dense parent", record(epoch, rolled_back=["no number"]))
        board.close()
        found = accumulator.EventAccumulator(str(tmp_path / "train-the-dense-parent"))
        found.Reload()
        assert set(found.Tags()["scalars"]) == {"loss", "rate", "seconds"}
        assert [(e.step, round(e.value, 4)) for e in found.Scalars("loss")] == [(1, 2.5), (2, 1.25)]

    def test_its_absence_is_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(InputError, match=r"install it with pip install 'sparsemble\[tensorboard\]'"):
            Board(tmp_path)


class TestReport:
    def trainings(self) -> dict[str, list[dict[str, Any]]]:
        measured = {"held_out_clean": 0.9, "held_out_robust": 0.4, "rolled_back": None}
        better = {**measured, "held_out_robust": 0.5, "rolled_back": ["it fell in epoch 3"]}
        return {
            "dense": [record(1, **measured), record(2, **better), record(3, **measured)],
            "harp": [],
            "team": [record(1, **measured)],
        }

    def test_rollbacks_are_said_and_there_is_nothing_to_say_without(self) -> None:
        assert taken_back(self.trainings()) == " Dotted lines: training went back. dense parent: it fell in epoch 3."
        assert taken_back({"dense": [record(1, rolled_back=None)]}) == ""

    def test_the_table_names_the_most_robust_epoch(self) -> None:
        row = training_table(self.trainings())[-3]
        assert row == "| dense parent | 3 | 2.500 | 0.833 | 2 | 90.0 | 50.0 | 1 |"
        assert training_table({}) == []
