"""The models of a run: which artifacts each row of the result table is loaded from, and how."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import torch
from safetensors.torch import load_file
from torch import Tensor

from sparsemble.core.artifacts import Artifact, read_json, write_json
from sparsemble.core.config import from_dict, nearest
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule, combiners, stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.core.results import ROW_NAMES
from sparsemble.core.threat import ThreatModel
from sparsemble.data.dataset import DataSource
from sparsemble.models.model_io import load_model

ROWS = tuple(ROW_NAMES)
INDEX = "run.json"
"""File of a run folder that tells which artifacts belong to which row."""


@final
@dataclass(frozen=True, kw_only=True)
class RunIndex:
    """What must be known to load the models of a run: `run.json`."""

    data: DataSource
    threat: ThreatModel
    combiner: Combiner
    rows: dict[str, dict[str, str]]
    """By row: the folders of the artifacts it is loaded from, by role."""
    claimed_sparsity: dict[str, float]
    """By row."""
    extra_data: str | None = None
    """Training data beyond the data set's own; "none" where there was none; none: unknown."""

    def save(self, folder: Path) -> None:
        """Write the index into the folder of a run, unless it is there already."""
        path, table = folder / INDEX, to_dict(self)
        if not path.is_file() or read_json(path) != table:
            write_json(path, table)

    @classmethod
    def load(cls, folder: Path) -> "RunIndex":
        """Read the index of a run.

        Raises:
            InputError: there is none, or it does not fit this version.
        """
        return from_dict(cls, read_json(folder / INDEX), str(folder / INDEX))

    def artifacts(self, folder: Path, row: str) -> dict[str, Artifact]:
        """Return the finished artifacts of a row, by role, compared with their hashes.

        Raises:
            InputError: no such row, an artifact is not finished, or was changed.
        """
        if row not in self.rows:
            raise InputError(f'row = "{row}" is not in the result table{nearest(row, self.rows)}')
        artifacts = {role: Artifact(folder / name) for role, name in self.rows[row].items()}
        for role, artifact in artifacts.items():
            if not artifact.path.is_dir():
                raise InputError(
                    f"{folder} has no finished {role} for its recipe.toml; run `sparsemble run {folder}/recipe.toml "
                    f"--out {folder}` to make it"
                )
            artifact.verify()
        return artifacts


class Row(NamedTuple):
    """What is deployed under a name; a single model is an ensemble of one."""

    ensemble: Ensemble
    rule: StoppingRule


def stored_ensemble(artifact: Artifact) -> tuple[Artifact, Artifact | None]:
    """Return where the members and the stopping rule are of which `train_ensemble`, `calibrate` or a run left one.

    The rule that the API calibrates lies beside its members, that of a run in an artifact of its own.
    """
    if not artifact.file("stopping.json").is_file():
        return artifact, None
    members = artifact.json("stopping.json")["ensemble"]
    return Artifact(artifact.path.parent / members) if members else artifact, artifact


def running_order(ensemble: Artifact, rule: Artifact | None = None) -> list[int]:
    """Return the members, from 0 as they were trained, in the order in which they run; calibration may change it.

    Raises:
        InputError: the stopping rule was calibrated for another ensemble.
    """
    if rule is None:
        return list(range(len(ensemble.json("ensemble.json")["members"])))
    calibrated = rule.json("stopping.json")
    if calibrated["ensemble"] not in ("", ensemble.path.name):
        raise InputError(
            f"the stopping rule in {rule.path.name} was calibrated for {calibrated['ensemble']}, not for "
            f"{ensemble.path.name}; calibrate it for this ensemble"
        )
    order: list[int] = calibrated["order"]
    return order


def running_labels(ensemble: Artifact, rule: Artifact | None = None) -> list[str]:
    """Return the labels of the members in the order in which they run."""
    labels = ensemble.json("ensemble.json")["members"]
    return [labels[i] for i in running_order(ensemble, rule)]


def load_ensemble(
    ensemble: Artifact, rule: Artifact | None, device: torch.device, combiner: Combiner | None = None
) -> Row:
    """Return a trained ensemble, members in running order and in eval mode, and its rule.

    Args:
        ensemble: holds the members.
        rule: holds the calibrated rule and the order; none: as trained, and all members always run.
        device: where the members go.
        combiner: of the members' logits; the stored one unless given.
    """
    combiner = combiner or combiners.build(ensemble.json("ensemble.json")["combiner"])
    members = [load_model(ensemble.path, device, f"member{i + 1}") for i in running_order(ensemble, rule)]
    stopping = stopping_rules.build(rule.json("stopping.json")["rule"] if rule else "never")
    return Row(Ensemble(members, combiner).eval(), stopping)


def load_row(name: str, inputs: Mapping[str, Artifact], combiner: Combiner, device: torch.device) -> Row:
    """Load a row of the result table.

    Args:
        name: of `ROWS`.
        inputs: artifacts by role: `dense`, `small_dense`, `harp`, `select`, `pool.*`, `ensemble`, `stop`.
        combiner: of the ensemble.
        device: of the model.
    """
    if name.startswith("ensemble"):
        return load_ensemble(inputs["ensemble"], _rule(name, inputs), device, combiner)
    model = load_model(_single(name, inputs).path, device)
    return Row(Ensemble([model], combiner).eval(), stopping_rules.build("never"))


def row_masks(name: str, inputs: Mapping[str, Artifact], *, wrapped: bool = False) -> dict[str, Tensor]:
    """Return which weights of a row were kept, by the layer's name; of an ensemble `members.I.LAYER`.

    Args:
        name: of `ROWS`.
        inputs: artifacts by role.
        wrapped: name the layers of a single model as those of an ensemble of one, too.
    """
    if name.startswith("ensemble"):
        return ensemble_masks(inputs["ensemble"], _rule(name, inputs))
    prefix = "members.0." if wrapped else ""
    return {prefix + layer: keep for layer, keep in artifact_masks(_single(name, inputs)).items()}


def artifact_masks(artifact: Artifact) -> dict[str, Tensor]:
    """Return the mask stored beside a model; empty where there is none."""
    file = artifact.file("mask.safetensors")
    return load_file(file) if file.is_file() else {}


def ensemble_masks(ensemble: Artifact, rule: Artifact | None) -> dict[str, Tensor]:
    """Return the masks of the sub-models that an ensemble's members were made of, where these are artifacts, too."""
    masks: dict[str, Tensor] = {}
    made_from = ensemble.meta["inputs"]
    for i, label in enumerate(running_labels(ensemble, rule)):
        if folder := made_from.get(f"pool.{label}"):
            member = artifact_masks(Artifact(ensemble.path.parent / folder))
            masks |= {f"members.{i}.{name}": keep for name, keep in member.items()}
    return masks


def _rule(name: str, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """Return the artifact of the rule that a row runs under; of the static ensemble none."""
    return inputs["stop"] if name == "ensemble_dynamic" else None


def _single(name: str, inputs: Mapping[str, Artifact]) -> Artifact:
    """Return the artifact of a row that is a single model."""
    if name == "best_member":
        return inputs["pool." + inputs["select"].json("select.json")["best_member"]]
    return inputs[name]
