"""One loop, the losses that make a model robust, LR schedules, optimisers, EMA, precision."""

from sparsemble.training import loss, optimiser, schedule
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, OnEpoch, ReportProgress, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.ema import EMA
from sparsemble.training.fit import fit
from sparsemble.training.guard import Guard
from sparsemble.training.loss import LossOutput, TrainingLoss, craft
from sparsemble.training.optimiser import Optimiser
from sparsemble.training.precision import Precision
from sparsemble.training.schedule import LRSchedule, Schedule

__all__ = [
    "EMA",
    "Batches",
    "Callback",
    "Checkpoint",
    "Guard",
    "KeepBest",
    "LRSchedule",
    "LossOutput",
    "OnEpoch",
    "Optimiser",
    "Precision",
    "ReportProgress",
    "Schedule",
    "TrainingLoss",
    "WriteHistory",
    "craft",
    "fit",
]

loss.training_losses.register_package("sparsemble.training.losses")
schedule.lr_schedules.register_package("sparsemble.training.lr_schedules")
optimiser.optimisers.register_package("sparsemble.training.optimisers")
