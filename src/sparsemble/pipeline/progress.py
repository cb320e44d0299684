"""What a terminal or a log shows while a run computes."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from sparsemble.pipeline.stage import Task
from sparsemble.pipeline.tensorboard import Board
from sparsemble.pipeline.time_left import TimeLeft

LONG_EPOCH = 30.0
"""Seconds from which on a log gets a line for every epoch."""
LAST = 6
"""Epochs shown of a training that runs alone; of several side by side, the last one each."""
COLUMNS = ("epoch", "loss", "clean %", "robust %", "learning rate", "s / epoch")


@final
class Progress:
    """Follows the tasks of a run, and estimates the time left: bars on a terminal, lines in a log.

    Args:
        console: where it shows.
        tasks: what will run.
        board: where epochs are drawn, too.
        workers: tasks that run at the same time.
        in_seconds: whether the costs of the tasks are seconds.
    """

    def __init__(
        self,
        console: Console,
        tasks: Sequence[Task],
        board: Board | None = None,
        *,
        workers: int = 1,
        in_seconds: bool = False,
    ) -> None:
        self.console = console
        self.has_bars = console.is_terminal and not console.quiet
        self.board = board
        self.trainings: dict[str, list[dict[str, Any]]] = {}
        """The epochs of the running trainings, by title."""
        self.time_left = TimeLeft(tasks, workers, in_seconds=in_seconds)
        self.count = len(tasks)
        self.done = 0
        self.task_bars: dict[str, TaskID] = {}
        """By hash."""
        self.bars = make_bars(console)
        self.live = Live(get_renderable=self._shown, console=console, transient=True, refresh_per_second=4)
        self.whole = self.bars.add_task("[bold]whole run", total=1.0, text="")

    def started(self, task: Task) -> None:
        """Add a task that has started."""
        self.task_bars[task.hash] = self.bars.add_task(task.title, total=1.0, text="")
        self.time_left.started(task)
        self.tick()

    def receive(self, task: Task, message: Mapping[str, Any]) -> None:
        """Take a message of a running task."""
        if message["kind"] == "progress":
            self._move(task, message["share"], message["text"])
        elif message["kind"] == "epoch":
            self.epoch(task, message["record"])
        elif message["kind"] == "resumed":
            self.time_left.resumed(task, message["seconds"], message["share"])
            self._move(task, message["share"], "resumed")
        elif message["kind"] == "details":
            self.print(message["text"])
        else:
            self.print(f"{task.title}: {message['text']}")

    def epoch(self, task: Task, record: dict[str, Any]) -> None:
        """Record an epoch of a training; a log gets a line where the next one will take a while."""
        known = self.trainings.setdefault(task.title, [])
        known[:] = [before for before in known if before["epoch"] < record["epoch"]] + [record]
        if self.board:
            self.board.write(task.title, record)
        if not self.has_bars and record["seconds"] >= LONG_EPOCH:
            self.print(epoch_line(task.title, record))

    def finished(self, task: Task, seconds: float) -> None:
        """Record that a task has finished: its bar becomes a line."""
        self.time_left.finished(task)
        self._end(task)
        self.bars.remove_task(self.task_bars.pop(task.hash))
        if self.has_bars:
            self.console.print(f"[green]done[/] {task.title} [dim]{seconds:.1f} s[/]")
        else:
            left = f", {self.left}" if self.left and self.done < self.count else ""
            self.print(f"[{self.done}/{self.count}] {task.title}: {seconds:.1f} s{left}")
        self.tick()

    def failed(self, task: Task) -> None:
        """Record that a task failed, or will never start because one that it needs failed."""
        self._end(task)
        self.time_left.failed(task)
        if (bar := self.task_bars.pop(task.hash, None)) is not None:
            self.bars.remove_task(bar)
        self.tick()

    def tick(self) -> None:
        """Move the bar of the whole run; called several times a second."""
        self.bars.update(self.whole, completed=self.share, text=self.left)

    @property
    def share(self) -> float:
        """Share of the run's time that is over, as far as it is known."""
        left, elapsed = self.time_left.seconds(), self.time_left.elapsed
        return elapsed / (elapsed + left) if left is not None and elapsed + left else 0.0

    @property
    def left(self) -> str:
        """Time left of the run, as text; empty while it is not known."""
        return as_text(self.time_left.seconds())

    def left_of(self, task: Task) -> str:
        """Time left of a running task, as text; empty while it is not known."""
        return as_text(self.time_left.of(task))

    def print(self, text: str) -> None:
        """Print without styles, above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=not self.has_bars)

    def __enter__(self) -> "Progress":
        if self.has_bars:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        if self.board:
            self.board.close()

    def _move(self, task: Task, share: float, text: str) -> None:
        """Record the share of a task's work that is done."""
        self.time_left.moved(task, share)
        left = self.left_of(task)
        self.bars.update(self.task_bars[task.hash], completed=share, text=f"{left}, {text}" if left else text)
        self.tick()

    def _end(self, task: Task) -> None:
        self.trainings.pop(task.title, None)
        self.done += 1

    def _shown(self) -> Group:
        table = epochs_table(self.trainings)
        return Group(table, self.bars) if table else Group(self.bars)


def make_bars(console: Console, **options: Any) -> Bars:
    """Return bars with the time that has passed and a text; `options` are those of rich."""
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
        **options,
    )


def as_text(seconds: float | None) -> str:
    """Return a time left as text; empty for none."""
    if seconds is None:
        return ""
    return f"{seconds / 60:.1f} min left" if seconds >= 60 else f"{seconds:.0f} s left"


def epochs_table(trainings: Mapping[str, Sequence[dict[str, Any]]]) -> Table | None:
    """Return the last epochs of each training, by its title; None where none has finished an epoch."""
    shown = {title: records for title, records in trainings.items() if records}
    if not shown:
        return None
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("training", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for title, records in shown.items():
        for i, record in enumerate(records[-LAST:] if len(shown) == 1 else records[-1:]):
            table.add_row("" if i else title, *_cells(record))
    return table


def _cells(record: Mapping[str, Any]) -> list[str]:
    """Return an epoch's numbers as text; held-out accuracies are there when it was measured."""
    shares = [record.get(name) for name in ("held_out_clean", "held_out_robust")]
    return [
        f"{record['epoch']}/{record['epochs']}",
        f"{record['loss']:.3f}",
        *("" if share is None else f"{100 * share:.1f}" for share in shares),
        f"{record['learning_rate']:.3g}",
        f"{record['seconds']:.1f}",
    ]


def epoch_line(title: str, record: Mapping[str, Any]) -> str:
    """Write an epoch as one line of a log."""
    epoch, loss, clean, robust, rate, seconds = _cells(record)
    measured = f", held-out clean {clean} %, robust {robust} %" if clean else ""
    return f"  {title}: epoch {epoch}, loss {loss}{measured}, learning rate {rate}, {seconds} s"
