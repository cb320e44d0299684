"""Outcomes are stored under what computes: code, weights, operations and outputs."""

import copy
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsemble.api.context import _described
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.fgsm import FGSM
from sparsemble.core.interfaces import Ensemble, combiners
from sparsemble.core.source_file import source_hash
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation import fingerprint as module
from sparsemble.evaluation.fingerprint import fingerprint, weights_hash
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import run_attacks
from sparsemble.models.code import Code, call_factory
from tests.helpers import LinearClassifier, random_split, small_network

SHAPE = (1, 4, 4)
CPU = torch.device("cpu")
NET = """
from torch import nn, ones
from parts import scale

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)
            parameter.data[0] = 0.3

    def forward(self, x):
        return scale(self.body(x))

def make():
    return Net().eval()

def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).requires_grad_(False).eval()
"""


def taken(model: nn.Module) -> str:
    return fingerprint(model, SHAPE, CPU)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network whose file imports one neighbour, which imports a module of a package."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "parts.py").write_text("from deep import numbers\n\ndef scale(x):\n    return numbers.FACTOR * x\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/__init__.py").write_text("")
    (tmp_path / "deep/numbers.py").write_text("from .other import ONE\n\nFACTOR = ONE\n")
    (tmp_path / "deep/other.py").write_text("import json\nimport torch.nn\n\nONE = 1\n")
    (tmp_path / "apart.py").write_text("nothing imports this\n")
    return tmp_path


def changed(file: Path, old: str, new: str) -> None:
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


class TestSourceHash:
    def test_a_file_without_neighbours_has_its_sha256(self, folder: Path) -> None:
        file = folder / "deep/other.py"
        assert source_hash(file) == hashlib.sha256(file.read_bytes()).hexdigest()

    @pytest.mark.parametrize("name", ["net.py", "parts.py", "deep/numbers.py", "deep/other.py", "deep/__init__.py"])
    def test_covers_each_file_that_runs(self, folder: Path, name: str) -> None:
        before = source_hash(folder / "net.py")
        (folder / name).write_text((folder / name).read_text() + "\n# another line\n")
        assert source_hash(folder / "net.py") != before

    def test_covers_nothing_else(self, folder: Path) -> None:
        before = source_hash(folder / "net.py")
        (folder / "apart.py").write_text("")
        assert source_hash(folder / "net.py") == before

    def test_is_the_same_in_another_folder(self, folder: Path) -> None:
        before = source_hash(folder / "net.py")
        assert source_hash(folder.rename(folder.with_name("elsewhere")) / "net.py") == before

    def test_files_that_import_each_other_or_cannot_be_parsed_have_one(self, folder: Path) -> None:
        (folder / "deep/other.py").write_text("from . import numbers\nfrom .. import net\n")
        assert len(source_hash(folder / "net.py")) == 64
        (folder / "deep/other.py").write_text("no python")
        assert len(source_hash(folder / "net.py")) == 64

    def test_an_architecture_of_the_users_covers_its_neighbours(self, folder: Path) -> None:
        before = Code(factory=f"{folder}/net.py:make")
        changed(folder / "deep/other.py", "ONE = 1", "ONE = 2")
        assert Code(factory=f"{folder}/net.py:make").source_hash != before.source_hash


class TestFingerprint:
    def made(self, folder: Path, name: str = "make") -> str:
        torch.manual_seed(0)
        return taken(call_factory(folder / "net.py", name))

    def test_the_same_code_and_weights_have_one(self, folder: Path) -> None:
        assert self.made(folder) == self.made(folder)

    @pytest.mark.parametrize(
        ("file", "old", "new"), [("net.py", "return scale", "return -scale"), ("deep/other.py", "1", "2")]
    )
    def test_another_forward_pass_has_another(self, folder: Path, file: str, old: str, new: str) -> None:
        before = self.made(folder)
        changed(folder / file, old, new)
        assert self.made(folder) != before

    def test_a_factory_of_torch_layers_is_covered_too(self, folder: Path) -> None:
        before = self.made(folder, "plain")
        assert self.made(folder, "plain") == before
        changed(folder / "net.py", "(False)", "(True)")
        assert self.made(folder, "plain") != before

    @pytest.mark.parametrize(
        "change",
        [
            lambda model: model[0].weight.data.mul_(2),
            lambda model: setattr(model[3], "start_dim", 2) or setattr(model, "4", nn.Linear(4, 3)),
            lambda model: model.register_forward_hook(lambda _module, _inputs, output: 2 * output),
            lambda model: setattr(model[1], "eps", 1.0),
            lambda model: model[1].running_mean.add_(1),
        ],
        ids=["weights", "structure", "hook", "setting", "buffer"],
    )
    def test_whatever_changes_the_outputs_changes_it(self, change: Callable[[nn.Module], object]) -> None:
        model = small_network().eval()
        before = taken(model)
        change(model)
        assert taken(model) != before
        assert taken(small_network().eval()) == before

    def test_code_that_is_in_no_file_is_covered(self) -> None:
        def defined(line: str) -> nn.Module:
            names: dict[str, type[nn.Module]] = {}
            source = f"class Net(nn.Flatten):\n    def forward(self, x):\n        return {line}"
            exec(source, {"nn": nn, "super": super}, names)
            return names["Net"]().eval()

        assert taken(defined("x.flatten(1)")) == taken(defined("x.flatten(1)"))
        # The outputs on images are the same, the code is not.
        assert taken(defined("x.flatten(1)")) != taken(defined("x.clamp(0, 2).flatten(1)"))

    def test_threads_and_random_numbers_do_not_matter(self) -> None:
        state, threads = torch.get_rng_state(), torch.get_num_threads()
        found = set()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.add(taken(LinearClassifier(3, SHAPE).eval()))
                assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(threads)
        assert len(found) == 1
        assert torch.equal(torch.get_rng_state(), state)

    def test_rounding_does_not_matter(self) -> None:
        model = LinearClassifier(3, SHAPE).eval()
        outputs = module._outputs(model, SHAPE, CPU)
        model.weight.data.mul_(1 + 1e-7)
        assert module._outputs(model, SHAPE, CPU) == outputs
        model.weight.data.mul_(1.01)
        assert module._outputs(model, SHAPE, CPU) != outputs

    def test_models_that_answer_differently_each_time_have_one(self) -> None:
        class Noisy(nn.Module):
            rng = seeded(0)

            def forward(self, x: Tensor) -> Tensor:
                return x.flatten(1) + torch.rand(16, generator=self.rng)

        assert taken(Noisy().eval()) == taken(Noisy().eval())

    def test_printed_addresses_are_left_out(self) -> None:
        class Printed(nn.Flatten):
            def extra_repr(self) -> str:
                return repr(object())

        assert weights_hash(Printed()) == weights_hash(Printed())

    def test_the_model_is_left_as_found(self) -> None:
        class Storing(nn.Module):
            last: Tensor | None = None

            def forward(self, x: Tensor) -> Tensor:
                self.last = x.flatten(1)
                return self.last

        model = Storing().eval()
        taken(model)
        assert type(model.last) is Tensor
        copy.deepcopy(model)

    def test_combiners_count(self) -> None:
        members = [LinearClassifier(3, SHAPE, seed=seed) for seed in range(2)]
        found = {taken(Ensemble(members, combiners.build(name)).eval()) for name in combiners.names()}
        assert len(found) == len(combiners.names())


def test_quantised_layers_have_a_hash_of_weights_and_settings() -> None:
    def quantised(factor: float) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        model[1].weight.data.mul_(factor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8).eval()

    assert weights_hash(quantised(1)) == weights_hash(quantised(1))
    assert weights_hash(quantised(2)) != weights_hash(quantised(1))  # the integers are the same, the scale is not
    assert taken(quantised(1)) == taken(quantised(1))


def attacked(model: nn.Module, store: Path, *attacks: FGSM | Transfer) -> tuple[list[bool], dict[str, int]]:
    """Return which images are correct under attacks, and when each file of outcomes was written."""
    job = EvaluationJob(model=model, split=random_split(), threat=ThreatModel(eps=0.1), attacks=attacks or (FGSM(),))
    correct = run_attacks(job, OutcomeStore(store)).worst_case.tolist()
    return correct, {str(path): path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}


def test_an_edited_network_is_attacked_anew_and_an_unchanged_one_is_not(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first, written = attacked(call_factory(folder / "net.py", "make"), store)
    assert attacked(call_factory(folder / "net.py", "make"), store) == (first, written)
    changed(folder / "net.py", "return scale", "return -scale")
    again, rewritten = attacked(call_factory(folder / "net.py", "make"), store)
    assert again != first
    assert all(rewritten[path] > written[path] for path in written)


def test_images_are_transferred_anew_from_an_edited_network(folder: Path, tmp_path: Path) -> None:
    model, store = LinearClassifier(3, SHAPE).eval(), tmp_path / "store"

    def transferred() -> dict[str, int]:
        source = call_factory(folder / "net.py", "make")
        return attacked(model, store, Transfer(attack=FGSM(), source=source, label="transfer"))[1]

    written = transferred()
    assert transferred() == written
    changed(folder / "parts.py", "return numbers", "return -numbers")
    moved = {path for path, time in transferred().items() if time > written[path]}
    assert {Path(path).parent.name for path in moved} == {"transfer"}


def test_what_python_callers_keep_belongs_to_code_and_images_too(folder: Path, tmp_path: Path) -> None:
    def described(images: Tensor) -> object:
        torch.manual_seed(0)
        split = TensorSplit(images, torch.zeros(len(images), dtype=torch.long))
        return _described({"model": call_factory(folder / "net.py", "make"), "data": split})

    images = torch.rand(200, *SHAPE, generator=seeded(0))
    before = described(images)
    assert described(images) == before
    assert described(1 - images) != before
    changed(folder / "parts.py", "return numbers", "return -numbers")
    assert described(images) != before
    plain = small_network().to(torch.bfloat16)
    assert _described(plain) == _described(plain) != _described(plain.float())
