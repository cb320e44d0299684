"""Folders of photographs: their layouts, the cut of a test part, copies of one picture, unreadable files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

import sparsemble as sp
from sparsemble.core.errors import InputError
from sparsemble.data import data_sources
from sparsemble.data.assemble import assemble, tensor_split
from sparsemble.data.augmentation import Augmentation
from sparsemble.data.dataset import Dataset
from sparsemble.data.duplicates import LARGEST_DISTANCE, duplicate_groups, look
from sparsemble.data.file_split import FileSplit
from sparsemble.evaluation.resolve_data import resolve_data
from sparsemble.report import data_table

pytestmark = pytest.mark.usefixtures("cache")
CLASSES = ("cat", "dog")


def photo(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """A smooth picture, unlike those of other seeds."""
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def write(folder: Path, seeds: range, suffix: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        photo(seed).save(folder / f"{seed:04}.{suffix}")


def class_folders(root: Path, count: int = 20) -> Path:
    for k, name in enumerate(CLASSES):
        write(root / name, range(1000 * k, 1000 * k + count))
    return root


def parts(root: Path, test: str = "test") -> Path:
    for k, part in enumerate(("train", test)):
        for i, name in enumerate(CLASSES):
            write(root / part / name, range(1000 * i + 100 * k, 1000 * i + 100 * k + 10))
    return root


def load(root: Path, **settings: Any) -> Dataset:
    return data_sources.build(
        {"name": "image_folder", "root": str(root), "size": 16, "held_out": 0.2} | settings
    ).load()


def names(data: Dataset) -> dict[str, set[str]]:
    """The files of each split of a streamed data set."""
    found = {}
    for part in ("train", "selection", "calibration", "test"):
        split = getattr(data, part)
        assert isinstance(split, FileSplit)
        found[part] = set(split.names)
    return found


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    monkeypatch.setattr("sparsemble.data.image_folder.MEASURED", 20)


def test_a_test_part_is_cut_from_class_folders(tmp_path: Path) -> None:
    data = load(class_folders(tmp_path))
    assert data.classes == CLASSES
    assert data.test.labels.bincount().tolist() == [4, 4]
    assert data.train.labels.bincount().tolist() == [13, 13]
    assert len(data.selection) == len(data.calibration) == 3
    again = load(tmp_path)
    assert torch.equal(again.test.tensors()[0], data.test.tensors()[0])
    assert torch.equal(again.train.tensors()[0], data.train.tensors()[0])
    assert len(load(tmp_path, test=6).test) == 6
    with pytest.raises(InputError, match=r"test = 0.98 leaves class 0 without training images; lower it"):
        load(tmp_path, test=0.98)


def test_the_cut_does_not_depend_on_how_images_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load(class_folders(tmp_path))
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    monkeypatch.setattr("sparsemble.data.image_folder.MEASURED", 20)
    other = load(tmp_path)
    for part in ("train", "selection", "calibration", "test"):
        assert torch.equal(getattr(data, part).tensors()[0], getattr(other, part).tensors()[0])
    assert sum(map(len, names(other).values())) == len(set().union(*names(other).values())) == 40
    bigger = names(load(tmp_path, size=24))
    assert bigger == names(other)


@pytest.mark.parametrize("test", ["test", "val", "valid"])
def test_parts_without_copies_are_split_as_arrays_are(test: str, tmp_path: Path) -> None:
    data = load(parts(tmp_path, test))
    images = {
        part: [np.asarray(load_image(p)) for p in sorted((tmp_path / part).rglob("*.png"))] for part in ("train", test)
    }
    splits = [tensor_split(np.stack(images[p]).transpose(0, 3, 1, 2), np.repeat([0, 1], 10)) for p in ("train", test)]
    expected = assemble(*splits, CLASSES, held_out=0.2, augmentation=Augmentation())
    for part in ("train", "selection", "calibration", "test"):
        for one, other in zip(getattr(data, part).tensors(), getattr(expected, part).tensors(), strict=True):
            assert torch.equal(one, other)
    assert (data.mean, data.std, data.notes) == (expected.mean, expected.std, ())


def load_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.resize((20, 16), Image.Resampling.BILINEAR).crop((2, 0, 18, 16))


def test_a_training_part_alone_is_cut(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    (tmp_path / "annotations").mkdir()
    assert load(tmp_path).test.labels.bincount().tolist() == [4, 4]


def test_classes_may_be_called_like_parts(tmp_path: Path) -> None:
    write(tmp_path / "a" / "train", range(12))
    write(tmp_path / "a" / "plane", range(100, 112))
    (tmp_path / "a" / "__MACOSX").mkdir()
    assert load(tmp_path / "a").classes == ("plane", "train")
    write(tmp_path / "b" / "valid", range(12))
    write(tmp_path / "b" / "invalid", range(100, 112))
    assert load(tmp_path / "b").classes == ("invalid", "valid")


@pytest.mark.parametrize("in_parts", [False, True])
def test_copies_of_a_picture_are_never_in_two_splits(in_parts: bool, tmp_path: Path, streamed: None) -> None:
    root = parts(tmp_path) if in_parts else class_folders(tmp_path)
    classes = root / "train" if in_parts else root
    for name in CLASSES:
        for number, path in enumerate(sorted((classes / name).iterdir())[:8]):
            with Image.open(path) as image:
                image.resize((20, 16), Image.Resampling.BILINEAR).save(path.with_name(f"{path.stem} half.png"))
                if number % 2:
                    image.save(path.with_name(f"{path.stem} jpeg.jpg"), quality=60)
    for seed in range(4):
        data = load(root, held_out=0.25 + 0.05 * seed)
        splits = names(data)
        pictures = {part: {Path(name).stem.partition(" ")[0] for name in split} for part, split in splits.items()}
        assert sum(map(len, pictures.values())) == len(set().union(*pictures.values()))
        assert sum(map(len, splits.values())) == sum(1 for path in root.rglob("*.*") if path.suffix in (".png", ".jpg"))
    assert data.files
    assert (data.files.duplicates, data.files.groups) == (16 + 16 + 8, 16)


def test_test_images_that_are_in_training_are_left_out(tmp_path: Path, streamed: None) -> None:
    root = parts(tmp_path)
    shutil.copy(root / "train" / "cat" / "0003.png", root / "test" / "cat" / "equal.png")
    ImageEnhance.Brightness(photo(1004)).enhance(0.95).save(root / "test" / "cat" / "similar.jpg", quality=70)
    data = load(root)
    assert data.files
    assert data.files.removed == (
        ("test/cat/equal.png", "train/cat/0003.png"),
        ("test/cat/similar.jpg", "train/dog/1004.png"),  # in another class
    )
    assert names(data)["test"] == {
        f"test/{name}/{1000 * i + 100 + n:04}.png" for i, name in enumerate(CLASSES) for n in range(10)
    }
    assert "2 test images are left out, as the same picture is in training: test/cat/equal.png as" in data.notes[0]
    rows = dict(data_table(data).rows)
    assert rows["left out of the test"].startswith(
        "2 as they are in training: test/cat/equal.png (is train/cat/0003.png)"
    )
    assert rows["size of the files"] == "40 x 32 pixels each"
    exact = load(root, near_duplicates=False)
    assert exact.files
    assert exact.files.removed == (("test/cat/equal.png", "train/cat/0003.png"),)


def test_a_picture_in_two_classes_stays_in_training(tmp_path: Path, streamed: None) -> None:
    root = class_folders(tmp_path)
    shutil.copy(root / "cat" / "0003.png", root / "dog" / "too.png")
    for held_out in (0.2, 0.5, 0.8):
        data = load(root, held_out=held_out, test=0.3)
        assert {"cat/0003.png", "dog/too.png"} <= names(data)["train"]
    assert data.files
    assert data.files.several_classes == (("cat/0003.png", "dog/too.png"),)
    assert "1 picture is in several classes, and not held out: cat/0003.png and dog/too.png" in data.notes[0]


def test_files_that_cannot_be_read_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "photos")
    expected = load(root)
    whole = (root / "cat" / "0003.png").read_bytes()
    (root / "cat" / "0003b.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "empty.jpg").write_bytes(b"")
    data = load(root)
    assert data.files
    assert [name for name, _ in data.files.unreadable] == ["cat/0003b.png", "dog/empty.jpg"]
    assert "2 files are left out: cat/0003b.png cannot be read as an image: " in data.notes[0]
    assert dict(data_table(data).rows)["unreadable, left out"].startswith("2: cat/0003b.png (")
    for part in ("train", "selection", "calibration", "test"):
        assert torch.equal(getattr(data, part).tensors()[0], getattr(expected, part).tensors()[0])
    for path in sorted((root / "dog").iterdir())[:11]:
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"the class dog has 9 images that can be read, and at least 10 are needed"):
        load(root)
    for path in root.rglob("*.*"):
        path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"none of 42 files can be read; cat/0000.png cannot be read as an image: its"):
        load(root)


def test_folders_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    def refused(root: Path, message: str) -> None:
        with pytest.raises(InputError, match=message):
            load(root)

    refused(tmp_path / "none", r"none is missing; give a folder of class folders")
    (tmp_path / "photos.zip").write_bytes(b"PK")
    for path in (tmp_path / "none", tmp_path / "photos.zip"):
        with pytest.raises(InputError, match=r"give a folder of class folders|unpack it and give the folder"):
            sp.data.load(path)
        with pytest.raises(InputError, match=r"give a folder of class folders|unpack it and give the folder"):
            resolve_data(str(path)).load()
    with pytest.raises(InputError, match=r'data = "phtos" is not a known data; known: arrays'):
        sp.data.load("phtos")
    refused(tmp_path / "photos.zip", r"photos.zip is a file; unpack it and give the folder")
    write(tmp_path / "flat", range(12))
    refused(tmp_path / "flat", r"flat has no class folders; it must hold one folder of images for each class")
    write(tmp_path / "one" / "cat", range(12))
    refused(tmp_path / "one", r"one has one class folder, cat, and needs two or more$")
    class_folders(tmp_path / "unpacked" / "photos")
    refused(
        tmp_path / "unpacked", r"one class folder, photos, .*; give .*unpacked/photos if its folders are the classes"
    )
    class_folders(tmp_path / "tested" / "test")
    refused(tmp_path / "tested", r"tested has test and no train; it must hold both, or class folders only")
    few = class_folders(tmp_path / "few")
    write(few / "owl", range(500, 509))
    refused(few, r"the class owl has 9 images, and at least 10 are needed; add some or remove its folder")
    same = class_folders(tmp_path / "same" / "train").parent
    shutil.copytree(same / "train", same / "val")
    refused(same, r"same: every image of val is also in train; test on other images")
    other = parts(tmp_path / "other")
    (other / "test" / "dog").rename(other / "test" / "wolf")
    refused(other, r"train has the class folder dog and .*test has not; both must have the same classes")


def test_augmentation_is_set_on_the_source(tmp_path: Path) -> None:
    settings = {"random_resized_crop": (0.35, 1.0), "flip": True, "jitter": (0.2, 0.2, 0.2, 0.05), "rand_augment": 0.1}
    assert load(class_folders(tmp_path), **settings).augmentation == Augmentation(**settings)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"crop = 16 must lie in 0\.\.15"):
        load(tmp_path, crop=16)


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, 600, dtype=np.uint64)
    for index in range(100, 600):  # each differs from an earlier one in up to 8 bits
        bits = rng.choice(63, rng.integers(0, 9), replace=False)
        hashes[index] = hashes[rng.integers(index)] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=0
        )
    thumbnails = np.tile(rng.integers(0, 256, (1, 16, 16), dtype=np.uint8), (600, 1, 1))
    thumbnails[::7] = 255 - thumbnails[::7]  # the same hash by chance
    thumbnails[5::11] = 128
    digests = np.arange(600, dtype=np.int64)[:, None].view(np.uint8)
    digests[7] = digests[3]
    kind = np.where(np.arange(600) % 11 == 5, 2, np.arange(600) % 7 == 0)
    linked = (np.bitwise_count(hashes[:, None] ^ hashes) <= LARGEST_DISTANCE) & (kind[:, None] == kind) & (kind < 2)
    linked[3, 7] = linked[7, 3] = True
    expected = np.arange(600)
    for _ in range(600):  # the smallest index spreads along the links
        expected = np.minimum(expected, np.where(linked, expected[None], 600).min(1))
    assert np.array_equal(duplicate_groups(digests, hashes, thumbnails), expected)
    equal = np.where(np.arange(600) == 7, 3, np.arange(600))
    assert np.array_equal(duplicate_groups(digests, hashes, thumbnails, near=False), equal)


def test_perceptual_hashes_are_close_for_copies_only() -> None:
    far = 0

    def distance(one: Image.Image, other: Image.Image) -> int:
        return (look(one).hash ^ look(other).hash).bit_count()

    for seed in range(20):
        image = photo(seed, (90, 70))
        copies = [
            image.convert("L"),
            image.resize((45, 35)),
            image.resize((180, 140)),
            ImageEnhance.Contrast(image).enhance(0.8),
        ]
        far += sum(distance(image, copy) > LARGEST_DISTANCE for copy in copies)
        assert min(distance(image, photo(100 + other, (90, 70))) for other in range(20)) > LARGEST_DISTANCE
        assert look(image).hash < 2**63
    assert far <= 2  # of 80


def test_a_long_scan_is_kept_until_a_file_changes(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = class_folders(tmp_path / "photos")
    expected = load(root)
    assert not cache.exists()
    monkeypatch.setattr("sparsemble.data.image_scan.KEEP_AFTER", -1.0)
    (root / "cat" / "bad.png").write_bytes(b"damaged")
    load(root)
    (kept,) = (cache / "images").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr("sparsemble.data.image_scan.decode", None)
        again = load(root)
        assert again.notes
        assert all(
            torch.equal(getattr(again, p).tensors()[0], getattr(expected, p).tensors()[0]) for p in ("train", "test")
        )
    photo(5000).save(root / "cat" / "bad.png")
    assert not load(root).notes
    assert len(list((cache / "images").iterdir())) == 1
    kept.write_bytes(kept.read_bytes()[:-400])
    assert not load(root).notes
    for size in range(16, 26):
        load(root, size=size)
    assert len(list((cache / "images").iterdir())) == 8
    shutil.rmtree(cache)
    cache.write_text("not a folder")
    assert not load(root).notes
