"""The time left of a run: known from the start where costs are seconds, corrected by what tasks take."""

import time

import pytest

from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.time_left import LATE, TimeLeft
from tests.unit.test_stage import Bake


def task(title: str, flour: float, *inputs: Task, cost: float = 1.0, alone: bool = False) -> Task:
    return Task(title, Bake(flour=flour), {f"i{n}": one for n, one in enumerate(inputs)}, cost=cost, alone=alone)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_seconds_are_known_before_anything_ran(clock: list[float]) -> None:
    first = task("first", 0.1, cost=100)
    second, third = task("second", 0.2, first, cost=40), task("third", 0.3, first, cost=50)
    left = TimeLeft([first, second, third], 2, in_seconds=True)
    assert left.seconds() == pytest.approx(150)
    assert TimeLeft([first, second, third], 1, in_seconds=True).seconds() == pytest.approx(190)


def test_without_seconds_nothing_is_known_before_a_task_tells(clock: list[float]) -> None:
    first, second = task("first", 0.1, cost=2), task("second", 0.2, cost=6)
    left = TimeLeft([first, second])
    assert left.seconds() is None
    left.started(first)
    assert left.of(first) is None
    clock[0] = 10.0
    left.finished(first)
    assert left.seconds() == pytest.approx(30)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_a_wrong_speed_is_corrected_within_a_tenth_of_the_run(clock: list[float], true: float) -> None:
    tasks = [task(f"t{i}", i / 100, cost=30) for i in range(1, 41)]
    left, whole = TimeLeft(tasks, in_seconds=True), 40 * 30 * true
    for i, one in enumerate(tasks):
        left.started(one)
        clock[0] += 30 * true
        left.finished(one)
        remaining = whole - clock[0]
        if 4 <= i < 39:
            assert left.seconds() == pytest.approx(remaining, rel=0.2)


def test_a_running_task_is_followed_from_its_cost_to_its_own_pace(clock: list[float]) -> None:
    one, other = task("one", 0.1, cost=100), task("other", 0.2, cost=900)
    left = TimeLeft([one, other], 2, in_seconds=True)
    left.started(one)
    clock[0] = 30.0
    assert left.of(one) == pytest.approx(70)  # it has not told anything
    guesses = []
    for share in (0.1, 0.5, 0.9):  # three times as slow as expected
        clock[0] = 300 * share
        left.moved(one, share)
        guesses.append(left.of(one))
    assert guesses == [
        pytest.approx(300 * (1 - share), rel=tolerance) for share, tolerance in ((0.1, 0.7), (0.5, 0.25), (0.9, 0.05))
    ]
    silent = TimeLeft([one], in_seconds=True)
    silent.started(one)
    clock[0] += 1000
    assert silent.of(one) == pytest.approx(LATE * 1000)


def test_what_failed_or_finished_is_not_waited_for(clock: list[float]) -> None:
    first = task("first", 0.1, cost=100)
    second = task("second", 0.2, first, cost=40)
    left = TimeLeft([first, second], 2, in_seconds=True)
    left.started(first)
    left.failed(first)
    left.failed(second)
    assert left.seconds() == 0


def test_kinds_of_stages_are_corrected_one_by_one(clock: list[float]) -> None:
    class Roast(Bake):
        name = "roast"

    slow = [Task(f"slow {i}", Roast(flour=i / 10), {}, cost=50) for i in range(2)]
    fast = [task(f"fast {i}", i / 10, cost=50) for i in range(2)]
    left = TimeLeft([*slow, *fast], 1, in_seconds=True)
    for one, seconds in ((slow[0], 200), (fast[0], 50)):
        left.started(one)
        clock[0] += seconds
        left.finished(one)
    assert left.seconds() == pytest.approx(250, rel=0.1)
