"""Search in fewer bits: what attacks climb where float32 only has to confirm."""

from typing import final

import torch
from torch import Tensor, nn

from sparsemble.core.interfaces import Ensemble
from sparsemble.core.types import Images, Logits


@final
class Autocast(nn.Module):
    """A model that computes in fewer bits and answers in float32."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = inner
        self.dtype = dtype
        self.eval()

    def forward(self, x: Images) -> Logits:
        """Return the inner model's logits."""
        with torch.autocast(x.device.type, self.dtype):
            logits: Tensor = self.inner(x)
        return logits.float()


def in_precision(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return what attacks climb: the model itself, or its members one by one in fewer bits."""
    if dtype == torch.float32:
        return model
    if isinstance(model, Ensemble):
        return Ensemble([Autocast(member, dtype) for member in model.members], model.combiner).eval()
    return Autocast(model, dtype)
