"""What `sparsemble predict` and `sparsemble show` say of a packed team."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsemble.runtime.images import image_files, read_image
from sparsemble.runtime.packed import to_dict, load
from sparsemble.runtime.predictor import Predictor
from sparsemble.runtime.terminal_escape import printable

BATCH = 256


def predict_files(team: Path, images: Sequence[Path], *, threads: int, resize: bool) -> list[dict[str, Any]]:
    """Return a line for every image: `image`, `label`, `probability`, `members_run`.

    Raises:
        Refused: the team or an image cannot be read; before any image is classified.
    """
    predictor = Predictor(load(team), threads=threads)
    files = image_files(images)
    arrays = [read_image(file, predictor.team.image, resize=resize) for file in files]
    rows = []
    for start in range(0, len(files), BATCH):
        found = predictor.predict(np.stack(arrays[start : start + BATCH]))
        for i, file in enumerate(files[start : start + BATCH]):
            label = int(found.labels[i])
            rows.append(
                {
                    "image": str(file),
                    "label": predictor.team.classes[label],
                    "probability": float(found.probabilities[i, label]),
                    "members_run": int(found.members_run[i]),
                }
            )
    return rows


def describe_file(path: Path) -> str:
    """Return what is in a packed team, in lines of words; the whole file is read and checked.

    Raises:
        Refused: it is no packed team, or a damaged one.
    """
    told, team = to_dict(path), load(path)
    channels, height, width = team.image
    stop = {key: value for key, value in team.stop.items() if key != "name"}
    lines = [
        f"{printable(path.name)}: a packed team of version {told['version']}, {told['bytes']:,} bytes",
        f"images    {width} x {height}, {channels} {'colours' if channels == 3 else 'channel(s)'}, in [0, 1]",
        f"classes   {len(team.classes)}: {', '.join(team.classes[:12])}{' ...' if len(team.classes) > 12 else ''}",
        f"weights   {team.nonzeros:,} not 0, in {told['values']}; sparsity {team.sparsity:.4f} of "
        f"{team.parent_weights:,} in the dense parent",
        f"combine   {team.combine['name']}",
        f"stop      {team.stop['name']}" + "".join(f", {key} = {value:g}" for key, value in stop.items()),
    ]
    for number, member in enumerate(team.members, start=1):
        weights = member.weights()
        count, total = sum(one.nonzeros for one in weights), sum(one.size for one in weights)
        lines.append(f"member {number}  {len(member.nodes)} operations, {count:,} of {total:,} weights")
    told_of = {key: value for key, value in team.provenance.items() if isinstance(value, str | int | float)}
    lines += [f"{printable(key):9} {printable(str(value))}" for key, value in told_of.items()]
    return "\n".join(lines)
