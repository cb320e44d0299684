"""Running one stage: in a worker process, or wherever else an executor calls `run_stage`.

As `python -m sparsemble.pipeline.engines.worker` it is a worker process: folders and hashes come in as JSON lines, and
one line goes out for each stage that ended. JSON keeps pickle out. When the pipe closes, because the parent is gone
for whatever reason, the worker ends at once.
"""

import contextlib
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

import sparsemble.models
import sparsemble.pruning  # noqa: F401 (imports register the components)
from sparsemble.api.context import Context, make_artifact
from sparsemble.core.artifacts import Artifact, explain_disk, json_line, read_json
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.registry import to_dict
from sparsemble.pipeline.stage import Stage, stages

TASKS = ".tasks"
"""Folder, inside that of a run, of what is to run and what running stages report; gone when the run ends."""
Send = Callable[..., None]


def task_file(folder: Path, stage_hash: str) -> Path:
    """Return the file that describes a task."""
    return folder / TASKS / f"{stage_hash}.json"


def message_file(folder: Path, stage_hash: str) -> Path:
    """Return the file that a running task appends messages to, one JSON value a line."""
    return folder / TASKS / f"{stage_hash}.jsonl"


def run_stage(folder: str, stage_hash: str, send: Send | None = None) -> float:
    """Run the stage that the folder of the run describes under a hash, and return the seconds.

    Args:
        folder: of the run.
        stage_hash: of the stage.
        send: receives messages about the progress; appended to the message file unless given.
    """
    run_folder = Path(folder)
    task = read_json(task_file(run_folder, stage_hash))

    def append(**message: Any) -> None:
        with contextlib.suppress(OSError), message_file(run_folder, stage_hash).open("a", encoding="utf-8") as stream:
            stream.write(json_line(message))

    send = send or append
    try:
        return run_task(task, run_folder, torch.device(task["device"]), send)
    except (InputError, RunError) as error:
        message = str(error)
    except Exception as error:
        known = explain_disk(error, run_folder)
        message = str(known or f"{type(error).__name__}: {error}")
        if not known:
            send(kind="details", text=traceback.format_exc())
    raise RunError(f'the stage "{task["title"]}" failed: {message}')


def run_task(task: dict[str, Any], folder: Path, device: torch.device, send: Send) -> float:
    """Run a stage, put its artifact in place, and return the seconds, interrupted tries included.

    Args:
        task: what `Task.to_json` returned.
        folder: of the run.
        device: where the stage computes.
        send: receives messages about the progress.
    """
    stage, inputs, context = prepare(
        task,
        folder,
        device,
        report_progress=lambda share, text: send(kind="progress", share=share, text=text),
        report_epoch=lambda record: send(kind="epoch", record=record),
        report_message=lambda sentence: send(kind="message", text=sentence),
    )
    meta = {"stage": stage.name, "title": task["title"], "version": stage.version}
    return make_artifact(
        folder / task["folder"],
        lambda running: stage.run(running, inputs),
        context,
        {**meta, "spec": to_dict(stage), "inputs": task["inputs"]},
        resumed=lambda seconds, share: send(kind="resumed", share=share, seconds=seconds),
    )


def prepare(
    task: dict[str, Any], run_folder: Path, device: torch.device, **context: Any
) -> tuple[Stage, dict[str, Artifact], Context]:
    """Return the stage of a task, the artifacts that it reads, and the context in which it runs.

    Args:
        task: what `Task.to_json` returned.
        run_folder: where the artifacts are.
        device: where the stage computes.
        context: further fields of the context.
    """
    stage = stages.build(task["stage"])
    inputs = {role: Artifact(run_folder / name) for role, name in task["inputs"].items()}
    return stage, inputs, Context(device=device, seed=stage.seed, stream=stage.stream, **context)


def main() -> None:
    """Run stages until the parent closes the pipe."""
    replies, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(1)
    # The parent process has reported what the data set leaves out.
    logging.getLogger("sparsemble").setLevel(logging.ERROR)
    stages.register_package("sparsemble.pipeline.stages")
    jobs: SimpleQueue[list[str]] = SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    reply: dict[str, Any] = {"ready": True}
    while True:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        folder, stage_hash = jobs.get()
        try:
            reply = {"seconds": run_stage(folder, stage_hash)}
        except RunError as error:
            reply = {"error": str(error)}


def _listen(jobs: "SimpleQueue[list[str]]") -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(1)


if __name__ == "__main__":
    main()
