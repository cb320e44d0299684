"""The networks that `sparsemble bench` times: with random weights, an ensemble of such, or a trained ensemble."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import sparsemble.ensemble  # noqa: F401  combiners and stopping rules register
from sparsemble.attacks.ensemble.slowdown import Slowdown
from sparsemble.bench.channels_pruned import without_channels
from sparsemble.bench.random_stopping import RandomStopping
from sparsemble.core.argument_checks import checked_seed
from sparsemble.core.config import parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.interfaces import Ensemble
from sparsemble.core.types import draw_seed, seeded
from sparsemble.evaluation.cost import count_macs, count_weights
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.resolve_data import resolve_data
from sparsemble.export.quantize import quantize
from sparsemble.models import architectures, build_model
from sparsemble.models.convert import convert_model
from sparsemble.models.graph import Graph
from sparsemble.pruning import Mask, SparsityTarget, prunable_layers
from sparsemble.pruning.granularity import granularities
from sparsemble.pruning.layer_rates import layer_rates
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.network import Floats, Network
from sparsemble.runtime.stopping import StoppingRule
from sparsemble.training.validation import BATCH

CALIBRATED, CHECKED = 64, 256
"""Images on which ranges of 8-bit results are calibrated; on which labels are compared."""
ATTACKED = "slowdown attack"
UNTRAINED = "needs training of its own, so that its accuracy is known; with random weights it is timed"


@final
@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """What is timed, and how; checked on construction."""

    target: str = ""
    """A packed ensemble, or the folder of an exported run; empty: a network with random weights."""
    data: str = ""
    """Images for an ensemble; those of its recipe unless given."""
    model: str = "resnet18"
    """An architecture, or a table in TOML."""
    sparsity: float = 0.9
    """Of all members together."""
    granularity: str = "weight"
    """A granularity, or a table in TOML."""
    arithmetic: str = ""
    """Of our engine: float32, or int8; empty: that of the target, float32 without one."""
    mask: str = "uniform"
    """uniform (the first layer stays dense), erk, or a mask.safetensors."""
    members: int = 1
    members_run: float = 1.6
    """Of several random members: how many run on average; the images that stop are random."""
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    batches: tuple[int, ...] = (64,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 7
    seed: int = 0
    first_use: bool = False
    """Whether the first predictions of a single network are timed, too."""

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise InputError(f"{name} = {list(values)} must be whole numbers, 1 or more")
        checked_seed(self.seed)
        if self.rounds < 2:
            raise InputError(f"rounds = {self.rounds} must be 2 or more")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity = {self.sparsity:g} must lie in [0, 1)")
        if self.arithmetic not in ("", "float32", "int8"):
            raise InputError(f'arithmetic = "{self.arithmetic}" is not known; use float32 or int8')
        if self.members < 1:
            raise InputError(f"members = {self.members} must be 1 or more")
        if self.first_use and (self.target or self.members > 1):
            raise InputError("first_use is of a single network with drawn weights; leave out the target and members")
        if self.members > 1 and not 1 <= self.members_run <= self.members:
            raise InputError(f"members_run = {self.members_run:g} must lie in 1..{self.members}, the members there are")


@final
@dataclass(frozen=True, eq=False)
class BenchModel:
    """A network or ensemble to time."""

    network: Network
    """What every engine runs, in float32. Of an ensemble it is the first member: it has the dense parent's shape, and a
    dense engine takes as long for it as for the parent."""
    ours: Network
    """The same in the arithmetic of our engine."""
    properties: dict[str, Any]
    """Weights, non-zero weights, sparsity, multiply-accumulates."""
    calibration: Floats
    """(B, C, H, W) images on which dense engines calibrate 8-bit arithmetic."""
    images: Floats
    """(B, C, H, W) images on which labels are compared."""
    labels: NDArray[np.int64] | None = None
    """Their classes; None: the weights are random."""
    narrow: Network | None = None
    """A dense network with fewer channels, of as many multiply-adds as all members keep."""
    why_not_narrow: str = ""
    ensemble: PackedEnsemble | None = None
    image_sets: dict[str, Floats] = field(default_factory=dict)
    """Images on which an ensemble is timed while it stops early, by a description of them."""
    rule: StoppingRule | None = None
    """A stopping rule in place of the ensemble's own."""


def load_bench_model(settings: BenchSettings, report: Callable[[str], None]) -> BenchModel:
    """Return the network or ensemble that the settings describe; `report` receives a sentence before a long step."""
    return _packed_model(settings, report) if settings.target else random_model(settings)


def random_model(settings: BenchSettings) -> BenchModel:
    """Return a network with random weights and a random mask, or an ensemble of them."""
    member_sparsity = 1 - (1 - settings.sparsity) / settings.members
    networks = [
        _network(replace(settings, sparsity=member_sparsity, seed=settings.seed + i)) for i in range(settings.members)
    ]
    network, properties = networks[0]
    ensemble = PackedEnsemble(
        members=tuple(member for member, _ in networks),
        combiner={"name": "mean_probability"},
        rule={"name": "never"},
        classes=tuple(map(str, range(settings.classes))),
        parent_weights=properties["weights"],
    )
    rng = np.random.default_rng(settings.seed)
    count = CALIBRATED + CHECKED
    calibration, images = np.split(rng.random((count, *settings.image), dtype=np.float32), [CALIBRATED])
    if settings.arithmetic == "int8":
        ensemble = quantize(ensemble, *torch.from_numpy(calibration).chunk(2))
    kept = sum(facts["macs_nonzero"] for _, facts in networks) / properties["macs_dense"]
    narrow, why_not_narrow = _narrow(settings, kept)
    model = BenchModel(
        network=network,
        ours=ensemble.members[0],
        properties=properties,
        calibration=calibration,
        images=images,
        narrow=narrow,
        why_not_narrow=why_not_narrow,
    )
    if settings.members == 1:
        return model
    timed = np.random.default_rng(settings.seed).random((max(settings.batches), *settings.image), dtype=np.float32)
    return replace(
        model,
        properties=properties | {"ensemble_sparsity": ensemble.sparsity},
        ensemble=ensemble,
        image_sets={"drawn decisions": timed},
        rule=RandomStopping(settings.members_run, settings.members),
    )


def _narrow(settings: BenchSettings, kept: float) -> tuple[Network | None, str]:
    """Return a dense network with a fraction of the multiply-adds, or None and the reason."""
    if kept >= 1:
        return None, "all members together keep as many multiply-adds as the dense network has"
    try:
        return without_channels(_dense(settings), settings.image, kept), ""
    except InputError as error:
        return None, str(error)


def _dense(settings: BenchSettings) -> nn.Module:
    """Return the dense network with random weights."""
    layout = architectures.build(_spec(settings.model, "--model"), "--model")
    mean, std = (0.5,) * settings.image[0], (0.25,) * settings.image[0]
    rng = seeded(draw_seed(settings.seed, "bench"))
    return build_model(layout, settings.image, settings.classes, mean, std, rng=rng).eval()


def _network(settings: BenchSettings) -> tuple[Network, dict[str, Any]]:
    """Return a network with random weights and a random mask, and its properties."""
    model = _dense(settings)
    _mask(model, settings).apply_(model)
    weights, macs = count_weights(model), count_macs(model, settings.image)
    return convert_model(model, settings.image), {
        "weights": weights.total,
        "nonzeros": weights.nonzeros,
        "sparsity": weights.sparsity,
        "macs_dense": macs.dense,
        "macs_nonzero": macs.nonzero,
        "macs_sparsity": 1 - macs.nonzero / macs.dense,
    }


def _mask(model: nn.Module, settings: BenchSettings) -> Mask:
    layers = prunable_layers(model)
    if settings.mask not in ("uniform", "erk"):
        path = Path(settings.mask)
        if not path.is_file():
            raise InputError(f'--mask = "{settings.mask}" must be uniform, erk or a mask.safetensors that exists')
        return Mask.load(path)
    rng = seeded(draw_seed(settings.seed, "mask"))
    scores = {name: torch.rand(layer.weight.shape, generator=rng) for name, layer in layers.items()}
    granularity = granularities.build(_spec(settings.granularity, "--granularity"), "--granularity")
    graph, rates = Graph(model, settings.image), layer_rates.build(settings.mask)
    mask = SparsityTarget(graph=graph, sparsity=settings.sparsity, granularity=granularity, rates=rates).mask(scores)
    if settings.mask == "erk" or granularity.whole_channels:
        return mask
    first = next(iter(layers))
    return Mask({name: torch.ones_like(keep) if name == first else keep for name, keep in mask.items()})


def _spec(text: str, option: str) -> Any:
    """Return a name, or a table in TOML."""
    return parse_toml(f"value = {text}", option)["value"] if text.lstrip().startswith("{") else text


def _packed_model(settings: BenchSettings, report: Callable[[str], None]) -> BenchModel:
    """Read a packed ensemble, and craft images that make it run many members.

    The dense engines run its first member in place of the dense parent, which the file does not hold.
    """
    path = Path(settings.target)
    if path.is_dir():
        path = path / "export" / "ensemble.sparsemble"
        if not path.is_file():
            make = f"make one with `sparsemble export {settings.target}`"
            raise InputError(f"{settings.target} holds no packed ensemble; {make}")
    try:
        ensemble = packed.load(path)
    except RuntimeInputError as error:
        raise InputError(f"{path}: {error}") from error
    weights = sum(weight.size for weight in ensemble.members[0].weights())
    if weights != ensemble.parent_weights:  # as after the removal of channels
        raise InputError(
            f"{path}: its first member has {weights} weights, zeros included, and the dense parent had "
            f"{ensemble.parent_weights}; dense engines run the first member in the parent's place, so an ensemble can "
            "be timed only while its members keep the parent's shape"
        )
    if settings.arithmetic not in ("", ensemble.arithmetic):
        raise InputError(
            f"{path} computes in {ensemble.arithmetic}, and arithmetic = {settings.arithmetic}; leave it out, or write "
            f"another file with `sparsemble export RUN --arithmetic {settings.arithmetic}`"
        )
    target = load_target(str(path))
    source = resolve_data(settings.data, settings.target) if settings.data else target.data
    if source is None:
        raise InputError(f"{path} does not say what it was trained on; give images with --data")
    data = source.load()
    if data.shape != ensemble.image:
        raise InputError(f"{path} takes images of {ensemble.image}; those of the data are {data.shape}")
    shuffled = torch.randperm(len(data.test), generator=seeded(draw_seed(settings.seed, "bench")))
    most = max(settings.batches)
    indices = shuffled.repeat(-(-most // len(shuffled)))[:most]
    x, y = data.test.images(indices), data.test.labels[indices]
    image_sets = {"clean images": x.numpy()}
    if target.threat is not None and target.rule is not None:
        attack, rng = Slowdown(steps=20, restarts=1), seeded(draw_seed(settings.seed, "slowdown"))
        report(f"crafting {len(x)} images that slow the ensemble down")
        assert isinstance(target.model, Ensemble)
        parts = zip(x.split(BATCH), y.split(BATCH), strict=True)
        crafted = [attack(target.model, target.rule, a, b, target.threat, rng=rng) for a, b in parts]
        image_sets[ATTACKED] = torch.cat(crafted).numpy()
    first, held_out, checked = ensemble.members[0], data.selection, shuffled[:CHECKED]
    return BenchModel(
        network=Network(first.image, first.nodes),
        ours=first,
        properties={
            "weights": ensemble.parent_weights,
            "nonzeros": ensemble.nonzeros,
            "ensemble_sparsity": ensemble.sparsity,
        },
        calibration=held_out.images(torch.arange(min(CALIBRATED, len(held_out)))).numpy(),
        images=data.test.images(checked).numpy(),
        labels=data.test.labels[checked].numpy(),
        why_not_narrow=UNTRAINED,
        ensemble=ensemble,
        image_sets=image_sets,
    )
