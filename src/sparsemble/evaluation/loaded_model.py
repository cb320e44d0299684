"""What can be evaluated: rows of runs, artifacts, packed ensembles, files of weights, Python factories."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import Access
from sparsemble.core.artifacts import META, Artifact
from sparsemble.core.config import from_dict
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.results import FormatAgreement
from sparsemble.core.source_file import split_reference
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset, DataSource, Split
from sparsemble.evaluation.cost import count_weights
from sparsemble.evaluation.probe import probe
from sparsemble.evaluation.resolve_data import component_spec, data_source_in, members_of
from sparsemble.evaluation.run_models import (
    INDEX,
    RunIndex,
    artifact_masks,
    ensemble_masks,
    load_ensemble,
    load_row,
    row_masks,
    stored_ensemble,
)
from sparsemble.models import huggingface
from sparsemble.models.adapted import NumpyFunction
from sparsemble.models.architecture import Normalised, architectures
from sparsemble.models.code import call_factory
from sparsemble.models.folded import to_torch_ensemble
from sparsemble.models.model_io import SPEC, ModelSpec, load_model, load_spec
from sparsemble.models.onnx_file import OnnxSession, open_onnx
from sparsemble.models.onnx_reader import convert_onnx
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed

MODELS = ("train", "load_parent", "small_dense", "prune")
"""Stages whose artifact is one model."""
ENSEMBLES = ("ensemble", "calibrate")
"""Stages whose artifact is an ensemble."""


OURS = ("run", "artifact", "ensemble")
"""Kinds of models that were trained by this package."""


@final
@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A classifier to evaluate, and what is known of it."""

    name: str
    kind: Literal["run", "artifact", "ensemble", "weights", "code", "onnx", "huggingface"]
    path: str
    model: nn.Module
    """In eval mode; an `Ensemble` for an ensemble."""
    rule: StoppingRule | None = None
    """The deployed rule of an ensemble; None: all members always run."""
    data: DataSource | None = None
    """What it was trained on, where that is known."""
    threat: ThreatModel | None = None
    """What it was trained against, where that is known."""
    selected_on: Literal["held-out", "test"] | None = None
    """Images on which its checkpoint was chosen, where that is known."""
    extra_data: str | None = None
    """Training data beyond the data set's own, where that is known; "none" where there was none."""
    claimed_sparsity: float | None = None
    """Of an ensemble counted against one dense parent."""
    dense_weights: int | None = None
    """Prunable weights of the dense parent that the sparsity of an ensemble is counted against."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Which weights were kept, by the layer's name in `model`; empty where that is not known."""
    parent: nn.Module | None = None
    """The dense parent, for transferred attacks, where there is one."""
    exports: Mapping[str, FormatAgreement] = field(default_factory=dict)
    """How the files exported from this model agree with it, by format; empty where it was not exported."""
    notes: tuple[str, ...] = ()
    """How outputs or images are converted, where the network is no plain classifier."""
    class_names: tuple[str, ...] = ()
    """Names of its outputs, in their order, where it brings them."""

    def probed(
        self, data: Split, classes: int | None, access: Access = "gradients", class_map: Sequence[int] = ()
    ) -> "LoadedModel":
        """Return the model as a classifier that attacks can use; ensembles of ours already are.

        Args:
            data: images to be evaluated, on the device of the model.
            classes: number of classes of the data set; None: not known.
            access: what attacks may use of the model.
            class_map: output of each class; empty: in their order.

        Raises:
            InputError: it cannot be read as a classifier of these images, or has no gradient where attacks need one.
        """
        if isinstance(self.model, Ensemble):
            if class_map:
                raise InputError("a class map is for networks; the outputs of an ensemble are the classes of its data")
            return self
        probed = probe(self.model, data, classes=classes, access=access, class_map=class_map)
        return replace(self, model=probed.model, notes=(*self.notes, *probed.notes))

    def check_class_names(self, names: Sequence[str]) -> None:
        """Compare the names of the outputs with those of the data's classes.

        Numbers are no names, and those that others gave to their models may differ from those of the data.

        Raises:
            InputError: the same names in another order, or a model of ours was trained on other classes.
        """
        own = [name.casefold() for name in self.class_names]
        wanted = [name.casefold() for name in names]
        if own != wanted and sorted(own) == sorted(wanted) and len(set(own)) == len(own):
            class_map = ",".join(str(own.index(name)) for name in wanted)
            raise InputError(f"the model's classes are the data's in another order; add --class-map {class_map}")
        numbered = any(each == [str(number) for number in range(len(each))] for each in (own, wanted))
        if self.kind in OURS and set(own) != set(wanted) and not numbered:
            name = min(set(own) ^ set(wanted))
            lacking = "images have" if name in own else "model has"
            raise InputError(
                f'the {lacking} no class "{name}"; give images of the classes that {self.name} was trained on'
            )


def load_target(
    path: str,
    *,
    row: str = "",
    model: str = "",
    data: Dataset | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    device: str = "cpu",
    access: Access = "gradients",
) -> LoadedModel:
    """Load the classifier that a path names.

    Args:
        path: a run's folder, a stage's artifact, a packed ensemble, a file of weights, an .onnx file, `hf:NAME`, or
            `file.py:factory`.
        row: of a run's result table; ensemble_dynamic unless given.
        model: architecture of a file of weights, such as resnet18.
        data: images that decide its input shape and number of classes; needed for a file of weights.
        mean: of each channel, by which a file of weights expects its images normalised; empty: as the file says.
        std: the same, of the standard deviation.
        device: of the model.
        access: what attacks may use; an ONNX file that torch cannot run is then run by ONNX Runtime.

    Raises:
        InputError: nothing there, or what is there does not fit.
    """
    target = torch.device(device)
    code, factory = split_reference(path)
    whole = path.startswith(huggingface.PREFIX) or code or Path(path).is_dir() or path.endswith(packed.SUFFIX)
    if whole and (mean or std):
        raise InputError(
            f"{path} normalises its images itself; --mean and --std are for files of weights and .onnx files"
        )
    if path.startswith(huggingface.PREFIX):
        return _from_huggingface(path, target)
    if code:
        network = call_factory(Path(code), factory).to(target).eval()
        return LoadedModel(name=f"{Path(code).stem}:{factory}", kind="code", path=code, model=network)
    if path.endswith(".py"):
        raise InputError(f"{path} needs the name of a function that returns the model, as in {path}:make_model")
    file = Path(path)
    if file.is_dir():
        return _from_folder(file, row, target)
    if not file.is_file():
        raise InputError(
            f"{path} does not exist; give a run's folder, an artifact, a packed ensemble, a file of weights, an .onnx "
            "file, hf:NAME or file.py:factory"
        )
    if file.suffix == packed.SUFFIX:
        return _from_packed(file, target)
    if file.suffix == ".onnx":
        return _from_onnx(file, data, access, target, mean, std)
    return _from_weights(file, model, data, target, mean, std)


def _from_folder(folder: Path, row: str, device: torch.device) -> LoadedModel:
    if (folder / META).is_file():
        return _from_artifact(Artifact(folder), device)
    if (folder / INDEX).is_file():
        return _from_run(folder, row or "ensemble_dynamic", device)
    if (folder / "recipe.toml").is_file():
        raise InputError(
            f"{folder} has no {INDEX}; run `sparsemble run {folder}/recipe.toml --out {folder}` to write it"
        )
    if (folder / "config.json").is_file():
        raise InputError(f"{folder} is a folder of transformers; name it as {huggingface.PREFIX}{folder}")
    raise InputError(f"{folder} is neither a run (it has no recipe.toml) nor an artifact (it has no {META})")


def _from_run(folder: Path, row: str, device: torch.device) -> LoadedModel:
    index = RunIndex.load(folder)
    artifacts = index.artifacts(folder, row)
    dense = index.artifacts(folder, "dense")["dense"]
    loaded = load_row(row, artifacts, index.combiner, device)
    ensemble = row.startswith("ensemble")
    parent = load_model(dense.path, device)
    return LoadedModel(
        name=f"{folder.name}:{row}",
        kind="run",
        path=str(folder),
        model=loaded.ensemble if ensemble else loaded.ensemble.members[0],
        rule=loaded.rule if row == "ensemble_dynamic" else None,
        data=index.data,
        threat=index.threat,
        selected_on="held-out",
        extra_data=index.extra_data,
        claimed_sparsity=index.claimed_sparsity.get(row),
        masks=row_masks(row, artifacts),
        dense_weights=count_weights(parent).total,
        parent=None if row == "dense" else parent,
        exports=_exports(folder, artifacts) if row == "ensemble_dynamic" else {},
        class_names=_class_names(dense),
    )


def _class_names(artifact: Artifact) -> tuple[str, ...]:
    return load_spec(artifact.path).classes if artifact.file(SPEC).is_file() else ()


def _exports(folder: Path, artifacts: Mapping[str, Artifact]) -> dict[str, FormatAgreement]:
    """Return how the exported files of a run agree with its ensemble, if they were made from these artifacts."""
    export = Artifact(folder / "export")
    if not (export.path / META).is_file():
        return {}
    inputs = export.meta["inputs"]
    if any(inputs.get(role) != artifact.path.name for role, artifact in artifacts.items()):
        return {}
    formats = export.json("export.json")["formats"]
    return {name: from_dict(FormatAgreement, table, f"formats.{name}") for name, table in formats.items()}


def _from_artifact(artifact: Artifact, device: torch.device) -> LoadedModel:
    artifact.verify()
    meta = artifact.meta
    stage, spec = meta["stage"], meta["spec"]
    rule: StoppingRule | None = None
    model: nn.Module
    if stage in MODELS:
        model, masks = load_model(artifact.path, device), artifact_masks(artifact)
    elif stage in ENSEMBLES:
        ensemble, stopping = stored_ensemble(artifact)
        model, stored_rule = load_ensemble(ensemble, stopping, device)
        rule = stored_rule if stopping else None
        masks = ensemble_masks(ensemble, stopping)
    else:
        known = ", ".join((*MODELS, *ENSEMBLES))
        raise InputError(f"{artifact.path} holds no model (the stage {stage} made it); known: {known}")
    return LoadedModel(
        name=artifact.path.name,
        kind="artifact",
        path=str(artifact.path),
        model=model,
        rule=rule,
        data=data_source_in(spec.get("data")),
        threat=from_dict(ThreatModel, spec["threat"], "threat") if "threat" in spec else None,
        selected_on="held-out",
        claimed_sparsity=spec.get("sparsity"),
        masks=masks,
        class_names=_class_names(members_of(artifact)),
    )


def _from_packed(path: Path, device: torch.device) -> LoadedModel:
    """Read a packed ensemble: the rounded network that a device runs, in torch."""
    try:
        ensemble = packed.load(path)
    except RuntimeInputError as error:
        raise InputError(f"{path}: {error}") from error
    recipe, provenance = ensemble.recipe, ensemble.provenance
    selected_on = provenance.get("selected_on")
    return LoadedModel(
        name=path.stem,
        kind="ensemble",
        path=str(path),
        model=to_torch_ensemble(ensemble).to(device),
        rule=stopping_rules.build(dict(ensemble.rule)),
        data=data_source_in(recipe.get("data")),
        threat=from_dict(ThreatModel, recipe["threat"], "threat") if "threat" in recipe else None,
        selected_on=selected_on if selected_on in ("held-out", "test") else None,
        extra_data=provenance.get("extra_data"),
        claimed_sparsity=ensemble.sparsity,
        dense_weights=ensemble.parent_weights,
        class_names=ensemble.classes,
    )


def _from_huggingface(path: str, device: torch.device) -> LoadedModel:
    model = path.removeprefix(huggingface.PREFIX)
    network, names = huggingface.load_classifier(model)
    note = f"images are resized and normalised by the model's own processor: {network.preparation}"
    return LoadedModel(
        name=Path(model).name,
        kind="huggingface",
        path=path,
        model=network.to(device),
        notes=(note,),
        class_names=names,
    )


def _from_onnx(
    path: Path,
    data: Dataset | None,
    access: Access,
    device: torch.device,
    mean: Sequence[float],
    std: Sequence[float],
) -> LoadedModel:
    """Convert an ONNX file to torch; run it in ONNX Runtime where that fails and attacks need no gradient."""
    file = open_onnx(path, data.shape if data else None)
    network: nn.Module
    try:
        network, notes = convert_onnx(file)
    except InputError as error:
        if access == "gradients":
            raise
        network = NumpyFunction(OnnxSession(file)).eval()
        notes = (f"ONNX Runtime computes the outputs, because torch cannot: {error}",)
    if mean or std:
        channels = file.shape[0]
        mean, std = mean or (0.0,) * channels, std or (1.0,) * channels
        if {len(mean), len(std)} != {channels} or min(std) <= 0:
            raise InputError(f"--mean and --std need a value for each of {channels} channels, std above 0")
        network = Normalised(network, mean, std, file.shape).eval()
    return LoadedModel(name=path.stem, kind="onnx", path=os.fspath(path), model=network.to(device), notes=notes)


def _from_weights(
    path: Path, model: str, data: Dataset | None, device: torch.device, mean: Sequence[float], std: Sequence[float]
) -> LoadedModel:
    if not model:
        raise InputError(f"{path} holds weights only; name the architecture with --model, such as --model resnet18")
    if data is None:
        raise InputError(f"{path} holds weights only; name the images with --data, which decide shape and classes")
    spec = ModelSpec.of(architectures.build(component_spec(model, "--model"), "--model"), data)
    network = spec.build_trained(path, mean=mean, std=std)
    return LoadedModel(
        name=path.stem,
        kind="weights",
        path=os.fspath(path),
        model=network.to(device).eval(),
        notes=network.changes.notes,
    )
