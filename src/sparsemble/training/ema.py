"""Averaging the weights over the steps of training (Izmailov et al. 2018; Gowal et al. 2020)."""

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
    """An exponential moving average of the weights, with BatchNorm's statistics measured anew on its own features.

    Source: Gowal et al. 2020, section 4.4 (averaging in adversarial training).
    """

    decay: float = 0.999
    """What each step keeps of the average so far, in [0, 1); less in the first steps: (1 + n) / (10 + n)."""
    batches: int = 10
    """Last training batches of an epoch, adversarial where they were crafted, that BatchNorm is measured on, >= 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise InputError(f"ema.decay = {self.decay:g} must lie in [0, 1)")
        if self.batches < 1:
            raise InputError(f"ema.batches = {self.batches} must be 1 or more")


@final
class EMAModel:
    """The average of a model in training: a copy that follows it."""

    def __init__(self, model: nn.Module, settings: EMA) -> None:
        self.settings = settings
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.steps = 0
        self.recent: deque[Images] = deque(maxlen=settings.batches)

    @torch.no_grad()
    def follow(self, model: nn.Module, seen: Images) -> None:
        """Move towards the model after a step on these images."""
        self.recent.append(seen)
        decay = min(self.settings.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for mine, its in zip(self.model.parameters(), model.parameters(), strict=True):
            mine.lerp_(its, 1 - decay)
        for own, other in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(other)

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """Measure BatchNorm on the recent images, and return the average in eval mode."""
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
        """Return what a resumed run needs, after an epoch."""
        return {"steps": torch.tensor(self.steps), **{f"w.{k}": v for k, v in self.model.state_dict().items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take it back."""
        self.steps = int(state["steps"])
        self.model.load_state_dict({name[2:]: tensor for name, tensor in state.items() if name.startswith("w.")})
        self.recent.clear()
