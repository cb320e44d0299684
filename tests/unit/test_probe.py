"""Strange models are read as classifiers, or refused with the cause before any work."""

import numpy as np
import pytest
import torch
from torch import nn

import sparsemble as sp
from sparsemble.attacks import PGD, Noise, RayS
from sparsemble.core.errors import InputError
from sparsemble.core.pass_counter import count_passes
from sparsemble.data.dataset import Split, TensorSplit
from sparsemble.evaluation.probe import probe
from sparsemble.models.adapted import NumpyFunction

CLASSES = 3


class Linear(nn.Module):
    """Linear in the pixels, so that logits and gradients have a closed form."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 16, generator=torch.Generator().manual_seed(0)))

    def logits(self, x):
        return x.reshape(x.shape[0], -1) @ self.weight.T

    def forward(self, x):
        return self.logits(x)


@pytest.fixture
def data() -> Split:
    x = torch.rand(10, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return TensorSplit(x, torch.arange(10) % CLASSES)


def images(data: Split, n: int = 5) -> torch.Tensor:
    return data.images(torch.arange(n))


def changed(forward, outputs: int = CLASSES) -> nn.Module:
    """A linear network with another forward pass."""
    kind = type("Changed", (Linear,), {"forward": forward})
    return kind(outputs).eval()


def test_a_plain_network_stays_itself(data):
    model = Linear().eval()
    probed = probe(model, data, classes=CLASSES)
    assert probed.model is model
    assert probed.notes == ()


def scale_in_place(self, x):
    x.sub_(0.5)
    return self.logits(x)


READABLE = {
    "dictionary": (lambda self, x: {"loss": torch.zeros(()), "logits": self.logits(x)}, "dict"),
    "tuple": (lambda self, x: (self.logits(x), x.mean()), "tuple"),
    "object": (lambda self, x: type("Output", (), {"logits": self.logits(x)})(), "Output"),
    "double": (lambda self, x: self.logits(x).double(), "float64"),
    "half": (lambda self, x: self.logits(x).half(), "float16"),
    "one by one": (lambda self, x: self.logits(x)[:, :, None, None], ""),
    "squeezed": (lambda self, x: self.logits(x).squeeze(), "twice"),
}


@pytest.mark.parametrize("kind", READABLE)
def test_logits_are_those_of_the_plain_network(data, kind):
    forward, note = READABLE[kind]
    probed = probe(changed(forward), data, classes=CLASSES)
    x = images(data)
    expected = Linear()(x)
    for part in (x, x[:1]):
        logits = probed.model(part)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected[: len(part)], rtol=2e-3, atol=2e-3)
    assert note in " ".join(probed.notes)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(probed.model(point)[:, 0].sum(), point)
    torch.testing.assert_close(gradient[0].flatten(), Linear().weight[0].detach(), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_another_dtype_get_their_images_in_it(data, dtype):
    model = Linear().to(dtype).eval()
    probed = probe(model, data, classes=CLASSES)
    assert probed.model(images(data)).dtype == torch.float32
    assert probed.model.adaptation.is_coarse == (dtype != torch.float64)
    assert len(probed.notes) == 2


def test_a_network_that_changes_its_images_gets_copies(data):
    probed = probe(changed(scale_in_place), data, classes=CLASSES)
    x = images(data)
    before = x.clone()
    logits = probed.model(x)
    assert torch.equal(x, before)
    torch.testing.assert_close(logits, Linear()(x - 0.5))
    x.requires_grad_()
    probed.model(x).sum().backward()


def test_one_logit_is_a_binary_classifier(data):
    for shape in (lambda z: z, lambda z: z[:, 0]):
        probed = probe(changed(lambda self, x, shape=shape: shape(10 * self.logits(x)), outputs=1), data, classes=2)
        x = images(data)
        z = 10 * Linear(1)(x)
        torch.testing.assert_close(probed.model(x).softmax(1)[:, 1], z[:, 0].sigmoid())


def test_probabilities_need_no_gradient_or_are_refused(data):
    softmax = changed(lambda self, x: self.logits(x).softmax(1))
    with pytest.raises(InputError, match="take the softmax off its end"):
        probe(softmax, data, classes=CLASSES)
    x = images(data)
    torch.testing.assert_close(
        probe(softmax, data, classes=CLASSES, access="scores").model(x), Linear()(x).log_softmax(1)
    )
    sigmoid = changed(lambda self, x: self.logits(x).sigmoid(), outputs=1)
    with pytest.raises(InputError, match="take the sigmoid off its end"):
        probe(sigmoid, data, classes=2)
    logits = probe(sigmoid, data, classes=2, access="scores").model(x)
    torch.testing.assert_close(logits.softmax(1)[:, 1], Linear(1)(x)[:, 0].sigmoid())


def test_log_probabilities_are_logits(data):
    model = changed(lambda self, x: self.logits(x).log_softmax(1))
    assert probe(model, data, classes=CLASSES).model is model


NO_GRADIENT = {
    "no_grad": lambda self, x: self.logits(x).detach(),
    "rounding": lambda self, x: self.logits((x * 4).round() / 4),
    "integers": lambda self, x: self.logits((x * 255).to(torch.uint8).float()),
    "constant": lambda self, x: torch.zeros(len(x), CLASSES) + 0 * self.weight.sum(),
}


@pytest.mark.parametrize("kind", NO_GRADIENT)
def test_networks_without_gradient_are_for_black_box_attacks(data, kind):
    model = changed(NO_GRADIENT[kind])
    with pytest.raises(InputError, match="--access scores"):
        probe(model, data, classes=CLASSES)
    assert probe(model, data, classes=CLASSES, access="scores").model is model


def test_functions_of_arrays_return_scores_or_labels(data):
    weight = Linear().weight.detach().numpy()

    def scores(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), -1) @ weight.T

    x = images(data)
    probed = probe(NumpyFunction(scores).eval(), data, classes=CLASSES, access="scores")
    torch.testing.assert_close(probed.model(x), Linear()(x))
    with pytest.raises(InputError, match="no gradient"):
        probe(NumpyFunction(scores).eval(), data, classes=CLASSES)

    def labels(x: np.ndarray) -> np.ndarray:
        return scores(x).argmax(1)

    probed = probe(NumpyFunction(labels).eval(), data, classes=CLASSES, access="labels")
    assert torch.equal(probed.model(x).argmax(1), Linear()(x).argmax(1))
    assert probe(NumpyFunction(labels).eval(), data, access="labels").model(x).shape == (len(x), CLASSES)
    with pytest.raises(InputError, match="but the data set has 2 classes"):
        probe(NumpyFunction(labels).eval(), data, classes=2, access="labels")
    with pytest.raises(InputError, match="--access labels"):
        probe(NumpyFunction(labels).eval(), data, classes=CLASSES, access="scores")


def test_classes_are_mapped(data):
    model = Linear(7).eval()
    with pytest.raises(InputError, match=r"7 outputs but the data set has 3 classes; .*--class-map 0,1,2"):
        probe(model, data, classes=CLASSES)
    probed = probe(model, data, classes=CLASSES, class_map=(6, 0, 2))
    x = images(data)
    assert torch.equal(probed.model(x), model(x)[:, [6, 0, 2]])
    for wrong, words in (((0, 1), "2 entries"), ((0, 1, 7), "output 7"), ((0, 1, 1), "output 1 twice")):
        with pytest.raises(InputError, match=words):
            probe(model, data, classes=CLASSES, class_map=wrong)


REFUSED = {
    "asks for 16 images": (lambda self, x: self.logits(x.view(16, -1)), "cannot take images of 1x4x4"),
    "takes eight": (lambda self, x: self.logits(x) if len(x) == 1 else 1 / 0, "takes 1 image of 1x4x4 but not 8"),
    "reshapes to constants": (lambda self, x: self.logits(x).view(-1, 1), r"8 images into \(24, 1\)"),
    "text": (lambda self, x: "cat", "must return a tensor of logits, got str"),
    "two tensors": (lambda self, x: {"a": self.logits(x), "b": self.logits(x)}, "got dict"),
    "NaN": (lambda self, x: self.logits(x) / 0, "NaN or infinite"),
    "complex": (lambda self, x: self.logits(x) * 1j, "complex64"),
    "one output": (lambda self, x: self.logits(x)[:, :1], "one output but the data set has 3 classes"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_cause(data, kind):
    forward, words = REFUSED[kind]
    with pytest.raises(InputError, match=words):
        probe(changed(forward), data, classes=CLASSES)


def test_the_failing_layer_is_named(data):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, CLASSES)).eval()
    with pytest.raises(InputError, match="it fails in its layer 0: RuntimeError"):
        probe(model, data, classes=CLASSES)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_compiled_module_is_attacked_through_a_wrapper_that_counts_its_passes(data):
    scripted = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)).eval())
    model = probe(scripted, data, classes=CLASSES).model
    x = images(data)
    with count_passes(model) as passes:
        assert torch.equal(model(x), scripted(x))
    assert passes.forward == len(x)


def test_training_mode_is_refused(data):
    with pytest.raises(InputError, match="training mode"):
        probe(Linear(), data)


@pytest.mark.parametrize(("access", "attack"), [("scores", Noise(draws=20)), ("labels", RayS(queries=20))])
def test_a_model_without_gradients_is_evaluated_to_the_end(data, access, attack):
    model = changed(NO_GRADIENT["integers"])
    x, y = data.tensors()
    result = sp.evaluate(model, (x, y), sp.Linf(0.1), attacks=[attack], access=access)
    assert result.threat.knowledge.startswith("black-box")
    assert result.robust_accuracy <= result.clean_accuracy
    status = {check.number: check.status for check in result.checks}
    assert status[9] == "failed"
    assert status[16] == status[17] == status[21] == "skipped"
    assert set(status) == set(range(1, 51))


def test_attacks_that_use_more_than_is_allowed_are_refused(data):
    for access, attack, needs in (("scores", PGD(), "gradients"), ("labels", Noise(), "scores")):
        with pytest.raises(InputError, match=f"needs {needs}, but attacks may use {access} only"):
            sp.evaluate(changed(NO_GRADIENT["integers"]), data.tensors(), sp.Linf(0.1), attacks=[attack], access=access)
