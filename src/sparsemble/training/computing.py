"""How a training computes: number format, memory layout, compilation."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Computing:
    """What makes a training quicker without being part of the method; held-out images are judged in float32."""

    precision: Literal["float32", "bfloat16"] = "float32"
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
        if self.precision == "float32":
            return
        if torch.device(device).type == "cuda":
            supported, needs = torch.cuda.is_bf16_supported(including_emulation=False), "a GPU from 2020 or later"
        else:
            supported, needs = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()), "AVX-512"
        if not supported:
            raise InputError(
                f'precision = "bfloat16" is not supported on this {torch.device(device).type} (it needs {needs}); '
                'use precision = "float32"'
            )

    @contextlib.contextmanager
    def applied(self, model: nn.Module, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Compute the model's parts (its members, or itself) in this way while the context is open."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        before = [part.__dict__.get("forward") for part in parts]
        for part in parts:
            forward = torch.compile(part.forward) if self.compile else part.forward
            if self.precision == "bfloat16":
                forward = in_16_bits(forward)
            part.forward = forward
        try:
            yield
        finally:
            for part, own in zip(parts, before, strict=True):
                del part.forward
                if own is not None:
                    part.forward = own
            if self.channels_last:
                model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def images(self, x: Images) -> Images:
        """Return the images in the layout of the filters."""
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x


EXACT = Computing()
"""float32 throughout."""


def in_16_bits(forward: Callable[..., Any]) -> Callable[[Images], Tensor]:
    """Wrap a forward pass so that it computes in bfloat16 and answers in float32.

    Each call is an autocast region of its own: weights that were moved between two calls are never taken from the
    cache of the first.
    """

    def call(x: Images) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            answer: Tensor = forward(x)
        return answer.float()

    return call
