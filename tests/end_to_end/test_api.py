"""The public functions: the whole method on the digits, with tiny settings."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sparsemble as sp
from sparsemble.api import PoolRecord, TrainedEnsemble, TrainedModel
from sparsemble.core.errors import InputError
from sparsemble.ensemble.stopping.never import Never
from sparsemble.pruning import PruningScore, prunable_layers
from sparsemble.training import LossOutput, TrainingLoss

FAST = sp.attacks.PGD(steps=2)


@pytest.fixture(scope="module")
def data():
    return sp.data.load("digits")


@pytest.fixture(scope="module")
def linf():
    return sp.Linf(0.1)


@pytest.fixture(scope="module")
def parent(data, linf) -> TrainedModel:
    loss = sp.losses.PGDAT(attack=FAST)
    return sp.train(sp.models.Tiny(width=4), data, linf, loss=loss, epochs=4, held_out_attack=FAST)


@pytest.fixture(scope="module")
def pool(parent, data, linf) -> list[TrainedModel]:
    return [
        sp.prune(
            parent,
            data,
            linf,
            sparsity=0.5,
            score=score,
            method=sp.pruning.HARP(epochs=1),
            loss=sp.losses.PGDAT(attack=FAST),
            finetune_epochs=1,
            held_out_attack=FAST,
        )
        for score in (sp.scores.NIS(), sp.scores.ERM())
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api") / "ensemble"


@pytest.fixture(scope="module")
def ensemble(pool, data, linf, folder: Path) -> TrainedEnsemble:
    members = sp.select(pool, data, linf, size=2, held_out_attack=FAST)
    trained = sp.train_ensemble(members, data, linf, loss=sp.losses.ADP(), epochs=1, held_out_attack=FAST)
    return sp.calibrate(
        trained,
        data,
        linf,
        rule=sp.stopping.DIE(),
        max_accuracy_drop=0.002,
        against=(),
        held_out_attack=FAST,
        folder=folder,
    )


def test_a_parent_learns_and_is_a_classifier(parent, data) -> None:
    x, y = data.test.tensors()
    logits = parent(x)
    assert logits.shape == (len(y), 10)
    assert logits.requires_grad, "attacks need its gradient"
    assert float((logits.argmax(1) == y).float().mean()) > 0.6
    assert len(parent.history) == 4
    assert "held-out" in repr(parent)


def test_sub_models_have_the_sparsity_asked_for_and_leave_the_parent_as_it_was(parent, pool) -> None:
    assert [model.name for model in pool] == ["nis", "erm"]
    for model in pool:
        assert 0.5 - 1e-3 <= model.sparsity < 0.6
        assert model.mask is not None
        assert model.record is not None
    assert parent.sparsity == 0


def test_selection_is_a_sequence_of_sub_models(pool, data, linf) -> None:
    selection = sp.select({"a": pool[0], "b": pool[1]}, data, linf, size=2, held_out_attack=FAST)
    assert selection.record.ensemble == ("a", "b")
    assert [model.model for model in selection] == [model.model for model in pool]
    assert isinstance(selection.record, PoolRecord)


def test_a_calibrated_ensemble_predicts_with_as_few_members_as_its_rule_asks_for(ensemble, data, linf) -> None:
    x, y = data.test.tensors()
    output = ensemble.predict(x)
    assert torch.equal(output.logits, ensemble(x))
    assert set(output.members_run.tolist()) <= {1, 2}
    assert set(ensemble.names) == {"nis", "erm"}
    assert "stopping rule" in repr(ensemble)
    x_adv = sp.attacks.PGD(steps=5)(ensemble, x[:20], y[:20], linf)
    assert float(linf.distance(x_adv, x[:20]).max()) <= linf.eps + 1e-6


def test_an_exported_ensemble_predicts_the_same_in_the_runtime(ensemble, data, tmp_path: Path) -> None:
    path = sp.export(ensemble, tmp_path / "ensemble.sparsemble", values="float32")
    x, _ = data.test.tensors()
    prediction = sp.runtime.load(path).predict(x.numpy())
    assert np.array_equal(prediction.labels, ensemble.predict(x).logits.argmax(1).numpy())
    assert np.array_equal(prediction.members_run, ensemble.predict(x).members_run.numpy())


def test_an_ensemble_exported_in_8_bits_is_evaluated_as_it_is_deployed(ensemble, data, linf, tmp_path: Path) -> None:
    file = tmp_path / "ensemble.sparsemble"
    with pytest.raises(InputError, match='arithmetic = "int8" needs data and threat'):
        sp.export(ensemble, file, arithmetic="int8")
    with pytest.raises(InputError, match='values = "float32" does not fit arithmetic = "int8"'):
        sp.export(ensemble, file, values="float32", arithmetic="int8", data=data, threat=linf)
    none = data.selection.subset(torch.arange(0))
    with pytest.raises(InputError, match="there are 0 and 0, so they never were"):
        sp.export(ensemble, file, arithmetic="int8", data=none, threat=linf)
    assert not file.exists()
    static = replace(ensemble, rule=Never())  # tests of the command calibrate the rule again
    sp.export(static, file, arithmetic="int8", data=data, threat=linf, held_out_attack=FAST)
    loaded, (x, y) = sp.load(file, device="cpu"), data.test.tensors()
    assert all(member.steps for member in loaded.members)
    with torch.no_grad():
        difference = (loaded(x) - ensemble.model.cpu()(x)).abs().max()
    assert 0 < float(difference) < 1
    x_adv = sp.attacks.PGD(steps=5)(loaded, x[:20], y[:20], linf)
    assert float(linf.distance(x_adv, x[:20]).max()) > 0.9 * linf.eps


def test_an_evaluation_names_robust_accuracy_interval_and_checks(ensemble, parent, data, linf, tmp_path: Path) -> None:
    x, y = data.test.tensors()
    settings = {"attacks": [FAST], "adaptive": False, "folder": tmp_path / "evaluation"}
    result = sp.evaluate(ensemble, (x[:40], y[:40]), linf, **settings)
    low, high = result.interval
    assert 0 <= low <= result.robust_accuracy <= high <= 1
    assert result.robust_accuracy <= result.clean_accuracy
    assert result.model.rule == "die"
    assert len(result.checks) == 50
    assert sp.load(tmp_path / "evaluation") == result
    assert sp.evaluate(ensemble, (x[:40], y[:40]), linf, **settings).worst_case == result.worst_case
    single = sp.evaluate(parent.model, (x[:40], y[:40]), linf, attacks=[FAST])
    assert single.model.members == 1


def test_a_folder_keeps_the_result_and_refuses_other_settings(data, linf, tmp_path: Path) -> None:
    settings = {"loss": sp.losses.PGDAT(attack=FAST), "held_out_attack": FAST, "folder": tmp_path / "parent"}
    first = sp.train(sp.models.Tiny(width=2), data, linf, epochs=1, **settings)
    again = sp.train(sp.models.Tiny(width=2), data, linf, epochs=1, **settings)
    loaded = sp.load(tmp_path / "parent")
    x, _ = data.test.tensors()
    assert torch.equal(first(x), again(x))
    assert torch.equal(first(x), loaded(x))
    assert again.history == loaded.history == first.history
    with pytest.raises(InputError, match="another epochs"):
        sp.train(sp.models.Tiny(width=2), data, linf, epochs=2, **settings)


def test_an_interrupted_training_goes_on_from_its_checkpoint(data, linf, tmp_path: Path, monkeypatch) -> None:
    settings = {"loss": sp.losses.PGDAT(attack=FAST), "held_out_attack": FAST, "epochs": 3}
    whole = sp.train(sp.models.Tiny(width=2), data, linf, **settings)
    from sparsemble.training.loop import Loop

    add_epoch = Loop.add_epoch

    def interrupted(loop, record, passes) -> None:
        add_epoch(loop, record, passes)
        if len(loop.history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "add_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sp.train(sp.models.Tiny(width=2), data, linf, **settings, folder=tmp_path / "parent")
    assert not (tmp_path / "parent").exists()
    resumed = sp.train(sp.models.Tiny(width=2), data, linf, **settings, folder=tmp_path / "parent")
    x, _ = data.test.tensors()
    assert torch.equal(whole(x), resumed(x))
    assert len(resumed.history) == 3


def test_a_saved_ensemble_is_read_back_with_its_rule_and_order(ensemble, folder: Path, data) -> None:
    loaded = sp.load(folder)
    x, _ = data.test.tensors()
    assert torch.equal(loaded(x), ensemble(x))
    assert (loaded.names, loaded.rule, loaded.history) == (ensemble.names, ensemble.rule, ensemble.history)


def test_tensors_and_networks_are_accepted(parent, linf) -> None:
    x, y = torch.rand(200, 1, 8, 8), torch.arange(200) % 10
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    before = network[1].weight.clone()
    loss = sp.losses.PGDAT(attack=FAST)
    schedule = sp.api.SCHEDULE
    trained = sp.train(network, (x, y), linf, loss=loss, epochs=1, schedule=schedule, held_out_attack=FAST)
    assert trained(x).shape == (200, 10)
    assert torch.equal(network[1].weight, before)
    with pytest.raises(InputError, match="cannot be kept in a folder"):
        trained.save(Path("/nowhere"))


class Largest(PruningScore):
    """A score from outside: not registered, not a dataclass."""

    def __call__(self, model, adversarial):
        return {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}


class Plain(TrainingLoss):
    """A loss from outside."""

    def __call__(self, model, x, y, threat, *, rng):
        return LossOutput(torch.nn.functional.cross_entropy(model(x), y))


def test_objects_of_an_interface_are_accepted_wherever_they_come_from(parent, data, linf, tmp_path: Path) -> None:
    settings = {"method": sp.pruning.OneShot(), "loss": Plain(), "finetune_epochs": 1, "held_out_attack": FAST}
    folder = tmp_path / "pruned"
    pruned = sp.prune(parent, data, linf, sparsity=0.5, score=Largest(), folder=folder, **settings)
    assert pruned.name == "Largest"
    assert pruned.sparsity == pytest.approx(0.5, abs=0.06)
    assert sp.load(folder).record == pruned.record


def test_importing_the_package_imports_no_torch() -> None:
    script = (
        "import sys, sparsemble as sp\n"
        "assert 'torch' not in sys.modules and 'evaluate' in dir(sp)\n"
        "import sparsemble.export.convert\n"
        "assert callable(sp.export) and callable(sp.train)\n"
        "try: sp.trian\n"
        "except AttributeError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout.strip() == "module 'sparsemble' has no attribute 'trian'", result.stderr
