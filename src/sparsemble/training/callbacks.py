"""Hooks of the training loop: choosing the best epoch, reporting progress, writing the history."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sparsemble.core.artifacts import json_line
from sparsemble.core.module_state import eval_mode
from sparsemble.training.precision import full_precision


class Callback:
    """Hooks of the loop; each does nothing unless overridden."""

    def after_step(self, model: nn.Module) -> None:
        """Called after an optimiser step."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Called after an epoch; may add numbers to its record in the history.

        Args:
            model: the model that is evaluated: the averaged one, where weights are averaged.
            epoch: number of the epoch, from 1.
            epochs: number of epochs of the whole training.
            record: the epoch's record so far.
        """

    def after_history_change(self, history: Sequence[dict[str, Any]]) -> None:
        """Called when the history changed: one more epoch, a resumed history, or a shorter one after a rollback."""

    def after_rollback(self, message: str) -> None:
        """Called after a return to an earlier epoch."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def finish(self, model: nn.Module) -> None:
        """Called after the last epoch."""


@final
class KeepBest(Callback):
    """Evaluates on held-out images every few epochs, and loads the weights of the best epoch at the end.

    The score of an epoch is its held-out robust accuracy plus half of the clean one; of equal epochs the later counts.
    """

    def __init__(self, probe: Callable[[nn.Module], dict[str, float]], every: int, first: float = 0.0) -> None:
        """Take a function from a model to its held-out accuracies, epochs between calls, and the share of the first."""
        self.probe = probe
        self.every = every
        self.first = first
        self.best = -1.0
        self.weights: dict[str, Tensor] = {}

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Evaluate, and keep the weights if they are the best so far."""
        if epoch % self.every and epoch != epochs:
            return
        with eval_mode(model), full_precision(model):
            accuracies = self.probe(model)
        record.update(accuracies)
        score = _score(accuracies)
        if score >= self.best and epoch >= self.first * epochs:
            self.best = score
            self.weights = copy.deepcopy(model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return the best weights and their score."""
        return {"best": torch.tensor(self.best, dtype=torch.float64), **{f"w.{k}": v for k, v in self.weights.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore the best weights and their score."""
        self.best = float(state["best"])
        self.weights = {name[2:]: tensor for name, tensor in state.items() if name.startswith("w.")}

    def finish(self, model: nn.Module) -> None:
        """Load the best weights."""
        if self.weights:
            model.load_state_dict(self.weights)


def kept_epoch(history: Sequence[Mapping[str, Any]], epochs: int, first: float) -> Mapping[str, Any] | None:
    """Return the record of the epoch whose weights a finished training has; None: none was measured.

    Args:
        history: one record an epoch.
        epochs: number of epochs that were asked for.
        first: share of them before which `KeepBest` chooses none.
    """
    measured = [record for record in history if "held_out_robust" in record]
    late = [record for record in measured if record["epoch"] >= first * epochs]
    # A training that ended early keeps its last good weights.
    return max(reversed(late or measured[-1:]), key=_score, default=None)


def _score(accuracies: Mapping[str, Any]) -> float:
    score: float = accuracies["held_out_robust"] + 0.5 * accuracies["held_out_clean"]
    return score


@final
class ReportProgress(Callback):
    """Reports the progress after every epoch, and each rollback at once."""

    def __init__(
        self, progress: Callable[[float, str], None], message: Callable[[str], None] = lambda sentence: None
    ) -> None:
        """Take functions that receive the share of the epochs done with a status line, and messages of rollbacks."""
        self.progress = progress
        self.message = message
        self.share = 0.0

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Report the share done and the loss."""
        self.share = epoch / epochs
        self.progress(self.share, f"epoch {epoch}/{epochs}, loss {record['loss']:.3f}")

    def after_rollback(self, message: str) -> None:
        """Report what went wrong."""
        self.progress(self.share, message)
        self.message(message)


@final
class WriteHistory(Callback):
    """Writes the history to a file of one JSON record an epoch, which `tail -f` can follow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_history_change(self, history: Sequence[dict[str, Any]]) -> None:
        """Keep the leading lines that are unchanged, truncate the rest, append what is missing."""
        lines = [json_line(record).encode() for record in history]
        # The file is changed in place: a process that follows it would not notice another file of the same name.
        with self.path.open("a+b") as stream:
            stream.seek(0)
            existing = stream.readlines()
            unchanged = 0
            while unchanged < len(lines) and existing[unchanged : unchanged + 1] == [lines[unchanged]]:
                unchanged += 1
            stream.truncate(sum(map(len, lines[:unchanged])))
            stream.writelines(lines[unchanged:])


@final
class OnEpoch(Callback):
    """Calls a function with the record of every epoch that enters the history, and the total number of epochs."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self.function = function
        self.epochs = 0
        """Total number of epochs, from the end of an epoch until it enters the history; else 0."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Expect a new record; the guard may still reject the epoch."""
        self.epochs = epochs

    def after_rollback(self, message: str) -> None:
        """Expect none."""
        self.epochs = 0

    def after_history_change(self, history: Sequence[dict[str, Any]]) -> None:
        """Call the function with the last record, if it is new."""
        if self.epochs:
            self.function({**history[-1], "epochs": self.epochs})
            self.epochs = 0
