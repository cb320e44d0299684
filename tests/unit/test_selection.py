"""Robust diversity by counts, by pairs and in closed form; which team is taken."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool
from torch import Tensor

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.ensemble import robust_diversity
from sparsemble.ensemble.selection.robust_diversity import RobustDiversity
from sparsemble.ensemble.selection.rule import all_diversities

few = settings(deadline=None, max_examples=60)
MATRICES = st.integers(2, 6).flatmap(
    lambda members: st.lists(st.lists(st.booleans(), min_size=members, max_size=members), min_size=1, max_size=25)
)


def failures(members: int, images: int, rate: float, seed: int = 0) -> Bool[Tensor, "N n"]:
    return torch.rand(members, images, generator=seeded(seed)) < rate


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
        """Method.md check 1."""
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
        team = tuple(range(len(matrix)))
        assert robust_diversity(matrix[order], team) == pytest.approx(robust_diversity(matrix, team), abs=1e-12)

    def test_equal_members_give_0_and_members_that_never_fail_together_1(self) -> None:
        same = failures(1, 50, 0.4).expand(3, 50)
        assert robust_diversity(same, (0, 1, 2)) == pytest.approx(0)
        assert robust_diversity(torch.eye(3, dtype=torch.bool), (0, 1, 2)) == 1
        assert robust_diversity(torch.zeros(3, 5, dtype=torch.bool), (0, 1, 2)) == 1

    def test_a_team_is_scored_by_its_own_members_only(self) -> None:
        matrix = failures(6, 300, 0.4)
        for size in (2, 3, 4):
            teams = list(itertools.combinations(range(6), size))
            for team, score in zip(teams, all_diversities(matrix, size, teams), strict=True):
                assert score == pytest.approx(float(by_counts(matrix[list(team)])), abs=1e-12)


class TestRule:
    @given(st.integers(0, 500), st.integers(2, 4), st.booleans(), st.floats(0.3, 0.9))
    @few
    def test_equals_a_search_through_all_teams(self, seed: int, largest: int, exact: bool, threshold: float) -> None:
        matrix = failures(5, 12, 0.5, seed)
        rule = RobustDiversity(threshold=threshold, exact_size=exact)
        found = rule(matrix, largest)
        scored = 0
        for size in range(largest if exact else 2, largest + 1):
            teams = list(itertools.combinations(range(5), size))
            scored += len(teams)
            diversity = {team: robust_diversity(matrix, team) for team in teams}
            rate = {team: float(matrix[list(team)].double().mean()) for team in teams}
            if max(diversity.values()) >= threshold:
                break
        best = max(diversity.values())
        assert found.robust_diversity == diversity[found.team] == best
        assert rate[found.team] == pytest.approx(min(rate[t] for t in teams if diversity[t] == best))
        assert found.teams_scored == scored
        assert list(found.team) == sorted(set(found.team))

    def test_says_which_part_of_it_decided(self) -> None:
        matrix = failures(6, 400, 0.45)
        reached = RobustDiversity(threshold=0.1)(matrix, 3)
        assert reached.reason == "the most diverse team of 3 reaches the threshold 0.1"
        missed = RobustDiversity(threshold=0.99, exact_size=False)(matrix, 3)
        assert len(missed.team) == 3
        independent = 1 - float(matrix[list(missed.team)].double().mean())
        assert f"would give {independent:.2f}), so the most diverse team of 3 was taken" in missed.reason

    def test_the_smallest_team_that_is_diverse_enough_wins(self) -> None:
        matrix = failures(4, 100, 0.5)
        matrix[1] = ~matrix[0]
        assert RobustDiversity(exact_size=False)(matrix, 4).team == (0, 1)
        assert len(RobustDiversity(exact_size=True)(matrix, 4).team) == 4

    def test_the_papers_pool_has_781_teams_of_at_most_4(self) -> None:
        found = RobustDiversity(threshold=1.0, exact_size=False)(failures(12, 200, 0.4), 4)
        assert found.teams_scored == 781

    @pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
    def test_a_threshold_outside_0_to_1_gives_a_sentence(self, threshold: float) -> None:
        with pytest.raises(InputError, match=r"threshold = .* must lie in \[0, 1\]"):
            RobustDiversity(threshold=threshold)
