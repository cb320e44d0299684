"""Every stopping rule and combiner decides in numpy as it does in torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsemble.ensemble  # noqa: F401 (fills the registries)
from sparsemble.core.interfaces import StoppingRule, combiners, stopping_rules
from sparsemble.core.registry import to_dict
from sparsemble.runtime import combiners as runtime_combiners
from sparsemble.runtime import stopping
from sparsemble.runtime.errors import RuntimeInputError
from tests.contracts.test_stopping import every_rule
from tests.helpers import examples, random_logits

few = examples(20)
COMBINERS = combiners.names()


@pytest.mark.parametrize("rule", every_rule(), ids=lambda rule: rule.name)
@given(st.integers(1, 5), st.sampled_from([0.1, 1.0, 3.0, 50.0]), st.sampled_from(COMBINERS), st.integers(0, 999))
@few
def test_rules_decide_alike(rule: StoppingRule, members: int, scale: float, name: str, seed: int) -> None:
    logits = random_logits(members, 40, scale=scale, seed=seed).double()
    twin, combiner = stopping.build_rule(to_dict(rule)), combiners.build(name)
    combine = runtime_combiners.build_combiner(to_dict(combiner))
    for m in range(1, members + 1):
        decision = rule(logits[:m], combiner, last=m == members)
        stop, answer_with = twin(logits[:m].numpy(), combine, last=m == members)
        assert np.array_equal(stop, decision.stop.numpy())
        assert np.array_equal(answer_with[stop], decision.answer_with.numpy()[stop])


@pytest.mark.parametrize("name", combiners.names())
@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
def test_combiners_combine_alike(name: str, members: int, scale: float) -> None:
    combiner = combiners.build(name)
    logits = random_logits(members, 50, scale=scale)
    found = runtime_combiners.build_combiner(to_dict(combiner))(logits.numpy())
    np.testing.assert_allclose(found, combiner(logits).numpy(), rtol=1e-5, atol=1e-5 * scale)
    assert found.dtype == np.float32


def test_all_of_them_have_a_twin() -> None:
    assert sorted(stopping.RULES) == sorted(stopping_rules.names())
    for name in combiners.names():
        runtime_combiners.build_combiner(to_dict(combiners.build(name)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "sometimes"}, 'stopping rule "sometimes" is not known; known are never, at_once'),
        ({}, 'stopping rule "None" is not known'),
        ({"name": ["die"]}, "is not known"),
        ({"name": "confidence"}, 'stopping rule "confidence" lacks its setting "threshold"'),
        ({"name": "never", "a": 1.0}, 'stopping rule "never" has no setting "a"'),
        ({"name": "confidence", "threshold": "much"}, "is no number"),
        ({"name": "confidence", "threshold": float("nan")}, "is no number"),
        ({"name": "confidence", "threshold": 10**400}, "is no number"),
    ],
)
def test_rules_that_cannot_be_give_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RuntimeInputError, match=words):
        stopping.build_rule(settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "median"}, 'combiner "median" is not known; known are mean_probability'),
        ({"name": {"name": "die"}}, "is not known"),
        ({"name": "mean_logit", "weight": 1}, 'combiner "mean_logit" has no setting "weight"'),
        ({"name": "soft_vote", "temperature": 0}, "temperature = 0 must be above 0"),
    ],
)
def test_combiners_that_cannot_be_give_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RuntimeInputError, match=words):
        runtime_combiners.build_combiner(settings)
