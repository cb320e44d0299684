"""The held-out cut, augmentation, made-up data and arrays."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsemble.core.errors import InputError
from sparsemble.core.types import seeded
from sparsemble.data import Augmentation, Dataset, data_sources, load
from sparsemble.data.assemble import assemble, channel_statistics, cut, tensor_split
from sparsemble.data.digits import Digits


def build(**spec: object) -> Dataset:
    return data_sources.build(dict(spec)).load()


def write(path: Path, **changes: object) -> str:
    """Write an arrays file: 3 classes, 60 training and 9 test images of 6 x 5 pixels, 3 channels."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (60, 6, 5, 3), dtype=np.uint8),
        "train_labels": np.arange(60) % 3,
        "test_images": rng.integers(0, 256, (9, 6, 5, 3), dtype=np.uint8),
        "test_labels": np.arange(9) % 3,
        **changes,
    }
    file = path / "made.npz"
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
    return str(file)


class TestCut:
    @given(st.lists(st.integers(3, 30), min_size=1, max_size=5), st.floats(0.1, 0.5))
    def test_parts_hold_every_image_once_and_each_class_in_proportion(self, sizes: list[int], share: float) -> None:
        labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
        if round(share * len(labels)) < 2:
            return
        parts = cut(labels, share)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
        held = np.concatenate(parts[1:])
        assert len(held) == round(share * len(labels))
        for label, size in enumerate(sizes):
            assert abs((labels[held] == label).sum() - share * size) <= 1.5
            assert abs((labels[parts[1]] == label).sum() - (labels[parts[2]] == label).sum()) <= 1

    def test_never_changes(self) -> None:
        labels = np.arange(100) % 4
        assert all(np.array_equal(a, b) for a, b in zip(cut(labels, 20), cut(labels, 0.2), strict=True))
        assert cut(labels, 20)[1].tolist() == [14, 33, 35, 36, 44, 62, 63, 77, 80, 86]

    def test_a_group_is_never_separated_and_counts_within_its_class_only(self) -> None:
        labels = np.repeat([0, 1], 60)
        groups = np.tile(np.repeat(np.arange(20), 3), 2)  # 20 tracks of 3 frames in each class, numbered anew in each
        parts = cut(labels, 0.2, groups)
        keys = [set(zip(labels[part].tolist(), groups[part].tolist(), strict=True)) for part in parts]
        assert [len(part) for part in parts] == [96, 12, 12]
        assert not keys[0] & keys[1]
        assert not keys[0] & keys[2]
        assert not keys[1] & keys[2]
        assert {number for _, number in keys[1] | keys[2]} != {number for _, number in keys[1]}
        assert np.bincount(labels[np.concatenate(parts[1:])]).tolist() == [12, 12]

    def test_groups_may_have_names(self) -> None:
        groups = np.array([f"track {number // 2}" for number in range(40)])
        parts = cut(np.zeros(40, dtype=int), 0.2, groups)
        assert not set(groups[parts[0]]) & set(groups[np.concatenate(parts[1:])])

    def test_the_only_group_of_a_class_stays_in_training(self) -> None:
        labels, groups = np.array([0] * 30 + [1] * 3), np.array([*range(30), 7, 7, 7])
        assert set(labels[cut(labels, 0.3, groups)[0]]) == {0, 1}

    @pytest.mark.parametrize("held_out", [0, 1, 40, 41, -3, 0.01, float("nan"), float("inf")])
    def test_refuses_what_leaves_a_part_empty(self, held_out: float) -> None:
        with pytest.raises(InputError, match=r"held_out = .* does not fit 40 training images: 2 to 39 can be held out"):
            cut(np.arange(40) % 2, held_out)

    def test_refuses_to_empty_a_class(self) -> None:
        with pytest.raises(InputError, match="held_out = 38 leaves class 1 without training images"):
            cut(np.array([0] * 37 + [1] * 3), 38)


class TestAssemble:
    def test_measures_the_training_images_only(self) -> None:
        data = build(name="synthetic", channels=2)
        pixels = data.train.tensors()[0].double()
        torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std(dim=(0, 2, 3), correction=0))

    def test_refuses_a_constant_channel(self) -> None:
        with pytest.raises(InputError, match="channel 0 of the training images has one value everywhere"):
            channel_statistics(tensor_split(np.full((4, 1, 2, 2), 9, dtype=np.uint8), np.zeros(4)))

    @pytest.mark.parametrize("crop", [-1, 8])
    def test_refuses_a_crop_larger_than_the_image(self, crop: int) -> None:
        split = tensor_split(np.random.default_rng(0).integers(0, 256, (20, 1, 8, 9), np.uint8), np.arange(20) % 2)
        with pytest.raises(InputError, match=rf"crop = {crop} must lie in 0\.\.7 for images of 8 x 9 pixels"):
            assemble(split, split, "ab", held_out=4, augmentation=Augmentation(crop=crop))


class TestAugmentation:
    x = torch.rand(64, 2, 7, 6, generator=seeded(3))

    def test_without_settings_is_the_identity(self) -> None:
        assert torch.equal(Augmentation()(self.x, seeded(0)), self.x)

    def test_flip_gives_the_image_or_its_mirror_image(self) -> None:
        flipped = Augmentation(flip=True)(self.x, seeded(0))
        same = (flipped == self.x).flatten(1).all(dim=1)
        mirrored = (flipped == self.x.flip(3)).flatten(1).all(dim=1)
        assert (same ^ mirrored).all()
        assert 16 < same.sum() < 48

    def test_crop_shifts_each_image_whole_and_fills_with_zeros(self) -> None:
        shifted = Augmentation(crop=2)(self.x, seeded(0))
        padded = torch.nn.functional.pad(self.x, (2, 2, 2, 2))
        moves = [(down, right) for down in range(5) for right in range(5)]
        windows = torch.stack([padded[:, :, down : down + 7, right : right + 6] for down, right in moves])
        matches = (windows == shifted).flatten(2).all(dim=2)
        assert (matches.sum(dim=0) == 1).all()
        assert matches.any(dim=1).sum() > 15  # most of the 25 moves occur

    def test_same_seed_same_images(self) -> None:
        vary = Augmentation(crop=3, flip=True)
        assert torch.equal(vary(self.x, seeded(5)), vary(self.x, seeded(5)))
        assert not torch.equal(vary(self.x, seeded(5)), vary(self.x, seeded(6)))


class TestSynthetic:
    def test_sizes_and_range(self) -> None:
        data = build(name="synthetic", classes=3, images=60, size=10, channels=3)
        assert [len(part) for part in (data.train, data.selection, data.calibration, data.test)] == [60, 15, 15, 30]
        assert data.shape == (3, 10, 10) == tuple(data.test.tensors()[0].shape[1:])
        images, labels = data.train.tensors()
        assert images.dtype == torch.float32
        assert 0 <= images.min() < 0.2
        assert 0.7 < images.max() <= 1
        assert labels.bincount().tolist() == [20, 20, 20]

    def test_nearest_class_mean_is_nearly_always_right(self) -> None:
        data = build(name="synthetic")
        images, labels = data.train.tensors()
        means = torch.stack([images[labels == label].mean(dim=0) for label in range(4)]).flatten(1)
        test, truth = data.test.tensors()
        assert (torch.cdist(test.flatten(1), means).argmin(dim=1) == truth).float().mean() > 0.9

    def test_seed_decides(self) -> None:
        first, again, other = (data_sources.build({"name": "synthetic", "seed": seed}) for seed in (1, 1, 2))
        assert torch.equal(first.load().test.tensors()[0], again.load().test.tensors()[0])
        assert first.fingerprint() == again.fingerprint() != other.fingerprint()

    def test_refuses_too_few(self) -> None:
        with pytest.raises(InputError, match="images = 7 must be 8 or more"):
            data_sources.build({"name": "synthetic", "images": 7})


class TestArrays:
    def test_pixels_and_labels_arrive_unchanged(self, tmp_path: Path) -> None:
        path = write(tmp_path, classes=np.array(["stop", "go", "wait"]))
        data = build(name="arrays", path=path)
        arrays = np.load(path)
        assert data.classes == ("stop", "go", "wait")
        assert data.shape == (3, 6, 5)
        assert [len(part) for part in (data.train, data.selection, data.calibration)] == [54, 3, 3]
        assert data.test.pixels.dtype == torch.uint8
        assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1), arrays["test_images"])
        assert np.array_equal(data.test.labels, arrays["test_labels"])
        together = torch.cat([data.train.pixels, data.selection.pixels, data.calibration.pixels]).permute(0, 2, 3, 1)
        assert sorted(image.numpy().tobytes() for image in together) == sorted(
            image.tobytes() for image in arrays["train_images"]
        )

    def test_grey_images_without_class_names(self, tmp_path: Path) -> None:
        path = write(tmp_path, train_images=np.eye(60, 36, dtype=np.uint8).reshape(60, 6, 6) * 255,
                     test_images=np.zeros((9, 6, 6), np.uint8))  # fmt: skip
        data = build(name="arrays", path=path)
        assert data.shape == (1, 6, 6)
        assert data.classes == ("0", "1", "2")
        assert data.augmentation == Augmentation()

    @pytest.mark.parametrize("key", ["train_track", "train_groups"])
    def test_groups_stay_whole(self, tmp_path: Path, key: str) -> None:
        track = np.arange(60) // 12  # in each class 5 tracks of 4 frames
        images = np.zeros((60, 4, 4), np.uint8)
        images[:, 0, 0], images[:, 1, 1] = track, np.arange(60)
        path = write(tmp_path, train_images=images, test_images=images[:9], **{key: track})
        data = build(name="arrays", path=path, held_out=0.4)
        parts = [part.pixels[:, 0, 0, 0] * 3 + part.labels for part in (data.train, data.selection, data.calibration)]
        assert [len(part) for part in parts] == [36, 12, 12]
        assert (
            len(set(torch.cat([part.unique() for part in parts]).tolist()))
            == 15
            == sum(len(part.unique()) for part in parts)
        )

    def test_fingerprint_is_that_of_the_content(self, tmp_path: Path) -> None:
        source = data_sources.build({"name": "arrays", "path": write(tmp_path)})
        before = source.fingerprint()
        assert dataclasses.replace(source, flip=True).fingerprint() == before
        write(tmp_path, test_labels=np.zeros(9, int))
        assert source.fingerprint() != before

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"test_labels": None, "train_images": None}, "made.npz lacks train_images, test_labels"),
            ({"train_images": np.zeros((60, 6, 5, 3), np.float32)}, r"train_images must be uint8 .* got float32"),
            ({"train_images": np.zeros((60, 3, 32, 32), np.uint8)}, r"at most 4 channels, got uint8 \(60, 3, 32, 32\)"),
            ({"test_images": np.zeros((9, 5, 5, 3), np.uint8)}, "must have one shape"),
            (
                {"train_labels": np.arange(59)},
                r"train_labels must be one class index for each of the 60 images, got int64",
            ),
            ({"train_labels": np.full(60, 0.5)}, r"made.npz: train_labels must be whole numbers, got 0\.5"),
            ({"train_labels": np.arange(60) % 3 + 1}, r'class 0 \("0"\) has no training image'),
            ({"train_labels": np.arange(60) % 3 - 1}, r"made.npz: train_labels must be 0 or more; got -1\.\.1"),
            ({"classes": np.array(["a", "b"])}, r"the training labels must lie in 0\.\.1, got 0\.\.2"),
            ({"test_labels": np.full(9, 10**12)}, r"the test labels must lie in 0\.\.59, got 1000000000000"),
            ({"classes": np.arange(3)}, r"classes must be a list of strings, got int64 \(3,\)"),
            ({"test_labels": np.array([{}] * 9)}, "cannot be read as an .npz file of plain arrays: Object arrays"),
            ({"train_track": np.arange(60), "train_groups": np.arange(60)}, "has both train_groups and train_track"),
            ({"train_track": np.arange(9)}, r"train_track must have one entry for each training image, got \(9,\)"),
        ],
    )
    def test_refuses_with_a_sentence(self, tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
        path = write(tmp_path, **changes)
        with pytest.raises(InputError, match=sentence):
            build(name="arrays", path=path)

    def test_refuses_a_missing_or_damaged_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"is missing; it must be an .npz file with train_images"):
            build(name="arrays", path=str(tmp_path / "none.npz"))
        path = Path(write(tmp_path))
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(InputError, match=r"made.npz cannot be read as an .npz file"):
            build(name="arrays", path=str(path))
        np.save(tmp_path / "one.npy", np.zeros(3))
        with pytest.raises(InputError, match=r"one.npy cannot be read as an .npz file"):
            build(name="arrays", path=str(tmp_path / "one.npy"))


class TestLoad:
    def test_accepts_a_name_a_path_a_source_a_data_set_and_arrays(self, tmp_path: Path) -> None:
        digits = load("digits", crop=1)
        assert digits.augmentation.crop == 1
        assert load(digits) is digits
        x, y = load(Digits()).train.tensors()
        assert torch.equal(x, digits.train.tensors()[0])
        data = load((x.numpy(), y.numpy()))
        assert [len(part) for part in (data.train, data.selection, data.calibration, data.test)] == [900, 50, 50, 0]
        assert (data.shape, len(data.classes)) == ((1, 8, 8), 10)
        path = tmp_path / "mine.npz"
        pixels, labels = (x[:, 0] * 255).byte().numpy(), y.numpy()
        np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[:9], test_labels=labels[:9])
        assert [len(load(path, held_out=100).train), len(load(str(path)).test)] == [900, 9]

    def test_refuses_what_is_no_data_and_settings_without_a_source(self) -> None:
        with pytest.raises(InputError, match="data must be a data set, a split, or a pair of tensors"):
            load([1, 2, 3])
        with pytest.raises(InputError, match="held_out is a setting of a data source; give it together with a name"):
            load(Digits(), held_out=5)
