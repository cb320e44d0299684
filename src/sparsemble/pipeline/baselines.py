"""The rows of the result table: each a deployed team and stopping rule; a single model is a team of one."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from sparsemble.core.artifacts import Artifact
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Combiner, Ensemble, StoppingRule, stopping_rules
from sparsemble.ensemble.stopping.never import Never
from sparsemble.pipeline.model_io import load_model

ROWS = ("dense", "small_dense", "harp", "best_member", "team_static", "team_dynamic")


class Row(NamedTuple):
    """What is deployed under a name."""

    ensemble: Ensemble
    stop: StoppingRule


def running_order(team: Artifact, stop: Artifact | None = None) -> list[str]:
    """Return the labels of the members in the order in which they run; `stop` may have changed it.

    Raises:
        InputError: the stopping rule was calibrated for another team.
    """
    labels: list[str] = team.json("team.json")["members"]
    if stop is None:
        return labels
    found = stop.json("stopping.json")
    if found["team"] != team.path.name:
        raise InputError(
            f"the stopping rule in {stop.path.name} was calibrated for {found['team']}, not for {team.path.name}; "
            "calibrate it for this team"
        )
    return [labels[i] for i in found["order"]]


def load_ensemble(artifact: Artifact, combine: Combiner, device: torch.device) -> Ensemble:
    """Return the trained team in running order, in eval mode."""
    count = len(artifact.json("team.json")["members"])
    members = [load_model(artifact, device, f"member{i}") for i in range(1, count + 1)]
    return Ensemble(members, combine).eval()


def load_row(name: str, inputs: Mapping[str, Artifact], combine: Combiner, device: torch.device) -> Row:
    """Load a row from the stages' artifacts: `dense`, `small_dense`, `harp`, `select`, `pool.*`, `team`, `stop`."""
    if name == "team_dynamic":
        running_order(inputs["team"], inputs["stop"])  # refuses a rule that belongs to another team
        facts = inputs["stop"].json("stopping.json")
        members = load_ensemble(inputs["team"], combine, device).members
        team = Ensemble([members[i] for i in facts["order"]], combine).eval()
        return Row(team, stopping_rules.build(facts["stop"]))
    if name == "team_static":
        return Row(load_ensemble(inputs["team"], combine, device), Never())
    if name == "best_member":
        artifact = inputs["pool." + inputs["select"].json("select.json")["best_member"]]
    else:
        artifact = inputs[name]
    return Row(Ensemble([load_model(artifact, device)], combine).eval(), Never())
