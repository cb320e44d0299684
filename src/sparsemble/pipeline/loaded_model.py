"""What `sparsemble evaluate` can be pointed at: runs, artifacts, files of weights, Python factories."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from sparsemble.core.artifacts import META, Artifact
from sparsemble.core.config import from_dict, nearest, parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule, combiners, stopping_rules
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import Dataset, DataSource, data_sources
from sparsemble.evaluation.packed import VALUES, load_packed
from sparsemble.export.folded import FoldedNetwork
from sparsemble.models.architecture import architectures
from sparsemble.models.code import call_factory
from sparsemble.models.model_io import ModelSpec, load_model, load_weights_
from sparsemble.pipeline.baselines import ROWS, load_row, running_order
from sparsemble.pipeline.method import lay_out, row_inputs
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pruning.mask import Mask
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed

SINGLE = ("train", "prune", "small_dense")
"""Stages whose artifact is one model."""


@final
@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A classifier to evaluate, and what is known of it."""

    name: str
    kind: str
    """run, artifact, ensemble, packed, weights or code."""
    path: str
    model: nn.Module
    """In eval mode; an `Ensemble` for an ensemble."""
    rule: StoppingRule | None = None
    """The deployed rule of an ensemble; None for a single model."""
    data: DataSource | None = None
    """What it was trained on, where that is known."""
    threat: ThreatModel | None = None
    """What it was trained against, where that is known."""
    selected_on: str | None = None
    """Which images its checkpoint was chosen on, where that is known."""
    sparsity: float | None = None
    """What it claims, where it claims any."""
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Which weights were kept, by the layer's name in `model`; empty where that is not known."""
    parent: nn.Module | None = None
    """The dense parent, for transferred attacks, where there is one."""


def load_target(
    path: str, *, row: str = "", model: str = "", data: Dataset | None = None, device: str = "cpu"
) -> LoadedModel:
    """Load what a path stands for.

    Args:
        path: a run's folder, a stage's artifact, a packed ensemble, a .safetensors file, or `file.py:factory`.
        row: which row of a run's result table; ensemble_dynamic unless given.
        model: architecture of a .safetensors file, such as resnet18.
        data: images that decide its input shape and number of classes; needed for a .safetensors file.
        device: where the model goes.

    Raises:
        InputError: nothing there, or what is there does not fit.
    """
    where = torch.device(device)
    file, _, factory = path.rpartition(":")
    if file.endswith(".py"):
        return _from_code(Path(file), factory, where)
    if path.endswith(".py"):
        raise InputError(f"{path} needs the name of a function that returns the model, as in {path}:make_model")
    place = Path(path)
    if (place / META).is_file():
        return _from_artifact(Artifact(place), where)
    if (place / "recipe.toml").is_file():
        return _from_run(place, row or "ensemble_dynamic", where)
    if place.is_dir():
        raise InputError(f"{path} is neither a run (it has no recipe.toml) nor an artifact (it has no {META})")
    if not place.is_file():
        raise InputError(
            f"{path} does not exist; give a run's folder, an artifact, a packed ensemble, a .safetensors file or "
            "file.py:factory"
        )
    if place.suffix == packed.SUFFIX:
        return _from_packed(place, where)
    return _from_weights(place, model, data, where)


def resolve_data(text: str) -> DataSource:
    """Turn `digits`, a table in TOML, or the path of an .npz file into a data source.

    Raises:
        InputError: unknown.
    """
    if text.endswith(".npz"):
        return data_sources.build({"name": "arrays", "path": text}, "--data")
    return data_sources.build(_spec(text, "--data"), "--data")


def _spec(text: str, option: str) -> str | dict[str, Any]:
    """Read a component's name, or a table in TOML such as `{name = "tiny", width = 16}`."""
    if not text.lstrip().startswith("{"):
        return text
    spec: dict[str, Any] = parse_toml(f"value = {text}", option)["value"]
    return spec


def _from_run(folder: Path, row: str, device: torch.device) -> LoadedModel:
    if row not in ROWS:
        raise InputError(f'row = "{row}" is not in the result table{nearest(row, ROWS)}; known: {", ".join(ROWS)}')
    _, recipe = load_recipe(str(folder / "recipe.toml"))
    made, pool = lay_out(recipe)
    wanted = {**row_inputs(row, made, pool), "dense": made["dense"]}
    artifacts = {role: Artifact(folder / task.folder) for role, task in wanted.items()}
    for role, artifact in artifacts.items():
        if not artifact.path.is_dir():
            raise InputError(
                f"{folder} has no finished {role} for its recipe.toml; run `sparsemble run {folder}/recipe.toml "
                f"--out {folder}` to make it"
            )
        artifact.verify()
    loaded = load_row(row, artifacts, recipe.ensemble.combiner, device)
    ensemble = row.startswith("ensemble")
    claims = {"best_member": recipe.member_sparsity, "dense": 0.0, "small_dense": 0.0}
    return LoadedModel(
        name=f"{folder.name}:{row}",
        kind="run",
        path=str(folder),
        model=loaded.ensemble if ensemble else loaded.ensemble.members[0],
        rule=loaded.rule if ensemble else None,
        data=recipe.data,
        threat=recipe.threat,
        selected_on="held-out",
        sparsity=claims.get(row, recipe.sparsity),
        masks=_masks(row, artifacts),
        parent=None if row == "dense" else load_model(artifacts["dense"].path, device),
    )


def _from_artifact(artifact: Artifact, device: torch.device) -> LoadedModel:
    artifact.verify()
    meta = artifact.meta
    stage, spec = meta["stage"], meta["spec"]
    rule: StoppingRule | None = None
    model: nn.Module
    inputs: dict[str, Artifact] = {}
    if stage in SINGLE:
        model = load_model(artifact.path, device)
    elif stage in ("ensemble", "calibrate"):
        ensemble = artifact if stage == "ensemble" else Artifact(artifact.path.parent / meta["inputs"]["ensemble"])
        inputs = {"ensemble": ensemble} | ({"stop": artifact} if stage == "calibrate" else {})
        combiner: Combiner = combiners.build(ensemble.meta["spec"]["ensemble"]["combiner"])
        loaded = load_row("ensemble_dynamic" if stage == "calibrate" else "ensemble_static", inputs, combiner, device)
        model, rule = loaded.ensemble, loaded.rule
    else:
        known = ", ".join([*SINGLE, "ensemble", "calibrate"])
        raise InputError(f"{artifact.path} holds no model (it is made by the stage {stage}); known stages: {known}")
    return LoadedModel(
        name=artifact.path.name,
        kind="artifact",
        path=str(artifact.path),
        model=model,
        rule=rule,
        data=data_sources.build(spec["data"]) if "data" in spec else None,
        threat=from_dict(ThreatModel, spec["threat"], "threat") if "threat" in spec else None,
        selected_on="held-out",
        sparsity=spec.get("sparsity"),
        masks=_masks_of(artifact) if stage in SINGLE else _ensemble_masks(inputs["ensemble"], inputs.get("stop")),
    )


def _masks(row: str, artifacts: Mapping[str, Artifact]) -> dict[str, torch.Tensor]:
    """Return which weights of a run's row were kept."""
    if row.startswith("ensemble"):
        return _ensemble_masks(artifacts["ensemble"], artifacts["stop"] if row == "ensemble_dynamic" else None)
    if row == "best_member":
        return _masks_of(artifacts["pool." + artifacts["select"].json("select.json")["best_member"]])
    return _masks_of(artifacts[row])


def _masks_of(artifact: Artifact) -> dict[str, torch.Tensor]:
    """Return the mask that lies beside a model; empty where there is none."""
    file = artifact.file("mask.safetensors")
    return dict(Mask.load(file).items()) if file.is_file() else {}


def _ensemble_masks(ensemble: Artifact, rule: Artifact | None) -> dict[str, torch.Tensor]:
    """Return the masks of an ensemble's members, from the sub-models that it was made of."""
    found: dict[str, torch.Tensor] = {}
    for i, label in enumerate(running_order(ensemble, rule)):
        member = Artifact(ensemble.path.parent / ensemble.meta["inputs"][f"pool.{label}"])
        found |= {f"members.{i}.{name}": keep for name, keep in _masks_of(member).items()}
    return found


def _from_packed(path: Path, device: torch.device) -> LoadedModel:
    """Read a packed ensemble: the rounded network that a device runs, in torch."""
    try:
        ensemble = packed.load(path)
    except RuntimeInputError as error:
        raise InputError(f"{path}: {error}") from error
    members = [FoldedNetwork(member) for member in ensemble.members]
    return LoadedModel(
        name=path.stem,
        kind="ensemble",
        path=str(path),
        model=Ensemble(members, combiners.build(dict(ensemble.combiner))).to(device).eval(),
        rule=stopping_rules.build(dict(ensemble.rule)),
        data=data_sources.build(ensemble.recipe["data"]) if "data" in ensemble.recipe else None,
        threat=from_dict(ThreatModel, ensemble.recipe["threat"], "threat") if "threat" in ensemble.recipe else None,
        selected_on="held-out",
        sparsity=ensemble.sparsity,
    )


def _from_weights(path: Path, model: str, data: Dataset | None, device: torch.device) -> LoadedModel:
    if not model:
        raise InputError(f"{path} holds weights only; name the architecture with --model, such as --model resnet18")
    if data is None:
        raise InputError(f"{path} holds weights only; name the images with --data, which decide shape and classes")
    architecture = architectures.build(_spec(model, "--model"), "--model")
    network = ModelSpec.of(architecture, data).build()
    try:
        with safe_open(path, "pt") as stored:
            packed = any(name.endswith(VALUES) for name in stored.keys())  # noqa: SIM118 (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file: {error}") from error
    if packed:
        load_packed(path, network)
    else:
        load_weights_(network, path)
    kind = "packed" if packed else "weights"
    return LoadedModel(name=path.stem, kind=kind, path=str(path), model=network.to(device).eval())


def _from_code(file: Path, factory: str, device: torch.device) -> LoadedModel:
    """Import a file and call its function; what the file imports must be installed."""
    model = call_factory(file, factory)
    return LoadedModel(name=f"{file.stem}:{factory}", kind="code", path=os.fspath(file), model=model.to(device).eval())
