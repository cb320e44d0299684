"""`sparsemble.export` and `sparsemble.load`: trained models and ensembles to files, and back."""

from pathlib import Path
from typing import Literal

import torch

from sparsemble.api.context import Context
from sparsemble.api.evaluation import RESULT
from sparsemble.api.quantization import in_8_bits
from sparsemble.api.results import Data, Model, TrainedEnsemble, TrainedModel, network_of, with_rule
from sparsemble.api.training import HELD_OUT_ATTACK
from sparsemble.attacks.attack import Attack
from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.artifacts import META, Artifact
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import copy_network
from sparsemble.core.results import EvaluationResult
from sparsemble.core.threat import ThreatModel, checked_threat
from sparsemble.core.types import seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.environment import versions
from sparsemble.evaluation.loaded_model import ENSEMBLES, MODELS, load_target
from sparsemble.export.convert import convert_ensemble
from sparsemble.export.export_ensemble import export_packed
from sparsemble.export.quantize import values_for
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.runtime.format import packed

CHECKED_IMAGES = 8
"""Images of noise on which an exported network is compared with the trained one."""


def load(path: str | Path, *, device: str = "auto") -> TrainedModel | TrainedEnsemble | EvaluationResult:
    """Read a trained model or ensemble, or the result of an evaluation.

    Args:
        path: the `folder` that a function of the API was given, a stage's artifact, the folder of a run (its ensemble
            with its stopping rule), a packed ensemble, an .onnx file, `hf:NAME`, or `file.py:factory`.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        The classifier, in eval mode on the device; of a folder that `evaluate` was given, its result.

    Raises:
        InputError: nothing there, another kind of result, or a file that was changed after it was written.
    """
    folder, name = Path(path), choose_device(device)
    if (folder / RESULT).is_file():
        return EvaluationResult.load(folder / RESULT)
    if (folder / META).is_file():
        artifact = Artifact(folder)
        artifact.verify()
        stage = artifact.meta["stage"]
        if stage in MODELS:
            return TrainedModel.load(folder, torch.device(name))
        if stage in ENSEMBLES:
            return TrainedEnsemble.load(folder, torch.device(name))
        stages = ", ".join((*MODELS, *ENSEMBLES))
        raise InputError(f"{folder} holds no model (the stage {stage} made it); known: {stages}")
    target = load_target(str(path), device=name)
    if not isinstance(target.model, Ensemble):
        return TrainedModel(model=target.model)
    return with_rule(target.model, target.rule)


def export(
    ensemble: TrainedEnsemble | Model,
    path: str | Path,
    *,
    values: Literal["float16", "float32", "int8"] | None = None,
    arithmetic: Literal["float32", "int8"] = "float32",
    data: Data | None = None,
    threat: ThreatModel | None = None,
    held_out_attack: Attack = HELD_OUT_ATTACK,
    seed: int = 0,
) -> Path:
    """Write an ensemble, or one model as an ensemble of itself, as a packed file for `sparsemble.runtime.load`.

    Args:
        ensemble: what `calibrate`, `train_ensemble`, `prune` or `train` returned.
        path: the file to write, named `*.sparsemble`.
        values: format of the weights: float32, float16, or int8 with a scale for each output of a layer; None: int8
            with 8-bit arithmetic, else float16.
        arithmetic: in which members compute; int8: 8-bit weights and results. `load` gives that ensemble in torch, with
            straight-through gradients, for `evaluate`.
        data: for int8, a data set, whose held-out images calibrate the ranges of results and the stopping rule anew, or
            such images as a split or tensors (x, y).
        threat: for int8, what the adversary may do: half of the images for the ranges are adversarial.
        held_out_attack: crafts them, and those that the stopping rule is calibrated on.
        seed: of attack starts, >= 0.

    Returns:
        The path.

    Raises:
        InputError: another ending, an operation that the runtime does not know, or a model of unknown image size; for
            int8, other values, no images or threat, or a range of zero width.
        RunError: the converted network computes other logits than the trained one.
    """
    file = Path(path)
    if file.suffix != packed.SUFFIX:
        raise InputError(f"{file} must end in {packed.SUFFIX}")
    original = ensemble if isinstance(ensemble, TrainedEnsemble) else _alone(ensemble)
    if original.spec is None:
        raise InputError("the size of the images is not known; export what was trained from an architecture")
    values, threat = values_for(arithmetic, values), checked_threat(threat) if threat else None
    if arithmetic == "int8" and (data is None or threat is None):
        raise InputError(
            'arithmetic = "int8" needs data and threat: the ranges of results are calibrated on held-out images, clean '
            "and adversarial"
        )
    members = [copy_network(member).cpu() for member in original.members]
    file.parent.mkdir(parents=True, exist_ok=True)
    trained, spec = Ensemble(members, original.model.combiner).eval(), original.spec
    parent_weights = count_weights(spec.build()).total
    converted = convert_ensemble(
        trained,
        original.rule,
        spec.classes,
        spec.shape,
        parent_weights,
        preprocessing=spec.preprocessing,
        provenance=versions(),
    )
    images = torch.rand(CHECKED_IMAGES, *spec.shape, generator=seeded(0))
    quantized = None
    if arithmetic == "int8" and data is not None and threat is not None:
        quantized = in_8_bits(
            trained,
            converted,
            data,
            threat,
            rule=original.rule,
            held_out_attack=held_out_attack,
            context=Context(device=torch.device("cpu"), seed=checked_seed(seed), stream="export"),
        )
    export_packed(
        trained, converted, file, images=images, to_torch=to_torch_ensemble, values=values, quantized=quantized
    )
    return file


def _alone(model: Model) -> TrainedEnsemble:
    """Return a model as an ensemble of itself."""
    ensemble = Ensemble([network_of(model)], MeanProbability())
    return TrainedEnsemble(
        model=ensemble, names=("model",), spec=model.spec if isinstance(model, TrainedModel) else None
    )
