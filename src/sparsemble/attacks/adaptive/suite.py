"""Every attack on a team, none of them twice."""

from collections.abc import Iterable, Sequence

from sparsemble.attacks.adaptive.combined import Combined
from sparsemble.attacks.adaptive.deployed import Deployed
from sparsemble.attacks.adaptive.expectation import Expectation
from sparsemble.attacks.adaptive.hijack import Hijack
from sparsemble.attacks.adaptive.member import Member
from sparsemble.attacks.adaptive.prefix import Prefix
from sparsemble.attacks.adaptive.reweighted import Reweighted
from sparsemble.attacks.adaptive.sequential import Sequential
from sparsemble.attacks.adaptive.slowdown import Slowdown
from sparsemble.attacks.adaptive.surrogate import Surrogate
from sparsemble.attacks.adaptive.team_attack import TeamAttack
from sparsemble.attacks.adaptive.through import Through
from sparsemble.attacks.adaptive.whole import Whole
from sparsemble.attacks.attack import Attack
from sparsemble.core.interfaces import Combiner


def every_surrogate(
    ensemble_size: int, combiners: Iterable[Combiner] = (), *, stops_early: bool = True
) -> tuple[Surrogate, ...]:
    """Return the differentiable views of a team of M members, each once.

    The prefix of length M is `whole`, member 1 is the prefix of length 1, and on one member everything is `whole`.

    Args:
        ensemble_size: M, 1 or more.
        combiners: others than the deployed one.
        stops_early: whether the rule can stop before the last member; if not, no prefix answers but the whole, and
            the expectation is the whole.
    """
    if ensemble_size == 1:
        return (Whole(),)
    members = [Member(index=index) for index in range(1 + stops_early, ensemble_size + 1)]
    prefixes = [Prefix(length=length) for length in range(1, ensemble_size)] if stops_early else []
    stopping = [*prefixes, Expectation(), Deployed()] if stops_early else []
    combined = [Combined(combine=combine) for combine in dict.fromkeys(combiners)]
    return (Whole(), Reweighted(), *combined, *members, *stopping)


def full_suite(
    ensemble_size: int,
    attacks: Sequence[Attack],
    combiners: Iterable[Combiner] = (),
    *,
    black_box: Sequence[Attack] = (),
    stops_early: bool = True,
) -> tuple[TeamAttack, ...]:
    """Return all attacks on a team, for a union over them.

    Args:
        ensemble_size: M, 1 or more.
        attacks: by gradient; run through every surrogate, which is where the cost lies.
        combiners: others than the deployed one.
        black_box: without gradients; run on the deployed decision only.
        stops_early: as for `every_surrogate`.
    """
    surrogates = every_surrogate(ensemble_size, combiners, stops_early=stops_early)
    honest = Deployed() if Deployed() in surrogates else Whole()
    suite: list[TeamAttack] = [
        Through(attack=attack, surrogate=surrogate, judged=surrogate != honest)
        for surrogate in surrogates
        for attack in attacks
    ]
    suite += [Through(attack=attack, surrogate=honest, judged=False) for attack in black_box]
    if ensemble_size > 1:
        suite.append(Sequential())
        if stops_early:
            suite += [Hijack(), Slowdown(), Slowdown(keep_label=True)]
    return tuple(suite)
