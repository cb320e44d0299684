"""`sparsemble bench`: how long a sparse network takes in our engine and in the fastest dense ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from rich.table import Table
from torch import nn

from sparsemble.core.errors import InputError, RunError
from sparsemble.core.recipe import parse_toml
from sparsemble.core.types import draw_seed, seeded
from sparsemble.evaluation.latency import measure_latency
from sparsemble.export.convert import convert
from sparsemble.models import architectures, build_model
from sparsemble.models.graph import Graph
from sparsemble.pipeline.bench_engines import Timed, engines
from sparsemble.pipeline.machine import machine, versions
from sparsemble.pruning import Mask, Target, prunable_layers
from sparsemble.pruning.granularity import granularities
from sparsemble.pruning.layer_rates import layer_rates
from sparsemble.runtime.network import Network

TOLERANCE = 1e-3
"""Largest difference of an engine's logits from torch's, relative to the largest logit."""
SCHEMA_VERSION = 1


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is timed; checked when it is made."""

    model: str = "resnet18"
    """An architecture, or a table in TOML."""
    sparsity: float = 0.9
    granularity: str = "weight"
    """A granularity, or a table in TOML."""
    mask: str = "uniform"
    """uniform (the first layer stays dense), erk, or a mask.safetensors."""
    image: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10
    batches: tuple[int, ...] = (64,)
    threads: tuple[int, ...] = (1,)
    rounds: int = 7
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "threads"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise InputError(f"{name} = {list(values)} must be whole numbers, 1 or more")
        if self.rounds < 2:
            raise InputError(f"rounds = {self.rounds} must be 2 or more")
        if not 0 <= self.sparsity < 1:
            raise InputError(f"sparsity = {self.sparsity:g} must lie in [0, 1)")


def bench(asked: Asked, command: str, tell: Any = None) -> dict[str, Any]:
    """Time a network with drawn weights; interleaved rounds, medians and quartiles.

    Args:
        asked: network, mask and configurations.
        command: what reproduces it.
        tell: called with a sentence before each configuration.

    Returns:
        `ratio`: time of the fastest dense engine over ours, for the first batch size and number of threads; `rows`:
        every engine in every configuration.

    Raises:
        InputError: a network or mask that cannot be.
        RunError: an engine that answers something else.
    """
    network, facts = drawn(asked)
    rows: list[dict[str, Any]] = []
    ratios = []
    for threads in asked.threads:
        for batch in asked.batches:
            if tell:
                tell(f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}")
            found = _configuration(network, batch, threads, asked)
            dense = min(row["median_ms"] for row in found if row["dense"])
            for row in found:
                row["ratio"] = dense / row["median_ms"]
            ratios.append(next(row["ratio"] for row in found if row["engine"] == "sparsemble"))
            rows += found
    return {
        "schema": SCHEMA_VERSION,
        "ratio": ratios[0],
        "command": command,
        "asked": asdict(asked),
        "network": facts,
        "machine": machine(torch.device("cpu")),
        "versions": versions(),
        "rows": rows,
    }


def drawn(asked: Asked) -> tuple[Network, dict[str, Any]]:
    """Return the network with drawn weights and mask, and what it has of each."""
    model = _model(asked)
    mask = _mask(model, asked)
    mask.apply_(model)
    network = convert(model, asked.image)
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
    mask = Target(graph=graph, sparsity=asked.sparsity, granularity=granularity, rates=rates).mask(scores)
    if asked.mask == "erk" or granularity.whole_channels:
        return mask
    first = next(iter(layers))
    return Mask({name: torch.ones_like(keep) if name == first else keep for name, keep in mask.items()})


def _spec(text: str, where: str) -> Any:
    """Return a name, or the table that a text in TOML holds."""
    return parse_toml(f"value = {text}", where)["value"] if text.lstrip().startswith("{") else text


def _configuration(network: Network, batch: int, threads: int, asked: Asked) -> list[dict[str, Any]]:
    x = np.random.default_rng(asked.seed).random((batch, *asked.image), dtype=np.float32)
    timed = engines(network, batch, threads)
    _agree(timed, x)
    times = measure_latency({one.name: _call(one, x) for one in timed}, asked.rounds, warm_up=2)
    return [
        {
            "engine": one.name,
            "dense": one.dense,
            "batch": batch,
            "threads": threads,
            **asdict(times[one.name]),
            "images_per_second": 1000 * batch / times[one.name].median_ms,
        }
        for one in timed
    ]


def _call(one: Timed, x: np.ndarray) -> Any:
    return lambda: one.call(x)


def _agree(timed: Sequence[Timed], x: np.ndarray) -> None:
    """Refuse to time an engine that answers something else."""
    expected = timed[0].call(x)
    scale = max(float(np.abs(expected).max()), 1e-12)
    for one in timed[1:]:
        difference = float(np.abs(one.call(x) - expected).max()) / scale
        if not difference <= TOLERANCE:
            raise RunError(f"{one.name} differs from torch by {difference:.2g} of the largest logit; it was not timed")


def bench_table(found: dict[str, Any]) -> Table:
    """Return what was measured, for the terminal."""
    table = Table("engine", "batch", "threads", "ms", "quartiles", "images/s", "ratio", box=None, header_style="bold")
    for row in found["rows"]:
        table.add_row(
            row["engine"],
            str(row["batch"]),
            str(row["threads"]),
            f"{row['median_ms']:.2f}",
            f"{row['low_quartile_ms']:.2f} to {row['high_quartile_ms']:.2f}",
            f"{row['images_per_second']:.0f}",
            f"{row['ratio']:.2f}",
        )
    return table
