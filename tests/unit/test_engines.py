"""The driver and the executors that it gives stages to."""

import io
import json
import os
import signal
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sparsemble.core.errors import RunError
from sparsemble.pipeline.engines.driver import Driver
from sparsemble.pipeline.engines.local import LocalExecutor
from sparsemble.pipeline.engines.worker import TASKS, message_file, run_stage, task_file
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.stage import Task, stages
from tests.unit.test_stage import Bake


@pytest.fixture
def bake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.components, "bake", Bake)


def task(title: str, flour: float, *inputs: Task, cost: float = 1, alone: bool = False) -> Task:
    given = {f"input{i}": one for i, one in enumerate(inputs)}
    return Task(title, Bake(flour=flour), given, cost=cost, alone=alone)


class Later(Executor):
    """Ends the oldest of its stages when the next look finds nothing else; notes what ran side by side."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Future]] = []
        self.order: list[str] = []
        self.together: list[set[str]] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
        assert fn is run_stage
        folder, stage_hash = args
        title = json.loads(task_file(Path(folder), stage_hash).read_text("utf-8"))["title"]
        message_file(Path(folder), stage_hash).write_text('{"kind": "message", "text": "hello"}\n', "utf-8")
        future: Future = Future()
        self.order.append(title)
        self.waiting.append((title, future))
        self.together.append({title for title, one in self.waiting if not one.done()})
        if len(self.waiting) == self.slots:
            self.end()
        return future

    slots = 2

    def end(self) -> None:
        self.waiting.pop(0)[1].set_result(1.0)


def drive(tasks: list[Task], folder: Path, executor: Executor, slots: int = 1) -> str:
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(console, tasks)
    Driver(folder=folder, executor=executor, slots=slots, device="cpu", progress=progress).run(tasks)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class AtOnce(Later):
    slots = 1


def test_the_task_with_the_most_work_behind_it_starts_first(tmp_path: Path) -> None:
    short, long = task("short", 0.1, cost=5), task("long", 0.2, cost=1)
    last = task("last", 0.3, long, cost=9)
    tasks = [short, last, long]
    executor = AtOnce()
    drive(tasks, tmp_path, executor)
    assert executor.order == ["long", "last", "short"]


def test_nothing_runs_beside_a_task_that_asks_to_run_alone(tmp_path: Path) -> None:
    tasks = [task(f"t{i}", i / 10, cost=10 - i, alone=i == 1) for i in range(3)]

    class Pairs(Later):
        slots = 99

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future:
            future = super().submit(fn, *args, **kwargs)
            if len(self.waiting) == 2 or "t1" in self.together[-1]:
                while self.waiting:
                    self.end()
            return future

    executor = Pairs()
    drive(tasks, tmp_path, executor, slots=2)
    assert {"t0", "t2"} in executor.together
    assert {"t1"} in executor.together
    assert not any("t1" in beside and len(beside) > 1 for beside in executor.together)


def test_messages_of_a_stage_are_shown_and_nothing_is_left_of_them(tmp_path: Path) -> None:
    text = drive([task("bake", 0.1)], tmp_path, AtOnce())
    assert "bake: hello" in text
    assert not (tmp_path / TASKS).exists()


@pytest.mark.usefixtures("bake")
def test_a_stage_runs_by_folder_and_hash(tmp_path: Path) -> None:
    one = task("bake a bread", 0.7)
    (tmp_path / TASKS).mkdir()
    task_file(tmp_path, one.hash).write_text(json.dumps(one.to_json() | {"device": "cpu"}), "utf-8")
    assert run_stage(str(tmp_path), one.hash) > 0
    assert (tmp_path / one.folder / "dough.txt").is_file()
    assert '"half baked"' in message_file(tmp_path, one.hash).read_text("utf-8")
    broken = Task("burn", Bake(breaks=True), {}, cost=1)
    task_file(tmp_path, broken.hash).write_text(json.dumps(broken.to_json() | {"device": "cpu"}), "utf-8")
    with pytest.raises(RunError, match='the stage "burn" failed: the oven went out'):
        run_stage(str(tmp_path), broken.hash)


def test_a_killed_worker_fails_its_stage_and_another_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / TASKS).mkdir()
    task_file(tmp_path, "1").write_text('{"title": "bake", "stage": {"name": "absent"}, "device": "cpu"}', "utf-8")
    with LocalExecutor(1) as executor:
        (worker,) = executor._workers
        first = executor.submit(run_stage, str(tmp_path), "1")
        with pytest.raises(RunError, match='the stage "bake" failed: stage = "absent" is not a known stage'):
            first.result(60)
        killed = worker.process.pid
        os.kill(killed, signal.SIGKILL)
        second = executor.submit(run_stage, str(tmp_path), "1")
        with pytest.raises(RunError, match=r'a worker process ended while it ran "bake" \(exit status -9'):
            second.result(60)
        assert worker.process.pid != killed
        third = executor.submit(run_stage, str(tmp_path), "1")
        with pytest.raises(RunError, match="not a known stage"):
            third.result(60)
    assert worker.process.poll() is not None
