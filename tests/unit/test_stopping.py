"""DIE against a literal evaluation of its formula, and the printed rule that always stops at once."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsemble.core.dynamic import decide_from_logits
from sparsemble.core.errors import InputError
from sparsemble.ensemble.combiners.maximum import Maximum
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.stopping.agreement import Agreement
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never
from tests import helpers
from tests.helpers import examples

MEAN = MeanProbability()
few = examples(40)
random_logits = functools.partial(helpers.random_logits, dtype=torch.float64)
RULES = st.builds(DIE, a=st.floats(0.1, 60), b=st.floats(0.1, 130), tau_u=st.floats(0, 0.5), tau_c=st.floats(0.0, 1.0))


def averages(logits: Tensor) -> list[list[float]]:
    """Running averages of the members' probabilities on one image, (M, K)."""
    found, total = [], [0.0] * logits.shape[-1]
    for t, member in enumerate(logits.tolist(), start=1):
        largest = max(member)
        weights = [math.exp(value - largest) for value in member]
        total = [so_far + weight / sum(weights) for so_far, weight in zip(total, weights, strict=True)]
        found.append([value / t for value in total])
    return found


def quantities(logits: Tensor) -> tuple[list[float], list[float]]:
    """C_1..C_M, squared confidence, and U_1..U_M, change in nats with U_1 = 0, on one image."""
    mean = averages(logits)
    change = [0.0]
    for now, before in zip(mean[1:], mean, strict=False):
        pairs = zip(now, before, strict=True)
        change.append(sum(p * (math.log(max(p, 1e-12)) - math.log(max(q, 1e-12))) for p, q in pairs))
    return [max(p) ** 2 for p in mean], change


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def literal_mass(rule: DIE, logits: Tensor) -> list[float]:
    """z_1..z_M of one image with plain loops, the last step taking the rest."""
    confidence, change = quantities(logits)
    probabilities, survival = [], 1.0
    for t, (c, u) in enumerate(zip(confidence, change, strict=True)):
        doubt = rule.a * (u - rule.tau_u) if t else 0.0
        hazard = sigmoid(rule.b * (c - rule.tau_c) - doubt) if t < len(confidence) - 1 else 1.0
        probabilities.append(hazard * survival)
        survival *= 1 - hazard
    return probabilities


def printed_stop(logits: Tensor, a: float, b: float) -> int:
    """The paper's rule as printed: z = arg max_t q_t prod_{i<t} (1 - q_i), q_t = sigmoid(a U_t + b C_t)."""
    confidence, change = quantities(logits)
    best, answer, survival = -1.0, 0, 1.0
    for t, (c, u) in enumerate(zip(confidence, change, strict=True), start=1):
        hazard = sigmoid(a * u + b * c)
        if hazard * survival > best:
            best, answer = hazard * survival, t
        survival *= 1 - hazard
    return answer


class TestDIE:
    @given(RULES, st.integers(1, 5), st.integers(0, 999))
    @few
    def test_stop_probability_equals_the_literal_formula(self, rule: DIE, members: int, seed: int) -> None:
        """: sum_t z_t = 1 with the last step absorbing."""
        logits = random_logits(members, 4, seed=seed)
        expected = torch.tensor([literal_mass(rule, logits[:, i]) for i in range(4)], dtype=torch.float64).T
        torch.testing.assert_close(rule.log_stop_probability(logits, MEAN).exp(), expected)
        torch.testing.assert_close(expected.sum(0), torch.ones(4, dtype=torch.float64))

    @given(RULES, st.integers(0, 999))
    @few
    def test_each_mass_is_what_survival_loses(self, rule: DIE, seed: int) -> None:
        logits = random_logits(5, 6, seed=seed)
        survival = torch.cat([torch.ones(1, 6, dtype=torch.float64), (1 - rule.hazards(logits, MEAN)).cumprod(0)])
        torch.testing.assert_close(
            rule.log_stop_probability(logits, MEAN).exp()[:-1], (survival[:-1] - survival[1:])[:-1]
        )

    def test_the_causal_certificate_is_the_full_arg_max(self) -> None:
        """Answers are those of the arg max over all steps, although later members were never run."""
        saved = 0
        for seed, scale in enumerate((0.5, 1.0, 3.0, 10.0)):
            logits = random_logits(5, 2000, scale=scale, seed=seed)
            for rule in (DIE(), DIE(a=30.0, b=100.0, tau_c=0.9), DIE(a=2.0, b=4.0, tau_u=0.3, tau_c=0.7)):
                found = decide_from_logits(logits, MeanProbability(), rule)
                stop_probability = rule.log_stop_probability(logits, MEAN).exp()
                assert torch.equal(found.answered_with - 1, stop_probability.argmax(0))
                assert (found.answered_with <= found.members_run).all()
                saved += int((found.members_run < 5).sum())
        assert saved > 1000

    def test_it_stops_no_later_than_the_arg_max_is_certain(self) -> None:
        rule, logits = DIE(tau_c=0.9), random_logits(5, 1000)
        stop_probability = rule.log_stop_probability(logits, MEAN).exp()
        found = decide_from_logits(logits, MeanProbability(), rule)
        for i in range(1000):
            z = stop_probability[:, i].tolist()
            certain = next(t for t in range(1, 6) if t == 5 or max(z[:t]) >= sum(z[t:]))
            assert int(found.members_run[i]) == certain

    @given(st.floats(-50, 50), st.floats(0.01, 50), st.integers(0, 9999))
    @examples(150)
    def test_the_printed_rule_always_stops_at_1(self, a: float, b: float, seed: int) -> None:
        """Without thresholds q_1 >= 1/2 bounds all later stop probabilities."""
        logits = random_logits(5, 8, seed=seed)
        assert [printed_stop(logits[:, i], a, b) for i in range(8)] == [1] * 8

    def test_ours_can_run_on_because_its_thresholds_are_on(self) -> None:
        logits = random_logits(4, 2000, scale=1.0)
        found = decide_from_logits(logits, MeanProbability(), DIE())
        assert set(found.answered_with.tolist()) == {1, 2, 3, 4}
        assert (found.members_run > 1).float().mean() > 0.2
        assert found.members_run.unique().tolist() == [1, 2, 3, 4]

    def test_a_sure_member_stops_at_once_and_a_doubtful_ensemble_runs_to_the_end(self) -> None:
        sure, doubtful = torch.zeros(4, 1, 5), torch.zeros(4, 1, 5)
        sure[:, :, 2] = 50.0
        doubtful[:, 0, :2] = torch.tensor([[0.3, 0.0], [0.0, 0.3], [0.3, 0.0], [0.0, 0.3]])
        rule = DIE(a=8.0, b=128.0, tau_c=0.5)
        assert decide_from_logits(sure, MeanProbability(), rule).members_run.tolist() == [1]
        assert decide_from_logits(doubtful, MeanProbability(), rule).members_run.tolist() == [4]

    def test_change_lowers_the_hazard(self) -> None:
        steady, jumping = torch.zeros(2, 1, 3), torch.zeros(2, 1, 3)
        steady[:, 0, 0] = 2.0
        jumping[0, 0, 1], jumping[1, 0, 0] = 2.0, 2.0
        assert DIE().hazards(steady, MEAN)[1] > DIE().hazards(jumping, MEAN)[1]

    @pytest.mark.parametrize("settings", [{"a": 0.0}, {"b": -1.0}, {"a": float("nan")}])
    def test_settings_that_would_stop_on_doubt_give_a_sentence(self, settings: dict[str, float]) -> None:
        with pytest.raises(InputError, match="must be above 0; otherwise change would stop early"):
            DIE(**settings)


def test_never_runs_every_member() -> None:
    logits = random_logits(4, 10)
    found = decide_from_logits(logits, MeanProbability(), Never())
    assert found.answered_with.tolist() == found.members_run.tolist() == [4] * 10
    assert Never().log_stop_probability(logits, MEAN).exp().sum(1).tolist() == [0, 0, 0, 10]
    assert list(Never().candidates(logits, MEAN)) == [Never()]


class TestOtherCombiners:
    """What a prefix predicts is what the ensemble would predict with it."""

    def test_hazards_of_the_maximum_are_literal(self) -> None:
        logits, rule = random_logits(4, 30), DIE()
        best = logits.softmax(-1).cummax(0).values
        combined = best / best.sum(-1, keepdim=True)
        change = (combined[1:] * (combined[1:] / combined[:-1]).log()).sum(-1)
        doubt = torch.cat([torch.zeros(1, 30, dtype=torch.float64), rule.a * (change - rule.tau_u)])
        expected = (rule.b * (combined.amax(-1).square() - rule.tau_c) - doubt).sigmoid()
        torch.testing.assert_close(rule.hazards(logits, Maximum()), expected)

    def test_agreement_votes_for_the_class_that_would_be_predicted(self) -> None:
        """Two members lean to class 0 by a mean of 0.41 to 0.39; by the maximum the third one's class 1 leads."""
        probabilities = torch.tensor([[0.6, 0.1, 0.3], [0.6, 0.1, 0.3], [0.02, 0.97, 0.01]], dtype=torch.float64)
        logits, rule = probabilities.log()[:, None], Agreement(sure=2.0, votes=2, lead=0.0)
        late = logits[[0, 2, 1]]
        assert decide_from_logits(late, MeanProbability(), rule).logits.argmax(1).tolist() == [0]
        assert decide_from_logits(late, Maximum(), rule).logits.argmax(1).tolist() == [1]
        stop = {c.name: rule(late, c, last=False).stop.item() for c in (MeanProbability(), Maximum())}
        assert stop == {"mean_probability": True, "maximum": False}
