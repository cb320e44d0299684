"""What a stage is: settings and inputs in, one artifact out."""

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import nn

from sparsemble.core.artifacts import Artifact, spec_hash
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.registry import Component, Registry, to_dict
from sparsemble.core.types import draw_seed, seeded
from sparsemble.data.dataset import Dataset, DataSource


@final
@dataclass
class Work:
    """What a running stage is given, and where it leaves its passes."""

    folder: Path
    """Empty, or what an interrupted try left; files left here become the artifact."""
    inputs: Mapping[str, Artifact]
    """Finished artifacts, by role."""
    device: torch.device
    seed: int
    stream: str
    """Keeps the randomness of this stage apart from that of others with the same seed."""
    tell: Callable[[float, str], None]
    """Hears the share done, in [0, 1], and a few words."""
    show: Callable[[dict[str, Any]], None] = lambda record: None
    """Hears the record of every epoch that a training stage finishes."""
    say: Callable[[str], None] = lambda sentence: None
    """Hears sentences that stay on the screen."""
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    """Images through models in this stage; goes into `meta.json`."""

    def rng(self, purpose: str, device: torch.device | None = None) -> torch.Generator:
        """Make this stage's generator for a purpose, on its device unless given; the same whenever asked for."""
        return seeded(draw_seed(self.seed, self.stream, purpose), device or self.device)

    @contextlib.contextmanager
    def counting(self, *models: nn.Module) -> Iterator[None]:
        """Add the passes of these models to the stage's."""
        with count_passes(*models) as passes:
            yield
        self.add_passes([{"forward_passes": passes.forward, "backward_passes": passes.backward}])

    def add_passes(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Add the passes of a training history."""
        for direction in self.passes:
            self.passes[direction] += sum(record[f"{direction}_passes"] for record in history)

    def pool(self, prefix: str) -> dict[str, Artifact]:
        """Return the inputs whose role begins with `prefix.`, in order, under the rest of their role."""
        start = prefix + "."
        return {role.removeprefix(start): a for role, a in self.inputs.items() if role.startswith(start)}


class Stage(Component):
    """A step of the method; its fields, inputs and version decide its result."""

    parallel: ClassVar[bool] = False
    """Whether several processes may share the work (`torchrun`): all of them then call `run`."""
    seed: int

    @property
    def stream(self) -> str:
        """Name of the stage's own randomness."""
        return self.name

    @abstractmethod
    def run(self, work: Work) -> None:
        """Leave the artifact's files in `work.folder`."""


@final
@dataclass(frozen=True, eq=False)
class Task:
    """A stage in the graph of a run."""

    title: str
    """For people: `prune nis-1`."""
    stage: Stage
    inputs: Mapping[str, "Task"]
    cost: int | float
    """Rough work, in epochs of one dense model; for the time left and the order of starting."""
    alone: bool = False
    """Whether nothing else may run beside it (timings)."""

    @functools.cached_property
    def hash(self) -> str:
        """Hash of the settings, versions, inputs and data."""
        spec = to_dict(self.stage, versions=True)
        spec["data_hash"] = fingerprint(self.stage.data) if isinstance(self.stage, WithData) else ""
        return spec_hash(self.stage.name, self.stage.version, spec, [f"{r}={t.hash}" for r, t in self.inputs.items()])

    @property
    def folder(self) -> str:
        """Name of its artifact: stage and hash."""
        return f"{self.stage.name}-{self.hash}"

    def to_json(self) -> dict[str, Any]:
        """Return what a worker needs to run the task."""
        inputs = {role: task.folder for role, task in self.inputs.items()}
        return {"title": self.title, "folder": self.folder, "stage": to_dict(self.stage), "inputs": inputs}


@dataclass(frozen=True, kw_only=True)
class WithData(Stage):
    """A stage that reads the images."""

    data: DataSource


@functools.cache
def dataset(source: DataSource) -> Dataset:
    """Load a dataset once a process, on the CPU."""
    return source.load()


@functools.cache
def fingerprint(source: DataSource) -> str:
    """Hash a dataset's files once a process."""
    return source.fingerprint()


stages: Registry[Stage] = Registry("stage", Stage)
