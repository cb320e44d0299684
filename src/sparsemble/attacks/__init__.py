"""Find the worst image inside a threat model; never change the model.

One attack a file, named after it: gradient attacks, minimum-norm attacks and `autoattack` here, attacks without
gradients in `black_box/`, what gradient attacks maximise in `losses/`, attacks on members, combiners and stopping rules
in `ensemble/`. `from sparsemble.attacks import PGD` imports an attack by its class.
"""

from sparsemble.attacks.apgd import APGD
from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.apgd_targeted import APGDTargeted
from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.black_box.hop_skip_jump import HopSkipJump
from sparsemble.attacks.black_box.noise import Noise
from sparsemble.attacks.black_box.rays import RayS
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.carlini_wagner import CarliniWagner
from sparsemble.attacks.deepfool import DeepFool
from sparsemble.attacks.ensemble import (
    Combined,
    Deployed,
    EnsembleAttack,
    Expectation,
    FullEnsemble,
    Hijack,
    Member,
    Prefix,
    Reweighted,
    Sequential,
    Slowdown,
    Surrogate,
    SurrogateAttack,
    ensemble_attacks,
    every_surrogate,
    full_suite,
    surrogates,
)
from sparsemble.attacks.fab import FAB
from sparsemble.attacks.fab_targeted import FABTargeted
from sparsemble.attacks.fgsm import FGSM
from sparsemble.attacks.fmn import FMN
from sparsemble.attacks.losses import DLR, KL, AttackLoss, CrossEntropy, Margin, attack_losses
from sparsemble.attacks.minimum_norm import MinimumNorm
from sparsemble.attacks.pgd import PGD

__all__ = [
    "APGD",
    "DLR",
    "FAB",
    "FGSM",
    "FMN",
    "KL",
    "PGD",
    "APGDFocused",
    "APGDTargeted",
    "Attack",
    "AttackLoss",
    "AutoAttack",
    "CarliniWagner",
    "Combined",
    "CrossEntropy",
    "DeepFool",
    "Deployed",
    "EnsembleAttack",
    "Expectation",
    "FABTargeted",
    "FullEnsemble",
    "Hijack",
    "HopSkipJump",
    "Margin",
    "Member",
    "MinimumNorm",
    "Noise",
    "Prefix",
    "RayS",
    "Reweighted",
    "Sequential",
    "Slowdown",
    "Square",
    "Surrogate",
    "SurrogateAttack",
    "Transfer",
    "attack_losses",
    "attacks",
    "ensemble_attacks",
    "every_surrogate",
    "full_suite",
    "surrogates",
]

attacks.register_package("sparsemble.attacks")
attacks.register_package("sparsemble.attacks.black_box")
