"""A folder in the layout of model hubs: weights, settings, and a model card with the measured robustness."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from sparsemble.core.errors import InputError
from sparsemble.core.results import RunSummary
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format.header import Fields, encode_header, parse_header
from sparsemble.runtime.format.op_serialization import node_constants, node_from_dict, node_to_dict, steps_from_dict
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.format.quantization import round_weight
from sparsemble.runtime.format.validate import read_preprocessing
from sparsemble.runtime.network import Convolution, Floats, Linear, Network, Node, Weight

WEIGHTS, SETTINGS, CARD = "model.safetensors", "config.json", "README.md"


def save_folder(ensemble: PackedEnsemble, folder: Path, summary: RunSummary | None, *, values: str) -> None:
    """Write weights, settings and card.

    Args:
        ensemble: with weights rounded to `values`.
        folder: created if it does not exist.
        summary: results of the run, for the card; None: the card has no numbers.
        values: number format of the weights; int8 is written as float32, as the file has no scales. Constants are
            float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    members = []
    dtype = np.float16 if values == "float16" else np.float32
    for number, member in enumerate(ensemble.members, start=1):
        nodes = []
        for index, node in enumerate(member.nodes):
            nodes.append(node_to_dict(node, member.steps.get(index)))
            name = f"member{number}.{index}"
            if isinstance(node, Convolution | Linear):
                tensors[f"{name}.weight"] = node.weight.dense().astype(dtype)
            for i, constants in enumerate(node_constants(node)):
                tensors[f"{name}.constant{i}"] = constants
        members.append(nodes)
    save_file(tensors, folder / WEIGHTS)
    settings = {
        "library_name": "sparsemble",
        "image": list(ensemble.image),
        "range": [0, 1],
        **({"preprocessing": ensemble.preprocessing.to_dict()} if ensemble.preprocessing else {}),
        "classes": list(ensemble.classes),
        "combine": dict(ensemble.combiner),
        "stop": dict(ensemble.rule),
        "parent_weights": ensemble.parent_weights,
        "recipe": dict(ensemble.recipe),
        "provenance": dict(ensemble.provenance),
        "members": members,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    (folder / CARD).write_text(card(ensemble, summary), "utf-8")


def load_folder(folder: Path) -> PackedEnsemble:
    """Read a folder that `save_folder` wrote.

    Raises:
        InputError: a file is missing or damaged, or the files do not fit each other.
    """
    try:
        settings = parse_header((folder / SETTINGS).read_bytes())
        tensors = load_file(folder / WEIGHTS)
        encode_header(settings)
        members = [
            _network(tuple(settings["image"]), entries, tensors, number)
            for number, entries in enumerate(settings["members"], start=1)
        ]
        return PackedEnsemble(
            members=tuple(members),
            combiner=settings["combine"],
            rule=settings["stop"],
            classes=tuple(settings["classes"]),
            parent_weights=settings["parent_weights"],
            recipe=settings["recipe"],
            provenance=settings["provenance"],
            preprocessing=read_preprocessing(Fields(settings, SETTINGS)),
        )
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeInputError) as error:
        raise InputError(f"{folder} cannot be read as an exported ensemble: {error}") from None


def _network(
    image: tuple[int, int, int], entries: list[dict[str, Any]], tensors: Mapping[str, np.ndarray], number: int
) -> Network:
    """Return a member from its entries in the settings and the tensors named after them."""
    found = {index: steps_from_dict(Fields(entry, f"member{number}.{index}")) for index, entry in enumerate(entries)}
    steps = {index: each for index, each in found.items() if each}
    return Network(image, tuple(_nodes(entries, tensors, number, in_8_bits=bool(steps))), steps)


def _nodes(
    entries: list[dict[str, Any]], tensors: Mapping[str, np.ndarray], number: int, *, in_8_bits: bool
) -> Iterator[Node]:
    """Yield a member's nodes; those in 8 bits get the integers that their weights are multiples of."""
    for index, entry in enumerate(entries):
        name = f"member{number}.{index}"
        indices = iter(range(2))

        def weight(name: str = name) -> Weight:
            stored = Weight.from_dense(tensors[f"{name}.weight"])
            return round_weight(stored, "int8") if in_8_bits else stored

        def constants(_count: int, name: str = name, indices: Iterator[int] = indices) -> Floats:
            return tensors[f"{name}.constant{next(indices)}"]

        yield node_from_dict(Fields(entry, name), weight, constants)


def card(ensemble: PackedEnsemble, summary: RunSummary | None) -> str:
    """Return the model card: the ensemble, its measured robustness, and the checks of that number that failed."""
    channels, height, width = ensemble.image
    lines = [
        "---",
        "library_name: sparsemble",
        "pipeline_tag: image-classification",
        "tags: [adversarial-robustness, pruning, sparse, ensemble]",
        "---",
        "",
        "# A robust, compact ensemble of sparse sub-models",
        "",
        f"{len(ensemble.members)} members, {ensemble.nonzeros:,} weights that are not 0 (sparsity "
        f"{ensemble.sparsity:.3f} of one dense parent), {len(ensemble.classes)} classes, images of {width} x {height} "
        f"with {channels} channel(s) in [0, 1].",
        f"Members run in turn until the stopping rule `{ensemble.rule['name']}` stops them; their logits are combined "
        f"by `{ensemble.combiner['name']}`.",
        *(
            ["Results between the first layer and the logits are stored in 8 bits."]
            if ensemble.arithmetic == "int8"
            else []
        ),
        *([f"How a file becomes an image: {ensemble.preprocessing}."] if ensemble.preprocessing else []),
        "",
    ]
    if summary is None:
        return "\n".join([*lines, "No measurement came with this export.", ""])
    threat, headline = summary.rows[0].threat, summary.row("ensemble_dynamic")
    lines += [
        f"Threat model: {threat.norm}, eps {threat.eps:.4g}. Worst case: correct on the clean image and under every "
        "attack that was tried, attacks on the stopping rule included.",
        "",
        "| | clean % | worst case % | 95 % | members run, clean / attacked |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in summary.rows:
        (low, high), runs = row.interval, row.members_run
        lines.append(
            f"| {row.name} | {100 * row.clean_accuracy:.1f} | {100 * row.robust_accuracy:.1f} | {100 * low:.0f} to "
            f"{100 * high:.0f} | {runs.clean:.2f} / {runs.attacked:.2f} |"
        )
    lines += ["", f"Measured on {headline.data.images} test images. Checks of the evaluation that failed:", ""]
    lines += [f"- {check.name}: {check.detail}" for check in headline.checks_with("failed")] or ["- none"]
    return "\n".join([*lines, "", f"Made by `{summary.command}`, seed {summary.seed}.", ""])
