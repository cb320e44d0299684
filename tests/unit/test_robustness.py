"""The evaluation of any classifier: what is kept, what is resumed, what is refused."""

import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sparsemble.evaluation.robustness import evaluate
from torch import nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.statistics import wilson

THREAT = ThreatModel(norm="linf", eps=0.1)
ATTACKS = (PGD(steps=3), PGD(steps=10, label="longer"))


def linear(classes: int = 3, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(seed)))
    return model


def images(n: int = 50, classes: int = 3) -> TensorSplit:
    x = torch.rand(n, 3, 2, 2, generator=seeded(1)) * 0.6 + 0.2
    y = torch.randint(classes, (n,), generator=seeded(2))
    y[::2] = linear(classes)(x).argmax(1)[::2]  # half the labels are the model's own answers
    return TensorSplit(x, y)


def test_counts_as_a_linear_model_must_be_counted() -> None:
    model, data = linear(2), images(classes=2)
    found = evaluate(model, data, [PGD(steps=20)], THREAT)
    x, y = data.tensors()
    logits = model(x)
    weight = model[1].weight
    margin = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]
    reach = 0.1 * (weight[0] - weight[1]).abs().sum()  # the box is 0.2 away, so eps 0.1 is never cut
    assert torch.equal(found.clean.right, margin > 0)
    assert torch.equal(found.attacks["pgd20"].right, margin > reach)
    assert torch.equal(found.worst_case, margin > reach)
    assert found.robust_accuracy == int((margin > reach).sum()) / 50


def test_images_wrong_when_clean_cost_nothing() -> None:
    model, data = linear(), images()
    wrong = evaluate(model, data, [PGD(steps=3)], THREAT).clean.right.logical_not()
    assert 5 < int(wrong.sum()) < 45
    outcome = evaluate(model, data.subset(wrong.nonzero()[:, 0]), [PGD(steps=3)], THREAT).attacks["pgd3"]
    assert not outcome.passes.any()
    assert not outcome.right.any()
    assert outcome.distance.max() == 0


def test_worst_case_is_the_union_over_images_not_the_smallest_accuracy() -> None:
    data = images(60)
    found = evaluate(linear(), data, [*ATTACKS, PGD(steps=1, random_start=False, label="single")], THREAT)
    union = found.clean.right.clone()
    for outcome in found.attacks.values():
        union &= outcome.right
    assert torch.equal(found.worst_case, union)
    table = found.to_json()
    assert table["worst_case"]["interval"] == list(wilson(int(union.sum()), 60))
    assert table["worst_case"]["outcomes"] == union.int().tolist()
    assert list(table["attacks"]) == ["pgd3", "longer", "single"]


def test_stored_images_reproduce_at_another_batch_size() -> None:
    model, data = linear(), images(45)
    found = evaluate(model, data, ATTACKS, THREAT, shard=10)
    for label, outcome in found.attacks.items():
        x_adv = found.images(label)
        assert x_adv.shape == (45, 3, 2, 2)
        with torch.no_grad():
            again = torch.cat([model(part).argmax(1) for part in x_adv.split(7)])
        assert torch.equal(again, outcome.answer)
        assert torch.allclose(THREAT.distance(x_adv, data.tensors()[0]), outcome.distance)


def test_half_precision_may_search_but_float32_decides() -> None:
    data = images(40)
    exact = evaluate(linear(), data, [PGD(steps=20)], THREAT)
    half = evaluate(linear(), data, [PGD(steps=20)], THREAT, search=torch.bfloat16)
    assert torch.equal(half.clean.right, exact.clean.right)
    with torch.no_grad():
        assert torch.equal(linear()(half.images("pgd20")).argmax(1), half.attacks["pgd20"].answer)


def test_goes_on_only_where_the_question_is_the_same(tmp_path: Path) -> None:
    data = images()
    first = evaluate(linear(), data, ATTACKS, THREAT, folder=tmp_path, shard=20)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 9
    again = evaluate(linear(), data, ATTACKS, THREAT, folder=tmp_path, shard=20)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    assert again.to_json() == first.to_json()
    other = evaluate(linear(seed=5), data, ATTACKS, THREAT, folder=tmp_path, shard=20)
    assert all(path.stat().st_mtime_ns != old for path, old in files.items())
    assert other.clean_accuracy != first.clean_accuracy


@pytest.mark.parametrize("harm", ["truncate", "garbage", "remove"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, harm: str) -> None:
    data = images()
    first = evaluate(linear(), data, ATTACKS, THREAT, folder=tmp_path, shard=20)
    victim = tmp_path / "longer" / "00001.safetensors"
    if harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100] if harm == "truncate" else b"nonsense" * 40)
    again = evaluate(linear(), data, ATTACKS, THREAT, folder=tmp_path, shard=20)
    assert torch.equal(again.attacks["longer"].right, first.attacks["longer"].right)
    assert torch.equal(again.images("longer"), first.images("longer"))


SCRIPT = """
import sys, torch
from pathlib import Path
from tests.unit.test_robustness import ATTACKS, THREAT, images, linear
from sparsemble.evaluation.robustness import evaluate
torch.set_num_threads(1)
print("ready", flush=True)
evaluate(linear(), images(600), ATTACKS, THREAT, folder=Path(sys.argv[1]), shard=2)
print("done", flush=True)
"""


def test_killed_ten_times_it_neither_repeats_nor_loses_a_shard(tmp_path: Path) -> None:
    whole = evaluate(linear(), images(600), ATTACKS, THREAT, shard=2)
    moments = random.Random(7)
    written: dict[Path, int] = {}
    interrupted = 0
    for _ in range(10):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        interrupted += "done" not in child.communicate()[0]
        now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        assert {path: now.get(path) for path in written} == written, "a finished shard was lost or made again"
        written = now
    assert interrupted >= 5
    assert written
    resumed = evaluate(linear(), images(600), ATTACKS, THREAT, folder=tmp_path, shard=2)
    for label in ("pgd3", "longer"):
        assert torch.equal(resumed.attacks[label].right, whole.attacks[label].right)
        assert torch.equal(resumed.images(label), whole.images(label))
        assert torch.equal(resumed.attacks[label].passes, whole.attacks[label].passes)


class Odd(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, linear()

    def forward(self, x: torch.Tensor) -> object:
        logits = self.inner(x[:, :2] if self.kind == "narrow" else x)
        outputs = {
            "probabilities": logits.softmax(1),
            "nan": logits * math.nan,
            "shape": logits[0],
            "tuple": (logits,),
        }
        return outputs[self.kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("probabilities", "returns probabilities; attacks need logits"),
        ("nan", "returns NaN"),
        ("shape", r"turned 8 images into \(3,\)"),
        ("tuple", "must return a tensor of logits, got tuple"),
        ("narrow", "cannot take images of 3x2x2"),
    ],
)
def test_refuses_a_model_that_is_no_classifier(kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        evaluate(Odd(kind).eval(), images(), ATTACKS, THREAT)


def test_refuses_what_does_not_fit() -> None:
    data = images()
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], got \[.*, 1[0-9.]+\]"):
        evaluate(linear(), TensorSplit(data.pixels * 20, data.labels), ATTACKS, THREAT)
    with pytest.raises(InputError, match=r"labels must lie in 0..2.*got 0..7"):
        evaluate(
            linear(),
            TensorSplit(data.pixels, data.labels.clone().fill_(7).scatter_(0, torch.tensor([0]), 0)),
            ATTACKS,
            THREAT,
        )
    with pytest.raises(InputError, match="3 outputs but the data set has 10 classes"):
        evaluate(linear(), data, ATTACKS, THREAT, classes=10)
    with pytest.raises(InputError, match="in training mode"):
        evaluate(linear().train(), data, ATTACKS, THREAT)
    with pytest.raises(InputError, match='label "pgd3" is taken'):
        evaluate(linear(), data, [PGD(steps=3), PGD(steps=3, step_size=0.5)], THREAT)
    with pytest.raises(InputError, match="no attacks"):
        evaluate(linear(), data, [], THREAT)
    with pytest.raises(InputError, match="no images"):
        evaluate(linear(), data.subset(torch.arange(0)), ATTACKS, THREAT)


class NaNFarOut(nn.Module):
    """Fine on clean images, NaN once an image has moved."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.inner, self.clean = linear(), clean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        known = (x[:, None] == self.clean[None]).flatten(2).all(2).any(1)
        return torch.where(known[:, None], self.inner(x), torch.full((len(x), 3), math.nan))


def test_nan_on_the_way_is_a_sentence() -> None:
    data = images(10)
    with pytest.raises(RunError, match="NaN"):
        evaluate(NaNFarOut(data.pixels).eval(), data, ATTACKS, THREAT)


def test_memory_and_disk_ledgers_agree(tmp_path: Path) -> None:
    data = images()
    in_memory = evaluate(linear(), data, ATTACKS, THREAT)
    on_disk = evaluate(linear(), data, ATTACKS, THREAT, folder=tmp_path)
    assert torch.equal(in_memory.images("pgd3"), on_disk.images("pgd3"))
    assert OutcomeStore(tmp_path).read("pgd3", 0, "another question") is None
