"""What is masked is what computes: computed and shared weights become plain ones, and the rest is refused by name."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import sparsemble as sp
from sparsemble.core.errors import InputError, RunError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.module_state import copy_network
from sparsemble.core.types import seeded
from sparsemble.evaluation.cost import count_weights
from sparsemble.models import architectures
from sparsemble.models.code import Code
from sparsemble.models.convert import convert_model
from sparsemble.models.graph import Graph
from sparsemble.models.model_io import ModelSpec, load_model, save_model
from sparsemble.models.plain_network import (
    check_masks_hold,
    check_training_output,
    check_zeros,
    make_plain_,
    prunable_layers,
    weights_used,
)
from sparsemble.pruning import KeepZero, Mask
from sparsemble.pruning.shrink import shrink
from sparsemble.training.lr_schedules.one_cycle import OneCycle
from sparsemble.training.schedule import Schedule
from tests.helpers import covering, magnitudes, sparsity_target

SHAPE = (1, 8, 8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def pruned_twice(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]
    prune.l1_unstructured(layer, "weight", 0.25)  # type: ignore[no-untyped-call]


COMPUTED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "pruned": (pruned_twice, "torch.nn.utils.prune"),
    "weight norm": (weight_norm, "weight_norm"),
    "spectral norm": (spectral_norm, "spectral_norm"),
    "weight norm as a parametrization": (parametrizations.weight_norm, "WeightNorm"),
    "spectral norm as a parametrization": (parametrizations.spectral_norm, "SpectralNorm"),
    "orthogonal": (parametrizations.orthogonal, "Orthogonal"),
}


def changed_layer(kind: str) -> nn.Sequential:
    model = network()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        COMPUTED[kind][0](model[2])
    return model.eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.rand(4, *SHAPE, generator=seeded(3)))
    return found


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_baked_in(kind: str) -> None:
    model = changed_layer(kind)
    before, weight = logits(model), model[2].weight.detach().clone()
    plain = copy_network(model)
    changes = make_plain_(plain, SHAPE)
    assert torch.equal(logits(plain), before)
    assert torch.equal(logits(model), before), "the original must work after its copy was changed"
    assert torch.equal(prunable_layers(plain)["2"].weight, weight)
    assert type(plain.get_submodule("2")) is nn.Conv2d
    assert all(isinstance(layer.weight, nn.Parameter) for layer in prunable_layers(plain).values())
    assert plain.state_dict().keys() == network().state_dict().keys()
    assert len(changes.computed) == 1
    assert "layer 2" in changes.notes[0]
    assert COMPUTED[kind][1] in changes.notes[0]
    check_masks_hold(plain, SHAPE)
    with pytest.raises(InputError, match="layer 2"):
        Mask.of(network()).apply_(model)


def test_a_plain_network_stays_as_it_is() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    changes = make_plain_(model, SHAPE)
    assert not changes
    assert changes.notes == ()
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(parameter.grad is None for parameter in parameters)


def standardised(layer: Any, inputs: Any) -> None:
    layer.weight.data = layer.raw - layer.raw.mean()


def doubled(layer: Any, inputs: Any) -> None:
    layer.weight = layer.raw * 2


class OtherWeight(nn.Conv2d):
    """Computes with something else than its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight + 0.1, self.bias)


def hooked(hook: Callable[..., None]) -> nn.Sequential:
    model = network()
    layer: Any = model[2]
    layer.raw = layer.weight.detach().clone()
    if hook is doubled:
        del layer.weight
    hook(layer, None)
    layer.register_forward_pre_hook(hook)
    return model


def own_forward() -> nn.Sequential:
    model = network()
    model[2] = OtherWeight(8, 8, 3, padding=1)
    return model


def functional() -> nn.Sequential:
    class Borrowing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lent = nn.Conv2d(8, 8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.lent.weight, padding=1)

    model = network()
    model[2] = Borrowing()
    return model


@pytest.mark.parametrize("make", [functional, lambda: hooked(standardised), lambda: hooked(doubled), own_forward])
def test_weights_that_a_mask_does_not_reach_are_refused_by_the_name_of_the_layer(make: Any) -> None:
    model = make().eval()
    before = logits(model)
    make_plain_(model, SHAPE)
    with pytest.raises(InputError, match=r"layer 2\b"):
        check_masks_hold(model, SHAPE)
    assert torch.equal(logits(model), before)


class TestSharedWeights:
    def tied(self) -> nn.Sequential:
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model[4].weight = model[2].weight
        model[4].bias = nn.Parameter(model[2].bias.detach()[:])  # another parameter on the same memory
        return model

    def test_each_layer_gets_its_own(self) -> None:
        model = self.tied().eval()
        before = logits(model)
        changes = make_plain_(model, SHAPE)
        assert torch.equal(logits(model), before)
        assert changes.shared == ("4.weight (with 2.weight)", "4.bias (with 2.bias)")
        model[4].weight.data.zero_()
        model[4].bias.data.zero_()
        assert bool(model[2].weight.any())
        assert bool(model[2].bias.any())

    def test_parts_of_one_memory_that_do_not_overlap_stay(self) -> None:
        model, flat = network(), torch.randn(1000)
        model[2].weight = nn.Parameter(flat[:576].view(8, 8, 3, 3))
        model[6].weight = nn.Parameter(flat[576:600].view(3, 8))
        assert not make_plain_(model, SHAPE)

    @pytest.mark.parametrize("sparsity", [0.3, 0.6])
    def test_a_mask_is_what_the_weights_show(self, sparsity: float) -> None:
        model = self.tied()
        rng = seeded(1)
        scores = {name: torch.rand(s.shape, generator=rng) for name, s in magnitudes(model).items()}
        mask = sparsity_target(model, sparsity).mask(scores)
        mask.apply_(model)
        assert count_weights(model).sparsity == mask.sparsity == pytest.approx(sparsity, abs=1e-3)
        check_zeros(model, mask, SHAPE)

    def test_a_module_under_two_names_can_be_kept(self, tmp_path: Path) -> None:
        spec = ModelSpec(
            architecture=architectures.build({"name": "tiny", "width": 2}),
            shape=SHAPE,
            classes=("a", "b"),
            mean=(0.5,),
            std=(0.3,),
        )
        model = spec.build()
        model.again = model.body  # type: ignore[assignment]
        save_model(model, tmp_path, spec)


class WithHeads(nn.Module):
    """A head that runs for nothing, one that only runs in training, and one that never does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)
        self.extra, self.training_only, self.never = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        z = torch.relu(self.conv(x)).mean((2, 3))
        extra = self.extra(z)
        return (self.head(z), self.training_only(z), extra) if self.training else self.head(z)


HEADS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)
        self.aux = nn.Linear(8, 3)

    def forward(self, x):
        z = torch.relu(self.conv(x)).mean((2, 3))
        return (self.head(z), self.aux(z)) if self.training else self.head(z)

def pruned():
    net = Net()
    nn.utils.prune.l1_unstructured(net.conv, "weight", 0.5)
    return net
"""


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    return torch.rand(90, *SHAPE, generator=seeded(5)), torch.arange(90) % 3


FAST = sp.attacks.PGD(steps=1)
QUICK: dict[str, Any] = {
    "loss": sp.losses.PGDAT(attack=FAST),
    "held_out_attack": FAST,
    "schedule": Schedule(batch_size=27, lr_schedule=OneCycle()),
}


class TestUnusedLayers:
    def test_are_marked_and_left_out_of_every_count(self) -> None:
        model = WithHeads()
        changes = make_plain_(model, SHAPE)
        assert changes.unused == ("extra", "training_only", "never")
        assert list(prunable_layers(model)) == ["conv", "head"] == list(Graph(model, SHAPE).layers())
        assert count_weights(model).total == 72 + 24
        assert list(Mask.of(copy_network(model))) == ["conv", "head"]
        assert list(weights_used(model, SHAPE)) == ["conv", "head"]

    def test_a_frozen_part_is_used(self) -> None:
        model = network()
        forward = model[0].forward
        model[0].forward = torch.no_grad()(forward)
        assert not make_plain_(model.eval(), SHAPE).unused

    def test_a_network_of_the_users_is_trained_on_its_first_output_and_pruned_where_it_is_used(
        self, tmp_path: Path, images: tuple[Tensor, Tensor]
    ) -> None:
        file = tmp_path / "heads.py"
        file.write_text(HEADS, "utf-8")
        linf = sp.Linf(0.1)
        parent = sp.train(Code(factory=f"{file}:Net"), images, linf, epochs=1, **QUICK)
        assert parent.history
        assert list(Mask.of(parent.model)) == ["body.conv", "body.head"]
        save_model(parent.model, tmp_path, parent.spec)  # type: ignore[arg-type]
        loaded = load_model(tmp_path, torch.device("cpu"))
        assert list(prunable_layers(loaded)) == ["body.conv", "body.head"]
        pruned = sp.prune(
            parent,
            images,
            linf,
            sparsity=0.5,
            method=sp.pruning.OneShot(),
            score=sp.scores.SNIP(),
            finetune_epochs=1,
            **QUICK,
        )
        assert pruned.record is not None
        assert (pruned.record.weights, pruned.record.nonzeros) == (72 + 24, 48)


class TestTraining:
    def test_masks_are_not_lost_in_training(self, tmp_path: Path, images: tuple[Tensor, Tensor]) -> None:
        file = tmp_path / "heads.py"
        file.write_text(HEADS, "utf-8")
        for model in (Code(factory=f"{file}:pruned"), changed_layer("pruned")):
            with pytest.raises(
                InputError,
                match=r"the weight of layer .*prune\) is computed .* training would",
            ):
                sp.train(model, images, sp.Linf(0.1), epochs=1, **QUICK)

    def test_a_trained_parent_keeps_its_zeros(self, images: tuple[Tensor, Tensor]) -> None:
        parent = changed_layer("pruned")
        pruned = sp.prune(
            parent,
            images,
            sp.Linf(0.1),
            sparsity=0.7,
            score=sp.scores.Magnitude(),
            method=sp.pruning.OneShot(),
            finetune_epochs=1,
            **QUICK,
        )
        assert type(pruned.model.get_submodule("2")) is nn.Conv2d
        assert parametrize.is_parametrized(parent) is False
        assert hasattr(parent[2], "weight_mask")
        assert pruned.record is not None
        assert pruned.record.nonzeros == round(0.3 * pruned.record.weights)
        assert pruned.mask is not None
        assert not pruned.mask["2"][parent[2].weight == 0].any()

    @pytest.mark.parametrize(
        ("forward", "message"),
        [
            (lambda own, x: (own.layer(x), x) if own.training else own.layer(x), "got tuple"),
            (
                lambda own, x: own.layer(x).detach() if own.training else own.layer(x),
                "no weight has a gradient in training mode",
            ),
            (lambda own, x: own.layer(x.sub_(0.5)), "changes its images in place"),
            (lambda own, x: own.layer(x) / 0, "NaN or infinite in training mode"),
            (lambda own, x: own.layer(x.detach()), "no gradient with respect to the images"),
            (lambda own, x: own.layer(x) if not own.training else own.missing(x), "fails in training mode"),
        ],
    )
    def test_what_cannot_be_trained_is_said_before_work(self, forward: Any, message: str, images: Any) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))

            def forward(self, x: Tensor) -> Any:
                return forward(self, x)

        with pytest.raises(InputError, match=message):
            check_training_output(Net(), SHAPE)
        with pytest.raises(InputError, match=message):
            sp.train(Net(), images, sp.Linf(0.1), epochs=1, **QUICK)

    def test_the_trial_changes_nothing(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 3))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        state = torch.get_rng_state()
        check_training_output(model.eval(), SHAPE)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not model.training


def test_wrappers_are_taken_off(images: tuple[Tensor, Tensor]) -> None:
    wrapped = nn.DataParallel(network())
    pruned = sp.prune(
        wrapped,
        images,
        sp.Linf(0.1),
        sparsity=0.5,
        score=sp.scores.ERM(),
        method=sp.pruning.OneShot(),
        finetune_epochs=0,
        **QUICK,
    )
    assert list(prunable_layers(pruned.model)) == ["0", "2", "6"]
    assert list(prunable_layers(shrink(wrapped, SHAPE))) == ["0", "2", "6"]
    convert_model(wrapped, SHAPE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_scripted_modules_are_refused(images: tuple[Tensor, Tensor]) -> None:
    scripted = torch.jit.script(network())  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="the network is a scripted module"):
        sp.train(scripted, images, sp.Linf(0.1), epochs=1, **QUICK)


def test_an_ensemble_is_no_network_to_prune(images: tuple[Tensor, Tensor]) -> None:
    ensemble = Ensemble([network(), network()], sp.combiners.MeanLogit())
    with pytest.raises(InputError, match="a single network is trained or pruned here"):
        sp.prune(ensemble, images, sp.Linf(0.1), sparsity=0.5, **QUICK)


def test_weights_that_are_nan_are_named() -> None:
    model = network()
    model[2].weight.data[0] = torch.nan
    with pytest.raises(InputError, match="layer 2 has weights that are NaN"):
        check_masks_hold(model, SHAPE)
    with pytest.raises(InputError, match="Sequential returns NaN or infinite logits"):
        convert_model(model, SHAPE)


def test_a_layer_without_weights_yet_is_named() -> None:
    with pytest.raises(InputError, match="layer 0 has no weights yet"):
        make_plain_(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3)), SHAPE)


def test_weights_held_at_zero_must_be_plain() -> None:
    hold = KeepZero({"": Mask.of(network())})
    with pytest.raises(InputError, match="the weight of layer 2 is computed from other tensors"):
        hold.after_step(changed_layer("weight norm"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_networks_of_another_precision_are_pruned_in_float32(dtype: torch.dtype, images: tuple[Tensor, Tensor]) -> None:
    parent = network().to(dtype).eval()
    pruned = sp.prune(
        parent,
        images,
        sp.Linf(0.1),
        sparsity=0.5,
        score=sp.scores.Magnitude(),
        method=sp.pruning.OneShot(),
        finetune_epochs=1,
        **QUICK,
    )
    assert pruned(images[0][:2]).dtype == torch.float32
    assert parent[0].weight.dtype == dtype


def test_zeros_that_come_back_are_found() -> None:
    model = network().eval()
    mask = sparsity_target(model).mask(magnitudes(model))
    mask.apply_(model)
    check_zeros(model, mask, SHAPE)
    model[2].register_forward_pre_hook(lambda layer, inputs: setattr(layer.weight, "data", torch.ones(8, 8, 3, 3)))
    with pytest.raises(RunError, match="layer 2 computes with 288 weights that its mask removes"):
        check_zeros(model, mask, SHAPE)


class TestParentFiles:
    """A file of weights may hold the network as it was trained, or plain."""

    @pytest.mark.parametrize(("kind", "plain"), covering(["pruned", "weight norm", "tied"], [True, False]))
    def test_gives_the_network_of_the_file(self, kind: str, plain: bool, tmp_path: Path) -> None:
        file = tmp_path / "net.py"
        change = {
            "pruned": "prune.l1_unstructured(net[2], 'weight', 0.5)",
            "weight norm": "weight_norm(net[2])",
            "tied": "net[6].weight = nn.Parameter(net[2].weight.detach().flatten()[:24].view(3, 8))",
        }[kind]
        file.write_text(
            "import torch, warnings\nfrom torch import nn\nfrom torch.nn.utils import prune, weight_norm\n"
            "warnings.simplefilter('ignore')\n"
            "def make():\n"
            "    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]\n"
            "    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))\n"
            f"    {change}\n"
            "    return net\n",
            "utf-8",
        )
        spec = ModelSpec(
            architecture=Code(factory=f"{file}:make"), shape=SHAPE, classes=("a", "b", "c"), mean=(0.0,), std=(1.0,)
        )
        trained = Code(factory=f"{file}:make").build(1, 3).eval()
        torch.manual_seed(9)
        if plain:
            make_plain_(trained, SHAPE)
        for parameter in trained.parameters():
            parameter.data.add_(0.1 * torch.randn(parameter.shape))
        expected = logits(trained)
        state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        save_file(state, tmp_path / "w.safetensors")
        loaded = spec.build_trained(tmp_path / "w.safetensors").eval()
        torch.testing.assert_close(logits(loaded), expected)
        save_model(loaded, tmp_path, spec)
        torch.testing.assert_close(logits(load_model(tmp_path, torch.device("cpu"))), expected)
