"""Classify images with a packed team; needs `pip install sparsemble`, no torch.

python examples/edge.py team.sparsemble photo.png ...
"""

import os
import sys

import numpy as np
from PIL import Image

from sparsemble import runtime

predictor = runtime.load(sys.argv[1], threads=os.cpu_count() or 1)
channels, height, width = predictor.team.image
images = [Image.open(path).convert("L" if channels == 1 else "RGB").resize((width, height)) for path in sys.argv[2:]]
batch = np.stack([np.asarray(image, np.uint8).reshape(height, width, channels) for image in images])
found = predictor.predict(batch)
for path, label, probability, members in zip(
    sys.argv[2:], found.labels, found.probabilities.max(1), found.members_run, strict=True
):
    print(f"{path}: {predictor.team.classes[label]} ({probability:.0%}, {members} members)")
