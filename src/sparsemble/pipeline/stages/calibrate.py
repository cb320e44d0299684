"""Set the stopping rule on the calibration half of the held-out images (method.md 2.7)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from safetensors.torch import save_file

from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.calibration import Calibrated, HeldOut, calibrate
from sparsemble.pipeline.validation import adversarial_images, in_batches, logits_of
from sparsemble.pipeline.recipe import Dynamic
from sparsemble.pipeline.baselines import load_ensemble
from sparsemble.pipeline.stage import WithData, Work, dataset, stages


@final
@stages.register("calibrate")
@dataclass(frozen=True, kw_only=True)
class CalibrateStage(WithData):
    """Order the members and set the rule on clean images and on images crafted against members, prefixes and rule.

    Members are ordered by what their own attacks do; then every prefix is attacked; then, `rounds` times, the rule
    that was found is attacked itself and set anew with these images added.
    """

    version: ClassVar[int] = 7

    seed: int
    threat: ThreatModel
    combine: Combiner
    dynamic: Dynamic
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `stopping.json` and the member logits it was set on."""
        data = dataset(self.data).to(work.device)
        team = load_ensemble(work.inputs["team"], self.combine, work.device)
        with work.counting(*team.members):
            order = self._order(work, team, data.calibrate)
            team = Ensemble([team.members[i] for i in order], self.combine).eval()
            found, sets = self._rule(work, team, data.calibrate)
        tensors = {"clean": sets.clean, **sets.attacked, "labels": sets.y}
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, work.folder / "logits.safetensors")
        # The order of the rule is that of the reordered team; what is deployed counts from the team's artifact.
        facts = {**to_dict(found), "order": list(order), "team": work.inputs["team"].path.name}
        write_json(work.folder / "stopping.json", facts)

    def _order(self, work: Work, team: Ensemble, split: Split) -> tuple[int, ...]:
        """Return who runs first, second and so on."""
        total = len(team.members)
        if not self.dynamic.reorder:
            return tuple(range(total))
        views: list[Surrogate] = [*(Member(index=i) for i in range(1, total + 1)), Prefix(length=total)]
        return self._set(self._seen(work, team, split, views, 0.0), reorder=True).order

    def _rule(self, work: Work, team: Ensemble, split: Split) -> tuple[Calibrated, HeldOut]:
        """Set the rule against every prefix, then against attacks on itself."""
        sets = self._seen(work, team, split, [Prefix(length=m) for m in range(1, len(team.members) + 1)], 0.3)
        found = self._set(sets)
        for turn in range(1, self.dynamic.rounds + 1):
            for one in self.dynamic.against:
                logits = self._against(work, team, split, one, found.stop, f"{one.label}-{turn}")
                sets = replace(sets, attacked={**sets.attacked, f"{one.label}-{turn}": logits})
            found = self._set(sets)
            work.tell(0.6 + 0.4 * turn / self.dynamic.rounds, f"attacked the rule {turn} times")
        return found, sets

    def _set(self, sets: HeldOut, *, reorder: bool = False) -> Calibrated:
        return calibrate(
            self.dynamic.stop,
            sets,
            max_accuracy_drop=self.dynamic.max_accuracy_drop,
            attacked_share=self.dynamic.attacked_share,
            reorder=reorder,
        )

    def _seen(self, work: Work, team: Ensemble, split: Split, views: Sequence[Surrogate], begun: float) -> HeldOut:
        """Return what members say to clean images and to images crafted on each view of the team."""
        attacked = {}
        for view in views:
            target = view(team, self.dynamic.stop)
            x_adv = adversarial_images(target, split, self.held_out_attack, self.threat, work.rng("stop"))
            attacked[view.label] = logits_of(team, x_adv)
            work.tell(begun + 0.3 * len(attacked) / len(views), f"attacked {view.label}")
        clean = logits_of(team, split.everything()[0])
        return HeldOut(clean=clean, attacked=attacked, y=split.labels, combine=self.combine)

    def _against(
        self, work: Work, team: Ensemble, split: Split, one: EnsembleAttack, stop: StoppingRule, label: str
    ) -> MemberLogits:
        rng = work.rng(f"against {label}")
        return logits_of(team, in_batches(lambda x, y: one(team, stop, x, y, self.threat, rng=rng), split))
