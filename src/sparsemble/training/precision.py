"""Number format, memory layout and compilation of a training."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Precision:
    """Settings that make training faster; held-out images are always evaluated in float32."""

    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """bfloat16: convolutions and matrix products in 16 bits; weights, logits, losses and gradients in 32. auto: that
    where the device has instructions for it, which makes it faster, else float32."""
    channels_last: bool = True
    """Keep images and filters in channels-last memory layout, which is faster for convolutions."""
    compile: bool = False
    """Compile plain networks (the dense parent, fine-tuning); worthwhile in long trainings only."""

    def check(self, device: torch.device | str) -> None:
        """Check that the device supports the number format."""
        if self.dtype != "bfloat16":
            return
        if torch.device(device).type == "cuda":
            supported, needs = torch.cuda.is_bf16_supported(including_emulation=False), "a GPU from 2020 or later"
        else:
            supported, needs = _cpu_has_bf16(), "AVX-512"
        if not supported:
            raise InputError(
                f'dtype = "bfloat16" is not supported on this {torch.device(device).type} (it needs {needs}); '
                'use dtype = "float32"'
            )

    def on(self, device: torch.device | str) -> "Precision":
        """Return these settings with `auto` replaced by what this device is fastest in."""
        if self.dtype != "auto":
            return self
        if torch.device(device).type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = _cpu_has_bf16() and torch.cpu._is_avx512_bf16_supported()
        return replace(self, dtype="bfloat16" if native else "float32")

    @contextlib.contextmanager
    def applied(self, model: nn.Module, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Apply the settings to a model, whose members or only one `networks` are, while the context is open."""
        with contextlib.ExitStack() as stack:
            if self.channels_last:
                stack.enter_context(_in_channels_last(model))
            if self.compile or self.dtype == "bfloat16":
                for network in networks:
                    stack.enter_context(self._fast_forward(network))
            yield

    @contextlib.contextmanager
    def _fast_forward(self, network: nn.Module) -> Iterator[None]:
        previous = network.__dict__.get("forward")
        fast = torch.compile(network.forward) if self.compile else network.forward
        network.forward = _Forward(network.forward, _in_bfloat16(fast) if self.dtype == "bfloat16" else fast)
        try:
            yield
        finally:
            del network.forward
            if previous is not None:
                network.forward = previous

    def images(self, x: Images) -> Images:
        """Return the images in the memory layout of the filters."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


FLOAT32 = Precision()
"""float32 throughout."""


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextlib.contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Compute in float32, uncompiled, while the context is open, even if the model is in training."""
    own = [module.__dict__.get("forward") for module in model.modules()]
    forwards = [forward for forward in own if isinstance(forward, _Forward)]
    for forward in forwards:
        forward.exact = True
    try:
        yield
    finally:
        for forward in forwards:
            forward.exact = False


@final
class _Forward:
    """The forward pass of a network in training; a deep copy of the network has its own plain forward pass."""

    def __init__(self, plain: Callable[..., Any], fast: Callable[..., Any]) -> None:
        self.plain = plain
        self.fast = fast
        self.exact = False

    def __call__(self, x: Images) -> Tensor:
        logits: Tensor = self.plain(x) if self.exact else self.fast(x)
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self.plain, memo)


@contextlib.contextmanager
def _in_channels_last(model: nn.Module) -> Iterator[None]:
    """Keep filters in channels-last layout while the context is open, then restore the layout of each."""
    before = {name: tensor.stride() for name, tensor in _filters(model).items()}
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        for name, tensor in _filters(model).items():
            if tensor.stride() != before.get(name, tensor.stride()):
                tensor.data = torch.empty_strided(
                    tensor.shape, before[name], dtype=tensor.dtype, device=tensor.device
                ).copy_(tensor.data)


def _filters(model: nn.Module) -> dict[str, Tensor]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in tensors if tensor.ndim == 4}


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[[Images], Tensor]:
    """Wrap a forward pass so that it computes in bfloat16 and returns float32.

    Each call is an autocast region of its own, so that weights changed between two calls are not taken from the cache.
    """

    def call(x: Images) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits: Tensor = forward(x)
        return logits.float()

    return call
