"""One loop, and the objectives that make a model robust."""

from sparsemble.training import objective
from sparsemble.training.batches import Batches
from sparsemble.training.callbacks import Callback, KeepBest, Report
from sparsemble.training.checkpoint import Checkpoint
from sparsemble.training.fit import fit
from sparsemble.training.objective import LossOutput, Objective, craft
from sparsemble.training.schedule import RateDecay, Schedule, rate_decays

__all__ = [
    "Batches",
    "Callback",
    "Checkpoint",
    "KeepBest",
    "LossOutput",
    "Objective",
    "RateDecay",
    "Report",
    "Schedule",
    "craft",
    "fit",
    "rate_decays",
]

objective.objectives.walk("sparsemble.training.objectives")
rate_decays.walk("sparsemble.training.schedules")
