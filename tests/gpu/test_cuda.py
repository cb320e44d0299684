"""On a GPU (`pytest -m gpu`): the whole method runs in bfloat16, and gives what a processor gives."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsemble.attacks.ensemble
import sparsemble.ensemble
from sparsemble.attacks.attack import attacks
from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.interfaces import Ensemble, StoppingRule, stopping_rules
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.models.architecture import architectures, build_model
from sparsemble.training.loss import training_losses
from sparsemble.training.precision import Precision
from tests.contracts.test_stopping import every_rule
from tests.end_to_end.conftest import SMOKE, sparsemble
from tests.helpers import random_logits

pytestmark = pytest.mark.gpu
THREAT = ThreatModel(eps=8 / 255)
NEAR = 1e-4
"""Margins and distances to a threshold below this may fall either way."""


@pytest.fixture(autouse=True)
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")


def make_ensemble(members: int = 3) -> Ensemble:
    spec, shape, mean, std = architectures.build({"name": "resnet", "width": 4}), (3, 32, 32), (0.5,) * 3, (0.2,) * 3
    plain = [build_model(spec, shape, 10, mean, std, rng=seeded(i)) for i in range(members)]
    return Ensemble(plain, MeanProbability()).eval()


def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = seeded(1)
    return torch.rand(count, 3, 32, 32, generator=rng), torch.randint(0, 10, (count,), generator=rng)


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: rule.name)
def test_a_rule_decides_as_on_a_processor(rule: StoppingRule) -> None:
    logits = random_logits(4, 2000)
    here = decide_from_logits(logits, MeanProbability(), rule)
    there = decide_from_logits(logits.cuda(), MeanProbability(), rule)
    same = (here.answered_with == there.answered_with.cpu()) & (here.members_run == there.members_run.cpu())
    # What differs lies so near a threshold that logits moved by rounding decide differently here, too.
    moved = [decide_from_logits(logits * (1 + sign * NEAR), MeanProbability(), rule) for sign in (-1, 1)]
    near = (moved[0].answered_with != moved[1].answered_with) | (moved[0].members_run != moved[1].members_run)
    assert (same | near).all()
    assert (~same).sum() <= 2
    torch.testing.assert_close(there.logits.cpu()[same], here.logits[same], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(stopping_rules.components))
def test_a_batch_of_one_is_answered_as_in_256(name: str) -> None:
    model, rule = make_ensemble().cuda(), stopping_rules.build(name)
    x = images(256)[0].cuda()
    whole = predict_dynamic(model, x, rule)
    single = [predict_dynamic(model, x[i : i + 1], rule) for i in range(256)]
    assert torch.equal(torch.cat([one.answered_with for one in single]), whole.answered_with)
    assert torch.equal(torch.cat([one.members_run for one in single]), whole.members_run)
    torch.testing.assert_close(torch.cat([one.logits for one in single]), whole.logits, rtol=1e-3, atol=1e-3)


class Linear(nn.Module):
    """Two classes, told apart by one direction."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randn(48, generator=seeded(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        side = (x.flatten(1) - 0.5) @ self.w
        return torch.stack([side, -side], 1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "autoattack"])
def test_an_attack_reaches_the_worst_case_of_a_linear_model(name: str) -> None:
    model = Linear().cuda()
    x = 0.3 + 0.4 * torch.rand(64, 3, 4, 4, generator=seeded(3))
    x = x.cuda()
    y = model(x).argmax(1)
    x_adv = attacks.build(name)(model, x, y, THREAT, rng=seeded(4, "cuda"))
    margin = model(x).gather(1, y[:, None])[:, 0]
    breakable = margin < THREAT.eps * model.w.abs().sum() - 1e-4
    robust = margin > THREAT.eps * model.w.abs().sum() + 1e-4
    wrong = model(x_adv).argmax(1) != y
    assert breakable.any()
    assert wrong[breakable].all()
    assert not wrong[robust].any()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", sorted(training_losses.components))
def test_an_objective_takes_a_step(name: str, precision: str) -> None:
    model = make_ensemble().cuda().train()
    teacher = make_ensemble(1).cuda()
    training_loss = training_losses.build(name).with_teacher(teacher)
    x, y = (part.cuda() for part in images(32))
    with Precision(dtype=precision).applied(model, list(model.members)):  # type: ignore[arg-type]
        found = training_loss(model, x, y, THREAT, rng=seeded(5, "cuda"))
        found.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert found.loss.dtype == torch.float32
    assert gradients
    assert all(one.isfinite().all() for one in gradients)
    assert any(one.abs().max() > 0 for one in gradients)


def test_bfloat16_answers_as_float32_does() -> None:
    model = make_ensemble(1).cuda().eval()
    x = images(64)[0].cuda()
    with torch.no_grad():
        full = model(x)
        with Precision(dtype="bfloat16").applied(model, list(model.members)):
            half = model(x)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.1 * full.abs().max()
    assert F.cosine_similarity(half, full).min() > 0.99


def test_the_whole_method_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told = sparsemble(
        *("run", SMOKE, "--out", folder, "--device", "cuda", "--workers", 4),
        *("--set", "precision.dtype='bfloat16'", "--set", "ensemble.loss='joint'"),
        *("--set", "stopping.rule='agreement'"),
    )
    assert told.returncode == 0, told.stderr
    summary = json.loads((folder / "report" / "summary.json").read_text("utf-8"))
    assert len(summary["rows"]) == 6
    assert all(0 <= row["worst_case"] <= row["clean"] <= 1 for row in summary["rows"])
    devices = {json.loads(p.read_text("utf-8"))["device"] for p in folder.glob("*-*/meta.json")}
    assert devices == {"cuda"}
    # What was made on a GPU is measured alike on a processor.
    told = sparsemble(
        "evaluate", folder, "--device", "cpu", "--images", 40, "--attacks", "pgd", "--out", tmp_path / "cpu"
    )
    assert told.returncode == 0, told.stderr
