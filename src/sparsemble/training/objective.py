"""What training minimises: one signature for single models, sparse models and teams."""

from abc import abstractmethod
from dataclasses import dataclass, field

from torch import Generator, Tensor, nn

from sparsemble.attacks.attack import Attack
from sparsemble.core.modes import eval_mode
from sparsemble.core.registry import Plug, Registry
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Classifier, Images, Labels


@dataclass(frozen=True)
class LossOutput:
    """A loss to go down, and what is worth writing into the history."""

    loss: Tensor
    """Scalar with a gradient."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Parts of the loss, detached scalars, by name."""
    adversarial: Images | None = None
    """The adversarial images crafted against the whole model, where the objective made some."""


class Objective(Plug):
    """A training loss; it may move BatchNorm by its training passes and changes nothing else."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Images, y: Labels, threat: ThreatModel, *, rng: Generator) -> LossOutput:
        """Return the loss of a batch; the model is in training mode."""

    def gentler(self, factor: float) -> "Objective | None":
        """Return this objective with its attack step times a factor; only single-step ones have such a knob."""
        return None


def craft(
    model: nn.Module,
    attack: Attack,
    x: Images,
    y: Labels,
    threat: ThreatModel,
    *,
    rng: Generator,
    target: Classifier | None = None,
) -> Images:
    """Make adversarial images with BatchNorm in eval mode, and leave the mode as found.

    Args:
        model: the module whose mode is switched.
        attack: how to search.
        x: (B, C, H, W) in [0, 1].
        y: (B) true classes.
        threat: where to search.
        rng: draws random starts.
        target: what to climb where it is not the model itself.
    """
    with eval_mode(model):
        return attack(target or model, x, y, threat, rng=rng)


objectives: Registry[Objective] = Registry("objective", Objective)
