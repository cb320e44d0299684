"""Set the stopping rule on the calibration half of the held-out images (method.md 2.7)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from safetensors.torch import save_file

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.member import Member
from sparsemble.attacks.ensemble.prefix import Prefix
from sparsemble.attacks.ensemble.surrogate import Surrogate
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import MemberLogits
from sparsemble.data.dataset import Split
from sparsemble.ensemble.calibration import CalibrationLogits, CalibrationResult, calibrate
from sparsemble.pipeline.baselines import load_ensemble
from sparsemble.pipeline.recipe import Stopping
from sparsemble.pipeline.stage import WithData, Work, dataset, stages
from sparsemble.training.validation import adversarial_images, in_batches, member_logits


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
    combiner: Combiner
    stopping: Stopping
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `stopping.json` and the member logits it was set on."""
        data = dataset(self.data).to(work.device)
        ensemble = load_ensemble(work.inputs["ensemble"], self.combiner, work.device)
        with work.counting(*ensemble.members):
            order = self._order(work, ensemble, data.calibrate)
            ensemble = Ensemble([ensemble.members[i] for i in order], self.combiner).eval()
            found, sets = self._rule(work, ensemble, data.calibrate)
        tensors = {"clean": sets.clean, **sets.attacked, "labels": sets.y}
        save_file({name: one.cpu().contiguous() for name, one in tensors.items()}, work.folder / "logits.safetensors")
        # The order of the rule is that of the reordered ensemble; what is deployed counts from the ensemble's artifact.
        facts = {**to_dict(found), "order": list(order), "ensemble": work.inputs["ensemble"].path.name}
        write_json(work.folder / "stopping.json", facts)

    def _order(self, work: Work, ensemble: Ensemble, split: Split) -> tuple[int, ...]:
        """Return who runs first, second and so on."""
        total = len(ensemble.members)
        if not self.stopping.reorder:
            return tuple(range(total))
        views: list[Surrogate] = [*(Member(index=i) for i in range(1, total + 1)), Prefix(length=total)]
        return self._set(self._seen(work, ensemble, split, views, 0.0), reorder=True).order

    def _rule(self, work: Work, ensemble: Ensemble, split: Split) -> tuple[CalibrationResult, CalibrationLogits]:
        """Set the rule against every prefix, then against attacks on itself."""
        sets = self._seen(work, ensemble, split, [Prefix(length=m) for m in range(1, len(ensemble.members) + 1)], 0.3)
        found = self._set(sets)
        for turn in range(1, self.stopping.rounds + 1):
            for one in self.stopping.against:
                logits = self._against(work, ensemble, split, one, found.rule, f"{one.label}-{turn}")
                sets = replace(sets, attacked={**sets.attacked, f"{one.label}-{turn}": logits})
            found = self._set(sets)
            work.tell(0.6 + 0.4 * turn / self.stopping.rounds, f"attacked the rule {turn} times")
        return found, sets

    def _set(self, sets: CalibrationLogits, *, reorder: bool = False) -> CalibrationResult:
        return calibrate(
            self.stopping.rule,
            sets,
            max_accuracy_drop=self.stopping.max_accuracy_drop,
            attacked_share=self.stopping.attacked_share,
            reorder=reorder,
        )

    def _seen(
        self, work: Work, ensemble: Ensemble, split: Split, views: Sequence[Surrogate], begun: float
    ) -> CalibrationLogits:
        """Return what members say to clean images and to images crafted on each view of the ensemble."""
        attacked = {}
        for view in views:
            target = view(ensemble, self.stopping.rule)
            x_adv = adversarial_images(target, split, self.held_out_attack, self.threat, work.rng("stop"))
            attacked[view.label] = member_logits(ensemble, x_adv)
            work.tell(begun + 0.3 * len(attacked) / len(views), f"attacked {view.label}")
        clean = member_logits(ensemble, split.everything()[0])
        return CalibrationLogits(clean=clean, attacked=attacked, y=split.labels, combiner=self.combiner)

    def _against(
        self, work: Work, ensemble: Ensemble, split: Split, one: EnsembleAttack, rule: StoppingRule, label: str
    ) -> MemberLogits:
        rng = work.rng(f"against {label}")
        return member_logits(ensemble, in_batches(lambda x, y: one(ensemble, rule, x, y, self.threat, rng=rng), split))
