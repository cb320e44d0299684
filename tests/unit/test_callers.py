"""What Python callers give: labels, images, seeds and masks that are converted when exact, else named in a sentence."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.errors import InputError
from sparsemble.core.tensor_checks import checked_labels
from sparsemble.core.types import draw_seed, seeded
from sparsemble.data.assemble import as_split, without_test_images
from sparsemble.data.dataset import TensorSplit
from sparsemble.pruning.mask import Mask, jaccard
from tests.helpers import small_network
from tests.processes import run_python

Y = torch.tensor([0, 1, 2, 0])
SAME: dict[str, Any] = {
    "int32": Y.int(),
    "uint8": Y.to(torch.uint8),
    "float": Y.double(),
    "one-hot": torch.eye(3)[Y],
    "one-hot of booleans": torch.eye(3, dtype=torch.bool)[Y],
    "a column": Y[:, None],
    "an array": Y.numpy().astype(np.int16),
    "a list": Y.tolist(),
}
WRONG: dict[str, tuple[Any, str]] = {
    "negative": (Y - 1, r"labels must be 0 or more; got -1\.\.1"),
    "halves": (Y + 0.5, r"labels must be whole numbers, got 0\.5"),
    "NaN": (torch.tensor([0, 1, float("nan"), 2]), "labels must be whole numbers, got nan"),
    "too few": (Y[:3], r"one class index for each of the 4 images, got int64 of shape \(3,\)"),
    "a number": (torch.tensor(1), r"one class index for each of the 4 images, got int64 of shape \(\)"),
    "soft": (torch.full((4, 3), 1 / 3), r"labels of shape \(4, 3\) must be one-hot, a single 1 in each row"),
    "names": (["cat", "dog", "cat", "cow"], "labels must be a tensor of class indices, got list"),
    "complex": (Y.to(torch.complex64), "got complex64"),
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, 1, 4, 4, generator=seeded(5))


@pytest.mark.parametrize("labels", SAME.values(), ids=SAME)
def test_labels_of_any_exact_kind_are_taken(labels: Any) -> None:
    found = checked_labels(labels, 4, 3)
    assert found.dtype == torch.int64
    assert torch.equal(found, Y)


@pytest.mark.parametrize(("labels", "message"), WRONG.values(), ids=WRONG)
def test_other_labels_are_named(labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        checked_labels(labels, 4)


CALLS = """
import json, sys, numpy, torch
import sparsemble as sp
from sparsemble.api.results import TrainedModel
from sparsemble.attacks.attack import attacks
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.core.types import seeded
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.core.interfaces import Ensemble
from sparsemble.ensemble.stopping.never import Never
from sparsemble.pruning.mask import Mask

def network(seed):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()

model, threat = network(0), sp.Linf(0.1)
x, y = torch.rand(4, 1, 4, 4, generator=seeded(5)), torch.tensor([0, 1, 2, 0])
x[0, 0, 0, 0], x[1, 0, 0, 0] = 1.0, 0.0
outside = x.clone()
outside[0, 0, 0, 0], outside[1, 0, 0, 0] = 1.0000001, -1e-7
given = outside.clone()
far = outside.clone()
far[0, 0, 0, 0] = 1.00001
one_hot = torch.eye(3)[y]
fgsm, pgd, deepfool = (attacks.build(name) for name in ("fgsm", "pgd", "deepfool"))
many = x.repeat(6, 1, 1, 1), y.repeat(6)
ensemble = Ensemble([network(0), network(1)], MeanProbability()).eval()
slowdown = Slowdown(steps=2, restarts=1)

def same(call, *others):
    return all(torch.equal(call(), other()) for other in others)

@torch.inference_mode()
def inferred(attack):
    return attack(model, x.clone(), y.clone(), threat)

def evaluated(data):
    return sp.evaluate(model, data, threat, attacks=(fgsm,), adaptive=False)

cases = {"left as found": lambda: torch.equal(outside, given)}
settings = {"square": {"queries": 10}, "rays": {"queries": 10}, "pgd": {"steps": 3}, "noise": {"draws": 5}}
for name in ("fgsm", "pgd", "deepfool", "square", "autoattack", "rays", "noise"):
    attack = attacks.build({"name": name, **settings.get(name, {})})
    if name != "autoattack":  # takes seconds, on nothing of its own
        cases[f"{name} exact"] = lambda attack=attack: same(
        lambda: attack(model, x, y, threat),
        *[lambda kind=kind: attack(model, x, kind, threat) for kind in (y.int(), one_hot, y.double(), y.tolist())],
    )
    cases[f"{name} range"] = lambda attack=attack: attack(model, x, torch.tensor([0, 1, 7, 0]), threat)
cases |= {
    "negative": lambda: pgd(model, x, y - 1, threat),
    "minimum": lambda: attacks.build("deepfool").minimum(model, x, y + 7, "l2"),
    "threat": lambda: pgd(model, x, y, 0.1),
    "outside": lambda: same(lambda: pgd(model, x, y, threat), lambda: pgd(model, outside, y, threat)),
    "far": lambda: pgd(model, far, y, threat),
    "one image": lambda: pgd(model, x[0], y[:1], threat),
    "bytes": lambda: pgd(model, (x * 255).to(torch.uint8), y, threat),
    "array": lambda: pgd(model, x.numpy(), y, threat),
    "ensemble exact": lambda: same(
        lambda: slowdown(ensemble, Never(), x, y, threat), lambda: slowdown(ensemble, Never(), outside, one_hot, threat)
    ),
    "ensemble negative": lambda: slowdown(ensemble, Never(), x, y - 1, threat),
    "evaluate exact": lambda: evaluated(many).data.sha256
    == evaluated((outside.repeat(6, 1, 1, 1).numpy(), one_hot.repeat(6, 1).numpy())).data.sha256,
    "evaluate range": lambda: evaluated((many[0], torch.arange(24) % 6)),
    "evaluate seed": lambda: sp.evaluate(model, many, threat, seed=-1),
    "train seed": lambda: sp.train(model, many, threat, epochs=1, seed=-1),
    "train half": lambda: sp.train(model, many, threat, epochs=1, seed=0.5),
    "train range": lambda: sp.train(model, (many[0], torch.arange(24) % 6), threat, epochs=1),
    "prune range": lambda: sp.prune(model, (many[0], torch.arange(24) % 6), threat, sparsity=0.5),
    "train threat": lambda: sp.train(model, many, 0.1, epochs=1),
    "evaluate threat": lambda: sp.evaluate(model, many, 0.1),
    "evaluate attacks": lambda: sp.evaluate(model, many, threat, attacks=("fgsm",)),
    "evaluate numpy seed": lambda: sp.evaluate(
        model, many, threat, attacks=(fgsm,), seed=numpy.int64(2**40), adaptive=False
    ).seed == 2**40,
    "evaluate other mask": lambda: sp.evaluate(
        TrainedModel(model=model, mask=Mask({"7": torch.ones(3, 16) > 0})), many, threat, attacks=(fgsm,)
    ),
    "evaluate mask of another shape": lambda: sp.evaluate(
        TrainedModel(model=model, mask=Mask({"1": torch.ones(3) > 0})), many, threat, attacks=(fgsm,)
    ),
    "inference mode": lambda: same(lambda: pgd(model, x, y, threat), lambda: inferred(pgd)),
    "minimum in inference mode": lambda: same(lambda: deepfool(model, x, y, threat), lambda: inferred(deepfool)),
    "requires a gradient": lambda: same(
        lambda: pgd(model, x, y, threat), lambda: pgd(model, x.clone().requires_grad_(), y, threat)
    ),
    "double": lambda: pgd(model, x.double(), y, threat),
    "rng": lambda: pgd(model, x, y, threat, rng=3),
    "train soft": lambda: sp.train(model, (many[0], torch.full((24, 3), 1 / 3)), threat, epochs=1),
    "mask": lambda: Mask({"1": [True]}),
}
results = {}
for name, call in cases.items():
    try:
        results[name] = str(call())
    except Exception as error:
        results[name] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """What calls with arguments of other types return or say; in a process whose types are not checked by the tests."""
    ended = run_python(CALLS)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


NAMES = ("fgsm", "pgd", "deepfool", "square", "autoattack", "rays", "noise")


@pytest.mark.parametrize(
    "name", [*(f"{name} exact" for name in NAMES if name != "autoattack"), "outside", "left as found", "ensemble exact"]
)
def test_an_attack_takes_what_is_exact(name: str, results: dict[str, str]) -> None:
    assert results[name] == "True"


@pytest.mark.parametrize("name", ["inference mode", "minimum in inference mode", "requires a gradient"])
def test_an_attack_takes_gradients_where_its_caller_takes_none(name: str, results: dict[str, str]) -> None:
    assert results[name] == "True"


@pytest.mark.parametrize("name", ["evaluate exact", "evaluate numpy seed"])
def test_evaluate_takes_what_is_exact(name: str, results: dict[str, str]) -> None:
    assert results[name] == "True"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((f"{name} range", "labels must lie in 0..2, the model's classes; the highest is 7") for name in NAMES),
        ("minimum", "labels must lie in 0..2, the model's classes; the highest is 9"),
        ("negative", "labels must be 0 or more; got -1..1"),
        ("ensemble negative", "labels must be 0 or more; got -1..1"),
        ("threat", "threat = 0.1 must be a threat model, such as sparsemble.Linf(8 / 255)"),
        ("far", "images must lie in [0, 1], got [-1e-07, 1.00001001]; normalisation belongs inside the model"),
        ("one image", "images must be (B, C, H, W), got (1, 4, 4)"),
        ("bytes", "images must be floats in [0, 1], got uint8; divide whole numbers 0..255 by 255"),
        ("array", "images must be a tensor, got ndarray; use torch.as_tensor"),
        ("evaluate range", "labels must lie in 0..2, the model's classes; got 0..5"),
        ("train range", "the network has 3 outputs, but the labels are of 6 classes"),
        ("prune range", "the network has 3 outputs, but the labels are of 6 classes"),
        ("train threat", "threat = 0.1 must be a threat model, such as sparsemble.Linf(8 / 255)"),
        ("evaluate threat", "threat = 0.1 must be a threat model, such as sparsemble.Linf(8 / 255)"),
        (
            "evaluate attacks",
            "attacks = ('fgsm',) must be a list of attacks, such as [sparsemble.attacks.PGD()]",
        ),
        (
            "evaluate other mask",
            "the mask has a layer 7, which the network lacks; it belongs to another architecture",
        ),
        ("evaluate mask of another shape", "layer 1 has weights (3, 16), its mask (3,)"),
        (
            "double",
            "the model cannot take float64 images of 1x4x4: mat1 and mat2 must have the same dtype, but got "
            "Double and Float",
        ),
        ("rng", "rng must be a torch.Generator, got int; use torch.Generator().manual_seed(0)"),
        ("evaluate seed", "seed = -1 must be 0 or more"),
        ("train seed", "seed = -1 must be 0 or more"),
        ("train half", "seed = 0.5 must be a whole number, 0 or more"),
        (
            "train soft",
            "labels of shape (24, 3) must be one-hot, a single 1 in each row and 0 elsewhere; or give one "
            "class index for each image",
        ),
        ("mask", "the mask of layer 1 must be a tensor of true and false, or of 1 and 0, got list"),
    ],
)
def test_anything_else_is_named_in_a_sentence(name: str, message: str, results: dict[str, str]) -> None:
    assert results[name] == f"InputError: {message}"


def test_a_pair_is_made_a_split_or_refused(images: Tensor) -> None:
    assert torch.equal(as_split((images.numpy()[::-1], Y)).tensors()[0], images.flip(0))
    for pair, message in (
        ((images.long(), Y), r"uint8 in 0\.\.255 or float in \[0, 1\], got int64"),
        ((np.array(["a"]), Y), "images must be a tensor or an array of numbers, got ndarray"),
        ((images, Y[:2]), r"images must be \(N, C, H, W\) with one label each"),
        ((images * 255, Y), r"images must lie in \[0, 1\], got"),
    ):
        with pytest.raises(InputError, match=message):
            as_split(pair)
    with pytest.raises(InputError, match="the labels go up to 1,000,000,000, for 4 images; number the classes from 0"):
        without_test_images(as_split((images, torch.tensor([0, 1, 2, 10**9]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_handed_out_in_the_order_of_their_shape(channels: int) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (6, 5, 4, channels), dtype=np.uint8).transpose(0, 3, 1, 2)
    for pixels in (torch.from_numpy(stored), torch.from_numpy(stored).float() / 255):
        split = TensorSplit(pixels, torch.arange(6))
        for part in (split, split.subset(torch.tensor([1, 2]))):
            x = part.tensors()[0]
            assert x.stride() == (20 * channels, 20, 4, 1)
            nn.Conv2d(channels, 2, 3)(x).view(len(x), -1)


def test_seeds_of_any_size_are_taken_and_negative_ones_named() -> None:
    draws = [torch.rand(3, generator=seeded(seed)).tolist() for seed in (0, 2**64, 10**40)]
    assert len({tuple(draw) for draw in draws}) == 3
    assert checked_seed(np.int64(3)) == 3
    assert draw_seed(3, "a") != draw_seed(10**40, "a")
    for seed, message in ((-1, r"seed = -1 must be 0 or more"), (1.5, r"seed = 1\.5 must be a whole number")):
        with pytest.raises(InputError, match=message):
            checked_seed(seed)
    with pytest.raises(InputError, match="seed = -3 must be 0 or more"):
        seeded(-3)


def test_masks_given_by_hand_are_converted_or_named() -> None:
    network = small_network()
    of = Mask.of(network)
    numbers = Mask({name: keep.float() for name, keep in of.items()})
    assert all(torch.equal(numbers[name], of[name]) for name in of)
    numbers.apply_(network)
    with pytest.raises(InputError, match=r"mask of layer 0 must be a tensor of true and false, .* \(torch.float32\)"):
        Mask({"0": torch.full((4, 1, 3, 3), 0.5)})
    with pytest.raises(InputError, match="the mask and the model differ in layer"):
        Mask({"0": of["0"]}).apply_(network)
    with pytest.raises(InputError, match=r"layer 0 has weights \(4, 1, 3, 3\), its mask \(4,\)"):
        Mask({**of, "0": torch.ones(4, dtype=torch.bool)}).apply_(network)
    with pytest.raises(InputError, match="the masks differ in layer 4"):
        jaccard(of, Mask({"0": of["0"]}))
    assert Mask({}).sparsity == 0
