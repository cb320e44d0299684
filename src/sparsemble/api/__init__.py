"""What `import sparsemble as sp` shows: train, prune, select, train_ensemble, calibrate, evaluate, export, load."""

from sparsemble.api.calibration import calibrate
from sparsemble.api.context import Context
from sparsemble.api.ensemble import train_ensemble
from sparsemble.api.evaluation import evaluate
from sparsemble.api.files import export, load
from sparsemble.api.pruning import prune
from sparsemble.api.results import TrainedEnsemble, TrainedModel
from sparsemble.api.selection import PoolRecord, SelectedMembers, select
from sparsemble.api.training import HELD_OUT_ATTACK, SCHEDULE, train
from sparsemble.core.threat import ThreatModel

__all__ = [
    "HELD_OUT_ATTACK",
    "L1",
    "L2",
    "SCHEDULE",
    "Context",
    "Linf",
    "PoolRecord",
    "SelectedMembers",
    "TrainedEnsemble",
    "TrainedModel",
    "calibrate",
    "evaluate",
    "export",
    "load",
    "prune",
    "select",
    "train",
    "train_ensemble",
]


def Linf(eps: float) -> ThreatModel:
    """Return the threat model of all images within `eps` of the clean one in every pixel, eps in [0, 1]."""
    return ThreatModel(norm="linf", eps=eps)


def L1(eps: float) -> ThreatModel:
    """Return the threat model of all images whose pixel values move by `eps` in sum, eps in [0, 1000]."""
    return ThreatModel(norm="l1", eps=eps)


def L2(eps: float) -> ThreatModel:
    """Return the threat model of all images within Euclidean distance `eps` of the clean one, eps in [0, 5]."""
    return ThreatModel(norm="l2", eps=eps)
