"""Tiny ImageNet in the layout of its archive and in class folders."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sparsemble.core.errors import InputError
from sparsemble.data import data_sources

CLASSES = ("n01443537", "n02056570")


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 9, (64, 64, 3), np.uint8)
    Image.fromarray(noise + np.uint8(level)).save(path, "JPEG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder as the archive makes it; the brightness of an image tells its class."""
    root = tmp_path / "tiny-imagenet-200"
    for label, name in enumerate(CLASSES):
        for i in range(10):
            picture(root / "train" / name / "images" / f"{name}_{i}.JPEG", 40 + 150 * label)
        (root / "train" / name / f"{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t32\t44\t62\n")
    order = (1, 0, 0, 1)
    for i, label in enumerate(order):
        picture(root / "val" / "images" / f"val_{i}.JPEG", 40 + 150 * label)
    lines = [f"val_{i}.JPEG\t{CLASSES[label]}\t0\t32\t44\t62" for i, label in enumerate(order)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def source(root: Path, **settings: Any) -> Any:
    return data_sources.build({"name": "tiny_imagenet", "root": str(root), "held_out": 4, **settings}, "data")


def check(data: Any) -> None:
    for split in (data.train, data.selection, data.calibration, data.test):
        images, labels = split.tensors()
        assert ((images.mean((1, 2, 3)) > 0.4) == (labels == 1)).all()
        assert images.shape[1:] == (3, 64, 64)
    assert [len(part) for part in (data.train, data.selection, data.calibration, data.test)] == [16, 2, 2, 4]
    assert data.classes == CLASSES


def test_reads_the_layout_of_the_archive(root: Path) -> None:
    data = source(root, random_resized_crop=[0.5, 1], flip=True).load()
    check(data)
    assert data.test.labels.tolist() == [1, 0, 0, 1]
    assert data.preprocessing.size == 64
    assert data.augmentation.random_resized_crop == (0.5, 1.0)


def test_reads_class_folders(root: Path) -> None:
    for i, label in enumerate((1, 0, 0, 1)):
        target = root / "val" / CLASSES[label]
        target.mkdir(exist_ok=True)
        shutil.move(root / "val" / "images" / f"val_{i}.JPEG", target)
    shutil.rmtree(root / "val" / "images")
    (root / "val" / "val_annotations.txt").unlink()
    check(source(root).load())


def test_the_fingerprint_is_that_of_the_files(root: Path) -> None:
    before = source(root).fingerprint()
    assert source(root, crop=2).fingerprint() == before
    path = root / "val" / "val_annotations.txt"
    listed = path.read_text()
    path.write_text(listed.replace(CLASSES[1], CLASSES[0]))
    assert source(root).fingerprint() != before
    path.write_text(listed)
    assert source(root).fingerprint() == before
    picture(root / "train" / CLASSES[0] / "images" / "another.JPEG", 50)
    assert source(root).fingerprint() != before


def test_a_list_that_does_not_fit_is_refused(root: Path) -> None:
    path = root / "val" / "val_annotations.txt"
    listed = path.read_text()
    path.write_text(listed.replace(CLASSES[1], "n09999999", 1))
    with pytest.raises(InputError, match=r"val_annotations.txt, line 1: .* and one of the class folders"):
        source(root).load()
    path.write_text(listed.replace("val_2", "val_9"))
    with pytest.raises(InputError, match=r"line 3: .*val_9.JPEG is missing; unpack the archive again"):
        source(root).load()


def test_without_the_archive_one_sentence_says_where_it_goes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold train/CLASS/images/.*JPEG and .* unpack tiny-imagenet-200.zip"):
        source(tmp_path).load()
