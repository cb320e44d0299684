"""`sparsemble.calibrate`: the stopping rule, calibrated on held-out images (EED main paper, eqs. 20-22)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

from sparsemble.api.context import Context, resumable
from sparsemble.api.results import Data, TrainedEnsemble, as_split, with_rule
from sparsemble.api.training import HELD_OUT_ATTACK
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.hijack import Hijack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.module_state import copy_network
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.calibration import CalibrationLogits, CalibrationResult
from sparsemble.ensemble.calibration import calibrate as choose_settings
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.training.validation import adversarial_images, in_batches, member_logits

RULE_ATTACKS = (Hijack(steps=20, targets=1), Slowdown(steps=20, restarts=1))
"""Attacks on the stopping rule itself that it is calibrated against."""


def calibrate(
    ensemble: TrainedEnsemble | Ensemble,
    data: Data,
    threat: ThreatModel,
    *,
    rule: StoppingRule = DIE(),
    max_accuracy_drop: float = 0.002,
    attacked_share: float = 0.0,
    reorder: bool = True,
    against: Sequence[EnsembleAttack] = RULE_ATTACKS,
    rounds: int = 1,
    held_out_attack: Attack = HELD_OUT_ATTACK,
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
    context: Context | None = None,
) -> TrainedEnsemble:
    """Choose the settings of a stopping rule, and the order of the members, on held-out images, clean and attacked.

    Members are ordered by what attacks on each of them do; then every prefix is attacked; then, `rounds` times, the
    rule that was chosen is attacked itself and chosen anew with these images added.

    Args:
        ensemble: a trained ensemble; left as found.
        data: a data set, of whose held-out images the second half is used, or images as a split or tensors (x, y).
        threat: what the adversary may do.
        rule: its settings are where the search starts.
        max_accuracy_drop: accuracy that stopping early may cost, in [0, 1]: clean, in the worst case (there at least
            one image) and on average over all attacks.
        attacked_share: how much of the cost to minimise is that under attack, in [0, 1]; the rest is that on clean
            images.
        reorder: choose which member runs first, too.
        against: attacks on the rule itself.
        rounds: how often the rule is attacked and chosen anew, >= 0.
        held_out_attack: crafts the images against members and prefixes.
        seed: of attack starts, >= 0.
        folder: keeps the ensemble and its rule.
        device: auto, cpu, cuda or cuda:N.
        context: takes the place of seed, folder and device where the caller keeps them.

    Returns:
        The ensemble in its new running order, with its rule and how it was chosen.

    Raises:
        InputError: too few images, or a folder that holds another result.
    """
    settings = dict(locals())
    original = ensemble if isinstance(ensemble, TrainedEnsemble) else with_rule(ensemble)

    def compute(running: Context) -> TrainedEnsemble:
        split = as_split(data, "calibration").to(running.device)
        members = [copy_network(member).to(running.device).eval() for member in original.members]
        calibration = _Calibration(
            split=split,
            threat=threat,
            start=rule,
            choose=partial(choose_settings, rule, max_accuracy_drop=max_accuracy_drop, attacked_share=attacked_share),
            attack=held_out_attack,
            running=running,
        )
        with running.counting(*members):
            unordered = Ensemble(members, original.model.combiner).eval()
            order = calibration.order(unordered) if reorder else tuple(range(len(members)))
            ordered = Ensemble([members[i] for i in order], original.model.combiner).eval()
            chosen, held_out = calibration.choose_rule(ordered, against, rounds)
        return replace(
            original,
            model=ordered,
            names=tuple(original.names[i] for i in order),
            held_out_robust=tuple(original.held_out_robust[i] for i in order) if original.held_out_robust else (),
            rule=chosen.rule,
            calibration=replace(chosen, order=order),
            calibration_set=held_out,
        )

    return resumable("calibrate", settings, compute, TrainedEnsemble.load)


@final
@dataclass(frozen=True, kw_only=True)
class _Calibration:
    """Crafts held-out images against an ensemble, and chooses a rule on what its members predict on them."""

    split: Split
    threat: ThreatModel
    start: StoppingRule
    choose: Callable[..., CalibrationResult]
    """Chooses the settings on held-out logits, and with `reorder` the order of the members."""
    attack: Attack
    running: Context

    def order(self, ensemble: Ensemble) -> tuple[int, ...]:
        """Return which member runs first, second and so on."""
        total = len(ensemble.members)
        views: list[Surrogate] = [*(Member(index=i) for i in range(1, total + 1)), Prefix(length=total)]
        return self.choose(self._held_out(ensemble, views, 0.0), reorder=True).order

    def choose_rule(
        self, ensemble: Ensemble, against: Sequence[EnsembleAttack], rounds: int
    ) -> tuple[CalibrationResult, CalibrationLogits]:
        """Choose the rule on attacks on every prefix, then on attacks on itself."""
        held_out = self._held_out(ensemble, [Prefix(length=m) for m in range(1, len(ensemble.members) + 1)], 0.3)
        chosen = self.choose(held_out, reorder=False)
        for number in range(1, rounds + 1):
            for attack in against:
                label = f"{attack.label}-{number}"
                logits = self._attack_rule(ensemble, attack, chosen.rule, label)
                held_out = replace(held_out, attacked={**held_out.attacked, label: logits})
            chosen = self.choose(held_out, reorder=False)
            self.running.report_progress(0.6 + 0.4 * number / rounds, f"attacked the rule {number} times")
        return chosen, held_out

    def _held_out(self, ensemble: Ensemble, views: Sequence[Surrogate], progress: float) -> CalibrationLogits:
        """Return the members' logits on clean images and on images crafted against each view of the ensemble."""
        attacked = {}
        for view in views:
            target = view(ensemble, self.start)
            x_adv = adversarial_images(target, self.split, self.attack, self.threat, self.running.rng("stop"))
            attacked[view.label] = member_logits(ensemble, x_adv)
            self.running.report_progress(progress + 0.3 * len(attacked) / len(views), f"attacked {view.label}")
        clean = member_logits(ensemble, self.split.tensors()[0])
        return CalibrationLogits(clean=clean, attacked=attacked, y=self.split.labels, combiner=ensemble.combiner)

    def _attack_rule(self, ensemble: Ensemble, attack: EnsembleAttack, rule: StoppingRule, label: str) -> MemberLogits:
        rng = self.running.rng(f"against {label}")
        x_adv = in_batches(lambda x, y: attack(ensemble, rule, x, y, self.threat, rng=rng), self.split)
        return member_logits(ensemble, x_adv)
