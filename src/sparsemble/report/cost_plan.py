"""What a run or a study will take, as a table."""

from rich.table import Table as TerminalTable
from rich.text import Text

from sparsemble.core.results import CostPlan, StageCost
from sparsemble.report.formatting import count, duration, plural, sentence, size
from sparsemble.report.table import Column, Table


def cost_plan_table(plan: CostPlan) -> TerminalTable:
    """Return the stages of a plan, and below them the whole: time, memory, disk, and what the estimate assumes."""
    columns: list[Column[StageCost]] = [
        Column("stage", lambda row: row.what, left=True),
        Column("tasks", lambda row: str(row.tasks)),
        Column("forward passes", lambda row: count(row.forward_passes)),
        Column("backward passes", lambda row: count(row.backward_passes)),
        Column("time of one worker", lambda row: duration(row.seconds)),
        Column("memory of one worker", lambda row: size(row.memory)),
    ]
    side = f" with {plan.workers} side by side" if plan.workers > 1 else ""
    speed = "measured here" if plan.measured else "as given"
    lines = [
        f"whole {plan.kind}: about {duration(plan.seconds)}{side}, up to {size(plan.memory)} of memory and "
        f"{size(plan.disk)} on disk; {plural(sum(row.tasks for row in plan.stages), 'task')}",
        f"one worker makes {plan.throughput:.3g} forward passes a second of the dense network ({speed}); a pass is one "
        "image through one network, and a backward pass counts as 1.5",
        *(sentence(note) for note in plan.notes),
    ]
    return Table(columns, plan.stages).terminal(plan.title, Text("\n".join(lines)))
