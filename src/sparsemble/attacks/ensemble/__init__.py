"""What an attacker does to an ensemble that stops early; seen only through the interfaces of `core`."""

from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.suite import every_surrogate, full_suite
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates

__all__ = ["EnsembleAttack", "Surrogate", "ensemble_attacks", "every_surrogate", "full_suite", "surrogates"]

surrogates.walk("sparsemble.attacks.ensemble")
