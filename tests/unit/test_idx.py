"""MNIST and Fashion-MNIST: IDX files in the two published parts, packed, packed again or unpacked, and damaged ones."""

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsemble.core.errors import InputError
from sparsemble.data import data_sources
from sparsemble.data import fashion_mnist as fashion
from sparsemble.data import mnist as digits
from sparsemble.data.idx import Release, parse, release

COUNTS = {"train": 60, "t10k": 20}


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def made(installed: Path | None = None) -> tuple[Release, dict[str, bytes], dict[str, np.ndarray]]:
    """Return the record of a small data set, its packed files and its arrays."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in COUNTS.items():
        arrays[f"{part}-images-idx3-ubyte.gz"] = rng.integers(0, 256, (count, 5, 4), np.uint8)
        arrays[f"{part}-labels-idx1-ubyte.gz"] = (np.arange(count) % 3).astype(np.uint8)
    packed = {name: gzip.compress(idx(array), mtime=1) for name, array in arrays.items()}
    files = {
        name: (len(content), hashlib.sha256(content).hexdigest(), hashlib.sha256(idx(arrays[name])).hexdigest())
        for name, content in packed.items()
    }
    return release("http://127.0.0.1:9/", files, ("a", "b", "c"), installed), packed, arrays


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    record, packed, arrays = made(tmp_path / "installed")
    monkeypatch.setattr(fashion, "RELEASE", record)
    return packed, arrays


def build(root: Path, **settings: Any) -> Any:
    settings = {"download": False, "held_out": 9, **settings}
    return data_sources.build({"name": "fashion_mnist", "root": str(root), **settings}, "data")


@pytest.mark.parametrize("kind", ["published", "packed again", "unpacked", "installed"])
def test_reads_every_copy_as_the_same_data(
    kind: str, files: tuple[dict[str, bytes], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    packed, arrays = files
    root = tmp_path / ("installed" if kind == "installed" else "root")
    root.mkdir()
    for name, content in packed.items():
        if kind == "packed again":
            content = gzip.compress(gzip.decompress(content), 1, mtime=2)
        path = root / (name.removesuffix(".gz") if kind == "unpacked" else name)
        path.write_bytes(gzip.decompress(content) if kind == "unpacked" else content)
    source = build(tmp_path / "root", crop=1, flip=True)
    data = source.load()
    images, labels = data.test.tensors()
    assert np.array_equal((images[:, 0] * 255).round().numpy(), arrays["t10k-images-idx3-ubyte.gz"])
    assert np.array_equal(labels.numpy(), arrays["t10k-labels-idx1-ubyte.gz"])
    assert (len(data.train), len(data.selection) + len(data.calibration)) == (51, 9)
    assert data.shape == (1, 5, 4)
    assert data.classes == ("a", "b", "c")
    assert data.augmentation.crop == 1
    assert data.augmentation.flip
    assert source.fingerprint() == hashlib.sha256("\n".join(fashion.RELEASE.contents.values()).encode()).hexdigest()


def test_without_the_files_one_sentence_says_where_they_go(
    files: tuple[dict[str, bytes], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte.gz is missing; set download = true, or put http://"):
        build(tmp_path / "root").load()


def test_another_or_a_damaged_file_is_refused(
    files: tuple[dict[str, bytes], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    packed, _ = files
    for name, content in packed.items():
        (tmp_path / name).write_bytes(content)
    name = "t10k-labels-idx1-ubyte.gz"
    (tmp_path / name).write_bytes(gzip.compress(b"something else"))
    with pytest.raises(
        InputError, match=rf"{name} is another file: its content has sha256 \w+, expected \w+; delete it"
    ):
        build(tmp_path).load()
    for broken in (packed[name][:-9], b"no archive"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(InputError, match=rf"{name} cannot be read \(.*\); delete it and run again"):
            build(tmp_path).fingerprint()


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.uint8), np.arange(24, dtype=np.uint8).reshape(2, 3, 4)])
def test_parse_reads_any_number_of_axes(array: np.ndarray) -> None:
    assert np.array_equal(parse(idx(array), "x"), array)


@pytest.mark.parametrize("content", [b"", b"\0\0\x08", b"\0\0\x0d\1\0\0\0\0", b"PK\3\4"])
def test_parse_refuses_what_is_no_idx_file(content: bytes) -> None:
    with pytest.raises(InputError, match="here is no IDX file of unsigned bytes: it starts with"):
        parse(content, "here")


@pytest.mark.parametrize("cut", [1, 11, 13])
def test_parse_refuses_a_truncated_file(cut: int) -> None:
    with pytest.raises(InputError, match=r"here has .* bytes, expected .*; it is truncated"):
        parse(idx(np.zeros((3, 3), np.uint8))[:-cut], "here")


@pytest.mark.parametrize("record", [fashion.RELEASE, digits.RELEASE])
def test_records_name_the_four_files_with_checksums(record: Release) -> None:
    names = {f"{part}-{kind}-ubyte.gz" for part in COUNTS for kind in ("images-idx3", "labels-idx1")}
    assert set(record.remotes) == set(record.contents) == names
    for name in names:
        assert record.remotes[name].urls[0].endswith("/" + name)
        assert len(record.remotes[name].sha256) == len(record.contents[name]) == 64
    assert len(record.classes) == 10


def test_digits_have_no_flip() -> None:
    source: Any = data_sources.build({"name": "mnist", "root": "nowhere", "crop": 2}, "data")
    assert not source._augmentation().flip
    with pytest.raises(InputError, match="flip is not a known setting"):
        data_sources.build({"name": "mnist", "root": "nowhere", "flip": True}, "data")
