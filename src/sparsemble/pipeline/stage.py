"""What a stage is: settings and inputs in, one artifact out."""

import functools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

from sparsemble.api.context import Context
from sparsemble.core.artifacts import Artifact, spec_hash
from sparsemble.core.registry import Component, Registry, to_dict
from sparsemble.data.dataset import Dataset, DataSource

Inputs = Mapping[str, Artifact]
"""Finished artifacts that a stage reads, by role."""


@dataclass(frozen=True, kw_only=True)
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
    def run(self, context: Context, inputs: Inputs) -> None:
        """Compute from the inputs, and leave the artifact's files beside what an interrupted try left in the output."""


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
    return source.load_and_report()


@functools.cache
def fingerprint(source: DataSource) -> str:
    """Hash a dataset's files once a process."""
    return source.fingerprint()


def with_prefix(inputs: Inputs, prefix: str) -> dict[str, Artifact]:
    """Return the inputs whose role begins with `prefix.`, in order, under the rest of their role."""
    return {role.removeprefix(f"{prefix}."): a for role, a in inputs.items() if role.startswith(f"{prefix}.")}


stages: Registry[Stage] = Registry("stage", Stage, own_files=False)
