"""Accuracy of the deployed decision under common corruptions, generated or read from the published arrays."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch

from sparsemble.core.artifacts import file_hash
from sparsemble.core.errors import InputError
from sparsemble.core.results.corruptions import CORRUPTIONS, SEVERITIES, CorruptionAccuracy, CorruptionRecord
from sparsemble.core.types import Flags, Images
from sparsemble.data.dataset import Split
from sparsemble.evaluation.attack_shard import outcome_of
from sparsemble.evaluation.corruptions import SMALLEST, corrupt, parameters_for
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.outcome_store import Outcome, OutcomeStore
from sparsemble.evaluation.progress import Progress
from sparsemble.evaluation.run_attacks import accuracy, outcome_keys
from sparsemble.evaluation.work import Work

GENERATED = "generated"
STEP = "corruptions"
"""Name of this work in the progress."""
VERSION = 1
"""Raised when generated corruptions change."""
SLACK = 1e-6
"""Of a distance, as attacks are allowed it."""


class CorruptedImages(ABC):
    """Where corrupted images come from."""

    @abstractmethod
    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images on the device of `x`.

        Args:
            name: of `CORRUPTIONS`.
            severity: 1 to 5.
            x: (B, C, H, W) the clean images.
            positions: (B) of the images in their split.
        """

    @abstractmethod
    def record(self, x: Images) -> dict[str, Any]:
        """Return the fields of a `CorruptionRecord` that describe this source for images like these."""


@final
@dataclass(frozen=True)
class GeneratedCorruptions(CorruptedImages):
    """Corruptions made on the fly."""

    seed: int
    """>= 0; a corrupted image depends on it and on its own position only."""

    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images."""
        return corrupt(name, severity, x, seed=self.seed, positions=positions)

    def record(self, x: Images) -> dict[str, Any]:
        """Return source, parameters and seed."""
        return {"source": GENERATED, "parameters": parameters_for(*x.shape[2:]), "seed": self.seed}


@final
@dataclass(frozen=True)
class StoredCorruptions(CorruptedImages):
    """Corruptions in arrays, as CIFAR-10-C is published: `NAME.npy` with all images at severity 1, then 2, ..."""

    folder: Path
    sha256: str
    total: int
    """Images at one severity."""

    def images(self, name: str, severity: int, x: Images, positions: Sequence[int]) -> Images:
        """Return corrupted images."""
        rows = (severity - 1) * self.total + np.asarray(positions)
        pixels = torch.from_numpy(_open(self.folder / f"{name}.npy")[rows]).float() / 255
        return (pixels[..., None] if pixels.ndim == 3 else pixels).permute(0, 3, 1, 2).contiguous().to(x.device)

    def record(self, x: Images) -> dict[str, Any]:
        """Return the folder and the hash of its arrays."""
        return {"source": str(self.folder), "sha256": self.sha256}


def open_corruptions(
    wanted: str | Path | Literal[True], split: Split, positions: Sequence[int], seed: int
) -> CorruptedImages:
    """Return where corrupted images come from, after a check that they fit the images.

    Args:
        wanted: True or "generated": made on the fly; else a folder of arrays (5 N, H, W, C), uint8, `NAME.npy` for
            each corruption, with the classes in `labels.npy`.
        split: the images that are evaluated.
        positions: of these in the whole split that the arrays are about.
        seed: of what is made on the fly.

    Raises:
        InputError: no such folder, arrays that are missing, damaged or of other images, or images that are too small.
    """
    channels, height, width = split.images(torch.zeros(1, dtype=torch.long, device=split.labels.device)).shape[1:]
    if wanted is True or str(wanted) == GENERATED:
        if min(height, width) < SMALLEST:
            raise InputError(f"images of {height} x {width} pixels are too small to corrupt; a side needs {SMALLEST}")
        return GeneratedCorruptions(seed)
    folder = Path(wanted)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder of corrupted images; name one, or no folder to generate them")
    files = {name: folder / f"{name}.npy" for name in (*CORRUPTIONS, "labels")}
    if missing := [file.name for file in files.values() if not file.is_file()]:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}; it must hold the arrays of CIFAR-10-C, or ones like them"
        )
    labels = _open(files["labels"])
    total = len(_open(files[CORRUPTIONS[0]])) // SEVERITIES
    for name in CORRUPTIONS:
        _check_array(files[name], (SEVERITIES * total, height, width, channels))
    _check_labels(files["labels"], labels, total, split, positions)
    digest = hashlib.sha256("".join(map(file_hash, files.values())).encode()).hexdigest()
    return StoredCorruptions(folder, digest, total)


def _open(file: Path) -> np.ndarray:
    """Map an array into memory; never unpickles."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read as an array: {error}") from error
    if not isinstance(array, np.ndarray) or not array.ndim:
        raise InputError(f"{file} must hold one array with an entry for each image")
    return array


def _check_array(file: Path, expected: tuple[int, ...]) -> None:
    """Check that an array holds images of this shape; grey ones may lack the last axis."""
    array = _open(file)
    shapes = (expected, expected[:3]) if expected[3] == 1 else (expected,)
    if array.dtype != np.uint8 or array.shape not in shapes:
        raise InputError(
            f"{file} must be uint8 {expected}, five severities of each image, got {array.dtype} {array.shape}"
        )


def _check_labels(file: Path, labels: np.ndarray, total: int, split: Split, positions: Sequence[int]) -> None:
    """Check that the arrays are about the images that are evaluated, as far as the classes tell."""
    if labels.dtype.kind not in "iu" or labels.shape not in ((total,), (SEVERITIES * total,)):
        raise InputError(f"{file} must be whole numbers, one for each of {total} images or of all severities")
    if max(positions) >= total:
        raise InputError(f"{file.parent} is about {total} images, but the evaluation uses image {max(positions)}")
    differ = np.flatnonzero(labels[np.asarray(positions)] != split.labels.cpu().numpy())
    if differ.size:
        i = int(differ[0])
        raise InputError(
            f"{file.parent} is about other images, or in another order: image {positions[i]} has class "
            f"{labels[positions[i]]} there and {int(split.labels[i])} in the data set"
        )


def plan_corruptions(job: EvaluationJob, progress: Progress) -> None:
    """Tell the progress how much work the corruptions are."""
    progress.plan({STEP: (Work(SEVERITIES * len(job.split) * job.members), len(CORRUPTIONS))})


def corruption_accuracy(
    job: EvaluationJob,
    source: CorruptedImages,
    positions: Sequence[int],
    worst_case: Flags,
    store: OutcomeStore,
    progress: Progress,
) -> CorruptionRecord:
    """Return the accuracy under every corruption and severity; finished shards are read from the store.

    Args:
        job: the model, its rule and the images; its attacks do not run.
        source: of the corrupted images.
        positions: of the images in their split.
        worst_case: (n) which images are correct when clean and under every attack.
        store: where outcomes are kept.
        progress: follows the work, which `plan_corruptions` has planned.

    Raises:
        InputError: the arrays cannot be read.
        RunError: the model returned NaN.
    """
    base, _ = outcome_keys(job)
    described = source.record(job.split.images(job.shards[0][:1]))
    missed, inside, rows = torch.zeros_like(worst_case), 0, []
    for name in CORRUPTIONS:
        accuracies = []
        with progress.running(STEP, f"{STEP}: {name}"):
            for severity in range(1, SEVERITIES + 1):
                settings = [base, VERSION, name, severity, list(positions), described]
                key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]
                outcome = _outcome(job, source, positions, store, key, name, severity)
                accuracies.append(accuracy(outcome.correct))
                within = outcome.distance <= job.threat.eps + SLACK
                inside += int(within.sum())
                missed |= within & worst_case & ~outcome.correct
        rows.append(CorruptionAccuracy(name=name, accuracy=tuple(accuracies), mean=sum(accuracies) / SEVERITIES))
    return CorruptionRecord(
        **described,
        images=len(job.split),
        corruptions=tuple(rows),
        mean=sum(row.mean for row in rows) / len(rows),
        inside=inside,
        missed=int(missed.sum()),
    )


def _outcome(
    job: EvaluationJob,
    source: CorruptedImages,
    positions: Sequence[int],
    store: OutcomeStore,
    key: str,
    name: str,
    severity: int,
) -> Outcome:
    """Read or compute the outcomes under a corruption, shard by shard."""
    label, parts = f"{name}-{severity}", []
    for i, shard in enumerate(job.shards):
        stored = store.read(label, i, key)
        if stored is None:
            x, y = job.split.subset(shard).tensors()
            corrupted = source.images(name, severity, x, [positions[j] for j in shard.tolist()])
            stored = outcome_of(job, corrupted, x, y), x[:0].cpu()
            store.write(label, i, key, *stored)
        parts.append(stored[0])
    return Outcome.join(parts)
