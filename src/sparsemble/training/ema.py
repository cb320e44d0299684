"""Exponential moving average of the weights (Izmailov et al. 2018; Gowal et al. 2020)."""

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.errors import InputError
from sparsemble.core.module_state import NORMS
from sparsemble.core.types import Images
from sparsemble.training import distributed


@final
@dataclass(frozen=True, kw_only=True)
class EMA:
    """Settings of an exponential moving average whose BatchNorm statistics are computed on its own features.

    w_ema <- d w_ema + (1 - d) w after step n, with d = min(decay, (1 + n) / (10 + n)).

    Source: Gowal et al. 2020, section 4.4 (averaging in adversarial training).
    """

    decay: float = 0.999
    """Weight of the average so far at each step, in [0, 1); smaller in the first steps."""
    batches: int = 10
    """Last training batches of an epoch (their adversarial images, where crafted) on which BatchNorm's statistics are
    computed, >= 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"ema.decay = {self.decay:g} must lie in [0, 1)")
        if self.batches < 1:
            raise InputError(f"ema.batches = {self.batches} must be 1 or more")


@final
class EMAModel:
    """A copy of a model in training that holds the average of its weights."""

    def __init__(self, model: nn.Module, settings: EMA) -> None:
        self.settings = settings
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.averages: list[Tensor] = list(self.model.parameters())
        self.buffers = list(self.model.buffers())
        self.steps = 0
        self.recent: deque[Images] = deque(maxlen=settings.batches)

    @torch.no_grad()
    def update(self, model: nn.Module, x: Images) -> None:
        """Update the average after a step on these images."""
        self.recent.append(x)
        decay = min(self.settings.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        weights: list[Tensor] = list(model.parameters())
        torch._foreach_lerp_(self.averages, weights, 1 - decay)
        if self.buffers:
            torch._foreach_copy_(self.buffers, list(model.buffers()))

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """Compute BatchNorm statistics on the recent images, and return the averaged model in eval mode."""
        norms = [module for module in self.model.modules() if isinstance(module, NORMS)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
            norm.train()
        if norms:
            with distributed.synchronised_batchnorm(self.model):
                for x in self.recent:
                    self.model(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        self.recent.clear()
        return self.model.eval()

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs; only complete after `refresh`."""
        return {"steps": torch.tensor(self.steps), **{f"w.{k}": v for k, v in self.model.state_dict().items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        self.steps = int(state["steps"])
        self.model.load_state_dict({name[2:]: tensor for name, tensor in state.items() if name.startswith("w.")})
        self.recent.clear()
