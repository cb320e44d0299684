"""CIFAR, SVHN and class folders, from small made-up files in the original formats.

A test swaps the table of published facts (names, lengths, checksums) for that of its own files; every check still runs.
"""

import dataclasses
import hashlib
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from sparsemble.core.errors import InputError
from sparsemble.data import DataSource, cifar10, cifar100, data_sources, svhn
from sparsemble.data.cifar_binary import parse
from sparsemble.data.download import Remote
from sparsemble.data.file_split import FileSplit, file_split, make_preprocessing

NOWHERE = "http://127.0.0.1:9/nothing-listens-here"


def facts(path: Path) -> Remote:
    content = path.read_bytes()
    return Remote(urls=(NOWHERE,), size=len(content), sha256=hashlib.sha256(content).hexdigest())


def records(count: int, classes: int, label_bytes: int, seed: int) -> bytes:
    table = np.random.default_rng(seed).integers(0, 256, (count, label_bytes + 3072), dtype=np.uint8)
    table[:, :label_bytes] = 19  # the coarse label of CIFAR-100, which is not the class
    table[:, label_bytes - 1] = np.arange(count) % classes
    return table.tobytes()


def made_cifar(root: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Pack an archive with four images of each class in each file, and make it the published one."""
    release = module.RELEASE
    count, files = 4 * len(release.classes), [*release.train, *release.test]
    contents = {n: records(count, len(release.classes), release.label_bytes, i) for i, n in enumerate(files)}
    with tarfile.open(root / release.archive, "w:gz") as tar:
        for name, content in contents.items():
            (root / "member").write_bytes(content)
            tar.add(root / "member", name)
    (root / "member").unlink()
    own = {"train": dict.fromkeys(release.train, count), "test": dict.fromkeys(release.test, count)}
    monkeypatch.setattr(module, "RELEASE", dataclasses.replace(release, remote=facts(root / release.archive), **own))
    return contents


@pytest.mark.parametrize(("module", "train", "held_out"), [(cifar10, 200, 40), (cifar100, 400, 200)])
def test_cifar_reads_the_original_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, train: int, held_out: int
) -> None:
    contents = made_cifar(tmp_path, module, monkeypatch)
    name = module.__name__.rsplit(".", 1)[-1]
    source = data_sources.build({"name": name, "root": str(tmp_path), "held_out": held_out})
    data = source.load()
    classes = len(module.RELEASE.classes)
    assert len(data.classes) == len(set(data.classes)) == classes
    assert [len(part) for part in (data.train, data.selection, data.calibration)] == [
        train - held_out,
        held_out // 2,
        held_out // 2,
    ]
    assert data.selection.labels.bincount().tolist() == [held_out // 2 // classes] * classes
    assert data.shape == (3, 32, 32)
    assert data.test.pixels.dtype == torch.uint8
    last = np.frombuffer(list(contents.values())[-1], np.uint8).reshape(-1, 3072 + module.RELEASE.label_bytes)
    assert np.array_equal(data.test.pixels.flatten(1), last[:, -3072:])
    assert data.test.labels.tolist() == list(range(classes)) * 4
    before = source.fingerprint()
    (tmp_path / module.RELEASE.archive).unlink()
    assert source.fingerprint() == before  # the unpacked files are enough
    assert torch.equal(source.load().train.pixels, data.train.pixels)


def test_cifar_published_facts() -> None:
    assert sum(cifar10.RELEASE.train.values()) == sum(cifar100.RELEASE.train.values()) == 50_000
    assert sum(cifar10.RELEASE.test.values()) == sum(cifar100.RELEASE.test.values()) == 10_000
    assert list(cifar100.RELEASE.classes) == sorted(cifar100.RELEASE.classes)


def test_cifar_faults_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made_cifar(tmp_path, cifar10, monkeypatch)
    source = cifar10.CIFAR10(root=str(tmp_path), held_out=40)
    source.load()
    cut_short = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    cut_short.write_bytes(cut_short.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"data_batch_2.bin has 122,913 bytes, expected 122,920 \(40 images\)"):
        source.fingerprint()
    cut_short.unlink()
    source.load()  # unpacks again
    with pytest.raises(InputError, match="held_out = 5000 does not fit 200 training images: 2 to 199"):
        cifar10.CIFAR10(root=str(tmp_path)).load()
    cut_short.unlink()
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    with pytest.raises(InputError, match=r"cifar-10-binary.tar.gz has sha256 \w+, expected \w+; delete it"):
        source.load()
    archive.unlink()
    with pytest.raises(InputError, match=r"could not be downloaded .*by hand at .*/cifar-10-binary.tar.gz"):
        source.load()
    with pytest.raises(InputError, match="is missing; set download = true"):
        cifar10.CIFAR10(root=str(tmp_path), download=False).load()


def test_records_are_checked() -> None:
    content = records(5, 10, 1, 0)
    with pytest.raises(InputError, match=r"here has 15,364 bytes, expected a multiple of 3,073; it is truncated"):
        parse(content[:-1], 1, 10, "here")
    with pytest.raises(InputError, match=r"here has label 4, expected 0\.\.3"):
        parse(content, 1, 4, "here")


@pytest.fixture
def made_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    pixels = {}
    for seed, name in enumerate(svhn.FILES):
        images = np.random.default_rng(seed).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
        labels = (np.arange(60, dtype=np.uint8) % 10 + 1)[:, None]
        savemat(tmp_path / name, {"X": images.transpose(2, 3, 1, 0), "y": labels})
        pixels[name] = images
    monkeypatch.setattr(svhn, "FILES", {name: facts(tmp_path / name) for name in svhn.FILES})
    return pixels


def test_svhn_calls_label_ten_zero(tmp_path: Path, made_svhn: dict[str, np.ndarray]) -> None:
    source = svhn.SVHN(root=str(tmp_path), held_out=20)
    data = source.load()
    assert np.array_equal(data.test.pixels, made_svhn["test_32x32.mat"])
    assert data.test.labels[:10].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]
    assert [len(part) for part in (data.train, data.selection, data.calibration)] == [40, 10, 10]
    assert not data.augmentation.flip
    assert len(source.fingerprint()) == 64


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"X": np.zeros((32, 32, 3, 4))}, r"must hold X, uint8 \(H, W, 3, 4\), got float64 \(32, 32, 3, 4\)"),
        ({"X": np.zeros((4, 32, 32, 3), np.uint8)}, r"got uint8 \(4, 32, 32, 3\)"),
        ({"y": np.array([[0], [1], [2], [3]])}, r"has labels 0\.\.3, expected 1\.\.10"),
    ],
)
def test_svhn_files_are_checked(tmp_path: Path, changes: dict[str, np.ndarray], sentence: str) -> None:
    arrays = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.array([[1], [2], [3], [10]])}
    savemat(tmp_path / "a.mat", {**arrays, **changes})
    with pytest.raises(InputError, match=sentence):
        svhn.read(tmp_path / "a.mat")
    (tmp_path / "a.mat").write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(InputError, match="cannot be read as a MATLAB file"):
        svhn.read(tmp_path / "a.mat")


def made_folders(root: Path, parts: tuple[str, str], count: int = 10, suffix: str = "png") -> None:
    rng = np.random.default_rng(0)
    for part in parts:
        for name in ("n01", "n02"):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number:02}.{suffix}")


def folder_source(root: Path, **settings: object) -> DataSource:
    return data_sources.build({"name": "image_folder", "root": str(root), **settings})


def test_the_centre_square_is_kept(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(make_preprocessing(resize=12, size=8).read(tmp_path / "a.png"), pixels[2:10, 4:12])
    assert make_preprocessing(resize=30, size=20, grey=True).read(tmp_path / "a.png").shape == (20, 20, 1)
    with pytest.raises(InputError, match=r"size = 9 must lie in 1\.\.8"):
        make_preprocessing(resize=8, size=9)


def test_imagenet_streams_its_folders(tmp_path: Path) -> None:
    made_folders(tmp_path, ("train", "val"), suffix="JPEG")
    settings = {"root": str(tmp_path), "held_out": 4, "resize": 12, "size": 8, "crop": 2}
    source = data_sources.build({"name": "imagenet", **settings})
    data = source.load()
    assert data.classes == ("n01", "n02")
    assert data.shape == (3, 8, 8)
    assert isinstance(data.train, FileSplit)
    parts = (data.train, data.selection, data.calibration)
    assert [part.labels.bincount().tolist() for part in parts] == [[8, 8], [1, 1], [1, 1]]
    assert len({name for part in parts for name in part.names}) == 20
    images, labels = data.test.tensors()
    assert images.shape == (20, 3, 8, 8)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1
    assert labels.tolist() == [0] * 10 + [1] * 10
    assert torch.equal(data.test.to("cpu").subset(torch.tensor([3, 12])).tensors()[0], images[[3, 12]])
    one_by_one = torch.cat([data.test.images(torch.tensor([index])) for index in range(20)])
    assert torch.equal(one_by_one, images)


def test_imagenet_says_where_its_files_go(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must hold train/WNID/\*.JPEG and val/WNID/\*.JPEG; .* registration"):
        data_sources.build({"name": "imagenet", "root": str(tmp_path)}).load()


def test_image_folder_is_the_same_in_memory_and_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_folders(tmp_path, ("train", "test"))
    memory = folder_source(tmp_path, size=8, held_out=0.2).load()
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    streamed = folder_source(tmp_path, size=8, held_out=0.2).load()
    assert isinstance(streamed.train, FileSplit)
    for part in ("train", "selection", "calibration", "test"):
        for one, other in zip(getattr(memory, part).tensors(), getattr(streamed, part).tensors(), strict=True):
            assert torch.equal(one, other)
    assert memory.mean == pytest.approx(streamed.mean, abs=0.02)
    assert folder_source(tmp_path, size=8, grey=True).load().shape == (1, 8, 8)


def test_image_folder_faults_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    with pytest.raises(InputError, match=r"train has no class folders"):
        folder_source(tmp_path).fingerprint()
    made_folders(tmp_path, ("train", "test"))
    source = folder_source(tmp_path)
    before = source.fingerprint()
    (tmp_path / "train" / "n01" / "broken.jpg").write_bytes(b"not an image")
    assert "n01/broken.jpg cannot be read as an image: its format is not known" in source.load().notes[0]
    assert source.fingerprint() != before
    (tmp_path / "test" / "n03").mkdir()
    with pytest.raises(InputError, match=r"test has the class folder n03 and .*train has not"):
        source.load()
    with pytest.raises(InputError, match=r"test/n03 has no images \(\.png, \.apng"):
        file_split(tmp_path, "test", ("n01", "n03"), make_preprocessing(resize=8, size=8))
