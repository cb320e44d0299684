"""What `sparsemble bench` times: a network with drawn weights, an ensemble of such, or an ensemble that was trained."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.core.config import parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.types import draw_seed, seeded
from sparsemble.evaluation.loaded_model import load_target, resolve_data
from sparsemble.export.convert import convert_model
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pipeline.stage import dataset
from sparsemble.pruning import Mask, SparsityTarget, prunable_layers
from sparsemble.pruning.granularity import granularities
from sparsemble.pruning.layer_rates import layer_rates
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import Network
from sparsemble.runtime.stopping import Counts, Flags, StoppingRule
from sparsemble.training.validation import BATCH

Floats = NDArray[np.float32]


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is timed; checked when it is made."""

    target: str = ""
    """A packed ensemble, or the folder of an exported run; empty: a network with drawn weights."""
    data: str = ""
    """Images for an ensemble; the ones of its recipe unless given."""
    model: str = "resnet18"
    """An architecture, or a table in TOML."""
    sparsity: float = 0.9
    """Of all members together."""
    granularity: str = "weight"
    """A granularity, or a table in TOML."""
    mask: str = "uniform"
    """uniform (the first layer stays dense), erk, or a mask.safetensors."""
    members: int = 1
    members_run: float = 1.6
    """With several drawn members: how many run on average; who stops is drawn."""
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    batches: tuple[int, ...] = (64,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 7
    seed: int = 0
    first_use: bool = False
    """Whether a single network's first answers are timed, too."""

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise InputError(f"{name} = {list(values)} must be whole numbers, 1 or more")
        if self.rounds < 2:
            raise InputError(f"rounds = {self.rounds} must be 2 or more")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity = {self.sparsity:g} must lie in [0, 1)")
        if self.members < 1:
            raise InputError(f"members = {self.members} must be 1 or more")
        if self.first_use and (self.target or self.members > 1):
            raise InputError("first_use is of a single network with drawn weights; leave out the target and members")
        if self.members > 1 and not 1 <= self.members_run <= self.members:
            raise InputError(f"members_run = {self.members_run:g} must lie in 1..{self.members}, the members there are")


@final
@dataclass(frozen=True, eq=False)
class Subject:
    """What is timed."""

    network: Network
    """What every engine runs, of an ensemble its first member, which has the dense parent's shape; the dense engines take as
    long for it as for the parent."""
    facts: dict[str, Any]
    ensemble: PackedEnsemble | None = None
    views: dict[str, Floats] = field(default_factory=dict)
    """Images that an ensemble is timed on while it stops early, by what they are."""
    rule: StoppingRule | None = None
    """In place of the ensemble's own rule."""


def subject(asked: Asked, tell: Callable[[str], None]) -> Subject:
    """Draw or load what is asked for.

    Raises:
        InputError: nothing there, or a network or mask that cannot be.
    """
    return _loaded(asked, tell) if asked.target else drawn(asked)


def drawn(asked: Asked) -> Subject:
    """Return a network with drawn weights and mask, or an ensemble of them."""
    each = 1 - (1 - asked.sparsity) / asked.members
    made = [_network(replace(asked, sparsity=each, seed=asked.seed + i)) for i in range(asked.members)]
    network, facts = made[0]
    if asked.members == 1:
        return Subject(network, facts)
    ensemble = PackedEnsemble(
        members=tuple(one for one, _ in made),
        combiner={"name": "mean_probability"},
        rule={"name": "never"},
        classes=tuple(map(str, range(asked.classes))),
        parent_weights=facts["weights"],
    )
    images = np.random.default_rng(asked.seed).random((max(asked.batches), *asked.image), dtype=np.float32)
    rule = _Drawn(asked.members_run, asked.members)
    return Subject(
        network, {**facts, "ensemble_sparsity": ensemble.sparsity}, ensemble, {"drawn decisions": images}, rule
    )


@final
class _Drawn(StoppingRule):
    """A rule that lets drawn images go on, the same part after each member, to run a number of members on average."""

    def __init__(self, members_run: float, members: int) -> None:
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(middle**m for m in range(members)) < members_run else (low, middle)
        self.on = low

    def __call__(self, member_logits: Floats, *, last: bool) -> tuple[Flags, Counts]:
        """Stop where the lot falls."""
        members, images = member_logits.shape[:2]
        rule: Flags = np.full(images, last)
        rule |= np.random.default_rng(members).permutation(images) >= round(self.on * images)
        return rule, np.full(images, members, np.int64)


def _network(asked: Asked) -> tuple[Network, dict[str, Any]]:
    """Return a network with drawn weights and mask, and what it has of each."""
    model = _model(asked)
    mask = _mask(model, asked)
    mask.apply_(model)
    network = convert_model(model, asked.image)
    graph = Graph(model, asked.image)
    weights = [layer.weight for layer in prunable_layers(model).values()]
    total, kept = sum(w.numel() for w in weights), sum(int(w.count_nonzero()) for w in weights)
    macs = [(o.positions, prunable_layers(model)[name].weight) for name, o in graph.layers().items()]
    dense = sum(places * w.numel() for places, w in macs)
    nonzero = sum(places * int(w.count_nonzero()) for places, w in macs)
    facts = {"weights": total, "nonzeros": kept, "sparsity": 1 - kept / total, "macs_dense": dense}
    return network, facts | {"macs_nonzero": nonzero, "macs_sparsity": 1 - nonzero / dense}


def _model(asked: Asked) -> nn.Module:
    layout = architectures.build(_spec(asked.model, "--model"), "--model")
    mean, std = (0.5,) * asked.image[0], (0.25,) * asked.image[0]
    rng = seeded(draw_seed(asked.seed, "bench"))
    return build_model(layout, asked.image, asked.classes, mean, std, rng=rng).eval()


def _mask(model: nn.Module, asked: Asked) -> Mask:
    layers = prunable_layers(model)
    if asked.mask not in ("uniform", "erk"):
        path = Path(asked.mask)
        if not path.is_file():
            raise InputError(f'--mask = "{asked.mask}" must be uniform, erk or a mask.safetensors that exists')
        return Mask.load(path)
    rng = seeded(draw_seed(asked.seed, "mask"))
    scores = {name: torch.rand(layer.weight.shape, generator=rng) for name, layer in layers.items()}
    granularity = granularities.build(_spec(asked.granularity, "--granularity"), "--granularity")
    graph, rates = Graph(model, asked.image), layer_rates.build(asked.mask)
    mask = SparsityTarget(graph=graph, sparsity=asked.sparsity, granularity=granularity, rates=rates).mask(scores)
    if asked.mask == "erk" or granularity.whole_channels:
        return mask
    first = next(iter(layers))
    return Mask({name: torch.ones_like(keep) if name == first else keep for name, keep in mask.items()})


def _spec(text: str, where: str) -> Any:
    """Return a name, or the table that a text in TOML holds."""
    return parse_toml(f"value = {text}", where)["value"] if text.lstrip().startswith("{") else text


def _loaded(asked: Asked, tell: Callable[[str], None]) -> Subject:
    """Read a packed ensemble, and craft images that make it run many members.

    The dense engines run its first member, which stands for the dense parent, as the file does not hold that one.
    """
    path = Path(asked.target)
    if path.is_dir():
        path = path / "export" / "ensemble.sparsemble"
        if not path.is_file():
            raise InputError(
                f"{asked.target} holds no packed ensemble; make one with `sparsemble export {asked.target}`"
            )
    try:
        ensemble = packed.load(path)
    except RuntimeInputError as error:
        raise InputError(f"{path}: {error}") from error
    _check_shape(ensemble, path)
    target = load_target(str(path))
    source = resolve_data(asked.data) if asked.data else target.data
    if source is None:
        raise InputError(f"{path} does not say what it was trained on; give images with --data")
    data = dataset(source)
    if data.shape != ensemble.image:
        raise InputError(f"{path} sees images of {ensemble.image}; those of the data are {data.shape}")
    x, y = data.test.tensors()
    places = torch.randperm(len(x), generator=seeded(draw_seed(asked.seed, "bench")))
    places = places.repeat(-(-max(asked.batches) // len(x)))[: max(asked.batches)]
    x, y = x[places], y[places]
    views = {"clean images": x.numpy()}
    if target.threat is not None and target.rule is not None:
        attack, rng = Slowdown(steps=20, restarts=1), seeded(draw_seed(asked.seed, "slowdown"))
        tell(f"crafting {len(x)} images that slow the ensemble down")
        assert isinstance(target.model, Ensemble)
        parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
        crafted = [attack(target.model, target.rule, a, b, target.threat, rng=rng) for a, b in parts]
        views["slowdown attack"] = torch.cat(crafted).numpy()
    facts = {"weights": ensemble.parent_weights, "nonzeros": ensemble.nonzeros, "ensemble_sparsity": ensemble.sparsity}
    return Subject(ensemble.members[0], facts, ensemble, views)


def _check_shape(ensemble: PackedEnsemble, path: Path) -> None:
    """Refuse an ensemble whose first member cannot stand for the dense parent.

    Raises:
        InputError: it has another number of weights, as a member has whose channels were removed.
    """
    weights = sum(weight.size for weight in ensemble.members[0].weights())
    if weights != ensemble.parent_weights:
        raise InputError(
            f"{path}: its first member has {weights} weights, zeros included, and the dense parent had "
            f"{ensemble.parent_weights}; dense engines run the first member in the parent's place, so an ensemble can be timed "
            "only while its members keep the parent's shape"
        )
