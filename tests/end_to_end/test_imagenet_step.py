"""The ImageNet recipe takes a step on made-up photographs: class folders, streamed files, ResNet-50, 224 x 224."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemble.core.errors import InputError
from sparsemble.core.types import draw_seed, seeded
from sparsemble.data.dataset import TensorSplit
from sparsemble.models.architecture import build_model
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pipeline.stage import dataset
from sparsemble.training import Batches, fit
from sparsemble.training.precision import FLOAT32

PHOTOGRAPHS = 6


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two classes of photographs, larger than they are read, none of them square."""
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for wnid in ("n01440764", "n01443537"):
            (tmp_path / part / wnid).mkdir(parents=True)
            for i in range(PHOTOGRAPHS):
                pixels = draw.integers(0, 256, (280, 320, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / wnid / f"{wnid}_{i}.JPEG")
    return tmp_path


def test_takes_a_step(folders: Path) -> None:
    settings = (f"data.root='{folders}'", "data.held_out=8", "train.schedule.batch_size=4", "train.epochs=1")
    _, recipe = load_recipe("imagenet-resnet50", settings)
    data = dataset(recipe.data)
    assert not isinstance(data.train, TensorSplit)  # read when asked for
    assert (data.shape, len(data.train), len(data.classes)) == ((3, 224, 224), 4, 2)
    model = build_model(recipe.model, data.shape, 2, data.mean, data.std, rng=seeded(draw_seed(0, "weights")))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    precision = recipe.precision
    assert precision.dtype == "bfloat16"
    try:
        precision.check("cpu")
    except InputError:  # a processor without it
        precision = FLOAT32
    (record,) = fit(
        model,
        recipe.train.loss,
        Batches(split=data.train, batch_size=4, augmentation=data.augmentation),
        recipe.train.schedule,
        epochs=1,
        threat=recipe.threat,
        rng=seeded(1),
        precision=precision,
    )
    assert np.isfinite(record["loss"])
    assert record["backward_passes"] == 2 * 4  # the single attack step, and training
    assert not any(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
