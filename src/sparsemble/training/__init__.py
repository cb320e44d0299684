"""One loop, and the objectives that make a model robust."""

from sparsemble.training import optimiser
from sparsemble.training import loss
from sparsemble.training.ema import EMA
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, Report, Show, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.precision import Precision
from sparsemble.training.fit import fit
from sparsemble.training.guard import Guard
from sparsemble.training.loss import LossOutput, TrainingLoss, craft
from sparsemble.training.optimiser import Optimiser
from sparsemble.training.schedule import LRSchedule, Schedule, lr_schedules

__all__ = [
    "Average",
    "Batches",
    "Callback",
    "Checkpoint",
    "Computing",
    "Guard",
    "KeepBest",
    "LossOutput",
    "Objective",
    "Optimiser",
    "RateDecay",
    "Report",
    "Schedule",
    "Show",
    "WriteHistory",
    "craft",
    "fit",
    "rate_decays",
]

loss.training_losses.walk("sparsemble.training.losses")
lr_schedules.walk("sparsemble.training.lr_schedules")
optimiser.optimisers.walk("sparsemble.training.optimisers")
