"""What an attacker does to a team that stops early; seen only through the interfaces of `core`."""

from sparsemble.attacks.adaptive.suite import every_surrogate, full_suite
from sparsemble.attacks.adaptive.surrogate import Surrogate, surrogates
from sparsemble.attacks.adaptive.team_attack import TeamAttack, team_attacks

__all__ = ["Surrogate", "TeamAttack", "every_surrogate", "full_suite", "surrogates", "team_attacks"]

surrogates.walk("sparsemble.attacks.adaptive")
