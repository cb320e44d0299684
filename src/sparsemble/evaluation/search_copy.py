"""A faster copy of a model for attacks to search on; the model itself decides what they found."""

from collections.abc import Sequence
from typing import final

import torch
from torch import nn

from sparsemble.attacks.attack import Attack
from sparsemble.attacks.bpda import BPDA
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.ensemble.surrogate_attack import SurrogateAttack
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble, stack_logits
from sparsemble.core.pass_counter import StandIn
from sparsemble.core.same_outputs import TOLERANCE, assert_same_outputs, relative_difference
from sparsemble.core.types import Images, MemberLogits
from sparsemble.models.convert import convert_model
from sparsemble.models.folded import FoldedNetwork
from sparsemble.models.folded_members import FoldedMembers, have_one_layout
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.network import Network

COMPARED = 32
"""Images, beside those of noise, on which a copy is compared with its model."""
SIDE_BY_SIDE = 64
"""Most images for which one grouped convolution is faster than one for each member."""


@final
class SearchCopy:
    """Makes the copy of one model when it is first needed; the model must not change from then on."""

    def __init__(self) -> None:
        self._model: nn.Module | None = None
        self._copy: nn.Module | None = None

    def of(self, model: nn.Module, x: Images) -> nn.Module:
        """Return the copy of a model, or the model where it cannot be rewritten or computes something else.

        Args:
            model: a network, or an `Ensemble`; in eval mode, left as found.
            x: (B, C, H, W) images in [0, 1], on the device of the model.
        """
        if self._copy is None or self._model is not model:
            self._model, self._copy = model, _copy_of(model, x)
        return self._copy


@final
class _Together(nn.Module):
    """The logits of all members: side by side on few images, one after another on many.

    Args:
        grouped: computes those of all members at once.
        members: compute the same.
    """

    def __init__(self, grouped: nn.Module, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.grouped, self.members = grouped, nn.ModuleList(members)

    def forward(self, x: Images) -> MemberLogits:
        if len(x) > SIDE_BY_SIDE:
            return stack_logits([member(x) for member in self.members])
        logits: MemberLogits = self.grouped(x)
        return logits


def may_search_on_copy(attack: Attack | EnsembleAttack) -> bool:
    """Return whether an attack needs nothing of a model but its logits and their gradients.

    BPDA looks for the model's own decisions, so it searches on the model.
    """
    inner = attack.attack if isinstance(attack, SurrogateAttack) else attack
    return not isinstance(inner, BPDA)


def _copy_of(model: nn.Module, x: Images) -> nn.Module:
    if not isinstance(model, Ensemble):
        network = _folded(model, x)
        return _as_proved(model, _placed(FoldedNetwork(network), [model], x), x) if network else model
    networks = [_folded(member, x) for member in model.members]
    folded = [network for network in networks if network]
    if not folded:
        return model
    pairs = zip(model.members, networks, strict=True)
    members = [_placed(FoldedNetwork(network), [member], x) if network else member for member, network in pairs]
    together = None
    # Groups are slow on a GPU, which one member keeps busy.
    if x.device.type == "cpu" and len(folded) == len(members) > 1 and have_one_layout(folded):
        together = _Together(_placed(FoldedMembers(folded), list(model.members), x), members)
    return _as_proved(model, Ensemble(members, model.combiner, together=together).eval(), x)


def _folded(model: nn.Module, x: Images) -> Network | None:
    """Return a network with BatchNorm folded; None where it has operations that the runtime does not know."""
    channels, height, width = x.shape[1:]
    try:
        return convert_model(model, (channels, height, width))
    except (InputError, RuntimeInputError):
        return None


def _placed(network: nn.Module, models: Sequence[nn.Module], x: Images) -> nn.Module:
    """Move what stands in for models to the device of the images; on a CPU its feature maps are channels last.

    Args:
        network: with BatchNorm folded.
        models: what it stands in for.
        x: images.
    """
    network = network.to(x.device)
    if x.device.type == "cpu":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return StandIn(network, models).eval()


@torch.no_grad()
def _as_proved(model: nn.Module, copy: nn.Module, x: Images) -> nn.Module:
    """Return the copy if it computes what the model computes, on noise and on real images; else the model."""
    channels, height, width = x.shape[1:]
    try:
        assert_same_outputs(model, copy, (channels, height, width), "as a copy for attacks")
    except InputError:
        return model
    few = x[:COMPARED]
    return copy if relative_difference(model(few), copy(few)) <= TOLERANCE else model
