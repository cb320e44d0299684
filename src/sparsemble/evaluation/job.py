"""What is evaluated: the model and its rule, the images, the threat model, the attacks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor, nn

from sparsemble.attacks.attack import ACCESS, Access, Attack
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack
from sparsemble.attacks.patch import OUTSIDE, Patch
from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.dynamic import predict_dynamic
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import DynamicOutput, Ensemble, StoppingRule, members_of, stopping_rules
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import Images
from sparsemble.data.dataset import Split
from sparsemble.evaluation.search_copy import SearchCopy

AnyAttack = Attack | EnsembleAttack
Decide = Callable[[Images], DynamicOutput]
"""The deployed decision."""
CLEAN = "clean"
"""Label of the shards that hold the outcomes of clean images."""
KNOWLEDGE = {"gradients": "white-box", "scores": "black-box (logits)", "labels": "black-box (labels)"}
"""What the adversary knows, by what attacks may use of the model."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What is attacked, on which images and by what: everything that decides the outcomes."""

    model: nn.Module
    """What attacks differentiate: any network, or an `Ensemble`; in eval mode, on the device of the images."""
    rule: StoppingRule | None = None
    """The stopping rule of an ensemble; `never` unless given."""
    split: Split
    """Labelled images in [0, 1]."""
    threat: ThreatModel
    attacks: tuple[AnyAttack, ...]
    """With different labels; attacks on ensembles need an `Ensemble`."""
    classes: int | None = None
    """Number of classes of the data set, where it is known; the model must have as many outputs."""
    seed: int = 0
    shard: int = 100
    """Images attacked at once and stored together, >= 1."""
    search_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the attacks' passes; float32 always decides."""
    access: Access = "gradients"
    """The most that attacks may use of the model."""
    search_copy: SearchCopy = field(default_factory=SearchCopy, repr=False, compare=False)
    """What attacks search on; jobs on the same model share it."""

    def __post_init__(self) -> None:
        if self.rule is None and isinstance(self.model, Ensemble):
            object.__setattr__(self, "rule", stopping_rules.build("never"))
        labels = [attack.label for attack in self.attacks]
        if not labels:
            raise InputError("there are no attacks; name at least one")
        twice = sorted({label for label in labels if labels.count(label) > 1} | ({CLEAN} & set(labels)))
        if twice:
            raise InputError(f'the label "{twice[0]}" is taken; give each attack a label of its own')
        checked_seed(self.seed)
        if self.shard < 1:
            raise InputError(f"shard = {self.shard} must be 1 or more")
        if self.search_dtype not in DTYPES:
            raise InputError(f'search_dtype = "{self.search_dtype}" is not known; use float32 or bfloat16')
        for attack in self.attacks:
            if not self.allows(attack):
                raise InputError(
                    f"{attack.label} needs {access_of(attack)}, but attacks may use {self.access} only; "
                    "leave it out, or allow more with --access"
                )
            if not isinstance(attack, EnsembleAttack):
                attack.check_norm(self.threat.norm)
            elif not isinstance(self.model, Ensemble):
                raise InputError(f"{attack.label} attacks an ensemble; this model is none")

    def allows(self, attack: AnyAttack) -> bool:
        """Return whether an attack uses no more of the model than attacks may, or makes its own gradients of it."""
        makes_them = self.access == "scores" and not isinstance(attack, EnsembleAttack) and attack.own_gradients
        return makes_them or ACCESS.index(access_of(attack)) <= ACCESS.index(self.access)

    @property
    def knowledge(self) -> str:
        """What the adversary knows."""
        if self.own_gradients:
            return f"white-box, with gradients of stand-ins only ({', '.join(self.own_gradients)})"
        return KNOWLEDGE[self.access]

    @property
    def own_gradients(self) -> tuple[str, ...]:
        """Labels of the attacks that make their own gradients of a model without any."""
        if self.access == "gradients":
            return ()
        return tuple(attack.label for attack in self.attacks if access_of(attack) == "gradients")

    @property
    def members(self) -> int:
        """Number of members; 1 for a single model."""
        return len(members_of(self.model))

    @property
    def stops_early(self) -> bool:
        """Whether fewer than all members may run."""
        return self.rule is not None and self.rule.name != "never"

    @property
    def shards(self) -> tuple[Tensor, ...]:
        """Indices of the images of each shard."""
        return tuple(torch.arange(len(self.split), device=self.split.labels.device).split(self.shard))

    def decide(self, x: Images) -> DynamicOutput:
        """Return the deployed predictions, in float32; an ensemble runs its members one after the other."""
        return self.decide_by(self.model, x)

    @torch.no_grad()
    def decide_by(self, model: nn.Module, x: Images) -> DynamicOutput:
        """Return the predictions as `decide` does, of a copy of the model."""
        if isinstance(model, Ensemble):
            assert self.rule is not None
            return predict_dynamic(model, x, self.rule)
        one = torch.ones(len(x), dtype=torch.long, device=x.device)
        return DynamicOutput(model(x), one, one)


def access_of(attack: AnyAttack) -> Access:
    """Return what an attack uses of a model; refuse what is not an attack inside a ball."""
    if isinstance(attack, Patch):
        raise InputError(OUTSIDE)
    return "gradients" if isinstance(attack, EnsembleAttack) else attack.access
