"""An executor: the processes that torchrun started run one stage after the other, together where networks train."""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, final

import torch

from sparsemble.core.artifacts import read_json
from sparsemble.core.errors import RunError
from sparsemble.pipeline.engines.worker import context_of, inputs_of, run_stage, task_file
from sparsemble.pipeline.stage import stages
from sparsemble.training import distributed


@final
class TorchrunExecutor(Executor):
    """The first process runs every stage and writes its artifact; the others take part where networks train."""

    def __init__(self, receive: Callable[[str, dict[str, Any]], None]) -> None:
        """Set up.

        Args:
            receive: gets the hash of a stage, and a message about its progress.
        """
        self.receive = receive

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a stage now, in this process.

        Args:
            fn: `run_stage`.
            args: folder of the run and hash of the stage.
            kwargs: none.
        """
        future: Future[float] = Future()
        folder, stage_hash = args
        distributed.barrier()  # the first process has described the stage
        try:
            if distributed.rank() == 0:
                seconds = run_stage(folder, stage_hash, lambda **message: self.receive(stage_hash, message))
            else:
                seconds = _follow(Path(folder), stage_hash)
        except RunError as error:
            future.set_exception(error)
        else:
            future.set_result(seconds)
            distributed.barrier()
        return future


def _follow(folder: Path, stage_hash: str) -> float:
    """Take part in a stage; what it writes here is thrown away."""
    task = read_json(task_file(folder, stage_hash))
    stage = stages.build(task["stage"])
    if stage.parallel:
        with tempfile.TemporaryDirectory(prefix="sparsemble-") as scratch:
            context = context_of(stage, torch.device(task["device"]), folder=Path(scratch))
            stage.run(context, inputs_of(task, folder))
    return 0.0
