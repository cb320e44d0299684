"""One loop, and the objectives that make a model robust."""

from sparsemble.training import objective, optimiser
from sparsemble.training.average import Average
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, Report, Show, WriteHistory
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.computing import Computing
from sparsemble.training.fit import fit
from sparsemble.training.guard import Guard
from sparsemble.training.objective import LossOutput, Objective, craft
from sparsemble.training.optimiser import Optimiser
from sparsemble.training.schedule import RateDecay, Schedule, rate_decays

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

objective.objectives.walk("sparsemble.training.objectives")
rate_decays.walk("sparsemble.training.schedules")
optimiser.optimisers.walk("sparsemble.training.optimisers")
