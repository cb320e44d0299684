"""Attacks on any classifier: which outcomes are stored, what is resumed, what is refused."""

import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.evaluation.job import EvaluationJob
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.run_attacks import Outcomes, run_attacks
from tests.processes import start_python, wait_for, wait_for_line

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


def attacked(
    model: nn.Module,
    split: TensorSplit,
    attacks: Sequence[Attack] = ATTACKS,
    folder: Path | None = None,
    **more: Any,
) -> Outcomes:
    """Run attacks with the usual threat model."""
    job = EvaluationJob(model=model, split=split, threat=THREAT, attacks=tuple(attacks), **more)
    return run_attacks(job, OutcomeStore(folder))


def test_counts_as_a_linear_model_must_be_counted() -> None:
    model, data = linear(2), images(classes=2)
    found = attacked(model, data, [PGD(steps=20)])
    x, y = data.tensors()
    logits = model(x)
    weight = model[1].weight
    margin = logits.gather(1, y[:, None])[:, 0] - logits.gather(1, 1 - y[:, None])[:, 0]
    reach = 0.1 * (weight[0] - weight[1]).abs().sum()  # the box is 0.2 away, so eps 0.1 is never cut
    assert torch.equal(found.clean.correct, margin > 0)
    assert torch.equal(found.attacks["pgd20"].correct, margin > reach)
    assert torch.equal(found.worst_case, margin > reach)
    assert found.robust_accuracy == int((margin > reach).sum()) / 50


def test_images_wrong_when_clean_cost_nothing() -> None:
    model, data = linear(), images()
    wrong = attacked(model, data, [PGD(steps=3)]).clean.correct.logical_not()
    assert 5 < int(wrong.sum()) < 45
    outcome = attacked(model, data.subset(wrong.nonzero()[:, 0]), [PGD(steps=3)]).attacks["pgd3"]
    assert not outcome.passes.any()
    assert not outcome.correct.any()
    assert outcome.distance.max() == 0


def test_worst_case_is_the_union_over_images_not_the_smallest_accuracy() -> None:
    data = images(60)
    found = attacked(linear(), data, [*ATTACKS, PGD(steps=1, random_start=False, label="single")])
    union = found.clean.correct.clone()
    for outcome in found.attacks.values():
        union &= outcome.correct
    assert torch.equal(found.worst_case, union)
    assert (
        found.robust_accuracy == int(union.sum()) / 60 <= min(o.correct.float().mean() for o in found.attacks.values())
    )
    assert list(found.attacks) == ["pgd3", "longer", "single"]


def test_stored_images_reproduce_at_another_batch_size() -> None:
    model, data = linear(), images(45)
    found = attacked(model, data, ATTACKS, shard=10)
    for label, outcome in found.attacks.items():
        x_adv = found.adversarial(label)
        assert x_adv.shape == (45, 3, 2, 2)
        with torch.no_grad():
            again = torch.cat([model(part).argmax(1) for part in x_adv.split(7)])
        assert torch.equal(again, outcome.prediction)
        assert torch.allclose(THREAT.distance(x_adv, data.tensors()[0]), outcome.distance)


def test_half_precision_may_search_but_float32_decides() -> None:
    data = images(40)
    exact = attacked(linear(), data, [PGD(steps=20)])
    half = attacked(linear(), data, [PGD(steps=20)], search_dtype="bfloat16")
    assert torch.equal(half.clean.correct, exact.clean.correct)
    with torch.no_grad():
        assert torch.equal(linear()(half.adversarial("pgd20")).argmax(1), half.attacks["pgd20"].prediction)


def test_goes_on_only_where_the_question_is_the_same(tmp_path: Path) -> None:
    data = images()
    first = attacked(linear(), data, ATTACKS, folder=tmp_path, shard=20)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 9
    again = attacked(linear(), data, ATTACKS, folder=tmp_path, shard=20)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == files
    assert list(again.attacks) == list(first.attacks)
    for label, outcome in again.attacks.items():
        for name, tensor in vars(outcome).items():
            assert torch.equal(tensor.nan_to_num(), getattr(first.attacks[label], name).nan_to_num()), (label, name)
    other = attacked(linear(seed=5), data, ATTACKS, folder=tmp_path, shard=20)
    assert all(path.stat().st_mtime_ns != old for path, old in files.items())
    assert other.clean_accuracy != first.clean_accuracy


@pytest.mark.parametrize("harm", ["truncate", "garbage", "remove"])
def test_a_damaged_shard_is_made_again(tmp_path: Path, harm: str) -> None:
    data = images()
    first = attacked(linear(), data, ATTACKS, folder=tmp_path, shard=20)
    victim = tmp_path / "longer" / "00001.safetensors"
    if harm == "remove":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:100] if harm == "truncate" else b"nonsense" * 40)
    again = attacked(linear(), data, ATTACKS, folder=tmp_path, shard=20)
    assert torch.equal(again.attacks["longer"].correct, first.attacks["longer"].correct)
    assert torch.equal(again.adversarial("longer"), first.adversarial("longer"))


SCRIPT = """
import sys, torch
from pathlib import Path
from tests.unit.test_run_attacks import attacked, images, linear
torch.set_num_threads(1)
print("ready", flush=True)
attacked(linear(), images(int(sys.argv[2])), folder=Path(sys.argv[1]), shard=2)
print("done", flush=True)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_neither_repeats_nor_loses_a_shard(kills: int, tmp_path: Path) -> None:
    whole = attacked(linear(), images(60 * kills), ATTACKS, shard=2)
    moments = random.Random(7)
    written: dict[Path, int] = {}
    interrupted = 0
    for _ in range(kills):
        child = start_python(SCRIPT, tmp_path / "shards", 60 * kills, out=tmp_path)
        wait_for_line(child, tmp_path, "ready")
        while not written and child.is_alive() and not any(tmp_path.rglob("*.safetensors")):
            time.sleep(0.01)  # so that the first kill finds a finished shard, however busy the machine is
        time.sleep(moments.uniform(0.0, 0.25))
        child.kill()
        wait_for(child)
        interrupted += "done" not in (tmp_path / "stdout").read_text("utf-8")
        now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
        assert {path: now.get(path) for path in written} == written, "a finished shard was lost or made again"
        written = now
    assert interrupted >= kills // 2
    assert written
    resumed = attacked(linear(), images(60 * kills), ATTACKS, folder=tmp_path / "shards", shard=2)
    for label in ("pgd3", "longer"):
        assert torch.equal(resumed.attacks[label].correct, whole.attacks[label].correct)
        assert torch.equal(resumed.adversarial(label), whole.adversarial(label))
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
        attacked(Odd(kind).eval(), images(), ATTACKS)


def test_refuses_what_does_not_fit() -> None:
    data = images()
    with pytest.raises(InputError, match=r"images must lie in \[0, 1\], got \[.*, 1[0-9.]+\]"):
        attacked(linear(), TensorSplit(data.pixels * 20, data.labels), ATTACKS)
    with pytest.raises(InputError, match=r"labels must lie in 0..2.*got 0..7"):
        attacked(
            linear(),
            TensorSplit(data.pixels, data.labels.clone().fill_(7).scatter_(0, torch.tensor([0]), 0)),
        )
    with pytest.raises(InputError, match="3 outputs but the data set has 10 classes"):
        attacked(linear(), data, ATTACKS, classes=10)
    with pytest.raises(InputError, match="in training mode"):
        attacked(linear().train(), data, ATTACKS)
    with pytest.raises(InputError, match='label "pgd3" is taken'):
        attacked(linear(), data, [PGD(steps=3), PGD(steps=3, step_size=0.5)])
    with pytest.raises(InputError, match="no attacks"):
        attacked(linear(), data, [])
    with pytest.raises(InputError, match="no images"):
        attacked(linear(), data.subset(torch.arange(0)), ATTACKS)


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
        attacked(NaNFarOut(data.pixels).eval(), data, ATTACKS)


def test_memory_and_disk_stores_agree(tmp_path: Path) -> None:
    data = images()
    in_memory = attacked(linear(), data, ATTACKS)
    on_disk = attacked(linear(), data, ATTACKS, folder=tmp_path)
    assert torch.equal(in_memory.adversarial("pgd3"), on_disk.adversarial("pgd3"))
    assert OutcomeStore(tmp_path).read("pgd3", 0, "another question") is None
