"""What an attacker does to a team that stops early; seen only through the interfaces of `core`."""

from sparsemble.attacks.ensemble.suite import every_surrogate, full_suite
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks

__all__ = ["Surrogate", "TeamAttack", "every_surrogate", "full_suite", "surrogates", "team_attacks"]

surrogates.walk("sparsemble.attacks.ensemble")
