"""Run the stages one after the other in the processes that torchrun started; stages that train use all of them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch

from sparsemble.api.context import Context
from sparsemble.core.artifacts import Artifact
from sparsemble.pipeline.engines.worker import run_task
from sparsemble.pipeline.progress import Progress
from sparsemble.pipeline.stage import Task
from sparsemble.training import distributed


@final
class ParallelEngine:
    """The first process runs every stage and writes its artifact; the others help where networks train."""

    def __init__(self, folder: Path, device: str, progress: Progress) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.progress = progress

    def run(self, tasks: Sequence[Task]) -> None:
        """Run tasks, each after its inputs.

        Raises:
            RunError: a stage failed; all that was finished is kept.
        """
        for task in tasks:
            if distributed.rank() == 0:
                self._lead(task)
            elif task.stage.parallel:
                self._follow(task)
            distributed.barrier()

    def _lead(self, task: Task) -> None:
        def say(**message: Any) -> None:
            self.progress.hear(task, message)

        self.progress.started(task)
        seconds = run_task(task.to_json(), self.folder, self.device, say)
        self.progress.finished(task, seconds)

    def _follow(self, task: Task) -> None:
        """Take part in a stage; what it writes here is thrown away."""
        with tempfile.TemporaryDirectory(prefix="sparsemble-") as scratch:
            inputs = {role: Artifact(self.folder / given.folder) for role, given in task.inputs.items()}
            context = Context(device=self.device, seed=task.stage.seed, stream=task.stage.stream, folder=Path(scratch))
            task.stage.run(context, inputs)
