"""What a run or a study will take, estimated before any work."""

from dataclasses import dataclass
from typing import Any, Literal, final

from sparsemble.core.results.result_file import SCHEMA, ResultFile, check_not_negative


@final
@dataclass(frozen=True, kw_only=True)
class StageCost:
    """All tasks of one kind of stage together."""

    stage: str
    what: str
    """The stage in words."""
    tasks: int
    """How many there are; one that several cells of a study share counts once."""
    forward_passes: float
    """Of one image through one network, each member of an ensemble counted."""
    backward_passes: float
    seconds: float
    """Of one worker."""
    memory: float
    """Bytes of one worker, at most."""


@final
@dataclass(frozen=True, kw_only=True)
class CostPlan(ResultFile):
    """`--plan` of `run` and `study`: every stage and an estimate of its cost; nothing was computed."""

    schema: int = SCHEMA
    title: str
    kind: Literal["run", "study"]
    command: str
    stages: tuple[StageCost, ...]
    workers: int
    """Tasks that run side by side."""
    seconds: float
    """Of the whole, on these workers."""
    memory: float
    """Bytes of all workers together, at most."""
    disk: float
    """Bytes of the folder, checkpoints of running trainings included."""
    throughput: float
    """Forward passes of one image through the dense network that one worker makes in a second."""
    measured: bool
    """Whether that was measured on this machine; else it was given."""
    machine: dict[str, Any]
    notes: tuple[str, ...] = ()
    """What the estimate assumes."""

    def __post_init__(self) -> None:
        check_not_negative(seconds=self.seconds, memory=self.memory, disk=self.disk, throughput=self.throughput)
