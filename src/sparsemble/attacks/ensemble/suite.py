"""Every attack on an ensemble, none of them twice."""

from collections.abc import Iterable, Sequence

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.combined import Combined
from sparsemble.attacks.ensemble.deployed import Deployed
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.expectation import Expectation
from sparsemble.attacks.ensemble.full_ensemble import FullEnsemble
from sparsemble.attacks.ensemble.hijack import Hijack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.reweighted import Reweighted
from sparsemble.attacks.ensemble.sequential import Sequential
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.interfaces import Combiner


def every_surrogate(
    ensemble_size: int, combiners: Iterable[Combiner] = (), *, stops_early: bool = True
) -> tuple[Surrogate, ...]:
    """Return the differentiable views of an ensemble of M members, each once.

    The prefix of length M is `whole`, member 1 is the prefix of length 1, and on one member everything is `whole`.

    Args:
        ensemble_size: M, 1 or more.
        combiners: others than the deployed one.
        stops_early: whether the rule can stop before the last member; if not, no prefix answers but the whole, and
            the expectation is the whole.
    """
    if ensemble_size == 1:
        return (FullEnsemble(),)
    members = [Member(index=index) for index in range(1 + stops_early, ensemble_size + 1)]
    prefixes = [Prefix(length=length) for length in range(1, ensemble_size)] if stops_early else []
    stopping = [*prefixes, Expectation(), Deployed()] if stops_early else []
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
    """Return all attacks on an ensemble, for a union over them.

    Args:
        ensemble_size: M, 1 or more.
        attacks: by gradient; run through every surrogate, which is where the cost lies.
        combiners: others than the deployed one.
        black_box: without gradients; run on the deployed decision only.
        stops_early: as for `every_surrogate`.
    """
    surrogates = every_surrogate(ensemble_size, combiners, stops_early=stops_early)
    honest = Deployed() if Deployed() in surrogates else FullEnsemble()
    suite: list[EnsembleAttack] = [
        SurrogateAttack(attack=attack, surrogate=surrogate, judged=surrogate != honest)
        for surrogate in surrogates
        for attack in attacks
    ]
    suite += [SurrogateAttack(attack=attack, surrogate=honest, judged=False) for attack in black_box]
    if ensemble_size > 1:
        suite.append(Sequential())
        if stops_early:
            suite += [Hijack(), Slowdown(), Slowdown(keep_label=True)]
    return tuple(suite)
