"""A worker process: tasks come in as JSON lines, news go out as JSON lines.

Run as `python -m sparsemble.pipeline.engines.worker FOLDER DEVICE`. JSON keeps pickle out and needs nothing from the
parent but a pipe; when the pipe closes, because the parent is gone in whatever way, the worker ends at once.
"""

import functools
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import torch

import sparsemble.models
import sparsemble.pruning  # noqa: F401 (imports register the components)
from sparsemble.core.artifacts import PARTIAL, Artifact, explain_disk, finish
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.registry import to_dict
from sparsemble.evaluation.environment import source_revision, versions
from sparsemble.pipeline.stage import Work, stages


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


def run_task(task: dict[str, Any], folder: Path, device: torch.device, say: Callable[..., None]) -> float:
    """Run one stage and put its artifact in place; return its seconds, interrupted tries included."""
    final = folder / task["folder"]
    partial = folder / (task["folder"] + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    stage = stages.build(task["stage"])
    before, reached = _earlier_tries(partial)
    started = time.perf_counter()
    if before:
        say(kind="resumed", share=reached, seconds=before)

    def tell(share: float, text: str) -> None:
        (partial / "tries.tmp").write_text(f"{before + time.perf_counter() - started} {share}", "utf-8")
        say(kind="progress", share=share, text=text)

    work = Work(
        folder=partial,
        inputs={role: Artifact(folder / name) for role, name in task["inputs"].items()},
        device=device,
        seed=stage.seed,
        stream=stage.stream,
        tell=tell,
        show=lambda record: say(kind="epoch", record=record),
        say=lambda sentence: say(kind="said", sentence=sentence),
    )
    stage.run(work)
    for leftover in [*partial.glob("*.tmp"), *partial.glob("*.new")]:
        leftover.unlink()
    seconds = before + time.perf_counter() - started
    meta = {
        "stage": stage.name,
        "title": task["title"],
        "version": stage.version,
        "spec": to_dict(stage),
        "inputs": task["inputs"],
        "seed": stage.seed,
        "passes": work.passes,
        "seconds": seconds,
        "device": str(device),
        "versions": versions(),
        "source": source_revision(),
    }
    finish(partial, final, meta)
    return seconds


def _earlier_tries(partial: Path) -> tuple[float, float]:
    """Return the seconds of interrupted tries, and the share that the last one reached."""
    try:
        seconds, share = (partial / "tries.tmp").read_text("utf-8").split()
        return float(seconds), float(share)
    except (OSError, ValueError):
        return 0.0, 0.0


def _listen(tasks: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        tasks.put(json.loads(line))
    os._exit(1)


def _say(news: TextIO, **message: Any) -> None:
    news.write(json.dumps(message) + "\n")
    news.flush()


if __name__ == "__main__":
    main()
