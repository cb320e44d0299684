"""Put the attacks of every row together: per-image unions, counts, checks."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

import torch
from safetensors.torch import save_file

from sparsemble.api.context import Context
from sparsemble.attacks.attack import Attack
from sparsemble.attacks.autoattack import AutoAttack
from sparsemble.attacks.ensemble.suite import every_surrogate
from sparsemble.core.artifacts import Artifact, write_json
from sparsemble.core.interfaces import Combiner, combiners
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images
from sparsemble.data.dataset import Split
from sparsemble.ensemble.dynamic import predict_dynamic
from sparsemble.evaluation import checks
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.evaluation.packed import save_packed
from sparsemble.evaluation.statistics import wilson
from sparsemble.pipeline.baselines import ROWS, Row, load_row, running_order
from sparsemble.pipeline.stage import Inputs, WithData, dataset, stages, with_prefix
from sparsemble.pipeline.stages.attack import OUTCOME, attacks_on, stored_images, test_images
from sparsemble.pruning.mask import Mask, prunable_layers

EXAMPLES = 10


@final
@stages.register("evaluate")
@dataclass(frozen=True, kw_only=True)
class EvaluateStage(WithData):
    """Score every row on clean images and on all adversarial images made for it."""

    version: ClassVar[int] = 3

    seed: int
    threat: ThreatModel
    combiner: Combiner
    attacks: tuple[Attack, ...]
    adaptive: Attack
    """What climbed every view of the ensemble."""
    sparsity: float
    images: int = 0

    def run(self, context: Context, inputs: Inputs) -> None:
        """Leave `rows.json`, `checks.json`, `outcomes.safetensors`, `examples.safetensors`."""
        split = test_images(dataset(self.data), self.images).to(context.device)
        x, y = split.tensors()
        rows, outcomes, deployed = [], {}, {}
        for i, name in enumerate(ROWS):
            row = load_row(name, inputs, self.combiner, context.device)
            deployed[name] = row
            # What is crafted on the static ensemble is an attack on the dynamic one, too, and is judged by what it answers.
            attacked = self._outcomes(name, row, context, inputs)
            clean = predict_dynamic(row.ensemble, x, row.rule)
            right = clean.logits.argmax(1) == y
            outcomes[name] = {"clean": right, **{label: torch.tensor(a["right"]) for label, a in attacked.items()}}
            rows.append(self._row(name, row, right, clean.members_run, attacked, context, inputs))
            context.report_progress((i + 1) / (len(ROWS) + 2), f"scored {name}")
        write_json(context.output / "rows.json", rows)
        found = self._checks(split, deployed, outcomes, context, inputs)
        write_json(context.output / "checks.json", [asdict(check) for check in found])
        flat = {
            f"{row}.{label}": v.cpu().to(torch.uint8) for row, entry in outcomes.items() for label, v in entry.items()
        }
        save_file(flat, context.output / "outcomes.safetensors")
        self._examples(split, deployed["ensemble_dynamic"], context, inputs)

    def _outcomes(self, name: str, row: Row, context: Context, inputs: Inputs) -> dict[str, dict[str, Any]]:
        """Return what the row answered on each set of adversarial images made for it, by label."""
        attacked: dict[str, dict[str, Any]] = {}
        if name == "ensemble_dynamic":
            for label, artifact in attacks_on("ensemble_static", context, inputs).items():
                output = predict_dynamic(row.ensemble, stored_images(artifact, context.device), row.rule)
                answer, y = output.logits.argmax(1), test_images(dataset(self.data), self.images).labels
                attacked[label] = {
                    "answer": answer.tolist(),
                    "right": (answer.cpu() == y).tolist(),
                    "members_run": output.members_run.tolist(),
                }
        for label, artifact in attacks_on(name, context, inputs).items():
            attacked[label] = artifact.json(OUTCOME)
        return attacked

    def _row(
        self,
        name: str,
        row: Row,
        right: torch.Tensor,
        members_run: torch.Tensor,
        attacked: dict[str, dict[str, Any]],
        context: Context,
        inputs: Inputs,
    ) -> dict[str, Any]:
        """Return the row's numbers; latency and training cost are added by the report."""
        worst = right.cpu() & torch.stack([torch.tensor(a["right"]) for a in attacked.values()]).all(0)
        shape = dataset(self.data).shape
        weights = [count_weights(member) for member in row.ensemble.members]
        parent = count_weights(load_row("dense", inputs, self.combiner, context.device).ensemble).total
        macs = [count_macs(member, shape) for member in row.ensemble.members]
        expected = sum(float((members_run >= m).float().mean()) * cost.nonzero for m, cost in enumerate(macs, start=1))
        path = context.output / "size.safetensors"
        size = 0
        for member in row.ensemble.members:
            save_packed(member, path)
            size += path.stat().st_size
            path.unlink()
        nonzeros = sum(w.nonzeros for w in weights)
        total = sum(w.total for w in weights) if name == "small_dense" else parent
        runs = {label: sum(a["members_run"]) / len(right) for label, a in attacked.items()}
        return {
            "name": name,
            "clean": int(right.sum()) / len(right),
            "attacks": {label: sum(a["right"]) / len(right) for label, a in attacked.items()},
            "worst_case": int(worst.sum()) / len(worst),
            "worst_case_interval": list(wilson(int(worst.sum()), len(worst))),
            "images": len(right),
            "sparsity": 1 - nonzeros / total,
            "nonzeros": nonzeros,
            "macs_dense": sum(cost.dense for cost in macs),
            "macs_nonzero": round(expected),
            "members_run": {"clean": float(members_run.float().mean()), "attacked": max(runs.values())},
            "members_run_counts": {
                "clean": members_run.bincount(minlength=len(macs) + 1)[1:].tolist(),
                "attacked": _histogram(attacked[max(runs, key=lambda label: runs[label])]["members_run"], len(macs)),
            },
            "bytes": size,
        }

    def _checks(
        self,
        split: Split,
        deployed: dict[str, Row],
        outcomes: dict[str, dict[str, torch.Tensor]],
        context: Context,
        inputs: Inputs,
    ) -> list[checks.Check]:
        """Run the checks on the dynamic ensemble, the row that the headline is about."""
        row = deployed["ensemble_dynamic"]
        x, y = split.tensors()
        sets = {**attacks_on("ensemble_static", context, inputs), **attacks_on("ensemble_dynamic", context, inputs)}
        stored = {label: stored_images(artifact, context.device) for label, artifact in sets.items()}
        own = attacks_on(
            "ensemble_dynamic", context, inputs
        )  # what was recorded for the static row is the static row's answer
        label = min(own, key=lambda one: sum(own[one].json(OUTCOME)["right"]))
        recorded = own[label].json(OUTCOME)["answer"]

        views = [s(row.ensemble, row.rule) for s in every_surrogate(len(row.ensemble.members))]

        def decide(images: Images) -> Any:
            return predict_dynamic(row.ensemble, images, row.rule)

        transferred = [stored_images(a, context.device) for a in attacks_on("dense", context, inputs).values()]
        on_transfer = torch.stack([decide(images).logits.argmax(1) == y for images in transferred]).all(0)
        white_box = torch.stack([v.cpu() for v in outcomes["ensemble_dynamic"].values()]).all(0)
        attacks = [attack.label for attack in self.attacks]
        weak, strong = (float(outcomes["ensemble_static"][name].float().mean()) for name in (attacks[0], attacks[-1]))
        with torch.no_grad():
            clean_runs = float(decide(x).members_run.float().mean())
        claims = self._as_result(row, outcomes["ensemble_dynamic"], sets, clean_runs)
        parts = {label: torch.tensor(artifact.json(OUTCOME)["part"]) for label, artifact in sets.items()}
        rights = {label: right.cpu() for label, right in outcomes["ensemble_dynamic"].items()}
        return checks.merged(
            [
                checks.inside_threat(list(stored.values()), x, self.threat),
                checks.returns_logits(row.ensemble, x),
                checks.repeatable(decide, x[:100]),
                checks.gradients_flow(views, x, y),
                checks.stronger_is_stronger(weak, strong, f"{attacks[0]} and {attacks[-1]} on the static ensemble"),
                *self._curve_checks(outcomes, context, inputs),
                checks.only_by_square(claims, rights, parts),
                checks.transfer_is_weaker(white_box.tolist(), on_transfer.tolist(), "the dense parent"),
                checks.headline_is_union(claims),
                checks.reproduces(decide, stored[label], recorded, batch=64),
                checks.combiners_attacked(claims, self.combiner.name, combiners.names()),
                checks.members_attacked(claims),
                checks.stopping_attacked(claims),
                checks.hijack_counted(claims),
                checks.cost_under_attack(claims),
                checks.independent_of_batch(decide, x[:256]),
                checks.sparsity_is_real(
                    self.sparsity, 1 - _nonzeros(row) / count_weights(deployed["dense"].ensemble).total
                ),
                checks.zeros_stay(_regrown(row, context, inputs)),
                checks.waived(19, "too slow for this run; `sparsemble evaluate` on its folder makes it"),
            ]
        )

    def _as_result(
        self, row: Row, outcomes: dict[str, torch.Tensor], sets: dict[str, Artifact], clean_runs: float
    ) -> dict[str, Any]:
        """Return what checks of a result ask for, in the shape of `evaluation.json`."""
        worst = torch.stack([right.cpu() for right in outcomes.values()]).all(0)
        count = len(row.ensemble.members)
        found = {}
        for label, artifact in sets.items():
            settings = artifact.meta["spec"]["attack"]
            found[label] = {"settings": settings, "outcomes": outcomes[label].int().tolist()}
            for one in self.attacks:
                if isinstance(one, AutoAttack) and one.label == label:
                    parts = one.schedule(len(dataset(self.data).classes))
                    found[label] |= {"mode": one.mode, "parts": {part.label: None for part in parts}}
        runs = {label: _mean(artifact.json(OUTCOME)["members_run"]) for label, artifact in sets.items()}
        slow = [runs[label] for label, each in found.items() if each["settings"]["name"] == "slowdown"]
        return {
            "target": {"members": count, "stopping": row.rule.name},
            "clean_outcomes": outcomes["clean"].int().tolist(),
            "attacks": found,
            "worst_case": {"outcomes": worst.int().tolist(), "accuracy": int(worst.sum()) / len(worst)},
            "members_run": {"clean": clean_runs, "attacked": max(runs.values()), "slowdown": max(slow, default=None)},
        }

    def _curve_checks(
        self, outcomes: dict[str, dict[str, torch.Tensor]], context: Context, inputs: Inputs
    ) -> list[checks.Check]:
        """Check the security curves, where there are any."""
        found = {row: artifact.json("curve.json") for row, artifact in with_prefix(inputs, "curve").items()}
        if not found:
            return []
        images = next(iter(found.values()))["images"]
        part = test_images(dataset(self.data), images)
        chance = 1.5 / len(dataset(self.data).classes)
        clean = {}
        for row in found:
            ensemble = load_row(row, inputs, self.combiner, context.device).ensemble
            x, y = part.to(context.device).tensors()
            with torch.no_grad():
                clean[row] = float((ensemble(x).argmax(1) == y).float().mean())
        return [checks.falls_with_eps({row: curve["accuracy"] for row, curve in found.items()}, clean, chance)]

    def _examples(self, split: Split, row: Row, context: Context, inputs: Inputs) -> None:
        """Keep a few images with the adversarial ones that fooled the ensemble, or failed to."""
        sets = attacks_on("ensemble_dynamic", context, inputs)
        artifact = sets[min(sets, key=lambda one: sum(sets[one].json(OUTCOME)["right"]))]
        answer = torch.tensor(artifact.json(OUTCOME)["answer"])
        x, y = split.tensors()
        broken = (answer != y.cpu()).nonzero()[:, 0][: EXAMPLES // 2]
        held = (answer == y.cpu()).nonzero()[:, 0][: EXAMPLES - len(broken)]
        chosen = torch.cat([broken, held])
        clean = predict_dynamic(row.ensemble, x[chosen], row.rule).logits.argmax(1)
        save_file(
            {
                "clean": x[chosen].cpu().contiguous(),
                "adversarial": stored_images(artifact, torch.device("cpu"))[chosen].contiguous(),
                "label": y[chosen].cpu(),
                "clean_prediction": clean.cpu(),
                "adversarial_prediction": answer[chosen],
            },
            context.output / "examples.safetensors",
        )


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)


def _histogram(members_run: list[int], members: int) -> list[int]:
    return torch.tensor(members_run).bincount(minlength=members + 1)[1:].tolist()


def _nonzeros(row: Row) -> int:
    return sum(count_weights(member).nonzeros for member in row.ensemble.members)


def _regrown(row: Row, context: Context, inputs: Inputs) -> int:
    """Count weights of the ensemble that its sub-models' masks had removed."""
    labels = running_order(inputs["ensemble"], inputs["stop"])
    regrown = 0
    for label, member in zip(labels, row.ensemble.members, strict=True):
        mask = Mask.load(inputs[f"pool.{label}"].file("mask.safetensors"))
        layers = prunable_layers(member)
        regrown += sum(int((layers[name].weight.cpu()[~keep] != 0).sum()) for name, keep in mask.items())
    return regrown
