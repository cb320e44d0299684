"""Watching a training: the file of epochs, the table, the log and TensorBoard."""

import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from sparsemble.api.context import Context
from sparsemble.core.artifacts import read_json_lines
from sparsemble.core.errors import InputError
from sparsemble.pipeline.engines.worker import run_task
from sparsemble.pipeline.progress import (
    LAST,
    LONG_EPOCH,
    Progress,
    epoch_line,
    epochs_table,
)
from sparsemble.pipeline.stage import Inputs, Task, stages
from sparsemble.pipeline.tensorboard import Board
from sparsemble.training import Callback, Checkpoint, Guard, OnEpoch, ReportProgress, WriteHistory
from sparsemble.training.losses.standard import Standard
from tests.unit.test_guard import SCHEDULE, Kill, Killed, net, train
from tests.unit.test_stage import Bake


def record(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "epochs": 9, "loss": 2.5 / epoch, "learning_rate": 0.1, "seconds": 1.5, **more}


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
            callback.after_history_change(now)
            assert read_json_lines(path) == now

    def test_an_epoch_more_is_appended_so_that_a_reader_can_follow(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        callback = WriteHistory(path)
        callback.after_history_change([record(1)])
        with path.open() as follower:
            follower.read()
            callback.after_history_change([record(1), record(2)])
            assert '"epoch": 2' in follower.read()

    def test_a_reader_keeps_following_where_epochs_were_taken_back(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        callback = WriteHistory(path)
        callback.after_history_change([record(1), record(2), record(3)])
        with path.open("rb", buffering=0) as follower:
            follower.readline()
            callback.after_history_change([record(1)])
            callback.after_history_change([record(1), record(2, rolled_back=["it fell"])])
            assert json.loads(follower.read()) == record(2, rolled_back=["it fell"])

    def test_a_resumed_training_writes_over_what_it_does_not_know(self, tmp_path: Path) -> None:
        path = tmp_path / "history.jsonl"
        path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epoch"', "utf-8")
        WriteHistory(path).after_history_change([record(1)])
        assert read_json_lines(path) == [record(1)]

    def test_a_broken_file_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "history.jsonl").write_text("{", "utf-8")
        with pytest.raises(InputError, match=r"history\.jsonl cannot be read as one JSON value a line"):
            read_json_lines(tmp_path / "history.jsonl")


class Falls(Callback):
    """Says how robust each tried epoch is."""

    def __init__(self, *robust: float) -> None:
        self.robust = list(robust)

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        record |= {"held_out_clean": 0.9, "held_out_robust": self.robust.pop(0)}


def plain(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key not in ("seconds", "epochs")} for one in records]


class TestWatchedTraining:
    """A training whose third epoch collapses once, or again and again."""

    COLLAPSES: ClassVar[dict[str, tuple[float, ...]]] = {
        "never": (0.4, 0.5, 0.5, 0.5, 0.5),
        "once": (0.4, 0.5, 0.0, 0.5, 0.5, 0.5),
        "then the next": (0.4, 0.5, 0.0, 0.5, 0.0, 0.5, 0.5),
        "for good": (0.4, 0.5, 0.0, 0.0),
    }

    def watch(self, folder: Path, *more: Callback, robust: tuple[float, ...]) -> tuple[list[Any], list[Any], list[str]]:
        """Return the history, what was shown, and what was said."""
        shown: list[dict[str, Any]] = []
        said: list[str] = []
        watchers = (
            ReportProgress(lambda share, text: None, said.append),
            OnEpoch(shown.append),
            WriteHistory(folder / "h.jsonl"),
        )
        schedule = replace(SCHEDULE, guard=Guard(max_rollbacks=1 if len(robust) < 5 else 2))
        history = train(net(), Standard(), Falls(*robust), *watchers, *more, schedule=schedule, epochs=5)
        return history, shown, said

    @pytest.mark.parametrize("robust", COLLAPSES.values(), ids=list(COLLAPSES))
    def test_file_screen_and_log_agree_with_the_history(self, tmp_path: Path, robust: tuple[float, ...]) -> None:
        history, shown, said = self.watch(tmp_path, robust=robust)
        assert plain(read_json_lines(tmp_path / "h.jsonl")) == history
        # What the tries before a stop cost is entered after their epoch was shown.
        rule = {"stopped", "rolled_back", "forward_passes", "backward_passes"} if "stopped" in history[-1] else set()
        expected = [{key: value for key, value in one.items() if key not in rule} for one in history]
        seen = [{key: value for key, value in one.items() if key not in rule} for one in plain(shown)]
        assert seen == expected, "every epoch that was kept is shown once"
        assert all(one["epochs"] == 5 for one in shown)
        stopped = [one["stopped"] for one in history if "stopped" in one]
        entered = [sentence for one in history for sentence in one.get("rolled_back", [])] + stopped
        assert [sentence for sentence in said if sentence in entered] == entered
        assert len(said) == robust.count(0.0)

    def test_what_went_wrong_is_said_before_the_next_epoch(self, tmp_path: Path) -> None:
        heard: list[object] = []
        watchers = (
            ReportProgress(lambda share, text: None, heard.append),
            OnEpoch(lambda one: heard.append(one["epoch"])),
        )
        train(net(), Standard(), Falls(0.5, 0.0, 0.5), *watchers, epochs=2)
        assert [type(one) for one in heard] == [int, str, int]

    def test_a_killed_training_goes_on_in_the_same_file(self, tmp_path: Path) -> None:
        def start(*more: Callback, robust: tuple[float, ...]) -> list[dict[str, Any]]:
            watcher = WriteHistory(tmp_path / "h.jsonl")
            return train(net(), Standard(), Falls(*robust), watcher, *more, checkpoint=Checkpoint(tmp_path), epochs=4)

        with pytest.raises(Killed):
            start(Kill(epochs=3), robust=(0.4, 0.5, 0.5))
        with (tmp_path / "h.jsonl").open("a") as stream:
            stream.write('{"epoch": 3, "lo')  # killed while it wrote
        history = start(robust=(0.5, 0.5))
        assert [one["epoch"] for one in history] == [1, 2, 3, 4]
        assert plain(read_json_lines(tmp_path / "h.jsonl")) == history


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
        with Progress(console, [task()]) as progress:
            for one in records:
                progress.epoch(task(), one)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    def test_a_log_gets_a_line_for_a_long_epoch_only(self) -> None:
        assert self.log(record(1)) == ""
        long = record(2, seconds=LONG_EPOCH, held_out_clean=0.5, held_out_robust=0.25)
        assert self.log(long) == epoch_line("train the dense parent", long) + "\n"
        assert "held-out clean 50.0 %, robust 25.0 %" in self.log(long)

    def test_what_is_said_stays(self) -> None:
        console = Console(file=io.StringIO(), width=120, force_terminal=True)
        with Progress(console, [task()]) as progress:
            progress.started(task())
            progress.receive(task(), {"kind": "message", "text": "it [fell] in epoch 4"})
        assert isinstance(console.file, io.StringIO)
        assert "train the dense parent: it [fell] in epoch 4" in console.file.getvalue()

    def test_epochs_that_were_taken_back_leave_the_table(self) -> None:
        with Progress(Console(file=io.StringIO(), force_terminal=True), [task()]) as progress:
            progress.started(task())
            for one in (record(1), record(2), record(3), record(2)):
                progress.receive(task(), {"kind": "epoch", "record": one})
            assert [one["epoch"] for one in progress.trainings["train the dense parent"]] == [1, 2]
            progress.finished(task(), 1.0)
            assert not progress.trainings


class TestTimeLeft:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [0.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        return now

    @pytest.fixture
    def progress(self, clock: list[float]) -> Iterator[Progress]:
        with Progress(Console(file=io.StringIO()), [task()]) as progress:
            progress.started(task())
            yield progress

    def tell(self, progress: Progress, share: float) -> tuple[str, str]:
        progress.receive(task(), {"kind": "progress", "share": share, "text": ""})
        return progress.left, progress.left_of(task())

    def test_is_in_proportion(self, progress: Progress, clock: list[float]) -> None:
        clock[0] = 10.0
        assert self.tell(progress, 0.25) == ("30 s left",) * 2

    def test_counts_the_time_of_an_interrupted_try(self, progress: Progress, clock: list[float]) -> None:
        progress.receive(task(), {"kind": "resumed", "seconds": 20.0, "share": 0.5})
        assert progress.share == 0.5
        clock[0] = 10.0
        assert self.tell(progress, 0.75) == ("10 s left",) * 2

    def test_forgets_a_try_of_which_nothing_was_kept(self, progress: Progress, clock: list[float]) -> None:
        progress.receive(task(), {"kind": "resumed", "seconds": 20.0, "share": 0.5})
        clock[0] = 10.0
        assert self.tell(progress, 0.25) == ("30 s left",) * 2


class Simmer(Bake):
    """Trains, so to say, and is interrupted the first time."""

    def run(self, context: Context, inputs: Inputs) -> None:
        context.report_epoch(record(1))
        context.report_message("it boiled over")
        context.report_progress(0.5, "half done")
        if not (context.output / "lid.txt").is_file():
            (context.output / "lid.txt").touch()
            raise KeyboardInterrupt


def test_news_travel_from_a_stage_to_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.components, "bake", Simmer)
    heard: list[dict[str, Any]] = []

    def start() -> None:
        run_task(
            task().to_json(), tmp_path, torch.device("cpu"), lambda **news: heard.append(json.loads(json.dumps(news)))
        )

    with pytest.raises(KeyboardInterrupt):
        start()
    start()
    told = [
        {"kind": "epoch", "record": record(1)},
        {"kind": "message", "text": "it boiled over"},
        {"kind": "progress", "share": 0.5, "text": "half done"},
    ]
    resumed = heard.pop(3)
    assert heard == told * 2
    assert resumed.pop("seconds") > 0
    assert resumed == {"kind": "resumed", "share": 0.5}


class TestBoard:
    def test_writes_what_tensorboard_reads(self, tmp_path: Path) -> None:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        board = Board(tmp_path)
        for epoch in (1, 2):
            board.write("train the dense parent", record(epoch, rolled_back=["no number"]))
        board.close()
        found = accumulator.EventAccumulator(str(tmp_path / "train-the-dense-parent"))
        found.Reload()
        assert set(found.Tags()["scalars"]) == {"loss", "learning_rate", "seconds"}
        assert [(e.step, round(e.value, 4)) for e in found.Scalars("loss")] == [(1, 2.5), (2, 1.25)]

    def losses(self, folder: Path) -> list[tuple[int, float]]:
        accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        found = accumulator.EventAccumulator(str(folder / "train-the-dense-parent"))
        found.Reload()
        return [(event.step, event.value) for event in found.Scalars("loss")]

    def test_epochs_that_were_taken_back_are_gone(self, tmp_path: Path) -> None:
        board = Board(tmp_path)
        for epoch, loss in ((1, 4.0), (2, 3.0), (3, 9.0), (2, 2.0), (3, 1.0)):
            board.write("train the dense parent", record(epoch) | {"loss": loss})
        board.close()
        assert self.losses(tmp_path) == [(1, 4.0), (2, 2.0), (3, 1.0)]

    def test_a_resumed_training_goes_on_with_its_curve(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for start, now in ((1, 1000.0), (2, 2000.0)):
            monkeypatch.setattr(time, "time", lambda now=now: now)  # names of files tell their order in seconds
            board = Board(tmp_path)
            for epoch in (start, start + 1):
                board.write("train the dense parent", record(epoch) | {"loss": float(10 * start + epoch)})
            board.close()
        assert self.losses(tmp_path) == [(1, 11.0), (2, 22.0), (3, 23.0)]

    def test_is_closed_with_the_screen(self, tmp_path: Path) -> None:
        closed: list[bool] = []
        board = Board(tmp_path)
        board.close = lambda: closed.append(True)  # type: ignore[method-assign]
        for terminal in (False, True):
            with Progress(Console(file=io.StringIO(), force_terminal=terminal), [task()], board):
                pass
        assert len(closed) == 2

    def test_its_absence_is_a_sentence(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        with pytest.raises(InputError, match=r"install it with pip install 'sparsemble\[tensorboard\]'"):
            Board(tmp_path)
