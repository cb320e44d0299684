"""Robust diversity by counts, by pairs and in closed form; which ensemble is taken."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Bool
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import MemberLogits, seeded
from sparsemble.ensemble import PoolLogits, robust_diversity, select, selection_rules
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.ensemble.selection.greedy import Greedy
from sparsemble.ensemble.selection.literal_diversity import LiteralDiversity, literal_diversity
from sparsemble.ensemble.selection.robust_diversity import RobustDiversity
from sparsemble.ensemble.selection.rule import all_diversities
from sparsemble.ensemble.selection.top_robust import TopRobust
from tests.helpers import examples

few = examples(60)
MATRICES = st.integers(2, 6).flatmap(
    lambda members: st.lists(st.lists(st.booleans(), min_size=members, max_size=members), min_size=1, max_size=25)
)


def failures(members: int, images: int, rate: float, seed: int = 0) -> Bool[Tensor, "N n"]:
    return torch.rand(members, images, generator=seeded(seed)) < rate


def pool_logits(matrix: Bool[Tensor, "N n"]) -> PoolLogits:
    """Return logits of sub-models that fail as the matrix says, of two classes."""
    logits = torch.stack([~matrix, matrix], dim=-1).float()
    y = torch.zeros(matrix.shape[1], dtype=torch.long)
    return PoolLogits(
        logits={"clean": torch.zeros_like(logits) + torch.tensor([1.0, 0.0]), "pool": logits},
        y=y,
        combiner=MeanProbability(),
    )


def by_counts(matrix: Bool[Tensor, "N n"]) -> Fraction | None:
    """Eqs. 12-13 with p_i the share of images on which exactly i of the S members fail."""
    size, images = matrix.shape
    counts = matrix.sum(0).tolist()
    shares = {i: Fraction(counts.count(i), images) for i in range(1, size + 1)}
    p_one = sum(Fraction(i, size) * p for i, p in shares.items())
    p_two = sum(Fraction(i * (i - 1), size * (size - 1)) * p for i, p in shares.items())
    assert p_one == Fraction(int(matrix.sum()), size * images)  # the mean failure rate
    pairs = [Fraction(int((matrix[i] & matrix[j]).sum()), images) for i, j in itertools.combinations(range(size), 2)]
    assert p_two == sum(pairs) / len(pairs)  # the mean rate of failing together
    return 1 - p_two / p_one if p_one else None


class TestDiversity:
    @given(MATRICES)
    @few
    def test_by_counts_equals_mean_failure_and_mean_pairwise_co_failure(self, rows: list[list[bool]]) -> None:
        """The counts of eqs. 12-13 reduce to means over members and pairs."""
        matrix = torch.tensor(rows).T
        expected = by_counts(matrix)
        found = robust_diversity(matrix, tuple(range(len(matrix))))
        assert found == pytest.approx(1.0 if expected is None else float(expected), abs=1e-12)

    @pytest.mark.parametrize("rate", [0.1, 0.45, 0.8])
    def test_independent_failures_give_one_minus_their_rate(self, rate: float) -> None:
        matrix = failures(4, 200_000, rate)
        assert robust_diversity(matrix, (0, 1, 2, 3)) == pytest.approx(1 - rate, abs=0.01)

    @given(MATRICES, st.randoms(use_true_random=False))
    @few
    def test_does_not_depend_on_the_numbering(self, rows: list[list[bool]], random: object) -> None:
        matrix = torch.tensor(rows).T
        order = list(range(len(matrix)))
        random.shuffle(order)
        ensemble = tuple(range(len(matrix)))
        assert robust_diversity(matrix[order], ensemble) == pytest.approx(robust_diversity(matrix, ensemble), abs=1e-12)

    def test_equal_members_give_0_and_members_that_never_fail_together_1(self) -> None:
        same = failures(1, 50, 0.4).expand(3, 50)
        assert robust_diversity(same, (0, 1, 2)) == pytest.approx(0)
        assert robust_diversity(torch.eye(3, dtype=torch.bool), (0, 1, 2)) == 1
        assert robust_diversity(torch.zeros(3, 5, dtype=torch.bool), (0, 1, 2)) == 1

    def test_an_ensemble_is_scored_by_its_own_members_only(self) -> None:
        matrix = failures(6, 300, 0.4)
        for size in (2, 3, 4):
            ensembles = list(itertools.combinations(range(6), size))
            for ensemble, score in zip(ensembles, all_diversities(matrix, size, ensembles), strict=True):
                assert score == pytest.approx(float(by_counts(matrix[list(ensemble)])), abs=1e-12)


class TestRule:
    @given(st.integers(0, 500), st.integers(2, 4), st.booleans(), st.floats(0.3, 0.9))
    @few
    def test_equals_a_search_through_all_ensembles(
        self, seed: int, largest: int, exact: bool, threshold: float
    ) -> None:
        matrix = failures(5, 12, 0.5, seed)
        rule = RobustDiversity(threshold=threshold, exact_size=exact)
        found = rule(pool_logits(matrix), largest)
        scored = 0
        for size in range(largest if exact else 2, largest + 1):
            ensembles = list(itertools.combinations(range(5), size))
            scored += len(ensembles)
            diversity = {ensemble: robust_diversity(matrix, ensemble) for ensemble in ensembles}
            rate = {ensemble: float(matrix[list(ensemble)].double().mean()) for ensemble in ensembles}
            if max(diversity.values()) >= threshold:
                break
        best = max(diversity.values())
        assert found.robust_diversity == diversity[found.members] == best
        assert rate[found.members] == pytest.approx(min(rate[t] for t in ensembles if diversity[t] == best))
        assert found.ensembles_scored == scored
        assert list(found.members) == sorted(set(found.members))

    def test_says_which_part_of_it_decided(self) -> None:
        matrix = failures(6, 400, 0.45)
        exact = RobustDiversity(threshold=0.1)(pool_logits(matrix), 3)
        assert exact.reason == (
            "the most diverse ensemble of 3, the only size compared (exact_size), is above the threshold 0.1"
        )
        assert exact.members == RobustDiversity(threshold=0.0)(pool_logits(matrix), 3).members
        smallest = RobustDiversity(threshold=0.1, exact_size=False)(pool_logits(matrix), 3)
        assert smallest.reason == "the most diverse ensemble of 2, the fewest members that reach the threshold 0.1"
        missed = RobustDiversity(threshold=0.99, exact_size=False)(pool_logits(matrix), 3)
        assert len(missed.members) == 3
        independent = 1 - float(matrix[list(missed.members)].double().mean())
        assert f"would give {independent:.2f}), so the most diverse ensemble of 3 was taken" in missed.reason

    def test_the_smallest_ensemble_that_is_diverse_enough_wins(self) -> None:
        matrix = failures(4, 100, 0.5)
        matrix[1] = ~matrix[0]
        assert RobustDiversity(exact_size=False)(pool_logits(matrix), 4).members == (0, 1)
        assert len(RobustDiversity(exact_size=True)(pool_logits(matrix), 4).members) == 4

    def test_the_papers_pool_has_781_ensembles_of_at_most_4(self) -> None:
        found = RobustDiversity(threshold=1.0, exact_size=False)(pool_logits(failures(12, 200, 0.4)), 4)
        assert found.ensembles_scored == 781

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_a_threshold_outside_0_to_1_gives_a_sentence(self, threshold: float) -> None:
        with pytest.raises(InputError, match=r"threshold = .* must lie in \[0, 1\]"):
            RobustDiversity(threshold=threshold)


def answers(members: int, images: int, sets: int, seed: int = 0) -> PoolLogits:
    rng = seeded(seed)
    common = torch.randn(1, images, 4, generator=rng)

    def logits() -> MemberLogits:
        return 2 * (common + torch.randn(members, images, 4, generator=rng))

    names = ["clean", "pool", *(f"against {i}" for i in range(sets))]
    return PoolLogits(logits={name: logits() for name in names}, y=common[0].argmax(1), combiner=MeanProbability())


@pytest.mark.parametrize("name", selection_rules.names())
class TestEveryRule:
    @pytest.mark.parametrize("largest", [2, 4])
    def test_chooses_members_of_the_pool_once_and_says_why(self, name: str, largest: int) -> None:
        found = selection_rules.build(name)(answers(6, 80, 6), largest)
        assert list(found.members) == sorted(set(found.members))
        assert 2 <= len(found.members) <= largest
        assert all(0 <= member < 6 for member in found.members)
        assert found.reason
        assert found.ensembles_scored >= 1
        expected = robust_diversity(answers(6, 80, 6).failures, found.members)
        assert found.robust_diversity == pytest.approx(expected)

    def test_a_pool_of_equal_members_is_no_trouble(self, name: str) -> None:
        one = answers(1, 40, 2)
        same = PoolLogits(
            logits={k: v.expand(5, -1, -1) for k, v in one.logits.items()}, y=one.y, combiner=one.combiner
        )
        assert len(selection_rules.build(name)(same, 3).members) >= 2

    def test_an_ensemble_that_never_fails_is_no_trouble(self, name: str) -> None:
        assert len(selection_rules.build(name)(pool_logits(torch.zeros(4, 9, dtype=torch.bool)), 2).members) == 2


class TestSelect:
    @pytest.mark.parametrize("name", selection_rules.names())
    def test_is_the_rule_itself(self, name: str) -> None:
        rule, pool = selection_rules.build(name), answers(6, 80, 6)
        assert select(pool, 3, rule) == rule(pool, 3)

    @pytest.mark.parametrize("size", [0, 1, 7])
    def test_a_size_that_the_pool_does_not_allow_gives_a_sentence(self, size: int) -> None:
        with pytest.raises(InputError, match=f"size = {size} must be between 2 and 6, the sub-models in the pool"):
            select(answers(6, 20, 1), size, RobustDiversity())


class TestPoolLogits:
    def test_an_ensemble_is_right_where_its_combined_answer_is_in_every_set(self) -> None:
        found = answers(5, 60, 3)
        for ensemble in ((0,), (1, 4), (0, 2, 3)):
            right = []
            for image in range(60):
                combined = [logits[list(ensemble), image].softmax(-1).mean(0) for logits in found.logits.values()]
                right.append(all(int(one.argmax()) == int(found.y[image]) for one in combined))
            assert found.correct(ensemble).tolist() == right


class TestLiteralDiversity:
    def test_equals_the_sums_as_printed(self) -> None:
        rates = [0.2, 0.5, 0.3]
        one = 1 / 3 * 0.2 + 2 / 3 * 0.5 + 3 / 3 * 0.3
        two = 0 + 2 / 6 * 0.5 + 6 / 6 * 0.3
        assert literal_diversity(np.array([rates]))[0] == pytest.approx(1 - two / one)

    @pytest.mark.parametrize("size", [2, 3, 4, 6])
    def test_equal_members_have_a_third_whatever_their_number(self, size: int) -> None:
        assert literal_diversity(np.full((1, size), 0.4))[0] == pytest.approx(1 / 3)

    def test_depends_on_the_numbering(self) -> None:
        """Why it cannot be what is meant."""
        rates = np.array([[0.1, 0.4], [0.4, 0.1]])
        assert literal_diversity(rates)[0] != pytest.approx(literal_diversity(rates)[1])

    def test_takes_the_best_of_all_ensembles(self) -> None:
        matrix = failures(6, 50, 0.4, 3)
        found = LiteralDiversity(threshold=1.0)(pool_logits(matrix), 3)
        ensembles = list(itertools.combinations(range(6), 3))
        rates = matrix.double().mean(1).numpy()
        best = max(ensembles, key=lambda ensemble: literal_diversity(rates[None, list(ensemble)])[0])
        assert found.members == best
        assert found.ensembles_scored == len(ensembles)


class TestRobust:
    def test_top_robust_takes_those_that_are_right_most_often_alone(self) -> None:
        found = answers(6, 80, 6)
        right = {i: int(found.correct((i,)).sum()) for i in range(6)}
        ensemble = TopRobust()(found, 3).members
        assert min(right[i] for i in ensemble) >= max(right[i] for i in range(6) if i not in ensemble)

    def test_greedy_adds_whoever_helps_most(self) -> None:
        found, ensemble = answers(6, 80, 6), []
        for _ in range(3):
            score = {i: int(found.correct((*ensemble, i)).sum()) for i in range(6) if i not in ensemble}
            best = max(score.values())
            added = Greedy()(found, max(len(ensemble) + 1, 2)).members if ensemble else None
            choices = [i for i in score if score[i] == best]
            rate = found.failures.double().mean(1)
            ensemble.append(min(choices, key=lambda i: (float(rate[i]), i)))
            if added:
                assert added == tuple(sorted(ensemble))

    def test_greedy_prefers_who_helps_to_who_is_good(self) -> None:
        """Members 0 and 1 fail alike on 2 of 10 images; member 2 on 3 others, and less surely."""
        right = torch.zeros(3, 10)
        right[:, :] = 4.0
        right[:2, :2] = -1.0
        right[2, 2:5] = -1.0
        logits = torch.stack([right, torch.zeros_like(right)], dim=-1)
        found = PoolLogits(
            logits={"clean": logits, "pool": logits}, y=torch.zeros(10).long(), combiner=MeanProbability()
        )
        assert TopRobust()(found, 2).members == (0, 1)
        assert Greedy()(found, 2).members == (0, 2)


def test_all_ensembles_of_the_papers_pool_are_scored() -> None:
    matrix = failures(12, 5000, 0.4)
    scored = sum(
        len(all_diversities(matrix, size, list(itertools.combinations(range(12), size)))) for size in range(2, 13)
    )
    assert scored == 4083
