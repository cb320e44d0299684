"""Find the worst image inside a threat model; never change the model.

One attack a file, named after it: gradient attacks, minimum-norm attacks and `autoattack` here, attacks without
gradients in `black_box/`, what gradient attacks maximise in `losses/`, attacks on members, combiners and stopping rules
in `ensemble/`. `from sparsemble.attacks import PGD` imports an attack by its class.
"""

from typing import Any

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.attacks.ensemble.suite import every_surrogate, full_suite
from sparsemble.attacks.ensemble.surrogate import Surrogate, surrogates
from sparsemble.attacks.losses.loss import AttackLoss, attack_losses
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.attacks.patch import Patch
from sparsemble.core.registry import component_names, find_component

__all__ = [
    "Attack",
    "AttackLoss",
    "EnsembleAttack",
    "MinimumNorm",
    "Patch",
    "Surrogate",
    "Transfer",
    "attack_losses",
    "attacks",
    "ensemble_attacks",
    "every_surrogate",
    "full_suite",
    "surrogates",
]

REGISTRIES = (attacks, attack_losses, ensemble_attacks, surrogates)

attacks.register_package("sparsemble.attacks")
attacks.register_package("sparsemble.attacks.black_box")


def __getattr__(name: str) -> Any:
    """Return an attack, attack loss or surrogate by the name of its class or alias: `PGD`, `Margin`, `cw_linf`."""
    return find_component(name, *REGISTRIES)


def __dir__() -> list[str]:
    return [*__all__, *component_names(*REGISTRIES)]
