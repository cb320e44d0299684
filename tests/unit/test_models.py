"""Architectures: published sizes, shapes, hooks, stored names, and the weights that build_model draws."""

import hashlib
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.models import Architecture, architectures, build_model

SMALL = {
    "tiny": {"name": "tiny", "width": 4},
    "resnet18": {"name": "resnet18", "width": 4},
    "resnet50": {"name": "resnet50", "width": 4},
    "resnet18_imagenet": {"name": "resnet18", "width": 4, "stem": "imagenet"},
    "vgg": {"name": "vgg", "width": 4},
    "wide_resnet": {"name": "wide_resnet", "depth": 10, "widen": 2, "width": 4},
}


def build(
    spec: str | dict[str, object], size: int = 32, classes: int = 5, seed: int = 0, statistics: float = 0.5
) -> nn.Module:
    channels = [statistics] * 3
    return build_model(architectures.build(spec), (3, size, size), classes, channels, channels, rng=seeded(seed))


@pytest.fixture(params=SMALL)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(SMALL[request.param])


def images(count: int, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=seeded(1))


@pytest.mark.parametrize(
    ("spec", "classes", "parameters"),
    [
        ("resnet18", 10, 11_173_962),
        ("vgg16", 10, 14_728_266),
        ("wrn28_10", 10, 36_479_194),
        ({"name": "resnet18", "stem": "imagenet"}, 1000, 11_689_512),
        ({"name": "resnet34", "stem": "imagenet"}, 1000, 21_797_672),
        ({"name": "resnet50", "stem": "imagenet"}, 1000, 25_557_032),
        ({"name": "resnet101", "stem": "imagenet"}, 1000, 44_549_160),
    ],
    ids=str,
)
def test_published_parameter_counts(spec: str | dict[str, object], classes: int, parameters: int) -> None:
    with torch.device("meta"):
        network = architectures.build(spec).build(3, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_normalisation_adds_no_parameters() -> None:
    model = build(SMALL["tiny"])
    assert isinstance(body := model.get_submodule("body"), nn.Module)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in body.parameters())


@pytest.mark.parametrize("size", [32, 40, 33])
def test_any_size_from_the_smallest_on(model: nn.Module, size: int) -> None:
    assert model.eval()(images(2, size)).shape == (2, 5)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet50", "resnet18_imagenet", "wide_resnet"])
def test_takes_digits(name: str) -> None:
    network = build_model(architectures.build(SMALL[name]), (1, 8, 8), 10, [0.3], [0.3], rng=seeded(0))
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("spec", "before", "after"),
    [
        ("resnet18", "stage4", (512, 4, 4)),
        ({"name": "resnet50", "stem": "imagenet"}, "stage4", (2048, 1, 1)),
        ("vgg16", "stages", (512, 1, 1)),
        ("wrn28_10", "stage3", (640, 8, 8)),
    ],
    ids=str,
)
def test_features_before_the_head(spec: str | dict[str, object], before: str, after: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = architectures.build(spec).build(3, 10)
        shapes: list[torch.Size] = []
        network.get_submodule(before).register_forward_hook(lambda _m, _i, output: shapes.append(output.shape[1:]))
        network(torch.zeros(2, 3, 32, 32))
    assert shapes == [after]


@pytest.mark.parametrize("spec", [{"name": n} for n in ("tiny", "resnet18", "resnet50", "vgg", "wide_resnet")], ids=str)
def test_width_scales_every_hidden_channel(spec: dict[str, object]) -> None:
    def channels(width: int) -> list[int]:
        with torch.device("meta"):
            network = architectures.build({**spec, "width": width}).build(3, 10)
        return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]

    assert channels(6) == [6 * c for c in channels(1)]


def test_same_logits_one_by_one(model: nn.Module) -> None:
    x = images(4)
    model.train()(x)  # moves BatchNorm away from its start
    with torch.no_grad():
        together = model.eval()(x)
        alone = torch.cat([model(image) for image in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_gradients_reach_every_parameter(model: nn.Module) -> None:
    x = images(4).requires_grad_()
    model.eval()(x).logsumexp(1).sum().backward()  # in eval mode: BatchNorm in training hides the biases before it
    assert x.grad is not None
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.grad.isfinite().all(), name


class Operations(TorchDispatchMode):
    """Counts what torch computes, however it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_every_relu_is_a_module_that_runs_once(model: nn.Module) -> None:
    calls: Counter[str] = Counter()
    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    for name in relus:
        model.get_submodule(name).register_forward_hook(lambda _m, _i, _o, name=name: calls.update([name]))
    with Operations() as operations:
        model.eval()(images(2))
    assert calls == dict.fromkeys(relus, 1)
    assert operations.seen["relu"] == len(relus)
    assert not [name for name in operations.seen if name.endswith("_") or "clamp" in name]  # nothing in place


@pytest.mark.parametrize(("name", "least"), [("wide_resnet", 3), ("resnet18", 3), ("resnet50", 4)])
def test_shortcuts_that_change_the_shape_see_what_the_first_convolution_sees(name: str, least: int) -> None:
    model = build(SMALL[name]).eval()
    seen: dict[str, torch.Tensor] = {}
    for part, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, given, _o, part=part: seen.update({part: given[0]}))
    model(images(2))
    blocks = {part.split(".shortcut")[0]: x for part, x in seen.items() if ".shortcut" in part}
    assert len(blocks) == least
    for block, x in blocks.items():
        assert x is seen[f"{block}.conv1"]
        assert (x >= 0).all()


def test_runs_on_one_pixel_with_pointwise_convolutions_and_no_pooling(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        parent, _, child = name.rpartition(".")
        if isinstance(module, nn.Conv2d):
            pointwise = nn.Conv2d(module.in_channels, module.out_channels, 1, bias=False)
            setattr(model.get_submodule(parent), child, pointwise)
        elif isinstance(module, nn.MaxPool2d | nn.AdaptiveAvgPool2d):
            setattr(model.get_submodule(parent), child, nn.Identity())
    assert model.eval()(torch.rand(1, 3, 1, 1)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("tiny", "8a99cf28131f"),
        ("resnet18", "7e373304ed3f"),
        ("resnet50", "ac3739c82291"),
        ("resnet18_imagenet", "20b598b10307"),
        ("vgg", "fd8bda193d25"),
        ("wide_resnet", "668ffae7f5e3"),
    ],
)
def test_stored_names_and_shapes_stay(name: str, digest: str) -> None:
    """A change here makes stored models unreadable: raise the architecture's `version` with it."""
    state = build(SMALL[name]).state_dict()
    text = "\n".join(f"{key} {tuple(tensor.shape)}" for key, tensor in state.items())
    assert hashlib.sha256(text.encode()).hexdigest()[:12] == digest


def test_stored_names_are_readable() -> None:
    names = build(SMALL["resnet18"]).state_dict().keys()
    expected = {"mean", "body.conv.weight", "body.stage2.0.shortcut.0.weight", "body.stage4.1.norm2.running_var"}
    assert expected < names
    assert {"body.stages.stage3.conv2.bias", "body.linear.bias"} < build(SMALL["vgg"]).state_dict().keys()
    assert "body.stage3.0.shortcut.weight" in build(SMALL["wide_resnet"]).state_dict()


class TestSettings:
    @pytest.mark.parametrize(
        ("spec", "sentence"),
        [
            ({"name": "resnet", "depth": 20}, "depth = 20 must be one of 18, 34, 50, 101"),
            ({"name": "resnet", "stem": "svhn"}, "must be one of 'cifar', 'half', 'imagenet'"),
            ({"name": "resnet18", "width": 0}, "width = 0 must be 1 or more"),
            ({"name": "tiny", "width": -1}, "width = -1 must be 1 or more"),
            ({"name": "vgg16", "width": 0}, "width = 0 must be 1 or more"),
            ({"name": "wide_resnet", "width": 0}, "width = 0 must be 1 or more"),
            ({"name": "wide_resnet", "widen": 0}, "widen = 0 must be 1 or more"),
            ({"name": "wide_resnet", "depth": 26}, "depth must be 6 n \\+ 4, .*got 26"),
            ({"name": "wide_resnet", "depth": 4}, "depth must be 6 n \\+ 4, .*got 4"),
        ],
        ids=str,
    )
    def test_a_wrong_setting_is_refused_with_a_sentence(self, spec: dict[str, object], sentence: str) -> None:
        with pytest.raises(InputError, match=sentence):
            architectures.build(spec)

    def test_aliases(self) -> None:
        def settings(alias: str) -> Architecture:
            return architectures.build(alias)

        for depth in (18, 34, 50, 101):
            assert settings(f"resnet{depth}") == architectures.components["resnet"](depth=depth)  # type: ignore[call-arg]
        assert settings("vgg16") == settings("vgg")
        assert settings("wrn28_10") == settings("wide_resnet")

    def test_images_below_the_smallest_are_refused_before_work(self) -> None:
        with pytest.raises(InputError, match="vgg needs images of at least 32 x 32 pixels, got 8 x 8"):
            build("vgg16", size=8)

    @pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5] * 3), ([0.5] * 3, [0.5]), ([0.5] * 3, [0.5, 0.0, 0.5])])
    def test_statistics_must_fit_the_channels(self, mean: list[float], std: list[float]) -> None:
        with pytest.raises(InputError, match="mean and std need a value for each of 3 channels"):
            build_model(architectures.build("tiny"), (3, 8, 8), 2, mean, std, rng=seeded(0))


class TestWeights:
    def test_the_seed_decides_and_nothing_else(self) -> None:
        torch.manual_seed(1)
        first = build(SMALL["resnet18"], seed=3).state_dict()
        before = torch.get_rng_state()
        second = build(SMALL["resnet18"], seed=3).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        other = build(SMALL["resnet18"], seed=4).state_dict()
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
            drawn = name.endswith("weight") and (tensor.ndim > 1)
            assert torch.equal(tensor, other[name]) != drawn, name

    @pytest.mark.parametrize("spec", [{"name": "resnet18", "width": 32}, {"name": "vgg16", "width": 32}], ids=str)
    def test_he_normal_by_fan_out(self, spec: dict[str, object]) -> None:
        convolutions = [m for m in build(spec).modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 5000]
        assert len(convolutions) > 10
        for conv in convolutions:
            fan_out = conv.out_channels * conv.kernel_size[0] * conv.kernel_size[1]
            assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert abs(conv.weight.mean().item()) < 5 * (2 / fan_out / conv.weight.numel()) ** 0.5
            assert conv.bias is None or not conv.bias.any()

    def test_linear_and_batchnorm(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                assert 0.8 * bound < module.weight.abs().max() <= bound
                assert not module.bias.any()
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()
                assert not module.bias.any()

    def test_normalisation_stands_in_front(self) -> None:
        plain, shifted = build(SMALL["tiny"], statistics=0.5).eval(), build(SMALL["tiny"], statistics=0.25).eval()
        x = images(2)
        torch.testing.assert_close(plain(0.5 + 0.5 * x), shifted(0.25 + 0.25 * x))
        torch.testing.assert_close(plain(0.5 + 0.5 * x), plain.get_submodule("body")(x))
