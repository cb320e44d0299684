"""A worker process: tasks come in as JSON lines, news go out as JSON lines.

Run as `python -m sparsemble.pipeline.engines.worker FOLDER DEVICE`. JSON keeps pickle out and needs nothing from the
parent but a pipe; when the pipe closes, because the parent is gone in whatever way, the worker ends at once.
"""

import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

import sparsemble.models
import sparsemble.pruning  # noqa: F401 (imports register the components)
from sparsemble.api.context import Context, make_artifact
from sparsemble.core.artifacts import Artifact, explain_disk
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.registry import to_dict
from sparsemble.pipeline.stage import stages


def main() -> None:
    """Serve tasks until the parent closes the pipe."""
    news, sys.stdout = sys.stdout, sys.stderr
    folder, device = Path(sys.argv[1]), torch.device(sys.argv[2])
    torch.set_num_threads(1)
    stages.walk("sparsemble.pipeline.stages")
    tasks: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(tasks,), daemon=True).start()
    _say(news, kind="ready")
    while True:
        task = tasks.get()
        try:
            seconds = run_task(task, folder, device, functools.partial(_say, news))
            _say(news, kind="done", seconds=seconds)
        except (InputError, RunError) as error:
            _say(news, kind="failed", sentence=str(error))
        except OSError as error:
            known = explain_disk(error, folder)
            _say(news, kind="failed", sentence=str(known or error), details=None if known else traceback.format_exc())
        except Exception as error:
            sentence = f"{type(error).__name__}: {error}"
            _say(news, kind="failed", sentence=sentence, details=traceback.format_exc())


def run_task(task: dict[str, Any], folder: Path, device: torch.device, send: Callable[..., None]) -> float:
    """Run one stage and put its artifact in place.

    Args:
        task: what `Task.to_json` returned.
        folder: of the run.
        device: where the stage computes.
        send: receives messages about the progress.

    Returns:
        Seconds, interrupted tries included.
    """
    stage = stages.build(task["stage"])
    context = Context(
        device=device,
        seed=stage.seed,
        stream=stage.stream,
        report_progress=lambda share, text: send(kind="progress", share=share, text=text),
        report_epoch=lambda record: send(kind="epoch", record=record),
        report_message=lambda sentence: send(kind="said", sentence=sentence),
    )
    inputs = {role: Artifact(folder / name) for role, name in task["inputs"].items()}
    return make_artifact(
        folder / task["folder"],
        lambda running: stage.run(running, inputs),
        context,
        {
            "stage": stage.name,
            "title": task["title"],
            "version": stage.version,
            "spec": to_dict(stage),
            "inputs": task["inputs"],
        },
        resumed=lambda seconds, share: send(kind="resumed", share=share, seconds=seconds),
    )


def _listen(tasks: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(1)


def _say(news: TextIO, **message: Any) -> None:
    news.write(json.dumps(message) + "\n")
    news.flush()


if __name__ == "__main__":
    main()
