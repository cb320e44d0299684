"""Weights from elsewhere: files of PyTorch and safetensors, read without running code, by the names of the field."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsemble.core.errors import InputError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "ema_state_dict", "ema", "params", "weights")
"""Entries of a checkpoint that hold the weights, those looked for first in front."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "body.", "0.", "1.")
"""Names of wrappers that stand before every tensor."""
RULES = (
    (r"^layer(\d)\.", r"stage\1."),
    (r"^block(\d)\.layer\.", r"stage\1."),
    (r"\.downsample\.", ".shortcut."),
    (r"\.convShortcut\.", ".shortcut."),
    (r"^(conv1|conv_1|stem\.conv|init_conv)\.", "conv."),
    (r"^(bn1|bn|stem\.bn|batchnorm)\.", "norm."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"^(fc|linear|classifier|head|head\.fc|last_linear|logits)\.(weight|bias)$", r"linear.\2"),
)
"""From names of torchvision, timm and the CIFAR networks of TRADES, AWP and AutoAttack to ours."""
UNUSED = r"^sub_block1\."
"""A block that TRADES' WideResNet holds and never runs."""
COUNTER = "num_batches_tracked"
CHANNELS = 4
"""A normalisation has no more."""
SHOWN = 3
"""Names of a kind that an error message lists."""
Statistics = tuple[float, ...]
"""One number for each channel; empty: not known."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, or one of `torch.save` that needs no code; the entries around a state dict are opened.

    Raises:
        InputError: no such file, another format, code inside, or no tensors.
    """
    content = _unwrapped(_load(path))
    tensors = {name: value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; save the state dict of the network")
    return tensors


def split_normalisation(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Statistics, Statistics]:
    """Return the tensors of a network without common prefixes, and mean and deviation that stand among them, if any."""
    rest, found = dict(tensors), []
    for names in (("mean", "mu"), ("std", "sigma")):
        keys = [key for key in rest if key.rpartition(".")[2] in names and rest[key].numel() <= CHANNELS]
        found.append(tuple(rest.pop(keys[0]).flatten().tolist()) if len(keys) == 1 else ())
    while prefix := next((each for each in PREFIXES if all(name.startswith(each) for name in rest)), ""):
        rest = {name.removeprefix(prefix): tensor for name, tensor in rest.items()}
    return rest, found[0], found[1]


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} does not exist")
    if path.suffix not in PICKLED:
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path} is no safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} needs code to be unpickled, which sparsemble never runs; save the weights alone: "
            "torch.save(model.state_dict(), ...), or a safetensors file"
        ) from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no file of torch.save: {reason}") from error


def _unwrapped(content: Any) -> Mapping[str, Any]:
    """Return the state dict inside the entries that training scripts put around it.

    Raises:
        InputError: there is none.
    """
    while isinstance(content, Mapping):
        inner = [content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            return {str(name): value for name, value in content.items()}
        content = inner[0]
    raise InputError(f"the file holds a {type(content).__name__}, not a state dict; save model.state_dict()")


def load_named_(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> bool:
    """Load tensors into a network, by its own names or by those of the field; nothing is loaded unless all fit.

    Args:
        network: one of our architectures, without its normalisation, or any network.
        tensors: its weights.
        path: of the file, for messages.

    Returns:
        Whether names were translated.

    Raises:
        InputError: naming missing and unexpected tensors and shapes that differ.
    """
    expected = network.state_dict()
    translated = not {name for name in tensors if not name.endswith(COUNTER)} <= expected.keys()
    given = _translated(network, tensors) if translated else dict(tensors)
    for name in expected.keys() - given.keys():
        if name.endswith(COUNTER):  # which files of old versions lack
            given[name] = torch.zeros_like(expected[name])
    if faults := _faults(expected, given):
        raise InputError(
            f"{path} belongs to another architecture than {type(network).__name__}: {'; '.join(faults)}; do "
            "architecture, width and number of classes fit?"
        )
    network.load_state_dict(given)
    return translated


def _faults(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} where {tuple(expected[name].shape)} is needed"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    kinds = (("the file lacks", missing), ("the network has no", unexpected), ("shapes differ:", shapes))
    return [f"{words} {_some(names)}" for words, names in kinds if names]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _translated(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under our names; layers of a numbered list follow the order of the network's."""
    kept = {name: tensor for name, tensor in tensors.items() if not re.match(UNUSED, name)}
    if any(name.startswith("features.") for name in kept):
        kept = _numbered(network, kept)
    result = {}
    for name, tensor in kept.items():
        for pattern, ours in RULES:
            name = re.sub(pattern, ours, name)
        result[name] = tensor
    expected = network.state_dict()
    # A shortcut is a convolution alone in pre-activation blocks, which others keep in a list of one.
    alone = {name: name.replace(".shortcut.0.", ".shortcut.") for name in result if ".shortcut.0." in name}
    return {alone[name] if alone.get(name) in expected else name: tensor for name, tensor in result.items()}


def _numbered(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the layers `features.N` of a VGG after the convolutions and norms of the network, in their order."""
    numbers = sorted({int(name.split(".")[1]) for name in tensors if re.match(r"features\.\d+\.", name)})
    layers = [name for name, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    if len(numbers) != len(layers):
        return dict(tensors)
    ours = dict(zip(numbers, layers, strict=True))
    return {re.sub(r"^features\.(\d+)", lambda match: ours[int(match[1])], name): t for name, t in tensors.items()}
