"""The state of a training, and what moves it: an epoch, a rollback, a checkpoint."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Generator, Tensor, nn

from sparsemble.core.distributed_rng import sharded
from sparsemble.core.errors import RunError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import eval_mode
from sparsemble.core.pass_counter import Passes
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.training import distributed
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback
from sparsemble.training.checkpoint import Checkpoint, Facts, check_settings, optimiser_state, part, restore_optimiser
from sparsemble.training.ema import EMAModel
from sparsemble.training.guard import Fault, divergence
from sparsemble.training.loss import TrainingLoss
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import Schedule

BLOWN_UP = Fault("weights or answers became NaN or infinite", "diverged")
LOOK_EVERY = 20
"""Steps between looks at the loss on a GPU, where each look waits for it."""


@final
@dataclass(kw_only=True)
class Loop:
    """One training on its way; `fit` drives it."""

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
    """Every time training went wrong: `epoch`, `sentence`, and what was made gentler: `rate` or `attack`."""
    stopped: bool = False
    """Whether robustness collapsed once too often."""

    def __post_init__(self) -> None:
        distributed.broadcast_model_(self.model)
        self.batches = replace(self.batches, shard=(distributed.rank(), distributed.world_size()))
        self.optimiser = self.schedule.optimiser(self.model.parameters())
        self.ema_model = EMAModel(self.model, self.schedule.ema) if self.schedule.ema else None

    def averaged_parts(self) -> list[nn.Module]:
        """Return the networks of the average, whose passes count as well."""
        if not self.ema_model:
            return []
        model = self.ema_model.model
        return list(model.members) if isinstance(model, Ensemble) else [model]

    def epoch(self) -> dict[str, Any] | Fault:
        """Train one epoch and have it measured; return its record, or what is wrong with it."""
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
                return BLOWN_UP
            for name, term in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(term)) + term
            if (not x.is_cuda or i % LOOK_EVERY == 0) and (fault := divergence(float(terms["loss"]))):
                return fault
        means = {name: float(total) / len(self.batches) for name, total in sums.items()}
        record = {"epoch": number, **means, "learning_rate": learning_rate}
        return self._measured(record, x, started)

    def _set_learning_rate(self, progress: float) -> float:
        slower = sum(rollback["backed_off"] == "learning_rate" for rollback in self.rollbacks)
        learning_rate: float = self.schedule.learning_rate_at(progress) * self.schedule.guard.backoff**slower
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _step(self, x: Tensor, y: Tensor, progress: float) -> dict[str, Tensor] | None:
        """Take a step on a batch and return the loss and its parts; nothing where an attack met NaN weights."""
        self.optimiser.zero_grad(set_to_none=True)
        with sharded(*self.batches.shard), distributed.synchronised_batchnorm(self.model):
            try:
                output = self._objective().at(progress)(self.model, x, y, self.threat, rng=self.rng)
            except RunError:  # an attack met NaN
                if self._sound(x):
                    raise
                return None
            output.loss.backward()
        terms = distributed.mean_over_processes({"loss": output.loss.detach(), **output.terms})
        distributed.average_gradients_(self.optimiser.param_groups[0]["params"])
        distributed.broadcast_generator_(self.rng)
        if self.schedule.max_grad_norm:
            nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], self.schedule.max_grad_norm)
        self.optimiser.step()
        for callback in self.callbacks:
            callback.after_step(self.model)
        if self.ema_model:
            self.ema_model.follow(self.model, x if output.adversarial is None else output.adversarial.detach())
        return terms

    def _objective(self) -> TrainingLoss:
        """Return the loss, its attack as gentle as rollbacks made it."""
        training_loss = self.loss
        for rollback in self.rollbacks:
            if rollback["backed_off"] == "attack":
                training_loss = training_loss.with_weaker_attack(self.schedule.guard.backoff) or training_loss
        return training_loss

    def _measured(self, record: dict[str, Any], x: Tensor, started: float) -> dict[str, Any] | Fault:
        """Have an epoch, whose last batch was `x`, judged by the callbacks and the guard."""
        if fault := divergence(record["loss"]):
            return fault
        shown = self.ema_model.refresh() if self.ema_model else self.model
        if not (_finite(self.model) and _finite(shown)):
            return BLOWN_UP
        record["seconds"] = time.perf_counter() - started
        try:
            for callback in self.callbacks:
                callback.after_epoch(shown, record["epoch"], self.epochs, record)
        except RunError:  # the attack of a probe met NaN
            if self._sound(x):
                raise
            return BLOWN_UP
        record = distributed.broadcast_value(record)  # a GPU may not measure the same twice
        return self.schedule.guard.collapse(record, self.history) or record

    def _sound(self, x: Tensor) -> bool:
        """Return whether weights, and answers to these images, are numbers."""
        if not _finite(self.model):
            return False
        with torch.no_grad(), eval_mode(self.model):
            return bool(self.model(x).isfinite().all())

    def keep(self, record: dict[str, Any], passes: Passes) -> None:
        """Enter an epoch in the history, with what came to nothing before it, and write the state."""
        record["forward_passes"], record["backward_passes"] = distributed.sum_over_processes(
            [passes.forward, passes.backward]
        )
        self._enter_tries(record, [one for one in self.rollbacks if one["epoch"] == record["epoch"]])
        self.history.append(record)
        self._save()
        self._tell()

    def _enter_tries(self, record: dict[str, Any], tries: list[dict[str, Any]]) -> None:
        """Add what came to nothing to the record of an epoch."""
        if tries:
            record["rolled_back"] = [*record.get("rolled_back", []), *(one["sentence"] for one in tries)]
        for way in ("forward_passes", "backward_passes"):
            record[way] += sum(one[way] for one in tries)

    def roll_back(self, fault: Fault, passes: Passes) -> None:
        """Go back to the last good state: to go on more gently, or to stop there after a last collapse.

        Raises:
            RunError: the weights blew up, and going back has been tried often enough.
        """
        number, guard = len(self.history) + 1, self.schedule.guard
        attack = fault.kind == "collapsed" and self._objective().with_weaker_attack(guard.backoff) is not None
        last = len(self.rollbacks) >= guard.tries
        if last and fault.kind == "diverged":
            raise RunError(
                f"{fault.sentence} in epoch {number}; training went back {len(self.rollbacks)} times and stops here; "
                f"lower learning_rate = {self.schedule.learning_rate:g} or use an attack of more steps"
            )
        state = self.checkpoint.read_good() or self.checkpoint.read()
        assert state is not None, "a state is written before the first epoch"
        tries, lost = self.rollbacks, self._passes_after(state[1])
        self._take(*state)
        back = len(self.history)
        then = "training stops there" if last else f"on with {'a gentler attack' if attack else 'a lower rate'}"
        sentence = f"{fault.sentence} in epoch {number}; back to epoch {back}, {then}"
        forward, backward = distributed.sum_over_processes([passes.forward, passes.backward])
        forward, backward = lost[0] + forward, lost[1] + backward
        cost = {"forward_passes": forward, "backward_passes": backward}
        self.rollbacks = [
            *tries,
            {"epoch": back + 1, "sentence": sentence, "backed_off": "attack" if attack else "learning_rate", **cost},
        ]
        self.stopped = last
        if last and self.history:
            self._enter_tries(self.history[-1], [one for one in self.rollbacks if one["epoch"] == back + 1])
            self.history[-1]["rolled_back"].pop()
            self.history[-1]["stopped"] = sentence
        for callback in self.callbacks:
            callback.after_rollback(sentence)
        self._save()
        self._tell()

    def resume(self) -> None:
        """Go on from the checkpoint, or call the fresh state the first good one."""
        state = self.checkpoint.read()
        if state is None:
            self._save()
            return
        self._take(*state)
        self._call_good()  # it may have been killed between the two
        self._tell()

    def finish(self) -> None:
        """Put the weights in place that training hands back."""
        if self.ema_model:
            self.model.load_state_dict(self.ema_model.model.state_dict())
        for callback in self.callbacks:
            callback.finish(self.model)
        distributed.broadcast_model_(self.model)

    def _tell(self) -> None:
        for callback in self.callbacks:
            callback.after_keep(self.history)

    def _save(self) -> None:
        self.checkpoint.save(self._tensors(), self._facts())
        self._call_good()

    def _call_good(self) -> None:
        """Keep the state as a good one: a measured epoch, or any epoch where none was ever measured."""
        measured = ["held_out_robust" in record for record in self.history]
        if not any(measured) or measured[-1]:
            self.checkpoint.keep_good()

    def _passes_after(self, facts: Facts) -> tuple[int, int]:
        """Return the passes of the epochs that going back to a state undoes, without tries that were entered before."""
        kept = len(facts["history"])
        undone = self.history[kept:]
        tries = [rollback for rollback in self.rollbacks if kept < rollback["epoch"] <= len(self.history)]
        forward = sum(r["forward_passes"] for r in undone) - sum(r["forward_passes"] for r in tries)
        backward = sum(r["backward_passes"] for r in undone) - sum(r["backward_passes"] for r in tries)
        return forward, backward

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_state(self.optimiser).items()}
        for i, callback in enumerate(self.callbacks):
            tensors |= {f"callback.{i}.{name}": tensor for name, tensor in callback.state().items()}
        if self.ema_model:
            tensors |= {f"average.{name}": tensor for name, tensor in self.ema_model.state().items()}
        return tensors | {"rng": self.rng.get_state()}

    def _facts(self) -> Facts:
        return {name: getattr(self, name) for name in ("history", "rollbacks", "stopped")} | {
            "settings": self._settings()
        }

    def _settings(self) -> dict[str, Any]:
        """Return what two trainings must share for one to go on from the other's checkpoint."""
        registered = hasattr(self.loss, "name")
        settings = {
            "loss": to_dict(self.loss) if registered else type(self.loss).__name__,
            "schedule": to_dict(self.schedule),
            "epochs": self.epochs,
            "threat": to_dict(self.threat),
            "images": len(self.batches.split),
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def _take(self, tensors: dict[str, Tensor], facts: Facts) -> None:
        """Become the state that was written.

        Raises:
            InputError: it belongs to a training of other settings.
        """
        check_settings(self._settings(), facts["settings"], self.checkpoint.path)
        self.model.load_state_dict(part(tensors, "model."))
        restore_optimiser(self.optimiser, part(tensors, "optimiser."))
        for i, callback in enumerate(self.callbacks):
            callback.restore(part(tensors, f"callback.{i}."))
        if self.ema_model:
            self.ema_model.restore(part(tensors, "average."))
        self.rng.set_state(tensors["rng"])
        self.history, self.rollbacks, self.stopped = facts["history"], facts["rollbacks"], facts["stopped"]


def _finite(model: nn.Module) -> bool:
    """Return whether every weight and statistic is a number."""
    floating = [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()]
    return all(bool(tensor.isfinite().all()) for tensor in floating)
