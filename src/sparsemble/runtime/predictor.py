"""An ensemble that answers: members one after the other, on the images still undecided."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.stopping import StoppingRule, build_rule

Floats = NDArray[np.float32]


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """Answers for a batch of images."""

    labels: NDArray[np.int64]
    """(B) places in the ensemble's classes."""
    probabilities: Floats
    """(B, K), of the prefix that answers."""
    members_run: NDArray[np.int64]
    """(B) in 1..M."""
    answered_with: NDArray[np.int64]
    """(B) length of the prefix that answers, in 1..members_run."""


@final
class Predictor:
    """An ensemble, compiled for this processor.

    Args:
        ensemble: what answers.
        threads: chunks of a batch that run side by side, >= 1.
        folder: where compiled code is kept; the user's cache unless given.
        max_memory: bytes that one run of a member may take.
        rule: a rule in place of the ensemble's own.

    Raises:
        RuntimeInputError: a combiner, stopping rule or number of threads that cannot be.
    """

    def __init__(
        self,
        ensemble: PackedEnsemble,
        *,
        threads: int = 1,
        folder: Path | None = None,
        max_memory: int = 2**30,
        rule: StoppingRule | None = None,
    ) -> None:
        if not isinstance(threads, int | np.integer):
            raise RuntimeInputError(f"threads = {threads!r:.60} must be a whole number, 1 or more")
        if threads < 1:
            raise RuntimeInputError(f"threads = {threads} must be 1 or more; this machine has {os.cpu_count()} cores")
        self.ensemble, self.threads = ensemble, threads
        self._combiner, self._rule = build_combiner(ensemble.combiner), rule or build_rule(ensemble.rule)
        self._engines: list[Engine | None] = [None] * len(ensemble.members)
        self._folder, self._max_memory = folder, max_memory

    def predict(self, images: NDArray[Any]) -> Prediction:
        """Classify images, (B, H, W, C) of whole numbers in 0..255 (uint8) or (B, C, H, W) of floats in [0, 1].

        Each image is answered alone: the same in a batch of 1 and of 256.

        Raises:
            RuntimeInputError: another shape, type or range.
        """
        x = self._checked(images)
        count, total = len(x), len(self.ensemble.members)
        classes = len(self.ensemble.classes)
        logits = np.zeros((count, classes), np.float32)
        run, answered = np.zeros(count, np.int64), np.zeros(count, np.int64)
        undecided = np.arange(count)
        so_far = np.zeros((0, count, classes), np.float32)
        for m in range(1, total + 1):
            if not len(undecided):
                break
            now = self._engine(m - 1).run(x[undecided], self.threads)
            so_far = np.concatenate([so_far, now[None]])
            stop, prefix = self._rule(so_far, last=m == total)
            done = stop | (m == total)
            for length in np.unique(prefix[done]):
                rows = done & (prefix == length)
                logits[undecided[rows]] = self._combiner(so_far[:length, rows])
            run[undecided[done]], answered[undecided[done]] = m, prefix[done]
            undecided, so_far = undecided[~done], so_far[:, ~done]
        return Prediction(logits.argmax(1).astype(np.int64), np.exp(logits), run, answered)

    def member_logits(self, images: NDArray[Any]) -> Floats:
        """Return the logits of all members, (M, B, K), in running order; images as for `predict`."""
        x = self._checked(images)
        return np.stack([self._engine(m).run(x, self.threads) for m in range(len(self.ensemble.members))])

    def _engine(self, place: int) -> Engine:
        """Return a member's engine; compiled when it is first needed."""
        found = self._engines[place]
        if found is None:
            found = self._engines[place] = Engine(
                self.ensemble.members[place], folder=self._folder, max_memory=self._max_memory
            )
        return found

    def _checked(self, images: NDArray[Any]) -> Floats:
        if not isinstance(images, np.ndarray):
            raise RuntimeInputError(f"images must be a numpy array, got {type(images).__name__}")
        channels, height, width = self.ensemble.image
        if images.dtype == np.uint8:
            wanted: tuple[int, ...] = (height, width, channels)
            if images.ndim != 4 or images.shape[1:] != wanted:
                raise RuntimeInputError(
                    f"images of whole numbers must be (B, {height}, {width}, {channels}), got {images.shape}"
                )
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        if not np.issubdtype(images.dtype, np.floating):
            raise RuntimeInputError(f"images must be floats in [0, 1] or uint8, got {images.dtype}")
        wanted = (channels, height, width)
        if images.ndim != 4 or images.shape[1:] != wanted:
            raise RuntimeInputError(f"images of floats must be (B, {channels}, {height}, {width}), got {images.shape}")
        if images.size:
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):
                raise RuntimeInputError(f"images must lie in [0, 1], got [{low:g}, {high:g}]")
        return np.ascontiguousarray(images, np.float32)
