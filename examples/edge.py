"""Classify images with a packed ensemble; needs `pip install sparsemble`, no torch.

python examples/edge.py ensemble.sparsemble photo.png ...
"""

import os
import sys
from pathlib import Path

import numpy as np

from sparsemble import runtime
from sparsemble.runtime.images import read_image

if len(sys.argv) < 3:
    sys.exit("usage: python edge.py ensemble.sparsemble photo.png ...")
try:
    predictor = runtime.load(sys.argv[1], threads=os.cpu_count() or 1)
    images = [read_image(Path(path), predictor.ensemble.image, resize=True) for path in sys.argv[2:]]
    found = predictor.predict(np.stack(images))
except runtime.RuntimeInputError as error:
    sys.exit(f"error: {error}")
for path, label, probability, members in zip(
    sys.argv[2:], found.labels, found.probabilities.max(1), found.members_run, strict=True
):
    print(f"{path}: {predictor.ensemble.classes[label]} ({probability:.0%}, {members} members)")
