"""What a terminal or a log shows while a run computes."""

import time
from abc import ABC, abstractmethod
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

LONG_EPOCH = 30.0
"""Seconds from which on a log gets a line for every epoch."""
LAST = 6
"""Epochs shown of a training that runs alone; of several side by side, the last one each."""
COLUMNS = ("epoch", "loss", "clean %", "robust %", "learning rate", "s / epoch")


class Progress(ABC):
    """Follows the tasks of a run, and estimates the time left."""

    def __init__(self, console: Console, tasks: Sequence[Task], board: Board | None = None) -> None:
        self.console = console
        self.board = board
        self.trainings: dict[str, list[dict[str, Any]]] = {}
        """The epochs of the running trainings, by title."""
        self.total = sum(task.cost for task in tasks)
        self.count = len(tasks)
        self.done = 0
        self.shares: dict[str, tuple[float, float]] = {}
        """Of each task that has started: its cost, and the share that is done."""
        self.began = time.perf_counter()
        self.begun: dict[str, float] = {}
        self.before: dict[str, tuple[float, float]] = {}
        """Of tasks that resume an interrupted try: its seconds and the share that it had reached."""

    def started(self, task: Task) -> None:
        """Add a task that has started."""
        self.shares[task.hash] = (task.cost, 0.0)
        self.begun[task.hash] = time.perf_counter()

    def receive(self, task: Task, message: Mapping[str, Any]) -> None:
        """Take a message of a running task."""
        if message["kind"] == "progress":
            self.moved(task, message["share"], message["text"])
        elif message["kind"] == "epoch":
            self.epoch(task, message["record"])
        elif message["kind"] == "resumed":
            self.before[task.hash] = (message["seconds"], message["share"])
            self.moved(task, message["share"], "resumed")
        elif message["kind"] == "details":
            self.print(message["text"])
        else:
            self.print(f"{task.title}: {message['text']}")

    def moved(self, task: Task, share: float, text: str) -> None:
        """Record the share of a task that is done.

        Args:
            task: a running task.
            share: of its work that is done, in [0, 1].
            text: what it is doing.
        """
        self.shares[task.hash] = (task.cost, share)
        if share < self.before.get(task.hash, (0.0, 0.0))[1]:  # the earlier try was of no use
            del self.before[task.hash]

    def epoch(self, task: Task, record: dict[str, Any]) -> None:
        """Record an epoch of a training."""
        known = self.trainings.setdefault(task.title, [])
        known[:] = [before for before in known if before["epoch"] < record["epoch"]] + [record]
        if self.board:
            self.board.write(task.title, record)

    def finished(self, task: Task, seconds: float) -> None:
        """Record that a task has finished."""
        self.trainings.pop(task.title, None)
        self.done += 1
        self.shares[task.hash] = (task.cost, 1.0)

    def failed(self, task: Task) -> None:
        """Record that a task failed, or will never start because one that it needs failed."""
        self.trainings.pop(task.title, None)
        self.done += 1
        self.shares.pop(task.hash, None)
        self.total -= task.cost

    def tick(self) -> None:  # noqa: B027 (only bars move between events)
        """Redraw; called several times a second."""

    @property
    def share(self) -> float:
        """Share of the run that is done."""
        return sum(cost * share for cost, share in self.shares.values()) / self.total if self.total else 1.0

    @property
    def left(self) -> str:
        """Time left of the run, as text; empty while it is not known."""
        # Tasks that were interrupted together had run at the same time.
        earlier = max((seconds for seconds, _ in self.before.values()), default=0.0)
        return time_left(self.began - earlier, self.share)

    def left_of(self, task: Task) -> str:
        """Time left of a running task."""
        earlier, _ = self.before.get(task.hash, (0.0, 0.0))
        return time_left(self.begun[task.hash] - earlier, self.shares[task.hash][1])

    @abstractmethod
    def print(self, text: str) -> None:
        """Show a text."""

    @abstractmethod
    def __enter__(self) -> "Progress":
        """Begin."""

    def __exit__(self, *error: object) -> None:
        """End."""
        if self.board:
            self.board.close()


@final
class BarProgress(Progress):
    """Bars for a terminal: one for the run, one for each running stage."""

    def __init__(self, console: Console, tasks: Sequence[Task], board: Board | None = None) -> None:
        super().__init__(console, tasks, board)
        self.bars = make_bars(console)
        self.live = Live(get_renderable=self._shown, console=console, transient=True, refresh_per_second=4)
        self.whole = self.bars.add_task("[bold]whole run", total=1.0, text="")
        self.ids: dict[str, TaskID] = {}

    def started(self, task: Task) -> None:
        """Add a bar."""
        super().started(task)
        self.ids[task.hash] = self.bars.add_task(task.title, total=1.0, text="")
        self.tick()

    def moved(self, task: Task, share: float, text: str) -> None:
        """Move its bar."""
        super().moved(task, share, text)
        left = self.left_of(task)
        self.bars.update(self.ids[task.hash], completed=share, text=f"{left}, {text}" if left else text)
        self.tick()

    def finished(self, task: Task, seconds: float) -> None:
        """Replace its bar with a line."""
        super().finished(task, seconds)
        self.bars.remove_task(self.ids.pop(task.hash))
        self.live.console.print(f"[green]done[/] {task.title} [dim]{seconds:.1f} s[/]")
        self.tick()

    def failed(self, task: Task) -> None:
        """Take its bar away, where it had one."""
        super().failed(task)
        if task.hash in self.ids:
            self.bars.remove_task(self.ids.pop(task.hash))
        self.tick()

    def _shown(self) -> Group:
        table = epochs_table(self.trainings)
        return Group(table, self.bars) if table else Group(self.bars)

    def tick(self) -> None:
        """Move the bar of the whole run."""
        self.bars.update(self.whole, completed=self.share, text=self.left)

    def print(self, text: str) -> None:
        """Print above the bars."""
        self.live.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> "Progress":
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()
        super().__exit__(*error)


@final
class PlainProgress(Progress):
    """One line a finished stage, and one a long epoch, for logs."""

    def epoch(self, task: Task, record: dict[str, Any]) -> None:
        """Print a line where the next one will take a while."""
        super().epoch(task, record)
        if record["seconds"] >= LONG_EPOCH:
            self.print(epoch_line(task.title, record))

    def finished(self, task: Task, seconds: float) -> None:
        """Print a line."""
        super().finished(task, seconds)
        left = f", {self.left}" if self.left and self.done < self.count else ""
        self.print(f"[{self.done}/{self.count}] {task.title}: {seconds:.1f} s{left}")

    def print(self, text: str) -> None:
        """Print without styles."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "Progress":
        return self


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


def make_progress(
    console: Console, tasks: Sequence[Task], board: Board | None = None, *, quiet: bool = False
) -> Progress:
    """Return what shows the progress: bars on a terminal, lines elsewhere.

    Args:
        console: where it shows.
        tasks: what will run.
        board: where epochs are drawn, too.
        quiet: show nothing.
    """
    if quiet:
        return PlainProgress(Console(quiet=True), tasks, board)
    return BarProgress(console, tasks, board) if console.is_terminal else PlainProgress(console, tasks, board)


def time_left(began: float, share: float) -> str:
    """Return the time left of work that began then and is done to this share; empty while it is not known."""
    if share < 0.02:
        return ""
    seconds = (time.perf_counter() - began) * (1 - share) / share
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
