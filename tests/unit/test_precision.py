"""How training computes: formats, layout, compilation, and a model left as it was found."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsemble.attacks.pgd import PGD
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images, seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.models.graph import Graph
from sparsemble.models.plain_network import prunable_layers
from sparsemble.pruning.mask import Mask
from sparsemble.pruning.method import PruningContext
from sparsemble.pruning.methods.harp import HARP
from sparsemble.pruning.target import SparsityTarget
from sparsemble.training import Batches, Callback, Guard, KeepBest, Precision, Schedule, fit
from sparsemble.training.loss import TrainingLoss, training_losses
from sparsemble.training.losses.pgd_at import PGDAT
from sparsemble.training.losses.standard import Standard
from sparsemble.training.lr_schedules.cosine import Cosine
from sparsemble.training.precision import full_precision

THREAT = ThreatModel(eps=0.1)
SCHEDULE = Schedule(learning_rate=0.1, batch_size=16, lr_schedule=Cosine(), guard=Guard(max_drop=1.0))
MADRY = PGDAT(attack=PGD(steps=2, keep_best=False))
HALF = Precision(dtype="bfloat16")

needs_bf16 = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="this processor does not compute in bfloat16",
)


def net(seed: int = 0) -> nn.Sequential:
    """Return a network whose layout matters: more than one channel in, filters wider than a pixel, and one that is."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Flatten(),
        nn.Linear(6 * 16, 4),
    )


def make_ensemble() -> Ensemble:
    return Ensemble([net(0), net(1)], MeanProbability())


def split() -> TensorSplit:
    rng = seeded(11)
    labels = torch.arange(64) % 4
    images = 0.5 * torch.rand(64, 3, 8, 8, generator=rng)
    images[torch.arange(64), labels % 3, 2 * labels, :] += 0.5
    return TensorSplit(images, labels)


def train(
    model: nn.Module,
    precision: Precision,
    *callbacks: Callback,
    training_loss: TrainingLoss = MADRY,
    epochs: int = 2,
    schedule: Schedule = SCHEDULE,
) -> list[dict[str, Any]]:
    return fit(
        model,
        training_loss,
        Batches(split=split(), batch_size=16),
        schedule,
        epochs=epochs,
        threat=THREAT,
        rng=seeded(5),
        callbacks=callbacks,
        precision=precision,
    )


class During(Callback):
    """Does something to the model while it is in training."""

    def __init__(self, act: Callable[[nn.Module], None]) -> None:
        self.act = act

    def after_step(self, model: nn.Module) -> None:
        self.act(model)


EVERY_WAY = [
    pytest.param(Precision(channels_last=False), id="plain"),
    pytest.param(Precision(), id="channels_last"),
    pytest.param(HALF, id="bfloat16", marks=needs_bf16),
    pytest.param(Precision(dtype="bfloat16", channels_last=False), id="bfloat16 NCHW", marks=needs_bf16),
]


@needs_bf16
class TestBfloat16:
    def test_weights_gradients_moments_and_logits_stay_float32(self) -> None:
        inside, seen = [], []

        def watch(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            inside.append(output.dtype)

        def look(model: nn.Module) -> None:
            seen.extend(tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point())
            seen.extend(p.grad.dtype for p in model.parameters() if p.grad is not None)
            seen.append(model(split().pixels[:2]).dtype)

        model = net()
        model[0].register_forward_hook(watch)
        with pytest.MonkeyPatch.context() as patched:
            made: list[torch.optim.Optimizer] = []
            make = torch.optim.SGD.__init__

            def spy(self: torch.optim.SGD, *args: Any, **settings: Any) -> None:
                make(self, *args, **settings)
                made.append(self)

            patched.setattr(torch.optim.SGD, "__init__", spy)
            train(model, HALF, During(look))
        assert set(inside) == {torch.bfloat16}
        assert len(seen) > 100
        assert set(seen) == {torch.float32}
        moments = [state["momentum_buffer"].dtype for state in made[0].state.values()]
        assert len(moments) == len(list(model.parameters()))
        assert set(moments) == {torch.float32}

    def test_learns_what_float32_learns(self) -> None:
        """The losses agree to the precision of bfloat16 (8 bits), and differ: it was used."""
        ours, exact = net(), net()
        half, full = train(ours, HALF, epochs=4), train(exact, Precision(), epochs=4)
        assert full[-1]["loss"] < 0.7 * full[0]["loss"]
        for a, b in zip(half, full, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=0.05)
            assert a["loss"] != b["loss"]
            assert {k: v for k, v in a.items() if "passes" in k} == {k: v for k, v in b.items() if "passes" in k}
        x = split().pixels
        with torch.no_grad():
            agree = ours(x).argmax(1) == exact(x).argmax(1)
        assert agree.float().mean() > 0.9

    def test_held_out_images_are_measured_in_float32(self) -> None:
        measured: list[Tensor] = []

        def probe(model: nn.Module) -> dict[str, float]:
            plain = net()
            plain.load_state_dict(model.state_dict())
            x = split().pixels
            with torch.no_grad():
                measured.append((model(x) - plain.eval().to(memory_format=torch.channels_last)(x)).abs().max())
            return {"held_out_clean": 0.0, "held_out_robust": 0.0}

        train(net(), HALF, KeepBest(probe, every=1))
        assert len(measured) == 2
        assert max(measured) < 1e-5

    def test_exactly_is_for_members_too_and_ends(self) -> None:
        model, x = make_ensemble().eval(), split().pixels
        with torch.no_grad():
            wanted = model(x)
            with HALF.applied(model, list(model.members)):
                rough = model(x)
                with full_precision(model):
                    torch.testing.assert_close(model(x), wanted)
                assert torch.equal(model(x), rough)
        assert (rough - wanted).abs().max() > 1e-4

    def test_each_pass_sees_the_weights_of_the_moment(self) -> None:
        model, x = net().eval(), split().pixels
        with torch.no_grad(), HALF.applied(model, [model]):
            before = model(x)
            model[-1].weight.mul_(2)
            model[-1].bias.mul_(2)
            torch.testing.assert_close(model(x), 2 * before, rtol=0.02, atol=0.02)

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_is_refused_where_it_is_not_computed(self, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
        needs = {"cpu": "AVX-512", "cuda": "a GPU from 2020 or later"}[device]
        message = f'dtype = "bfloat16" is not supported on this {device} .it needs {needs}.; use dtype = "float32"'
        with pytest.raises(InputError, match=message):
            HALF.check(device)
        Precision().check(device)
        if device == "cpu":
            with pytest.raises(InputError, match="bfloat16"):
                train(net(), HALF)


def finite_gradients(model: nn.Module) -> None:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in gradients)
    assert sum(float(g.abs().sum()) for g in gradients) > 0


def needs_ensemble(name: str) -> bool:
    return training_losses.components[name].__module__.startswith("sparsemble.ensemble.")


class TestEveryTrainingLoss:
    @needs_bf16
    @pytest.mark.parametrize("name", sorted(training_losses.components))
    def test_takes_finite_steps(self, name: str) -> None:
        models = [make_ensemble()] if needs_ensemble(name) else [net(), make_ensemble()]
        for model in models:
            training_loss = training_losses.build(name).with_teacher(net(7).eval())
            start = copy.deepcopy(model)
            steps = During(finite_gradients)
            history = train(model, HALF, steps, training_loss=training_loss, epochs=1)
            assert torch.isfinite(torch.tensor([record["loss"] for record in history])).all()
            assert "rolled_back" not in history[0]
            moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True)]
            assert all(moved)

    @needs_bf16
    @pytest.mark.parametrize("name", sorted(training_losses.components))
    def test_answers_in_float32_and_about_the_same(self, name: str) -> None:
        x, y = split().tensors()
        losses = []
        for precision in (Precision(), HALF):
            model = make_ensemble().train()
            training_loss = training_losses.build(name).with_teacher(net(7).eval())
            with precision.applied(model, list(model.members)):
                output = training_loss(model, precision.images(x), y, THREAT, rng=seeded(3))
            losses.append(output.loss.detach())
            assert {tensor.dtype for tensor in (output.loss, *output.terms.values())} == {torch.float32}
        torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.02)


class TestChannelsLast:
    def test_is_how_layers_and_images_lie_while_training(self) -> None:
        layouts: list[bool] = []

        def look(model: nn.Module) -> None:
            layouts.append(model.get_submodule("0").weight.is_contiguous(memory_format=torch.channels_last))

        train(net(), Precision(), During(look))
        train(net(), Precision(channels_last=False), During(lambda model: layouts.append(True)))
        assert all(layouts)
        x = split().pixels
        assert Precision().images(x).is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(Precision().images(x), x)
        assert Precision(channels_last=False).images(x) is x

    def test_trains_to_the_same_weights_up_to_rounding(self) -> None:
        ours, plain = net().double(), net().double()
        x, y = split().pixels.double(), split().labels
        for model, precision in ((ours, Precision()), (plain, Precision(channels_last=False))):
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            with precision.applied(model, [model]):
                for _ in range(5):
                    optimiser.zero_grad()
                    nn.functional.cross_entropy(model(precision.images(x)), y).backward()
                    optimiser.step()
        for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)

    def test_starts_attacks_from_the_same_points(self) -> None:
        x = split().pixels
        starts = [
            THREAT.random_start(precision.images(x), seeded(0))
            for precision in (Precision(), Precision(channels_last=False))
        ]
        assert torch.equal(*starts)

    @pytest.mark.parametrize("training_loss", [Standard(), MADRY], ids=["standard", "pgd_at"])
    def test_learns_the_same_masks(self, training_loss: TrainingLoss) -> None:
        model = net().eval()
        torch.manual_seed(6)
        model[6] = nn.Conv2d(6, 6, 3, bias=False)  # grouped ones cannot be pruned
        scores = {name: layer.weight.detach().abs() for name, layer in prunable_layers(model).items()}
        target = SparsityTarget(graph=Graph(model, tuple(split().pixels.shape[1:])), sparsity=0.5)
        masks: list[Mask] = []
        for precision in (Precision(), Precision(channels_last=False)):
            context = PruningContext(
                batches=Batches(split=split(), batch_size=16),
                loss=training_loss,
                threat=THREAT,
                rng=seeded(3),
                precision=precision,
            )
            pruned = HARP(epochs=2, penalty=0.1, schedule=SCHEDULE)(model, scores, target, context)
            masks.append(pruned.mask)
            assert all(layer.weight.is_contiguous() for layer in prunable_layers(pruned.model).values())
        assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])
        assert not all(torch.equal(masks[0][name], scores[name] > scores[name].median()) for name in masks[0])


class TestLeftAsFound:
    @pytest.mark.parametrize("precision", EVERY_WAY)
    @pytest.mark.parametrize("make", [net, make_ensemble])
    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    def test_forward_layout_and_mode(self, make: Any, layout: torch.memory_format, precision: Precision) -> None:
        model = make().to(memory_format=layout)
        strides = {name: tensor.stride() for name, tensor in model.state_dict().items()}
        parameters = [id(p) for p in model.parameters()]
        train(model, precision)
        assert {name: tensor.stride() for name, tensor in model.state_dict().items()} == strides
        assert [id(p) for p in model.parameters()] == parameters
        assert not any("forward" in vars(module) for module in model.modules())
        assert not any(module.training for module in model.modules())

    @pytest.mark.parametrize("precision", EVERY_WAY)
    def test_also_when_training_is_killed(self, precision: Precision) -> None:
        def die(model: nn.Module) -> None:
            raise KeyboardInterrupt

        model = make_ensemble()
        with pytest.raises(KeyboardInterrupt):
            train(model, precision, During(die))
        assert not any("forward" in vars(module) for module in model.modules())
        assert all(layer.weight.is_contiguous() for layer in prunable_layers(model).values())

    @pytest.mark.parametrize("precision", EVERY_WAY)
    def test_a_forward_of_its_own_comes_back(self, precision: Precision) -> None:
        model = net()
        plain = model.forward

        def doubled(x: Images) -> Tensor:
            return 2 * plain(x)

        model.forward = doubled
        train(model, precision)
        assert model.__dict__["forward"] is doubled

    @pytest.mark.parametrize("precision", EVERY_WAY)
    def test_a_member_that_stands_twice_in_an_ensemble(self, precision: Precision) -> None:
        member = net()
        model = Ensemble([member, member], MeanProbability())
        with precision.applied(model, list(model.members)):
            model(split().pixels)
        assert "forward" not in vars(member)


IMPORT_WARNS = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
WITH_COMPILED = [*EVERY_WAY, pytest.param(Precision(compile=True), id="compiled", marks=IMPORT_WARNS)]


class TestCopies:
    @pytest.mark.parametrize("precision", WITH_COMPILED)
    @pytest.mark.parametrize("make", [net, make_ensemble])
    def test_run_their_own_weights(self, make: Any, precision: Precision) -> None:
        """Only a forward pass that is run gets compiled: this costs nothing."""
        model, x = make().eval(), split().pixels
        zeros: list[Tensor] = []
        with torch.no_grad(), precision.applied(model, list(getattr(model, "members", [model]))):
            twin = copy.deepcopy(model)
            again = copy.deepcopy(twin)
            for copied in (twin, again):
                for parameter in copied.parameters():
                    parameter.zero_()
                zeros.append(copied(x))
        for answer in [*zeros, twin(x)]:
            assert torch.equal(answer, answer[:1, :1].expand_as(answer))  # no image, no class differs
        assert all(not p.any() for p in twin.parameters())
        assert any(p.any() for p in model.parameters())

    @pytest.mark.parametrize("precision", EVERY_WAY)
    def test_taken_by_a_callback_are_what_the_model_was(self, precision: Precision) -> None:
        taken: list[tuple[nn.Module, dict[str, Tensor]]] = []

        def take(model: nn.Module) -> None:
            taken.append((copy.deepcopy(model), copy.deepcopy(model.state_dict())))

        train(net(), precision, During(take))
        x = split().pixels
        answers = []
        for copied, weights in taken:
            fresh = net()
            fresh.load_state_dict(weights)
            with torch.no_grad():
                answers.append(copied.eval()(x))
                torch.testing.assert_close(answers[-1], fresh.eval()(x), rtol=1e-4, atol=1e-5)
        assert not torch.equal(answers[0], answers[-1])

    @pytest.mark.parametrize("precision", WITH_COMPILED)
    def test_names_and_values_of_the_state_are_the_same_inside(self, precision: Precision) -> None:
        model = net()
        outside = copy.deepcopy(model.state_dict())
        with precision.applied(model, [model]):
            inside = model.state_dict()
            assert list(inside) == list(outside)
            assert all(torch.equal(inside[name], outside[name]) for name in outside)


@pytest.mark.slow
class TestCompile:
    @pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bf16)])
    @pytest.mark.filterwarnings("ignore")
    def test_trains_to_the_same_losses(self, precision: Any) -> None:
        histories = [
            train(net(), Precision(dtype=precision, compile=compiled), KeepBest(self.probe, every=1))
            for compiled in (True, False)
        ]
        tolerance = 1e-4 if precision == "float32" else 0.05
        for ours, eager in zip(*histories, strict=True):
            assert ours["loss"] == pytest.approx(eager["loss"], rel=tolerance)
            assert ours["forward_passes"] == eager["forward_passes"]
            assert ours["backward_passes"] == eager["backward_passes"]

    def probe(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"held_out_clean": float(model(split().pixels).softmax(1).amax(1).mean()), "held_out_robust": 0.5}


@pytest.mark.parametrize("native", [True, False])
def test_auto_is_what_the_device_has_instructions_for(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemble.training.precision._cpu_has_bf16", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    auto = Precision(dtype="auto")
    auto.check("cpu")
    assert auto.on("cpu") == Precision(dtype="bfloat16" if native else "float32")
    assert Precision().on("cpu") == Precision()
