"""State of a training and the operations that change it: one epoch, a rollback, writing and reading a checkpoint."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.distributed_rng import sharded
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import members_of
from sparsemble.core.module_state import eval_mode
from sparsemble.core.pass_counter import Passes
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.training import distributed
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint, Metadata, optimiser_state, restore_optimiser, with_prefix
from sparsemble.training.ema import EMAModel
from sparsemble.training.guard import NOT_FINITE, Fault, divergence, is_finite
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule

CHECK_EVERY = 20
"""Steps between checks of the loss on a GPU, where each check synchronises with it."""


@final
@dataclass(kw_only=True)
class Loop:
    """The state of one training; `fit` calls its methods."""

    model: nn.Module
    loss: TrainingLoss
    batches: Batches
    schedule: Schedule
    epochs: int
    threat: ThreatModel
    rng: Generator
    callbacks: Sequence[Callback]
    checkpoint: Checkpoint
    precision: Precision
    history: list[dict[str, Any]] = field(default_factory=list)
    rollbacks: list[dict[str, Any]] = field(default_factory=list)
    """One entry a rollback: `epoch`, `message`, `backed_off` ("learning_rate" or "attack"), and the passes undone."""
    stopped: bool = False
    """Whether training ended early because robustness collapsed again after the last permitted rollback."""

    def __post_init__(self) -> None:
        distributed.broadcast_model_(self.model)
        self.batches = replace(self.batches, shard=(distributed.rank(), distributed.world_size()))
        self.optimiser = self.schedule.optimiser(self.model.parameters())
        self.ema_model = EMAModel(self.model, self.schedule.ema) if self.schedule.ema else None

    def ema_networks(self) -> list[nn.Module]:
        """Return the networks of the averaged model, whose forward passes are counted too."""
        if not self.ema_model:
            return []
        model = self.ema_model.model
        return members_of(model)

    def run_epoch(self) -> dict[str, Any] | Fault:
        """Train for one epoch and evaluate it; return its record, or the fault."""
        started = time.perf_counter()
        number = len(self.history) + 1
        self.model.train()
        sums: dict[str, Tensor] = {}
        learning_rate = 0.0
        for i, (x, y) in enumerate(self.batches.epoch(self.rng)):
            progress = (number - 1 + i / len(self.batches)) / self.epochs
            learning_rate = self._set_learning_rate(progress)
            terms = self._step(self.precision.images(x), y, progress)
            if terms is None:
                return NOT_FINITE
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
            if (not x.is_cuda or i % CHECK_EVERY == 0) and (fault := divergence(float(terms["loss"]))):
                return fault
        means = {name: float(total) / len(self.batches) for name, total in sums.items()}
        record = {"epoch": number, **means, "learning_rate": learning_rate}
        return self._evaluate(record, x, started)

    def _set_learning_rate(self, progress: float) -> float:
        reductions = sum(rollback["backed_off"] == "learning_rate" for rollback in self.rollbacks)
        learning_rate: float = self.schedule.learning_rate_at(progress) * self.schedule.guard.backoff**reductions
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _step(self, x: Tensor, y: Tensor, progress: float) -> dict[str, Tensor] | None:
        """Update the weights on a batch; return the loss and its terms, or None where an attack met NaN weights."""
        self.optimiser.zero_grad(set_to_none=True)
        with sharded(*self.batches.shard), distributed.synchronised_batchnorm(self.model):
            try:
                output = self._current_loss().at(progress)(self.model, x, y, self.threat, rng=self.rng)
            except RunError:  # an attack met NaN
                if self._is_finite_on(x):
                    raise
                return None
            output.loss.backward()
        terms = distributed.mean_over_processes({"loss": output.loss.detach(), **output.terms})
        parameters = self.optimiser.param_groups[0]["params"]
        distributed.average_gradients_(parameters)
        distributed.broadcast_generator_(self.rng)
        if self.schedule.max_grad_norm:
            nn.utils.clip_grad_norm_(parameters, self.schedule.max_grad_norm)
        self.optimiser.step()
        for callback in self.callbacks:
            callback.after_step(self.model)
        if self.ema_model:
            self.ema_model.update(self.model, x if output.adversarial is None else output.adversarial.detach())
        return terms

    def _current_loss(self) -> TrainingLoss:
        """Return the loss with its attack weakened as often as rollbacks asked for."""
        training_loss = self.loss
        for rollback in self.rollbacks:
            if rollback["backed_off"] == "attack":
                training_loss = training_loss.with_weaker_attack(self.schedule.guard.backoff) or training_loss
        return training_loss

    def _evaluate(self, record: dict[str, Any], x: Tensor, started: float) -> dict[str, Any] | Fault:
        """Pass an epoch, whose last batch was `x`, to the callbacks and the guard."""
        if fault := divergence(record["loss"]):
            return fault
        evaluated = self.ema_model.refresh() if self.ema_model else self.model
        if not (is_finite(self.model) and is_finite(evaluated)):
            return NOT_FINITE
        record["seconds"] = time.perf_counter() - started
        try:
            for callback in self.callbacks:
                callback.after_epoch(evaluated, record["epoch"], self.epochs, record)
        except RunError:  # the attack of a callback met NaN
            if self._is_finite_on(x):
                raise
            return NOT_FINITE
        record = distributed.broadcast_value(record)  # two GPUs may not measure the same
        return self.schedule.guard.collapse(record, self.history) or record

    def _is_finite_on(self, x: Tensor) -> bool:
        """Return whether the weights, and the logits of these images, are finite."""
        if not is_finite(self.model):
            return False
        with torch.no_grad(), eval_mode(self.model):
            return bool(self.model(x).isfinite().all())

    def add_epoch(self, record: dict[str, Any], passes: Passes) -> None:
        """Append an epoch, and the rollbacks that preceded it, to the history and write the checkpoint."""
        totals = distributed.sum_over_processes([passes.forward, passes.backward])
        record["forward_passes"], record["backward_passes"] = totals
        self._add_rollbacks(record, [entry for entry in self.rollbacks if entry["epoch"] == record["epoch"]])
        self.history.append(record)
        self._save()
        self._notify()

    def _add_rollbacks(self, record: dict[str, Any], rollbacks: list[dict[str, Any]]) -> None:
        """Add the messages and the passes of rollbacks to the record of an epoch."""
        if rollbacks:
            messages = [entry["message"] for entry in rollbacks]
            record["rolled_back"] = [*record.get("rolled_back", []), *messages]
        for direction in ("forward_passes", "backward_passes"):
            record[direction] += sum(entry[direction] for entry in rollbacks)

    def roll_back(self, fault: Fault, passes: Passes) -> None:
        """Restore the last good state, then reduce learning rate or attack; after the last permitted rollback, stop."""
        number, guard = len(self.history) + 1, self.schedule.guard
        weaken = fault.kind == "collapsed" and self._current_loss().with_weaker_attack(guard.backoff) is not None
        last = len(self.rollbacks) >= guard.max_rollbacks
        if last and fault.kind == "diverged":
            raise RunError(
                f"{fault.message} in epoch {number}; training was rolled back {len(self.rollbacks)} times and stops "
                f"here; lower learning_rate = {self.schedule.learning_rate:g} or use an attack of more steps"
            )
        state = self.checkpoint.read_good() or self.checkpoint.read()
        assert state is not None, "a state is written before the first epoch"
        earlier, undone = self.rollbacks, self._passes_after(state[1])
        self._load(*state)
        epoch = len(self.history)
        continuation = f"continuing with a {'weaker attack' if weaken else 'lower learning rate'}"
        message = f"{fault.message} in epoch {number}; rolled back to epoch {epoch}, "
        message += "training stops there" if last else continuation
        forward, backward = distributed.sum_over_processes([passes.forward, passes.backward])
        entry = {
            "epoch": epoch + 1,
            "message": message,
            "backed_off": "attack" if weaken else "learning_rate",
            "forward_passes": undone[0] + forward,
            "backward_passes": undone[1] + backward,
        }
        self.rollbacks = [*earlier, entry]
        self.stopped = last
        if last and self.history:
            record = self.history[-1]
            self._add_rollbacks(record, [entry for entry in self.rollbacks if entry["epoch"] == epoch + 1])
            record["rolled_back"].pop()
            record["stopped"] = message
        for callback in self.callbacks:
            callback.after_rollback(message)
        self._save()
        self._notify()

    def resume(self) -> None:
        """Continue from the checkpoint, or write the initial state as the first good one."""
        state = self.checkpoint.read()
        if state is None:
            self._save()
            return
        self._load(*state)
        self._mark_good()  # the process may have been killed between the two writes
        self._notify()

    def finish(self) -> None:
        """Load the weights that training returns into the model."""
        if self.ema_model:
            self.model.load_state_dict(self.ema_model.model.state_dict())
        for callback in self.callbacks:
            callback.finish(self.model)
        distributed.broadcast_model_(self.model)

    def _notify(self) -> None:
        for callback in self.callbacks:
            callback.after_history_change(self.history)

    def _save(self) -> None:
        self.checkpoint.save(self._tensors(), self._metadata())
        self._mark_good()

    def _mark_good(self) -> None:
        """Mark the saved state as good if its epoch was evaluated, or if no epoch ever was."""
        evaluated = ["held_out_robust" in record for record in self.history]
        if not any(evaluated) or evaluated[-1]:
            self.checkpoint.mark_good()

    def _passes_after(self, metadata: Metadata) -> tuple[int, int]:
        """Return the passes of the epochs that loading a state undoes, without rollbacks that are entered already."""
        kept = len(metadata["history"])
        undone = self.history[kept:]
        entered = [rollback for rollback in self.rollbacks if kept < rollback["epoch"] <= len(self.history)]
        forward, backward = (
            sum(record[name] for record in undone) - sum(rollback[name] for rollback in entered)
            for name in ("forward_passes", "backward_passes")
        )
        return forward, backward

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_state(self.optimiser).items()}
        for i, callback in enumerate(self.callbacks):
            tensors |= {f"callback.{i}.{name}": tensor for name, tensor in callback.state().items()}
        if self.ema_model:
            tensors |= {f"ema.{name}": tensor for name, tensor in self.ema_model.state().items()}
        return tensors | {"rng": self.rng.get_state()}

    def _metadata(self) -> Metadata:
        names = ("history", "rollbacks", "stopped")
        return {name: getattr(self, name) for name in names} | {"settings": self._settings()}

    def _settings(self) -> dict[str, Any]:
        """Return what two trainings must share for one to continue from the other's checkpoint."""
        settings = {
            # A loss without a name was made in Python and may have fields that JSON cannot hold.
            "loss": to_dict(self.loss) if hasattr(self.loss, "name") else type(self.loss).__name__,
            "schedule": to_dict(self.schedule),
            "epochs": self.epochs,
            "threat": to_dict(self.threat),
            "images": len(self.batches.split),
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def _load(self, tensors: dict[str, Tensor], metadata: Metadata) -> None:
        """Restore a state that was written."""
        self.checkpoint.check_settings(self._settings(), metadata["settings"])
        self.model.load_state_dict(with_prefix(tensors, "model."))
        restore_optimiser(self.optimiser, with_prefix(tensors, "optimiser."))
        for i, callback in enumerate(self.callbacks):
            callback.restore(with_prefix(tensors, f"callback.{i}."))
        if self.ema_model:
            self.ema_model.restore(with_prefix(tensors, "ema."))
        self.rng.set_state(tensors["rng"])
        self.history, self.rollbacks, self.stopped = (metadata[name] for name in ("history", "rollbacks", "stopped"))
