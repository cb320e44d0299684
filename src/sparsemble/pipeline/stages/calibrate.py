"""Set the stopping rule on the calibration half of the held-out images (method.md 2.7)."""

from dataclasses import dataclass
from typing import final

from safetensors.torch import save_file

from sparsemble.attacks.adaptive.prefix import Prefix
from sparsemble.attacks.attack import Attack
from sparsemble.core.artifacts import write_json
from sparsemble.core.interfaces import Combiner
from sparsemble.core.registry import describe
from sparsemble.core.threat import ThreatModel
from sparsemble.ensemble.calibration import calibrate
from sparsemble.pipeline.heldout import adversarial_images, logits_of
from sparsemble.pipeline.recipe import Dynamic
from sparsemble.pipeline.rows import load_team
from sparsemble.pipeline.stage import WithData, Work, dataset, stages


@final
@stages.register("calibrate")
@dataclass(frozen=True, kw_only=True)
class CalibrateStage(WithData):
    """Compare settings on clean images and on images crafted against every prefix of the team."""

    seed: int
    threat: ThreatModel
    combine: Combiner
    dynamic: Dynamic
    held_out_attack: Attack

    def run(self, work: Work) -> None:
        """Leave `stopping.json` and the member logits it was set on."""
        data = dataset(self.data).to(work.device)
        team = load_team(work.inputs["team"], self.combine, work.device)
        x, y = data.calibrate.everything()
        with work.counting(*team.members):
            logits = {"clean": logits_of(team, x)}
            for length in range(1, len(team.members) + 1):
                surrogate = Prefix(length=length)(team, self.dynamic.stop)
                x_adv = adversarial_images(
                    surrogate, data.calibrate, self.held_out_attack, self.threat, work.rng("stop")
                )
                logits[f"prefix{length}"] = logits_of(team, x_adv)
                work.tell(length / (len(team.members) + 1), f"attacked prefix {length}")
        clean, *adversarial = logits.values()
        found = calibrate(self.dynamic.stop, clean, adversarial, y, self.combine, self.dynamic.max_accuracy_drop)
        save_file({**{k: v.cpu() for k, v in logits.items()}, "labels": y.cpu()}, work.folder / "logits.safetensors")
        write_json(work.folder / "stopping.json", describe(found))
