"""Image files as arrays: one reader for training and prediction, and which files of a folder are images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from rich.console import Console

from sparsemble.cli.app import say
from sparsemble.core.errors import InputError
from sparsemble.data import DataSource, data_sources
from sparsemble.data.file_split import FileSplit
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.images import Preprocessing, describe_left_out, image_files, list_images

ORIENTATION = 0x0112


def picture(size: tuple[int, int] = (12, 9), seed: int = 0) -> Image.Image:
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def expected(image: Image.Image, record: Preprocessing) -> np.ndarray:
    """What the record promises, in Pillow's own words."""
    upright = ImageOps.exif_transpose(image).convert(record.mode)
    short = min(upright.size)
    width, height = (record.resize * side // short for side in upright.size)
    left, top = round((width - record.size) / 2), round((height - record.size) / 2)
    box = (left, top, left + record.size, top + record.size)
    pixels = np.asarray(upright.resize((width, height), Image.Resampling.BILINEAR).crop(box))
    return pixels.reshape(record.size, record.size, -1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_every_colour_mode_is_read_as_pillow_converts_it(mode: str, wanted: str, tmp_path: Path) -> None:
    record = Preprocessing(mode=wanted, resize=8, size=6)  # type: ignore[arg-type]
    made = picture().convert("RGB" if mode == "PA" else mode)
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "PA":  # a palette with a transparent colour for every entry
        made = picture().quantize(16)
        made.save(path, transparency=bytes(range(0, 256, 16)))
    else:
        made.save(path)
    with Image.open(path) as opened:
        opened.info.pop("transparency", None)
        assert np.array_equal(record.read(path), expected(opened, record))
    assert record.read(path).shape == (6, 6, len(wanted))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int, suffix: str, tmp_path: Path) -> None:
    tag, path = Image.Exif(), tmp_path / f"a.{suffix}"
    tag[ORIENTATION] = orientation
    half = np.zeros((10, 10, 3), np.uint8)
    half[:5] = 255
    # The array as the camera stores it: undo what the tag asks viewers to do.
    back = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    back |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: lambda a: np.rot90(a, -1)}
    stored = back.get(orientation, lambda a: a)(half)
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=tag)
    pixels = Preprocessing(mode="L", resize=10, size=10).read(path)[..., 0]
    assert pixels[:4].min() > 200
    assert pixels[6:].max() < 55


def test_a_turned_16_bit_image_keeps_its_brightness(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40).reshape(5, 8).astype(np.uint16)
    tag = Image.Exif()
    tag[ORIENTATION] = 6
    Image.fromarray(ramp).save(tmp_path / "a.png", exif=tag)
    pixels = Preprocessing(mode="L", resize=5, size=5).read(tmp_path / "a.png")[..., 0]
    assert np.array_equal(pixels, np.rot90(np.rint(ramp / 257), -1)[2:7])  # turned clockwise
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    pixels = Preprocessing(mode="L", resize=5, size=5).read(tmp_path / "a.tif")[..., 0]
    assert np.array_equal(pixels, np.rint(ramp / 257)[:, 2:7])


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    record = Preprocessing(mode="RGB", resize=6, size=6)
    for name in ("a.gif", "a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert record.read(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    picture((40, 30)).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    record = Preprocessing(mode="RGB", resize=8, size=8)
    for name, damaged in (("cut.jpg", content[: len(content) // 2]), ("empty.png", b""), ("text.gif", b"GIF89a")):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(RuntimeInputError, match=f"{name} cannot be read as an image: ."):
            record.read(tmp_path / name)
    Image.new("L", (1, 60000)).save(tmp_path / "long.png")
    with pytest.raises(RuntimeInputError, match=r"long.png has 1 x 60000 pixels, which is too long"):
        Preprocessing(mode="L", resize=300, size=8).read(tmp_path / "long.png")


def test_sizes_that_do_not_fit_are_refused() -> None:
    for resize, size in ((8, 9), (8, 0), (10**6, 8)):
        with pytest.raises(RuntimeInputError, match=r"must lie in 1\.\.8|must be at most 16384"):
            Preprocessing(mode="L", resize=resize, size=size)


def test_a_folder_is_searched_to_its_end_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("b.TIF", "a/deep/c.jpeg", "a/d.ppm", ".cache/e.png", ".f.png", "a/notes.txt", "elsewhere/g.gif"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "a" / "itself").symlink_to("itself")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "pipe.png")
    images, others = list_images(tmp_path)
    assert {path.name for path in images} == {"b.TIF", "c.jpeg", "d.ppm", "g.gif", "gone.png"}
    assert len(images) == 5
    assert {path.name for path in others} == {"e.png", ".f.png", "notes.txt", "itself", "pipe.png"}
    files, left_out = image_files([tmp_path])
    assert (files, left_out) == (images, others)
    assert describe_left_out(others[:1]).startswith("1 file is left out, ")
    assert describe_left_out(others).startswith("5 files are left out, ")
    assert describe_left_out(others).endswith(", ...")
    assert not describe_left_out([])


def made_folder(root: Path, names: tuple[str, ...] = ("cat", "dog"), count: int = 6, suffix: str = "png") -> Path:
    for k, part in enumerate(("train", "test")):
        for i, name in enumerate(names):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture(seed=100 * k + 10 * i + number).save(root / part / name / f"{number}.{suffix}")
    return root


def source(root: Path, **settings: object) -> DataSource:
    return data_sources.build({"name": "image_folder", "root": str(root), "size": 8, "held_out": 0.4, **settings})


def test_image_folder_uses_nested_folders_and_every_ending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = made_folder(tmp_path / "ein schöner ordner")
    before = source(root).fingerprint()
    (root / "train" / "cat" / "more").mkdir()
    for number in range(3):
        (root / "train" / "cat" / f"{number}.png").rename(root / "train" / "cat" / "more" / f"{number}.png")
    picture(seed=77).save(root / "train" / "dog" / "extra.tif")
    assert source(root).load().notes == ()
    (root / "train" / "readme.md").write_text("photographs")
    (root / "test" / "dog" / ".DS_Store").write_bytes(b"")
    data = source(root).load_and_report()
    assert len(data.train) + len(data.selection) + len(data.calibration) == 13
    assert len(data.notes) == 1
    assert "2 files are left out" in data.notes[0]
    assert "train/readme.md" in data.notes[0]
    assert [record.getMessage() for record in caplog.records] == list(data.notes)
    assert source(root).fingerprint() != before
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    assert isinstance(source(root).load().train, FileSplit)


def test_linked_folders_and_accents_of_two_systems_are_followed(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    root = made_folder(tmp_path / "a", (composed, "dog"))
    (root / "test" / composed).rename(root / "test" / decomposed)
    (root / "train" / "dog").rename(tmp_path / "dogs elsewhere")
    (root / "train" / "dog").symlink_to(tmp_path / "dogs elsewhere", target_is_directory=True)
    (tmp_path / "link").symlink_to(root, target_is_directory=True)
    data = source(tmp_path / "link").load()
    assert data.classes == (composed, "dog")
    assert len(data.test) == 12
    assert source(tmp_path / "link").fingerprint() == source(root).fingerprint()
    (root / "test" / "dog").rename(root / "test" / "d\x1bog")
    with pytest.raises(InputError, match=r"'d\\x1bog' in .* has a control character in its name; rename it"):
        source(root).load()


def test_names_that_are_no_text_are_read_and_shown_with_escapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = made_folder(tmp_path / "photos")
    path = os.fsdecode(os.fsencode(root / "test" / "cat") + b"/caf\xe9.png")
    picture(seed=55).save(path)
    assert len(source(root).load().test) == 13
    assert source(root).fingerprint() != source(made_folder(tmp_path / "others")).fingerprint()
    Path(path).write_bytes(b"damaged")
    (note,) = source(root).load().notes
    say(Console(), note)
    assert "test/cat/caf\\udce9.png cannot be read as an image" in " ".join(capsys.readouterr().out.split())


def test_a_file_that_vanishes_while_it_is_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = made_folder(tmp_path / "photos")
    monkeypatch.setattr("sparsemble.data.image_folder.IN_MEMORY", 0)
    data = source(root).load()
    (root / "test").rename(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"cat/0.png was there and is gone; once the folder is back, run the same"):
        data.test.tensors()
    (tmp_path / "unmounted").rename(root / "test")
    assert data.test.tensors()[0].shape == (12, 3, 8, 8)
    (root / "test" / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert source(root).fingerprint()
    data = source(root).load()
    assert len(data.test) == 12
    assert "1 file is left out: test/cat/gone.jpg cannot be read as an image: No such file" in data.notes[0]
