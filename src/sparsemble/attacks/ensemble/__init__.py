"""Attacks on the members, combiner and stopping rule of an ensemble, through the interfaces of `core`."""

from sparsemble.attacks.ensemble.combined import Combined
from sparsemble.attacks.ensemble.deployed import Deployed
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.expectation import Expectation
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.hijack import Hijack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.reweighted import Reweighted
from sparsemble.attacks.ensemble.sequential import Sequential
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.suite import every_surrogate, full_suite
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack

__all__ = [
    "Combined",
    "Deployed",
    "EnsembleAttack",
    "Expectation",
    "FullEnsemble",
    "Hijack",
    "Member",
    "Prefix",
    "Reweighted",
    "Sequential",
    "Slowdown",
    "Surrogate",
    "SurrogateAttack",
    "ensemble_attacks",
    "every_surrogate",
    "full_suite",
    "surrogates",
]

surrogates.register_package("sparsemble.attacks.ensemble")
