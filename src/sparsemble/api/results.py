"""What the functions of the API accept and return: images, and classifiers that can be called, saved and loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsemble.core.artifacts import Artifact, json_line, read_json, read_json_lines, write_bytes, write_json
from sparsemble.core.config import from_dict
from sparsemble.core.dynamic import decide, predict_dynamic
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule
from sparsemble.core.registry import to_dict
from sparsemble.core.results import SubModelRecord
from sparsemble.core.types import Images, Logits
from sparsemble.data.assemble import as_split as as_images
from sparsemble.data.dataset import Dataset, DataSource, Split
from sparsemble.ensemble.calibration import CalibrationLogits, CalibrationResult
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.run_models import load_ensemble, running_labels, running_order, stored_ensemble
from sparsemble.models.model_io import SPEC, ModelSpec, load_model, load_spec, save_model
from sparsemble.pruning.mask import Mask

Data = Dataset | DataSource | Split | tuple[Tensor, Tensor]
"""A data set, where one comes from, labelled images, or tensors: images (N, C, H, W) in [0, 1] or uint8, labels (N)."""
History = tuple[dict[str, Any], ...]
"""One record an epoch; `training.fit` names its entries."""


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class TrainedModel:
    """A trained network, dense or sparse; call it with images to get logits."""

    model: nn.Module
    """In eval mode."""
    spec: ModelSpec | None = None
    """What the network is built from; none for a network that was given as such: it cannot be saved."""
    mask: Mask | None = None
    """Which weights were kept; none: it was not pruned."""
    history: History = ()
    record: SubModelRecord | None = None
    """How a pruned model was pruned: dead channels, multiply-accumulates, held-out accuracy before and after."""

    def __call__(self, x: Images) -> Logits:
        """Return logits (B, K) for images (B, C, H, W) in [0, 1], differentiable."""
        logits: Logits = self.model(x)
        return logits

    @property
    def name(self) -> str:
        """Name of a sub-model, that of its score unless the caller gave another; empty: not pruned."""
        return self.record.name if self.record else ""

    @property
    def sparsity(self) -> float:
        """Fraction of the prunable weights that are zero."""
        return Mask.of(self.model).sparsity

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `architecture.json` and `history.jsonl`, of a pruned model its mask, too."""
        save_model(self.model, folder, _required(self.spec))
        _save_history(self.history, folder)
        if self.mask is not None:
            self.mask.save(folder / "mask.safetensors")
        if self.record is not None:
            write_json(folder / "pruned.json", to_dict(self.record))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "TrainedModel":
        """Read what `save` wrote."""
        mask, record = folder / "mask.safetensors", folder / "pruned.json"
        pruned = from_dict(SubModelRecord, read_json(record), str(record)) if record.is_file() else None
        return cls(
            model=load_model(folder, device),
            spec=load_spec(folder),
            mask=Mask.load(mask) if mask.is_file() else None,
            history=_load_history(folder),
            record=pruned,
        )

    def to_json(self) -> str:
        """Return what is known of the model as JSON."""
        return json.dumps({"sparsity": self.sparsity, "record": to_dict(self.record), "history": self.history})

    def __repr__(self) -> str:
        weights = Mask.of(self.model)
        lines = {"network": type(getattr(self.model, "body", self.model)).__name__}
        lines["weights"] = f"{weights.nonzeros:,} of {weights.total:,} not zero (sparsity {weights.sparsity:.3f})"
        return as_table(self.name or "trained model", lines | _last_epoch(self.history))


@final
@dataclass(frozen=True, kw_only=True, repr=False)
class TrainedEnsemble:
    """An ensemble, trained together or as given, and its stopping rule; call it with images to get logits."""

    model: Ensemble
    """Members in running order, in eval mode."""
    names: tuple[str, ...]
    """Of the members, in running order."""
    spec: ModelSpec | None = None
    """What every member is built from."""
    history: History = ()
    held_out_robust: tuple[float, ...] = ()
    """Robust accuracy of each member by itself, on held-out images."""
    rule: StoppingRule = Never()
    """Decides after how many members an image is answered; `Never`: all members always run."""
    calibration: CalibrationResult | None = None
    """How the rule was chosen, and what it does on the calibration images."""
    calibration_set: CalibrationLogits | None = field(default=None, compare=False)
    """Member logits that the rule was set on."""

    def __call__(self, x: Images) -> Logits:
        """Return the deployed logits (B, K) for images (B, C, H, W) in [0, 1], differentiable."""
        return decide(self.model, x, self.rule).logits

    def predict(self, x: Images) -> DynamicOutput:
        """Return logits, the prefix that is used and the number of members run, for images (B, C, H, W) in [0, 1]."""
        return predict_dynamic(self.model, x, self.rule)

    @property
    def members(self) -> tuple[nn.Module, ...]:
        """The networks, in running order."""
        return tuple(self.model.members)

    @property
    def masks(self) -> tuple[Mask, ...]:
        """Which weights of each member are not zero."""
        return tuple(Mask.of(member) for member in self.members)

    def save(self, folder: Path) -> None:
        """Write the members as `member1.safetensors` .., `ensemble.json`, `history.jsonl` and `stopping.json`."""
        for number, member in enumerate(self.members, start=1):
            save_model(member, folder, _required(self.spec), f"member{number}")
        record = {"members": list(self.names), "held_out_robust": list(self.held_out_robust)}
        write_json(folder / "ensemble.json", record | {"combiner": to_dict(self.model.combiner)})
        _save_history(self.history, folder)
        if self.calibration:
            in_order = replace(self.calibration, order=tuple(range(len(self.names))))
            replace(self, calibration=in_order).save_rule(folder)

    def save_rule(self, folder: Path, ensemble: str = "") -> None:
        """Write `stopping.json`, and the member logits that the rule was set on as `logits.safetensors`.

        `ensemble` is the folder beside it that holds the members in the order before calibration; empty: `folder`
        itself, in running order.
        """
        assert self.calibration
        assert self.calibration_set
        sets = {"clean": self.calibration_set.clean, **self.calibration_set.attacked, "labels": self.calibration_set.y}
        save_file({name: tensor.cpu().contiguous() for name, tensor in sets.items()}, folder / "logits.safetensors")
        write_json(folder / "stopping.json", {**to_dict(self.calibration), "ensemble": ensemble})

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> "TrainedEnsemble":
        """Read what `save` wrote, or what the stages `ensemble` and `calibrate` of a run left."""
        ensemble, stopping = stored_ensemble(Artifact(folder))
        order = running_order(ensemble, stopping)
        loaded = load_ensemble(ensemble, stopping, device)
        robust = ensemble.json("ensemble.json")["held_out_robust"]
        return cls(
            model=loaded.ensemble,
            names=tuple(running_labels(ensemble, stopping)),
            spec=load_spec(ensemble.path) if ensemble.file(SPEC).is_file() else None,
            history=_load_history(ensemble.path),
            held_out_robust=tuple(robust[i] for i in order) if robust else (),
            rule=loaded.rule,
        )

    def to_json(self) -> str:
        """Return what is known of the ensemble as JSON."""
        record = {"members": self.names, "held_out_robust": self.held_out_robust, "rule": to_dict(self.rule)}
        calibration = to_dict(self.calibration) if self.calibration else None
        return json.dumps(record | {"calibration": calibration, "history": self.history})

    def __repr__(self) -> str:
        lines = {"members": ", ".join(self.names)}
        if self.held_out_robust:
            lines["robust (held-out)"] = ", ".join(f"{value:.3f}" for value in self.held_out_robust)
        lines["stopping rule"] = type(self.rule).__name__
        if self.calibration:
            outcome, full = self.calibration.outcome, self.calibration.full_ensemble
            lines["members run"] = f"{outcome.members_run:.2f} of {len(self.names)} (held-out)"
            lines["clean accuracy"] = f"{outcome.clean:.3f} (all members {full.clean:.3f})"
            lines["worst case"] = f"{outcome.worst_case:.3f} (all members {full.worst_case:.3f})"
        return as_table("ensemble", lines | _last_epoch(self.history))


Model = TrainedModel | nn.Module
"""A single classifier: a result of the API, or any network from images to logits."""


def network_of(model: Model) -> nn.Module:
    """Return the network of a model."""
    return model.model if isinstance(model, TrainedModel) else model


def with_rule(ensemble: Ensemble, rule: StoppingRule | None = None) -> TrainedEnsemble:
    """Return an ensemble from elsewhere, its members called by their numbers."""
    names = tuple(f"member-{number}" for number in range(1, len(ensemble.members) + 1))
    return TrainedEnsemble(model=ensemble, names=names, rule=rule or Never())


def as_split(data: Data, part: Literal["selection", "calibration", "test"]) -> Split:
    """Return the images to measure on: this part of a data set, or all images where they are given as such."""
    if isinstance(data, DataSource):
        data = data.load_and_report()
    split: Split = getattr(data, part) if isinstance(data, Dataset) else as_images(data)
    return split


def named_models(models: Mapping[str, Model] | Sequence[Model]) -> dict[str, TrainedModel]:
    """Return models by name; those without one, or with one that is taken, are numbered."""
    pairs = list(models.items()) if isinstance(models, Mapping) else [(getattr(m, "name", ""), m) for m in models]
    if len(pairs) < 2:
        raise InputError(f"an ensemble needs at least 2 models, got {len(pairs)}")
    named: dict[str, TrainedModel] = {}
    for number, (name, model) in enumerate(pairs, start=1):
        if not isinstance(model, TrainedModel | nn.Module):
            raise InputError(f"model {number} must be a trained model or a torch module, got {type(model).__name__}")
        unique = name if name and name not in named else f"{name or 'model'}-{number}"
        named[unique] = model if isinstance(model, TrainedModel) else TrainedModel(model=model)
    return named


def _required(spec: ModelSpec | None) -> ModelSpec:
    if spec is None:
        raise InputError(
            "a network that was given as a module cannot be kept in a folder, as nothing says how to build it again; "
            "give its architecture, such as sparsemble.models.resnet18(), or no folder"
        )
    return spec


def _save_history(history: History, folder: Path) -> None:
    write_bytes(folder / "history.jsonl", "".join(map(json_line, history)).encode())


def _load_history(folder: Path) -> History:
    path = folder / "history.jsonl"
    return tuple(read_json_lines(path)) if path.is_file() else ()


def _last_epoch(history: History) -> dict[str, str]:
    measured = [record for record in history if "held_out_robust" in record]
    if not measured:
        return {}
    last = measured[-1]
    accuracy = f"clean {last['held_out_clean']:.3f}, robust {last['held_out_robust']:.3f}"
    return {"last epoch": f"{last['epoch']}: loss {last['loss']:.3f}, {accuracy} (held-out)"}


def as_table(title: str, lines: Mapping[str, str]) -> str:
    """Return lines below a title, their names in one column."""
    width = max(map(len, lines))
    return "\n".join([title, *(f"  {name:<{width}}  {text}" for name, text in lines.items())])
