"""Predict with an ensemble: members run one after the other, on the images that are still undecided."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from sparsemble.runtime.combiners import build_combiner
from sparsemble.runtime.engine import Engine
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.images import read_image
from sparsemble.runtime.network import Floats
from sparsemble.runtime.stopping import StoppingRule, build_rule

FILES_AT_ONCE = 256
"""Image files that are converted to floats at a time."""


@final
@dataclass(frozen=True, eq=False)
class Prediction:
    """The predictions for a batch of images."""

    labels: NDArray[np.int64]
    """(B) indices into the ensemble's classes."""
    probabilities: Floats
    """(B, K), of the prefix of members that was used."""
    members_run: NDArray[np.int64]
    """(B) in 1..M."""
    answered_with: NDArray[np.int64]
    """(B) length of the prefix of members that was used, in 1..members_run."""


@final
class Predictor:
    """An ensemble, compiled for this processor.

    Args:
        ensemble: the networks, combiner and stopping rule.
        threads: chunks of a batch that run side by side, >= 1.
        folder: where compiled code is cached; the user's cache folder unless given.
        max_memory: bytes that one run of a member may take.
        rule: a stopping rule in place of the ensemble's own.

    Raises:
        RuntimeInputError: an unknown combiner or stopping rule, or an invalid number of threads.
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

    def predict(self, images: NDArray[Any] | Sequence[str | Path], *, resize: bool = False) -> Prediction:
        """Classify images; the prediction of an image does not depend on the others in the batch.

        Args:
            images: paths of image files; or an array, (B, H, W, C) of uint8 in 0..255 or (B, C, H, W) of floats in
                [0, 1].
            resize: where the ensemble does not say how its images were made of files, resize those of another size;
                without it they are refused.

        Returns:
            Labels, probabilities and members run, in the order of the images.

        Raises:
            RuntimeInputError: a file that cannot be read, or an array of another shape, type or range.
        """
        if isinstance(images, list | tuple) and all(isinstance(path, str | Path) for path in images):
            return self._predict_files([Path(path) for path in images], resize=resize)
        return self._predict(self._checked(images))

    def read(self, path: str | Path, *, resize: bool = False) -> NDArray[np.uint8]:
        """Return an image file as the ensemble takes it, (H, W, C) in 0..255, prepared as the training images were.

        Args:
            path: of a file that Pillow can read.
            resize: as for `predict`.

        Raises:
            RuntimeInputError: the file cannot be read as an image, or has another size.
        """
        if self.ensemble.preprocessing:
            return self.ensemble.preprocessing.read(Path(path))
        return read_image(Path(path), self.ensemble.image, resize=resize)

    def _predict_files(self, files: list[Path], *, resize: bool) -> Prediction:
        """Classify files; all of them are read before the first one is classified."""
        if not files:
            return self._predict(np.zeros((0, *self.ensemble.image), np.float32))
        pixels = [self.read(file, resize=resize) for file in files]
        batches = [
            self._predict(self._checked(np.stack(pixels[start : start + FILES_AT_ONCE])))
            for start in range(0, len(files), FILES_AT_ONCE)
        ]
        names = ("labels", "probabilities", "members_run", "answered_with")
        return Prediction(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))

    def _predict(self, x: Floats) -> Prediction:
        count, total = len(x), len(self.ensemble.members)
        classes = len(self.ensemble.classes)
        logits = np.zeros((count, classes), np.float32)
        members_run, answered_with = np.zeros(count, np.int64), np.zeros(count, np.int64)
        undecided = np.arange(count)
        member_logits = np.zeros((0, count, classes), np.float32)
        for m in range(1, total + 1):
            if not len(undecided):
                break
            last_logits = self._engine(m - 1).run(x[undecided], self.threads)
            member_logits = np.concatenate([member_logits, last_logits[None]])
            stop, prefix = self._rule(member_logits, self._combiner, last=m == total)
            done = stop | (m == total)
            for length in np.unique(prefix[done]):
                rows = done & (prefix == length)
                logits[undecided[rows]] = self._combiner(member_logits[:length, rows])
            members_run[undecided[done]], answered_with[undecided[done]] = m, prefix[done]
            undecided, member_logits = undecided[~done], member_logits[:, ~done]
        return Prediction(logits.argmax(1).astype(np.int64), np.exp(logits), members_run, answered_with)

    def member_logits(self, images: NDArray[Any]) -> Floats:
        """Return the logits of all members, (M, B, K), in running order; images as arrays as for `predict`."""
        x = self._checked(images)
        return np.stack([self._engine(m).run(x, self.threads) for m in range(len(self.ensemble.members))])

    def _engine(self, member: int) -> Engine:
        """Return a member's engine, which is compiled on first use."""
        engine = self._engines[member]
        if engine is None:
            engine = self._engines[member] = Engine(
                self.ensemble.members[member], folder=self._folder, max_memory=self._max_memory
            )
        return engine

    def _checked(self, images: Any) -> Floats:
        """Return images as floats, (B, C, H, W) in [0, 1]."""
        if not isinstance(images, np.ndarray):
            raise RuntimeInputError(f"images must be a numpy array or a list of paths, got {type(images).__name__}")
        if images.dtype == np.uint8:
            channels, height, width = self.ensemble.image
            self._check_shape(images, "whole numbers", (height, width, channels))
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
        if not np.issubdtype(images.dtype, np.floating):
            raise RuntimeInputError(f"images must be floats in [0, 1] or uint8, got {images.dtype}")
        self._check_shape(images, "floats", self.ensemble.image)
        if images.size:
            low, high = float(images.min()), float(images.max())
            if not (low >= 0 and high <= 1):
                raise RuntimeInputError(f"images must lie in [0, 1], got [{low:g}, {high:g}]")
        return np.ascontiguousarray(images, np.float32)

    @staticmethod
    def _check_shape(images: NDArray[Any], numbers: str, expected: tuple[int, int, int]) -> None:
        if images.ndim != 4 or images.shape[1:] != expected:
            raise RuntimeInputError(
                f"images of {numbers} must be (B, {', '.join(map(str, expected))}), got {images.shape}"
            )
