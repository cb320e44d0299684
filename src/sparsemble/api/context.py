"""How and where a function of the API works: device, randomness, progress, and the folder in which it is resumable."""

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import torch
from torch import nn

from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.artifacts import META, PARTIAL, Artifact, finish, only_run_in
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.module_state import state_tensors
from sparsemble.core.pass_counter import count_passes
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import checked_threat
from sparsemble.core.types import draw_seed, seeded
from sparsemble.data.dataset import Dataset, Split
from sparsemble.evaluation.environment import source_revision, versions
from sparsemble.evaluation.fingerprint import code_hash

logger = logging.getLogger("sparsemble")
TRIES = "tries.tmp"
"""File of the seconds that interrupted tries took, and the share of the work that the last one reached."""

SAMPLE = 64
"""Images of a split that are compared, evenly among all, beside every label."""


@final
@dataclass(frozen=True, kw_only=True)
class Context:
    """What a running function is given, and where it counts the images that it sends through models."""

    device: torch.device
    seed: int
    stream: str
    """Separates the random numbers of this call from those of others with the same seed."""
    folder: Path | None = None
    """Where checkpoints and the history are kept; holds what an interrupted try left."""
    report_progress: Callable[[float, str], None] = lambda fraction, text: None
    """Receives the share of the work that is done, in [0, 1], and a short text."""
    report_message: Callable[[str], None] = logger.info
    """Receives sentences for the user."""
    report_epoch: Callable[[dict[str, Any]], None] = lambda record: logger.info(
        "epoch %(epoch)s, loss %(loss).3f", record
    )
    """Receives the record of every epoch that is kept."""
    passes: dict[str, int] = field(default_factory=lambda: {"forward": 0, "backward": 0})
    """Images through models so far."""

    @property
    def output(self) -> Path:
        """The folder, of a context that has one."""
        assert self.folder is not None
        return self.folder

    def rng(self, purpose: str, device: torch.device | None = None) -> torch.Generator:
        """Return the generator for a purpose, on the context's device unless given; at every call in the same state."""
        return seeded(draw_seed(self.seed, self.stream, purpose), device or self.device)

    @contextlib.contextmanager
    def counting(self, *models: nn.Module) -> Iterator[None]:
        """Count the passes of these models while the context manager is open."""
        with count_passes(*models) as passes:
            yield
        self.add_passes([{"forward_passes": passes.forward, "backward_passes": passes.backward}])

    def add_passes(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Add the passes of a training history."""
        for direction in self.passes:
            self.passes[direction] += sum(record[f"{direction}_passes"] for record in history)


def make_artifact(
    final_folder: Path,
    produce: Callable[[Context], None],
    context: Context,
    meta: Mapping[str, Any],
    resumed: Callable[[float, float], None] = lambda seconds, fraction: None,
) -> float:
    """Compute an artifact in a folder beside its final one, rename it when it is whole, and return the seconds.

    Args:
        final_folder: where the artifact is when it is finished.
        produce: leaves the artifact's files in the folder of the context that it is given.
        context: its folder and progress report are replaced.
        meta: what `meta.json` records beside passes, seconds, device, versions and the hash of every file.
        resumed: receives the seconds of interrupted tries and the share that the last one reached, if there were any.
    """
    partial = final_folder.with_name(final_folder.name + PARTIAL)
    partial.mkdir(parents=True, exist_ok=True)
    earlier, fraction_reached = _earlier_tries(partial)
    if earlier:
        resumed(earlier, fraction_reached)
    started = time.perf_counter()

    def report_progress(fraction: float, text: str) -> None:
        (partial / TRIES).write_text(f"{earlier + time.perf_counter() - started} {fraction}", "utf-8")
        context.report_progress(fraction, text)

    running = replace(context, folder=partial, report_progress=report_progress)
    produce(running)
    for leftover in [*partial.glob("*.tmp"), *partial.glob("*.new"), *partial.glob(".lock")]:
        leftover.unlink()
    seconds = earlier + time.perf_counter() - started
    measured = {"passes": running.passes, "seconds": seconds, "device": str(context.device)}
    record = {**meta, "seed": context.seed, **measured, "versions": versions(), "source": source_revision()}
    finish(partial, final_folder, record)
    return seconds


def _earlier_tries(partial: Path) -> tuple[float, float]:
    """Return the seconds of interrupted tries, and the share that the last one reached."""
    try:
        seconds, fraction = (partial / TRIES).read_text("utf-8").split()
        return float(seconds), float(fraction)
    except (OSError, ValueError):
        return 0.0, 0.0


@runtime_checkable
class Stored(Protocol):
    """A result that can be kept in a folder."""

    def save(self, folder: Path) -> None:
        """Write the result's files."""


R = TypeVar("R", bound=Stored)


def resumable(
    stage: str,
    settings: dict[str, Any],
    compute: Callable[[Context], R],
    load: Callable[[Path, torch.device], R],
    stream: str = "",
) -> R:
    """Run a function of the API: in the context that its caller keeps, or from a seed, in a folder if there is one.

    Args:
        stage: name of the function's artifact.
        settings: its arguments; `seed`, `folder`, `device` and `context` are used here.
        compute: does the work.
        load: reads a finished result, on a device.
        stream: of the random numbers; the stage's name unless given.
    """
    settings = {**settings, "seed": checked_seed(settings["seed"])}
    checked_threat(settings["threat"])
    context, folder, device = (settings.pop(name) for name in ("context", "folder", "device"))
    if context is not None:
        return compute(context)
    context = Context(device=torch.device(choose_device(device)), seed=settings["seed"], stream=stream or stage)
    if folder is None:
        return compute(context)
    final_folder = Path(folder)
    spec = {name: _described(value) for name, value in sorted(settings.items())}
    if final_folder.exists():
        _check_same(final_folder, stage, spec)
        return load(final_folder, context.device)
    results: list[R] = []

    def produce(running: Context) -> None:
        results.append(compute(running))
        results[0].save(running.output)

    with only_run_in(final_folder.with_name(final_folder.name + PARTIAL)):
        make_artifact(final_folder, produce, context, {"stage": stage, "spec": spec, "inputs": {}})
    return results[0]


def _check_same(folder: Path, stage: str, spec: Mapping[str, Any]) -> None:
    """Refuse a folder whose result was made by another function or with other settings."""
    if not (folder / META).is_file():
        raise InputError(f"{folder} exists and holds no result of sparsemble.{stage}; choose another folder")
    artifact = Artifact(folder)
    artifact.verify()
    if artifact.meta["stage"] != stage:
        raise InputError(f"{folder} holds a result of the stage {artifact.meta['stage']}; choose another folder")
    for name, value in spec.items():
        if artifact.meta["spec"].get(name) != value:
            raise InputError(
                f"{folder} holds a result with another {name} ({artifact.meta['spec'].get(name)}, now {value}); choose "
                "another folder"
            )


def _described(value: Any) -> Any:
    """Return a setting as JSON values: models and images by a hash, components by name, version and settings."""
    if isinstance(value, nn.Module):
        code = code_hash(value)
        weights = _tensors_hash(state_tensors(value))
        return f"{weights} {code[:16]}" if code else weights
    if isinstance(getattr(value, "model", None), nn.Module):  # a result of the API
        return _described(value.model)
    if isinstance(value, Dataset):
        splits = {part: _described(getattr(value, part)) for part in ("train", "selection", "calibration", "test")}
        return splits | {"shape": list(value.shape), "mean": list(value.mean), "std": list(value.std)}
    if isinstance(value, Split):
        some = torch.linspace(0, len(value) - 1, min(SAMPLE, len(value)), device=value.labels.device).long()
        tensors = {"labels": value.labels, "some images": value.images(some)}
        return {"images": len(value), **{name: _tensors_hash({name: tensor}) for name, tensor in tensors.items()}}
    if isinstance(value, torch.Tensor):
        return _tensors_hash({"tensor": value})
    if isinstance(value, Mapping):
        return {name: _described(entry) for name, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_described(entry) for entry in value]
    return json.loads(json.dumps(to_dict(value, versions=True), default=lambda part: type(part).__qualname__))


def _tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
