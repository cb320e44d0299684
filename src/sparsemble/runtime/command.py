"""What `sparsemble predict` and `sparsemble show` say of a packed ensemble."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.runtime.format.packed import describe, load
from sparsemble.runtime.images import image_files, read_image
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.terminal_escape import printable

BATCH = 256


def predict_files(ensemble: Path, images: Sequence[Path], *, threads: int, resize: bool) -> list[dict[str, Any]]:
    """Return a line for every image: `image`, `label`, `probability`, `members_run`.

    Raises:
        RuntimeInputError: the ensemble or an image cannot be read; before any image is classified.
    """
    predictor = Predictor(load(ensemble), threads=threads)
    files = image_files(images)
    arrays = [read_image(file, predictor.ensemble.image, resize=resize) for file in files]
    rows = []
    for start in range(0, len(files), BATCH):
        found = predictor.predict(np.stack(arrays[start : start + BATCH]))
        for i, file in enumerate(files[start : start + BATCH]):
            label = int(found.labels[i])
            rows.append(
                {
                    "image": str(file),
                    "label": predictor.ensemble.classes[label],
                    "probability": float(found.probabilities[i, label]),
                    "members_run": int(found.members_run[i]),
                }
            )
    return rows


def describe_file(path: Path) -> str:
    """Return what is in a packed ensemble, in lines of words; the whole file is read and checked.

    Raises:
        RuntimeInputError: it is no packed ensemble, or a damaged one.
    """
    told, ensemble = describe(path), load(path)
    channels, height, width = ensemble.image
    rule = {key: value for key, value in ensemble.rule.items() if key != "name"}
    lines = [
        f"{printable(path.name)}: a packed ensemble of version {told['version']}, {told['bytes']:,} bytes",
        f"images    {width} x {height}, {channels} {'colours' if channels == 3 else 'channel(s)'}, in [0, 1]",
        f"classes   {len(ensemble.classes)}: {', '.join(ensemble.classes[:12])}{' ...' if len(ensemble.classes) > 12 else ''}",
        f"weights   {ensemble.nonzeros:,} not 0, in {told['values']}; sparsity {ensemble.sparsity:.4f} of "
        f"{ensemble.parent_weights:,} in the dense parent",
        f"combine   {ensemble.combiner['name']}",
        f"stop      {ensemble.rule['name']}" + "".join(f", {key} = {value:g}" for key, value in rule.items()),
    ]
    for number, member in enumerate(ensemble.members, start=1):
        weights = member.weights()
        count, total = sum(one.nonzeros for one in weights), sum(one.size for one in weights)
        lines.append(f"member {number}  {len(member.nodes)} operations, {count:,} of {total:,} weights")
    told_of = {key: value for key, value in ensemble.provenance.items() if isinstance(value, str | int | float)}
    lines += [f"{printable(key):9} {printable(str(value))}" for key, value in told_of.items()]
    return "\n".join(lines)
