"""The full suite of attacks on an ensemble, without duplicates."""

from collections.abc import Iterable, Sequence

from sparsemble.attacks.apgd_focused import APGDFocused
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.black_box.square import Square
from sparsemble.attacks.ensemble.combined import Combined
from sparsemble.attacks.ensemble.deployed import Deployed
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.expectation import Expectation
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.joint_decision import JointDecision
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.reweighted import Reweighted
from sparsemble.attacks.ensemble.sequential import Sequential
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.interfaces import Combiner

GRADIENT = PGD(steps=50, step_size=0.1, restarts=2, stop_at_success=False)
"""Runs on every surrogate but those of the deployed prediction, unless a recipe names another attack."""
FOCUSED = APGDFocused(targets=3, restarts=10, queries=200)
"""Runs on surrogates of the deployed prediction, whose success is that of the attack: it can concentrate on them."""
DEPLOYED = (Deployed(), JointDecision())
"""Surrogates that predict what is deployed."""
BLACK_BOX = (Square(queries=1000),)
"""Run on the deployed prediction, unless a recipe names others."""


def every_surrogate(
    ensemble_size: int, combiners: Iterable[Combiner] = (), *, stops_early: bool = True
) -> tuple[Surrogate, ...]:
    """Return the surrogates of an ensemble of M members, without those that are equal to another.

    The prefix of length M is the full ensemble, member 1 is the prefix of length 1, and with one member all are equal.

    Args:
        ensemble_size: M, 1 or more.
        combiners: other ones than the deployed one.
        stops_early: whether the rule can stop before the last member; if not, the full ensemble always gives the
            prediction, and prefixes, the expectation and the deployed prediction are left out.
    """
    if ensemble_size == 1:
        return (FullEnsemble(),)
    members = [Member(index=index) for index in range(1 + stops_early, ensemble_size + 1)]
    prefixes = [Prefix(length=length) for length in range(1, ensemble_size)] if stops_early else []
    stopping = [*prefixes, Expectation(), *DEPLOYED] if stops_early else []
    combined = [Combined(combiner=combiner) for combiner in dict.fromkeys(combiners)]
    return (FullEnsemble(), Reweighted(), *combined, *members, *stopping)


def full_suite(
    ensemble_size: int,
    attacks: Sequence[Attack],
    combiners: Iterable[Combiner] = (),
    *,
    black_box: Sequence[Attack] = (),
    stops_early: bool = True,
) -> tuple[EnsembleAttack, ...]:
    """Return all attacks on an ensemble; the worst case is the union over them.

    Args:
        ensemble_size: M, 1 or more.
        attacks: gradient attacks; run on every surrogate, which is most of the cost.
        combiners: other ones than the deployed one.
        black_box: attacks without gradients; run on the deployed prediction only.
        stops_early: as for `every_surrogate`.
    """
    stops_early = stops_early and ensemble_size > 1
    deployed = Deployed() if stops_early else FullEnsemble()
    suite: list[EnsembleAttack] = [
        SurrogateAttack(attack=attack, surrogate=surrogate, use_deployed_logits=surrogate != deployed)
        for surrogate in every_surrogate(ensemble_size, combiners, stops_early=stops_early)
        if surrogate not in DEPLOYED
        for attack in attacks
    ]
    if stops_early:
        suite += [SurrogateAttack(attack=FOCUSED, surrogate=view, use_deployed_logits=False) for view in DEPLOYED]
    suite += [SurrogateAttack(attack=attack, surrogate=deployed, use_deployed_logits=False) for attack in black_box]
    if ensemble_size > 1:
        suite.append(Sequential())
    if stops_early:
        suite += [Slowdown(), Slowdown(keep_label=True)]
    return tuple(suite)
