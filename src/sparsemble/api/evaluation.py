"""`sparsemble.evaluate`: a classifier under attack, with the evidence for believing the result."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from sparsemble.api.results import Data, Model, TrainedEnsemble, TrainedModel, as_split, network_of
from sparsemble.attacks.attack import Access, Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule
from sparsemble.core.module_state import copy_network
from sparsemble.core.results import DataRecord, EvaluationResult
from sparsemble.core.threat import ThreatModel, checked_threat
from sparsemble.data.dataset import Split
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.corrupted_images import open_corruptions
from sparsemble.evaluation.evaluator import EvaluationSettings, usual_attacks, with_adaptive
from sparsemble.evaluation.evaluator import evaluate as run_evaluator
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.mask import Mask

RESULT = "evaluation.json"
"""File of the result, in the folder of an evaluation."""


def evaluate(
    model: TrainedEnsemble | Ensemble | Model,
    data: Data,
    threat: ThreatModel,
    *,
    attacks: Sequence[AnyAttack] = (),
    rule: StoppingRule | None = None,
    adaptive: bool = True,
    access: Access = "gradients",
    class_map: Sequence[int] = (),
    checks: Literal["default", "full"] = "default",
    corruptions: bool | str | Path = False,
    name: str = "",
    seed: int = 0,
    folder: str | Path | None = None,
    device: str = "auto",
) -> EvaluationResult:
    """Attack a classifier, measure its cost, and check how far the evaluation can be believed.

    Args:
        model: a result of the API, or any network or ensemble from images in [0, 1] to logits; left as found.
        data: a data set, whose test images are used, or images as a split or tensors (x, y).
        threat: what the adversary may do.
        attacks: run on every image; the robust accuracy is that under all of them. AutoAttack unless given, or Square
            and an attack by labels where gradients may not be used.
        rule: the stopping rule of an ensemble; that of a calibrated ensemble unless given.
        adaptive: also attack an ensemble through its members, combiners, prefixes and stopping rule.
        access: what attacks may use of the model: "gradients", "scores" (its logits) or "labels".
        class_map: output of the model for each class of the data; empty: in their order.
        checks: default: they take no longer than the strongest attack; full: on more images.
        corruptions: True: also measure accuracy under the fifteen common corruptions; a folder: under those in the
            arrays of CIFAR-10-C or the files of ImageNet-C there, or in ones like them.
        name: of the result.
        seed: of attack starts, >= 0.
        folder: keeps the outcome of every image, so that an interrupted evaluation goes on, and `evaluation.json`.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Robust accuracy with its interval, every attack image by image, cost, and the checks.

    Raises:
        InputError: labels that do not fit the model, or no classifier.
        RunError: an attack left its threat model, or the model returned NaN.
    """
    seed, threat = checked_seed(seed), checked_threat(threat)
    if not isinstance(attacks, Sequence) or not all(isinstance(attack, Attack | EnsembleAttack) for attack in attacks):
        raise InputError(f"attacks = {attacks!r:.60} must be a list of attacks, such as [sparsemble.attacks.PGD()]")
    where = torch.device(choose_device(device))
    split = as_split(data, "test").to(where)
    target = _target(model, rule, name, where).probed(split, None, access, class_map)
    chosen = tuple(attacks) or usual_attacks(access, threat.norm)
    job = EvaluationJob(
        model=target.model,
        rule=target.rule,
        split=split,
        threat=threat,
        attacks=with_adaptive(chosen, target) if adaptive and access == "gradients" else chosen,
        access=access,
        seed=seed,
    )
    store = OutcomeStore(Path(folder) / "outcomes") if folder else None
    record = _data_record(split)
    settings = EvaluationSettings(
        command="sparsemble.evaluate",
        checks=checks,
        available=len(split),
        corruptions=open_corruptions(corruptions, split, record.indices, seed) if corruptions else None,
    )
    result = run_evaluator(job, target, record, settings, store=store)
    if folder:
        result.save(Path(folder) / RESULT)
    return result


def _target(
    model: TrainedEnsemble | Ensemble | Model, rule: StoppingRule | None, name: str, device: torch.device
) -> LoadedModel:
    """Return a copy of the model on the device, with what is known of it."""
    if isinstance(model, TrainedEnsemble):
        network: torch.nn.Module = model.model
        rule = rule or (None if isinstance(model.rule, Never) else model.rule)
        masks = {f"members.{i}.{layer}": keep for i, m in enumerate(model.masks) for layer, keep in m.items()}
    else:
        network = network_of(model)
        masks = dict(Mask(model.mask)) if isinstance(model, TrainedModel) and model.mask else {}
    _check_masks(masks, network)
    return LoadedModel(
        name=name or type(getattr(network, "body", network)).__name__,
        kind="code",
        path=f"{type(network).__module__}.{type(network).__qualname__}",
        model=copy_network(network).to(device).eval(),
        rule=rule,
        masks=masks,
    )


def _check_masks(masks: Mapping[str, Tensor], network: torch.nn.Module) -> None:
    """Refuse masks of other layers than the network's."""
    layers = prunable_layers(network)
    for name, keep in masks.items():
        if name not in layers:
            raise InputError(
                f"the mask has a layer {name}, which the network lacks; it belongs to another architecture"
            )
        shape = tuple(layers[name].weight.shape)
        if tuple(keep.shape) != shape:
            raise InputError(f"layer {name} has weights {shape}, its mask {tuple(keep.shape)}")


def _data_record(split: Split) -> DataRecord:
    """Return what the evaluated images are, by a hash of their pixels and labels."""
    digest = hashlib.sha256(split.labels.cpu().numpy().tobytes())
    for indices in torch.arange(len(split), device=split.labels.device).split(256):
        digest.update(split.images(indices).cpu().contiguous().numpy().tobytes())
    return DataRecord(
        name="images",
        sha256=digest.hexdigest(),
        images=len(split),
        classes=int(split.labels.max()) + 1,
        indices=tuple(range(len(split))),
    )
