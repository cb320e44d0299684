"""What may happen during training without editing the loop."""

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
        """Follow an optimiser step."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Follow an epoch, counted from 1; may add numbers to its record in the history."""

    def after_keep(self, history: Sequence[dict[str, Any]]) -> None:
        """Follow a change of the history: an epoch more, a resumed one, or a shorter one after a rollback."""

    def after_rollback(self, sentence: str) -> None:
        """Follow a return to an earlier epoch."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""

    def finish(self, model: nn.Module) -> None:
        """Follow the last epoch."""


@final
class KeepBest(Callback):
    """Measures held-out accuracy now and then, and hands back the weights of the best epoch.

    Best is the highest held-out robust accuracy plus half of the clean one; equal epochs: the later.
    """

    def __init__(self, probe: Callable[[nn.Module], dict[str, float]], every: int, first: float = 0.0) -> None:
        """Set up.

        Args:
            probe: returns `held_out_clean` and `held_out_robust`, each in [0, 1].
            every: measure each so many epochs, and after the last.
            first: share of the epochs before which no epoch is kept.
        """
        self.probe = probe
        self.every = every
        self.first = first
        self.best = -1.0
        self.weights: dict[str, Tensor] = {}

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Measure and remember."""
        if epoch % self.every and epoch != epochs:
            return
        with eval_mode(model), full_precision(model):
            found = self.probe(model)
        record.update(found)
        score = found["held_out_robust"] + 0.5 * found["held_out_clean"]
        if score >= self.best and epoch >= self.first * epochs:
            self.best = score
            self.weights = copy.deepcopy(model.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Return the best weights and their score."""
        return {"best": torch.tensor(self.best, dtype=torch.float64), **{f"w.{k}": v for k, v in self.weights.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take them back."""
        self.best = float(state["best"])
        self.weights = {name[2:]: tensor for name, tensor in state.items() if name.startswith("w.")}

    def finish(self, model: nn.Module) -> None:
        """Load the best weights."""
        if self.weights:
            model.load_state_dict(self.weights)


@final
class Report(Callback):
    """Tells how far training is after every epoch, and at once what went wrong."""

    def __init__(self, tell: Callable[[float, str], None], say: Callable[[str], None] = lambda sentence: None) -> None:
        """Set up.

        Args:
            tell: hears the share done and a few words, which the next ones replace.
            say: hears sentences that stay.
        """
        self.tell = tell
        self.say = say
        self.share = 0.0

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Report the share done and the loss."""
        self.share = epoch / epochs
        self.tell(self.share, f"epoch {epoch}/{epochs}, loss {record['loss']:.3f}")

    def after_rollback(self, sentence: str) -> None:
        """Say what went wrong."""
        self.tell(self.share, sentence)
        self.say(sentence)


@final
class WriteHistory(Callback):
    """Keeps a file of one JSON record an epoch that always equals the history; `tail -f` follows it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def after_keep(self, history: Sequence[dict[str, Any]]) -> None:
        """Leave the lines that are right already, cut off those that are not, append what is missing."""
        lines = [json_line(record).encode() for record in history]
        # The same file throughout: a reader that follows it would miss what another file in its place gets.
        with self.path.open("a+b") as stream:
            stream.seek(0)
            there = stream.readlines()
            right = 0
            while right < len(lines) and there[right : right + 1] == [lines[right]]:
                right += 1
            stream.truncate(sum(map(len, lines[:right])))
            stream.writelines(lines[right:])


@final
class Show(Callback):
    """Hands the record of every epoch that is kept on, once, with the number of epochs there will be."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self.show = show
        self.epochs = 0
        """Epochs there will be, while one is finished and not yet kept; else 0."""

    def after_epoch(self, model: nn.Module, epoch: int, epochs: int, record: dict[str, Any]) -> None:
        """Expect a record; the guard may still refuse the epoch."""
        self.epochs = epochs

    def after_rollback(self, sentence: str) -> None:
        """Expect none."""
        self.epochs = 0

    def after_keep(self, history: Sequence[dict[str, Any]]) -> None:
        """Hand the last record on, if it is a new one."""
        if self.epochs:
            self.show({**history[-1], "epochs": self.epochs})
            self.epochs = 0
