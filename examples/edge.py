"""Classify images with a packed ensemble; needs `pip install sparsemble`, no torch.

python examples/edge.py ensemble.sparsemble photo.png ...
"""

import os
import sys

from sparsemble import runtime

if len(sys.argv) < 3:
    sys.exit("usage: python edge.py ensemble.sparsemble photo.png ...")
file, *images = sys.argv[1:]
try:
    predictor = runtime.load(file, threads=os.cpu_count() or 1)
    prediction = predictor.predict(images, resize=True)
except runtime.RuntimeInputError as error:
    sys.exit(f"error: {error}")
probabilities = prediction.probabilities.max(1)
for image, label, probability, members in zip(
    images, prediction.labels, probabilities, prediction.members_run, strict=True
):
    print(f"{image}: {predictor.ensemble.classes[label]} ({probability:.0%}, {members} members)")
