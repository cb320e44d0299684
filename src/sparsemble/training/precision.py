"""How a training computes: number format, memory layout, compilation."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Precision:
    """What makes a training quicker without being part of the method; held-out images are judged in float32."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: convolutions and products in 16 bits, weights, logits, losses and gradients in 32."""
    channels_last: bool = True
    """Hold images and filters with the channels innermost, as fast convolutions read them."""
    compile: bool = False
    """Compile plain networks (the dense parent, fine-tuning), which pays in long trainings only."""

    def check(self, device: torch.device | str) -> None:
        """Refuse a format that the device does not compute in.

        Raises:
            InputError: bfloat16 on a processor without AVX-512 or a GPU older than Ampere.
        """
        if self.dtype == "float32":
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

    @contextlib.contextmanager
    def applied(self, model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Compute the model's parts (its members, or itself) in this way while the context is open."""
        with contextlib.ExitStack() as stack:
            if self.channels_last:
                stack.enter_context(_in_channels_last(model))
            if self.compile or self.dtype == "bfloat16":
                for part in parts:
                    stack.enter_context(self._faster(part))
            yield

    @contextlib.contextmanager
    def _faster(self, part: nn.Module) -> Iterator[None]:
        own = part.__dict__.get("forward")
        fast = torch.compile(part.forward) if self.compile else part.forward
        part.forward = _Forward(part.forward, in_bfloat16(fast) if self.dtype == "bfloat16" else fast)
        try:
            yield
        finally:
            del part.forward
            if own is not None:
                part.forward = own

    def images(self, x: Images) -> Images:
        """Return the images in the layout of the filters."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


FLOAT32 = Precision()
"""float32 throughout."""


def _cpu_has_bf16() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextlib.contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Let a model that is in training compute in float32, uncompiled, while the context is open."""
    found = [module.__dict__.get("forward") for module in model.modules()]
    forwards = [forward for forward in found if isinstance(forward, _Forward)]
    for forward in forwards:
        forward.exact = True
    try:
        yield
    finally:
        for forward in forwards:
            forward.exact = False


@final
class _Forward:
    """The forward pass of a network in training; a copy of the network gets its own plain one, not this one's."""

    def __init__(self, plain: Callable[..., Any], fast: Callable[..., Any]) -> None:
        self.plain = plain
        self.fast = fast
        self.exact = False

    def __call__(self, x: Images) -> Tensor:
        answer: Tensor = self.plain(x) if self.exact else self.fast(x)
        return answer

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self.plain, memo)


@contextlib.contextmanager
def _in_channels_last(model: nn.Module) -> Iterator[None]:
    """Hold filters with the channels innermost while the context is open, then each as it was found."""
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


def in_bfloat16(forward: Callable[..., Any]) -> Callable[[Images], Tensor]:
    """Wrap a forward pass so that it computes in bfloat16 and answers in float32.

    Each call is an autocast region of its own: weights that were moved between two calls are never taken from the
    cache of the first.
    """

    def call(x: Images) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            answer: Tensor = forward(x)
        return answer.float()

    return call
