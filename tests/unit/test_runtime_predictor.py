"""The predictor against the torch ensemble: labels, probabilities, members run, and what bad input gets."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemble.core.interfaces import Ensemble, StoppingRule, combiners
from sparsemble.core.registry import to_dict
from sparsemble.core.types import seeded
from sparsemble.ensemble import predict_dynamic
from sparsemble.ensemble.stopping.agreement import Agreement
from sparsemble.ensemble.stopping.confidence import Confidence
from sparsemble.ensemble.stopping.die import DIE
from sparsemble.ensemble.stopping.never import Never
from sparsemble.models.convert import convert_model
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.packed import save
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.predictor import Predictor
from tests.helpers import tiny_ensemble
from tests.processes import run_python

SHAPE = (1, 8, 8)
RULES = [Never(), DIE(b=30.0, tau_c=0.5), Confidence(threshold=0.7), Agreement(sure=0.6, votes=2)]


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSEMBLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def trained(members: int = 3) -> Ensemble:
    return tiny_ensemble(members, combiners.build("mean_probability"), shape=SHAPE)


def packed(ensemble: Ensemble, rule: StoppingRule, **settings: object) -> PackedEnsemble:
    return PackedEnsemble(
        members=tuple(convert_model(member, SHAPE) for member in ensemble.members),
        combiner=to_dict(ensemble.combiner),
        rule=to_dict(rule),
        classes=("a", "b", "c", "d", "e"),
        parent_weights=1000,
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_answers_as_the_torch_ensemble_does(rule: StoppingRule) -> None:
    ensemble, x = trained(), torch.rand(70, *SHAPE, generator=seeded(0))
    expected = predict_dynamic(ensemble, x, rule)
    found = Predictor(packed(ensemble, rule)).predict(x.numpy())
    assert np.array_equal(found.labels, expected.logits.argmax(1).numpy())
    assert np.array_equal(found.members_run, expected.members_run.numpy())
    assert np.array_equal(found.answered_with, expected.answered_with.numpy())
    np.testing.assert_allclose(found.probabilities, expected.logits.softmax(1).numpy(), atol=1e-4)
    if rule != Never():
        assert len(set(found.members_run.tolist())) > 1


def test_the_batch_and_the_threads_do_not_matter() -> None:
    ensemble = packed(trained(), Confidence(threshold=0.7))
    x = torch.rand(40, *SHAPE, generator=seeded(0)).numpy()
    predictor = Predictor(ensemble)
    whole, threaded = predictor.predict(x), Predictor(ensemble, threads=2).predict(x)
    single = [predictor.predict(x[i : i + 1]) for i in range(40)]
    for name in ("labels", "probabilities", "members_run", "answered_with"):
        assert np.array_equal(getattr(whole, name), getattr(threaded, name))
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(one, name) for one in single]))


def test_whole_numbers_and_floats_mean_the_same() -> None:
    predictor = Predictor(packed(trained(), Never()))
    whole = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 1), dtype=np.uint8)
    floats = whole.transpose(0, 3, 1, 2).astype(np.float32) / 255
    assert np.array_equal(predictor.predict(whole).probabilities, predictor.predict(floats).probabilities)


def test_no_images_get_no_answers() -> None:
    found = Predictor(packed(trained(), Never())).predict(np.zeros((0, *SHAPE), np.float32))
    assert found.labels.shape == (0,)
    assert found.probabilities.shape == (0, 5)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((2, 1, 9, 8), np.float32), r"images of floats must be \(B, 1, 8, 8\), got \(2, 1, 9, 8\)"),
        (np.zeros((1, 8, 8), np.float32), r"must be \(B, 1, 8, 8\)"),
        (np.zeros((2, 1, 8, 8), np.uint8), r"images of whole numbers must be \(B, 8, 8, 1\)"),
        (np.zeros((2, 1, 8, 8), np.int64), "images must be floats in .* or uint8, got int64"),
        (np.full((2, 1, 8, 8), 1.5, np.float32), r"images must lie in \[0, 1\], got \[1.5, 1.5\]"),
        (np.full((2, 1, 8, 8), np.nan, np.float32), r"images must lie in \[0, 1\]"),
    ],
)
def test_other_images_get_a_sentence(images: np.ndarray, words: str) -> None:
    with pytest.raises(RuntimeInputError, match=words):
        Predictor(packed(trained(1), Never())).predict(images)


def test_less_than_one_thread_gets_a_sentence() -> None:
    with pytest.raises(RuntimeInputError, match="threads = 0 must be 1 or more; this machine has"):
        Predictor(packed(trained(1), Never()), threads=0)


def test_what_is_no_array_and_no_number_of_threads_gets_a_sentence(tmp_path: Path) -> None:
    """In a process without the type checker of the tests."""
    save(packed(trained(1), Never()), tmp_path / "a.sparsemble")
    code = f"""
from sparsemble import runtime
def said(call):
    try:
        call()
    except runtime.RuntimeInputError as error:
        print(error)
file = {str(tmp_path / "a.sparsemble")!r}
for images in ([[0.5]], None):
    said(lambda: runtime.load(file).predict(images))
for threads in ("2", 2.0, None):
    said(lambda: runtime.load(file, threads=threads))
"""
    found = run_python(code).stdout
    assert found.splitlines() == [
        "images must be a numpy array or a list of paths, got list",
        "images must be a numpy array or a list of paths, got NoneType",
        "threads = '2' must be a whole number, 1 or more",
        "threads = 2.0 must be a whole number, 1 or more",
        "threads = None must be a whole number, 1 or more",
    ]
