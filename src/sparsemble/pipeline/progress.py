"""What a person sees while a run is at work."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import final

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from sparsemble.pipeline.stage import Task


class Progress(ABC):
    """Hears what happens, and knows the time left."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        self.console = console
        self.total = sum(task.cost for task in tasks)
        self.count = len(tasks)
        self.done = 0
        self.shares: dict[str, tuple[float, float]] = {}
        self.began = time.perf_counter()
        self.begun: dict[str, float] = {}

    def started(self, task: Task) -> None:
        """A task has begun."""
        self.shares[task.hash] = (task.cost, 0.0)
        self.begun[task.hash] = time.perf_counter()

    def moved(self, task: Task, share: float, text: str) -> None:
        """A task says how far it is."""
        self.shares[task.hash] = (task.cost, share)

    def finished(self, task: Task, seconds: float) -> None:
        """A task is over."""
        self.done += 1
        self.shares[task.hash] = (task.cost, 1.0)

    def tick(self) -> None:  # noqa: B027 (only bars move between events)
        """Nothing happened for a moment."""

    @property
    def share(self) -> float:
        """Share of the run that is done."""
        return sum(cost * share for cost, share in self.shares.values()) / self.total if self.total else 1.0

    @property
    def left(self) -> str:
        """Time left of the run, in words; empty while it cannot be told."""
        return time_left(self.began, self.share)

    @abstractmethod
    def print(self, text: str) -> None:
        """Show a text."""

    @abstractmethod
    def __enter__(self) -> "Progress":
        """Begin."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""


@final
class BarProgress(Progress):
    """Bars for a terminal: one for the run, one for each running stage."""

    def __init__(self, console: Console, tasks: Sequence[Task]) -> None:
        super().__init__(console, tasks)
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[text]}"),
            console=console,
            transient=True,
        )
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
        left = time_left(self.begun[task.hash], share)
        self.bars.update(self.ids[task.hash], completed=share, text=f"{left}, {text}" if left else text)
        self.tick()

    def finished(self, task: Task, seconds: float) -> None:
        """Replace its bar with a line."""
        super().finished(task, seconds)
        self.bars.remove_task(self.ids.pop(task.hash))
        self.bars.console.print(f"[green]done[/] {task.title} [dim]{seconds:.1f} s[/]")
        self.tick()

    def tick(self) -> None:
        """Move the bar of the whole run."""
        self.bars.update(self.whole, completed=self.share, text=self.left)

    def print(self, text: str) -> None:
        """Print above the bars."""
        self.bars.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> "Progress":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()


@final
class PlainProgress(Progress):
    """One line a finished stage, for logs."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


def time_left(began: float, share: float) -> str:
    """Return the time left of something that began then and is done to this share; empty while it cannot be told."""
    if share < 0.02:
        return ""
    seconds = (time.perf_counter() - began) * (1 - share) / share
    return f"{seconds / 60:.1f} min left" if seconds >= 60 else f"{seconds:.0f} s left"
