"""Rows of the result table: which ensemble runs, in which order, under which rule."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsemble.core.artifacts import Artifact, finish, write_json
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.data.synthetic import Synthetic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.ensemble.stopping.never import Never
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.run_models import Row, load_row, running_labels
from sparsemble.models.architecture import build_model
from sparsemble.models.model_io import ModelSpec, save_model
from sparsemble.models.tiny import Tiny

LABELS = ["first", "second", "third"]
RULE = Confidence(threshold=0.7)
CPU = torch.device("cpu")


def artifact(folder: Path, name: str, write: Callable[[Path], None]) -> Artifact:
    partial = folder / f"{name}.partial"
    partial.mkdir()
    write(partial)
    return finish(partial, folder / name, {})


def ensemble_of_three(folder: Path, name: str = "ensemble-1234") -> Artifact:
    """Store three members, the number of each in every bias of its last layer."""
    data, layout = Synthetic(images=20).load(), Tiny(width=2)

    def write(partial: Path) -> None:
        write_json(partial / "ensemble.json", {"members": LABELS})
        for number in (1, 2, 3):
            model = build_model(layout, data.shape, len(data.classes), data.mean, data.std, rng=seeded(0))
            nn.init.constant_(model.get_submodule("body.linear").bias, number)
            save_model(model, partial, ModelSpec.of(layout, data), f"member{number}")

    return artifact(folder, name, write)


def rule_for(folder: Path, ensemble: str) -> Artifact:
    facts = {"ensemble": ensemble, "order": [2, 0, 1], "rule": to_dict(RULE)}
    return artifact(folder, "calibrate-5678", lambda partial: write_json(partial / "stopping.json", facts))


def load_dynamic(ensemble: Artifact, rule: Artifact) -> Row:
    return load_row("ensemble_dynamic", {"ensemble": ensemble, "stop": rule}, MeanProbability(), CPU)


def test_a_rule_brings_the_order_of_its_ensemble(tmp_path: Path) -> None:
    ensemble = ensemble_of_three(tmp_path)
    inputs = {"ensemble": ensemble, "stop": rule_for(tmp_path, "ensemble-1234")}
    assert running_labels(ensemble) == LABELS
    assert running_labels(ensemble, inputs["stop"]) == ["third", "first", "second"]
    for name, rule, order in (("ensemble_static", Never(), [1, 2, 3]), ("ensemble_dynamic", RULE, [3, 1, 2])):
        row = load_row(name, inputs, MeanProbability(), CPU)
        assert row.rule == rule
        assert [int(model.get_submodule("body.linear").bias[0]) for model in row.ensemble.members] == order


@pytest.mark.parametrize("ask", [running_labels, load_dynamic], ids=["order", "row"])
def test_a_rule_calibrated_for_another_ensemble_gives_a_sentence(
    tmp_path: Path, ask: Callable[[Artifact, Artifact], object]
) -> None:
    """Same members, same labels: the hash in the name alone tells."""
    ensemble, rule = ensemble_of_three(tmp_path), rule_for(tmp_path, "ensemble-9999")
    words = (
        "the stopping rule in calibrate-5678 was calibrated for ensemble-9999, not for ensemble-1234; "
        "calibrate it for this ensemble"
    )
    with pytest.raises(InputError, match=words):
        ask(ensemble, rule)
    assert load_row("ensemble_static", {"ensemble": ensemble, "stop": rule}, MeanProbability(), CPU).rule == Never()


def test_an_ensemble_that_the_api_calibrated_is_read_from_its_own_folder(tmp_path: Path) -> None:
    """Its members lie beside the rule, in running order, and no stage of a run made them."""
    data, layout = Synthetic(images=20).load(), Tiny(width=2)
    members = [build_model(layout, data.shape, len(data.classes), data.mean, data.std, rng=seeded(i)) for i in (0, 1)]
    partial = tmp_path / "partial"
    partial.mkdir()
    write_json(partial / "ensemble.json", {"members": ["a", "b"], "combiner": to_dict(MeanProbability())})
    for number, member in enumerate(members, start=1):
        save_model(member, partial, ModelSpec.of(layout, data), f"member{number}")
    write_json(partial / "stopping.json", {"ensemble": "", "order": [0, 1], "rule": to_dict(RULE)})
    finish(partial, tmp_path / "calibrated", {"stage": "calibrate", "spec": {}, "inputs": {}})
    target = load_target(str(tmp_path / "calibrated"))
    x = torch.rand(3, *data.shape, generator=seeded(2))
    assert torch.equal(target.model(x), Ensemble([m.eval() for m in members], MeanProbability())(x))
    assert (target.rule, target.masks) == (RULE, {})
