"""The rows of the result table: each a deployed ensemble and stopping rule; a single model is an ensemble of one."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from sparsemble.core.artifacts import Artifact
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule, stopping_rules
from sparsemble.ensemble.stopping.never import Never
from sparsemble.models.model_io import load_model

ROWS = ("dense", "small_dense", "harp", "best_member", "ensemble_static", "ensemble_dynamic")


class Row(NamedTuple):
    """What is deployed under a name."""

    ensemble: Ensemble
    rule: StoppingRule


def running_order(ensemble: Artifact, rule: Artifact | None = None) -> list[str]:
    """Return the labels of the members in the order in which they run; `stop` may have changed it.

    Raises:
        InputError: the stopping rule was calibrated for another ensemble.
    """
    labels: list[str] = ensemble.json("ensemble.json")["members"]
    if rule is None:
        return labels
    found = rule.json("stopping.json")
    if found["ensemble"] != ensemble.path.name:
        raise InputError(
            f"the stopping rule in {rule.path.name} was calibrated for {found['ensemble']}, not for {ensemble.path.name}; "
            "calibrate it for this ensemble"
        )
    return [labels[i] for i in found["order"]]


def load_ensemble(artifact: Artifact, combiner: Combiner, device: torch.device) -> Ensemble:
    """Return the trained ensemble in running order, in eval mode."""
    count = len(artifact.json("ensemble.json")["members"])
    members = [load_model(artifact.path, device, f"member{i}") for i in range(1, count + 1)]
    return Ensemble(members, combiner).eval()


def load_row(name: str, inputs: Mapping[str, Artifact], combiner: Combiner, device: torch.device) -> Row:
    """Load a row from the stages' artifacts: `dense`, `small_dense`, `harp`, `select`, `pool.*`, `ensemble`, `stop`."""
    if name == "ensemble_dynamic":
        running_order(inputs["ensemble"], inputs["stop"])  # refuses a rule that belongs to another ensemble
        facts = inputs["stop"].json("stopping.json")
        members = load_ensemble(inputs["ensemble"], combiner, device).members
        ensemble = Ensemble([members[i] for i in facts["order"]], combiner).eval()
        return Row(ensemble, stopping_rules.build(facts["rule"]))
    if name == "ensemble_static":
        return Row(load_ensemble(inputs["ensemble"], combiner, device), Never())
    if name == "best_member":
        artifact = inputs["pool." + inputs["select"].json("select.json")["best_member"]]
    else:
        artifact = inputs[name]
    return Row(Ensemble([load_model(artifact.path, device)], combiner).eval(), Never())
