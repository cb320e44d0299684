"""An executor: the processes that torchrun started run one stage after the other, together where networks train."""

import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, final

import torch

from sparsemble.core.artifacts import read_json
from sparsemble.core.errors import RunError
from sparsemble.pipeline.engines.worker import prepare, run_stage, task_file
from sparsemble.training import distributed


@final
class TorchrunExecutor(Executor):
    """The first process runs every stage and writes its artifact; the others take part where networks train."""

    def __init__(self, receive: Callable[[str, dict[str, Any]], None]) -> None:
        self.receive = receive
        """Receives the hash of a stage, and a message about its progress."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a stage now, in this process: `run_stage`, with a folder and the hash of a stage."""
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
    with tempfile.TemporaryDirectory(prefix="sparsemble-") as scratch:
        stage, inputs, context = prepare(task, folder, torch.device(task["device"]), folder=Path(scratch))
        if stage.parallel:
            stage.run(context, inputs)
    return 0.0
