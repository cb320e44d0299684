"""Networks whose prunable weights are plain parameters, each of one layer, so that what is masked is what computes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from sparsemble.core.errors import InputError, RunError
from sparsemble.core.module_state import copy_network, eval_mode
from sparsemble.core.same_outputs import noise_for
from sparsemble.core.source_file import first_line
from sparsemble.core.types import Images, seeded
from sparsemble.models.adapted import find_output

Shape = tuple[int, int, int]
UNUSED = "is_unused"
"""Attribute of a Conv2d or Linear that the logits do not depend on."""
REMOVE = "torch.nn.utils.prune.remove, remove_weight_norm, parametrize.remove_parametrizations"
"""How a user makes computed weights plain."""
SHOWN = 3
"""Names in a message."""


def prunable_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers whose weights can be pruned, by name: all Conv2d and Linear but those known to be unused."""
    layers = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return {name: layer for name, layer in layers if UNUSED not in vars(layer)}


@final
@dataclass(frozen=True, kw_only=True)
class Changes:
    """What `make_plain_` did to a network; its outputs are the same."""

    computed: tuple[str, ...] = ()
    """Tensors that were computed from others (weight_norm, torch.nn.utils.prune) and are parameters now."""
    shared: tuple[str, ...] = ()
    """Tensors that were shared with another layer and are copies now."""
    unused: tuple[str, ...] = ()
    """Layers that the logits do not depend on, which are left out of pruning and of every sparsity."""
    loaded: tuple[str, ...] = ()
    """What was changed of a file of weights."""

    def __bool__(self) -> bool:
        return bool(self.computed or self.shared or self.unused)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for each kind of change."""
        sentences = {
            "{} computed from other tensors; the present value is kept in place of them": self.computed,
            "{} shared with another layer; each layer gets a copy of its own": self.shared,
            "{} not used by the forward pass; left out of pruning and of sparsity": tuple(
                f"layer {name}" for name in self.unused
            ),
        }
        return self.loaded + tuple(
            text.format(f"{_listed(names)} {'is' if len(names) == 1 else 'are'}")
            for text, names in sentences.items()
            if names
        )

    def refuse_computed(self) -> None:
        """Refuse to train weights that are computed from others: the masks or norms behind them would be lost.

        Raises:
            InputError: naming the first layer.
        """
        if self.computed:
            raise InputError(
                f"{self.computed[0]} is computed from other tensors, which training would lose; make it a plain "
                f"parameter first ({REMOVE}), or name the network as a trained parent"
            )


def make_plain_(model: nn.Module, shape: Shape) -> Changes:
    """Turn computed and shared tensors of a network into parameters of their own, and mark layers it does not use.

    Args:
        model: any network; changed in place, its outputs in eval mode are the same.
        shape: channels, height and width of an image.

    Raises:
        InputError: a layer whose weight cannot be computed once and for all, or that has none yet; with its name.
    """
    check_has_weights(model)
    with eval_mode(model), torch.no_grad():
        computed = tuple(_bake_in_(model))
    shared = separate_(model)
    unused = tuple(_find_unused(model, shape))
    for name in unused:
        setattr(model.get_submodule(name), UNUSED, True)
    return Changes(computed=computed, shared=shared, unused=unused)


def check_has_weights(model: nn.Module) -> None:
    """Refuse a network whose weights cannot be changed from Python, or are not there yet.

    Raises:
        InputError: naming the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{name or 'the network'} is a scripted module, in which no weight can be masked or replaced; use the "
                "Python module that it was made of"
            )
        if any(isinstance(tensor, nn.UninitializedParameter) for tensor in module._parameters.values()):
            kind = type(module).__name__
            raise InputError(f"layer {name} has no weights yet ({kind}); run the network on an image first")


def _bake_in_(model: nn.Module) -> Iterator[str]:
    """Remove parametrizations and torch's own hooks that compute tensors; yield what was removed where."""
    for name, module in list(model.named_modules()):
        for tensor, kind, remove in list(_computed_tensors(module)):
            layer = f"layer {name}" if name else "the network"
            try:
                remove()
            except Exception as error:
                raise InputError(f"the {tensor} of {layer} is computed by {kind}: {first_line(error)}") from error
            yield f"the {tensor} of {layer} ({kind})"


def _computed_tensors(module: nn.Module) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """Yield the tensors of a module that torch computes from others: name, by what, and how to end that."""
    if parametrize.is_parametrized(module):
        for tensor, steps in list(module.parametrizations.items()):  # type: ignore[union-attr, operator]
            kind = " and ".join(type(step).__name__.strip("_") for step in steps)
            yield tensor, kind, partial(_remove_parametrizations_, module, tensor)
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            tensor = hook._tensor_name
            yield tensor, "torch.nn.utils.prune", partial(prune.remove, module, tensor)
        elif isinstance(hook, WeightNorm):
            yield hook.name, "weight_norm", partial(remove_weight_norm, module, hook.name)
        elif isinstance(hook, SpectralNorm):
            yield hook.name, "spectral_norm", partial(remove_spectral_norm, module, hook.name)


def _remove_parametrizations_(module: nn.Module, tensor: str) -> None:
    """Put the value of a parametrized tensor in its place, as a parameter if it is computed from parameters."""
    learned = any(True for _ in module.parametrizations[tensor].parameters())  # type: ignore[index, union-attr]
    # Copies of a module share the class that parametrizes it, and its removal changes the class.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, tensor)
    value = getattr(module, tensor)
    if learned and not isinstance(value, nn.Parameter):
        delattr(module, tensor)
        module.register_parameter(tensor, nn.Parameter(value.detach()))


def separate_(model: nn.Module) -> tuple[str, ...]:
    """Give each tensor memory of its own; return the names of those that shared it with an earlier one."""
    names: list[str] = []
    known: dict[int, list[tuple[int, int, str]]] = {}
    for module_name, module in model.named_modules():
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is None or not tensor.numel() or tensor.is_meta or tensor.layout != torch.strided:
                    continue
                name = f"{module_name}.{key}".lstrip(".")
                spans = known.setdefault(tensor.untyped_storage().data_ptr(), [])
                first, last = _span(tensor)
                if other := next((n for start, end, n in spans if start < last and first < end), None):
                    copied = tensor.detach().clone()
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[key] = nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
                    names.append(f"{name} (with {other})")
                else:
                    spans.append((first, last, name))
    return tuple(names)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the part of its storage that a tensor occupies, in elements."""
    first = int(tensor.storage_offset())
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return first, first + sum((int(size) - 1) * int(step) for size, step in steps) + 1


def _find_unused(model: nn.Module, shape: Shape) -> list[str]:
    """Return the layers whose weights the logits do not depend on; none of a model that cannot be differentiated."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    weights = [layer.weight for layer in layers.values()]
    if not all(isinstance(weight, nn.Parameter) and weight.is_floating_point() for weight in weights):
        return []  # a weight that a hook computes, or a quantised one
    required, frozen = [weight.requires_grad for weight in weights], set[str]()

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not output.requires_grad:
                frozen.add(name)  # it runs without gradients, and may still be used

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with eval_mode(model), torch.enable_grad(), torch.random.fork_rng(devices=[]):
            logits = find_output(model(noise_for(model, shape, 2)))
            assert logits is not None
            gradients = torch.autograd.grad(logits.sum(), weights, allow_unused=True)
    except Exception:
        return []  # whoever uses the model for more says what is wrong with it
    finally:
        for handle in handles:
            handle.remove()
        for weight, before in zip(weights, required, strict=True):
            weight.requires_grad_(before)
    return [name for name, gradient in zip(layers, gradients, strict=True) if gradient is None and name not in frozen]


@torch.no_grad()
def check_masks_hold(model: nn.Module, shape: Shape) -> None:
    """Mask a copy of a plain network at random, and compare what its forward pass uses with the masked weights.

    Args:
        model: from `make_plain_`; left as found.
        shape: channels, height and width of an image.

    Raises:
        InputError: a layer computes with something else than its masked weight; with its name.
    """
    masked, rng = copy_network(model), seeded(0)
    layers = prunable_layers(masked)
    for name, layer in layers.items():
        check_plain(name, layer)
        if not layer.weight.isfinite().all():
            raise InputError(f"layer {name} has weights that are NaN or infinite")
        layer.weight.mul_((torch.rand(layer.weight.shape, generator=rng) < 0.5).to(layer.weight.device))
    expected = {name: layer.weight.clone() for name, layer in layers.items()}
    for name, used in weights_used(masked, shape).items():
        if not used:
            raise InputError(
                f"the weight of layer {name} is used outside of the layer, where a mask would not hold; call the layer"
            )
        if not all(_equal(weight, expected[name]) for weight in used):
            raise InputError(
                f"layer {name} computes with another tensor than its weight, which a hook or a forward pass of its own "
                "makes; masks would not hold, so make it a plain layer"
            )


def check_plain(name: str, layer: nn.Conv2d | nn.Linear) -> None:
    """Refuse a layer whose weight is no parameter, so that a mask of it would be undone.

    Raises:
        InputError: naming the layer.
    """
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        raise InputError(
            f"the weight of layer {name} is computed from other tensors, which would undo a mask; make it a plain "
            f"parameter first ({REMOVE})"
        )


@torch.no_grad()
def check_zeros(model: nn.Module, keep: Mapping[str, Tensor], shape: Shape) -> None:
    """Compare the weights that the forward pass of a pruned network uses with its mask.

    Args:
        model: the pruned network; left as found.
        keep: which weights stay, by layer.
        shape: channels, height and width of an image.

    Raises:
        RunError: a removed weight is not 0 where it is used; with the layer's name.
    """
    for name, used in weights_used(model, shape).items():
        if back := sum(int(weight[~keep[name].to(weight.device)].count_nonzero()) for weight in used):
            raise RunError(
                f"layer {name} computes with {back} weights that its mask removes; the network is not sparse"
            )


@torch.no_grad()
def weights_used(model: nn.Module, shape: Shape) -> dict[str, list[Tensor]]:
    """Return the weights that each prunable layer passes to a convolution or product in eval mode, by layer.

    Args:
        model: any network; left as found.
        shape: channels, height and width of an image.

    Raises:
        InputError: the model cannot run.
    """
    layers = prunable_layers(model)
    recorder = _Recorder(layers)
    handles = [
        handle
        for name, layer in layers.items()
        for handle in (
            layer.register_forward_pre_hook(lambda *_, name=name: recorder.running.append(name)),
            layer.register_forward_hook(lambda *_: recorder.running.pop() and None),
        )
    ]
    try:
        with eval_mode(model), torch.random.fork_rng(devices=[]), recorder:
            model(noise_for(model, shape, 2))
    except Exception as error:
        size = "x".join(map(str, shape))
        raise InputError(f"the network cannot take images of {size}: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return recorder.used


@final
class _Recorder(TorchFunctionMode):
    """Keeps the second argument of every convolution and product that runs inside a layer."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.running: list[str] = []
        self.used: dict[str, list[Tensor]] = {name: [] for name in layers}

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.linear) and self.running:
            self.used[self.running[-1]].append(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **(kwargs or {}))


def check_training_output(model: nn.Module, shape: Shape, classes: int = 0) -> None:
    """Run a copy of a network in training mode on two images.

    Args:
        model: what will be trained; left as found.
        shape: channels, height and width of an image.
        classes: least number of its outputs, those that the labels name.

    Raises:
        InputError: it fails, returns no logits or too few, has no gradient or changes its images.
    """
    trial = copy_network(model).train()
    images: Images = noise_for(trial, shape, 2).requires_grad_()
    weights = [parameter for parameter in trial.parameters() if parameter.requires_grad]
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            given = images.clone()
            output = trial(given)
    except Exception as error:
        raise InputError(f"the network fails in training mode: {first_line(error)}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(f"in training mode the network must return logits (B, classes), got {got}")
    if output.shape[1] < classes:
        raise InputError(f"the network has {output.shape[1]} outputs, but the labels are of {classes} classes")
    if not output.isfinite().all():
        raise InputError("the logits are NaN or infinite in training mode, before any training")
    if not torch.equal(given, images):
        raise InputError("the network changes its images in place in training mode; let it work on a copy")
    gradients = (
        torch.autograd.grad(output.sum(), [images, *weights], allow_unused=True) if output.requires_grad else (None,)
    )
    if all(gradient is None for gradient in gradients[1:]):
        raise InputError("no weight has a gradient in training mode (no_grad, detach, or all weights are frozen)")
    if gradients[0] is None:
        raise InputError("the logits have no gradient with respect to the images (detach or numpy in the forward pass)")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))


def _listed(names: Sequence[str]) -> str:
    """Return names for a sentence, the first few where there are many."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
