"""`sparsemble predict` and `sparsemble show` on a packed ensemble, and the example."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sparsemble import runtime
from sparsemble.cli import app
from sparsemble.core.errors import InputError
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble
from sparsemble.runtime.images import read_image
from sparsemble.runtime.network import AveragePool, Convolution, Flatten, Input, Linear, Network, Relu, Weight

pytestmark = pytest.mark.usefixtures("cache")
EXAMPLE = Path(__file__).parents[2] / "examples" / "edge.py"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)

    def member() -> Network:
        weights = [Weight.from_dense(rng.standard_normal(shape)) for shape in ((4, 3, 3, 3), (3, 4))]
        zeros = np.zeros(4, np.float32)
        return Network(
            (3, 6, 5),
            (
                Input(),
                Convolution((0,), weights[0], zeros, (1, 1), (1, 1)),
                Relu((1,)),
                AveragePool((2,), (6, 5), (6, 5)),
                Flatten((3,)),
                Linear((4,), weights[1], zeros[:3]),
            ),
        )

    ensemble = PackedEnsemble(
        members=(member(), member()),
        combiner={"name": "mean_probability"},
        rule={"name": "confidence", "threshold": 0.8},
        classes=("red", "green", "blue"),
        parent_weights=1000,
        provenance={"run": "a test"},
    )
    packed.save(ensemble, tmp_path / "ensemble.sparsemble")
    return tmp_path / "ensemble.sparsemble"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(1)
    paths = [folder / "a.png", folder / "b.png", tmp_path / "c.png"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(path)
    (folder / "notes.txt").write_text("no image")
    return paths


def call(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_predict_prints_the_prediction_of_every_image(file: Path, images: list[Path]) -> None:
    rows = json.loads(call("predict", file, images[0].parent, images[2], "--json"))
    assert [row["image"] for row in rows] == [str(path) for path in images]
    batch = np.stack([np.asarray(Image.open(path)) for path in images])
    found = runtime.load(file).predict(batch)
    of_paths = runtime.load(file).predict(images)
    for name in ("labels", "probabilities", "members_run", "answered_with"):
        assert np.array_equal(getattr(of_paths, name), getattr(found, name))
    assert [row["label"] for row in rows] == [("red", "green", "blue")[label] for label in found.labels]
    assert [row["members_run"] for row in rows] == found.members_run.tolist()
    assert [row["probability"] for row in rows] == pytest.approx(found.probabilities.max(1).tolist())
    table = call("predict", file, images[2])
    assert rows[2]["label"] in table


def test_show_prints_what_is_in_a_file(file: Path) -> None:
    told = call("show", file)
    for words in (
        "a packed ensemble of version 1",
        "5 x 6",
        "3: red, green, blue",
        "confidence, threshold = 0.8",
        "a test",
    ):
        assert words in told
    assert "member 2  6 operations" in told


def test_a_damaged_file_gives_a_sentence(file: Path, images: list[Path]) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    for words in (["predict", file, images[0]], ["show", file]):
        with pytest.raises(InputError, match="is damaged: its sha256 is another one"):
            call(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.png"], "missing.png does not exist"),
        (["{file}"], "cannot be read as an image"),
        (["{large}"], r"has 9 x 9 pixels, the ensemble takes 5 x 6; use --resize, or resize=True in Python"),
        (["{empty}"], "holds no image"),
        (["{large}", "--resize", "--threads", "-2"], "threads = -2 must be 1 or more; this machine has"),
    ],
)
def test_bad_input_gives_a_sentence(file: Path, tmp_path: Path, words: list[str], said: str) -> None:
    Image.new("L", (9, 9)).save(tmp_path / "large.png")
    (tmp_path / "empty").mkdir()
    known = {"file": file, "large": tmp_path / "large.png", "empty": tmp_path / "empty"}
    with pytest.raises(InputError, match=said):
        call("predict", file, *(word.format(**known) for word in words))


def test_images_of_another_size_may_be_resized(file: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9), 100).save(tmp_path / "large.png")
    assert len(json.loads(call("predict", file, tmp_path / "large.png", "--resize", "--json"))) == 1
    assert runtime.load(file).predict([str(tmp_path / "large.png")], resize=True).labels.shape == (1,)
    with pytest.raises(RuntimeInputError, match=r"resize=True in Python"):
        runtime.load(file).predict([tmp_path / "large.png"])


def test_the_example_runs(file: Path, images: list[Path]) -> None:
    out = subprocess.run([sys.executable, EXAMPLE, file, *images], capture_output=True, text=True, check=True).stdout
    found = runtime.load(file).predict(np.stack([np.asarray(Image.open(path)) for path in images]))
    assert [line.split(": ")[1].split(" ")[0] for line in out.splitlines()] == [
        ("red", "green", "blue")[label] for label in found.labels
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "usage: python edge.py ensemble.sparsemble photo.png ..."),
        (["{file}"], "usage: python edge.py ensemble.sparsemble photo.png ..."),
        (["{image}", "{image}"], "error: this is no packed ensemble"),
        (["{file}", "{file}"], "error: {file} cannot be read as an image"),
    ],
)
def test_the_example_ends_with_a_sentence(file: Path, images: list[Path], words: list[str], said: str) -> None:
    known = {"file": file, "image": images[0]}
    command = [sys.executable, EXAMPLE, *(word.format(**known) for word in words)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(said.format(**known))
    assert ended.stderr.count("\n") == 1


def ensemble_of(classes: tuple[str, ...], **settings: Any) -> PackedEnsemble:
    """An ensemble for images of one pixel."""
    layer = Linear((1,), Weight.from_dense(np.eye(len(classes), 3)), np.zeros(len(classes), np.float32))
    return PackedEnsemble(
        members=(Network((3, 1, 1), (Input(), Flatten((0,)), layer)),),
        combiner={"name": "mean_logit"},
        rule={"name": "never"},
        classes=classes,
        parent_weights=1000,
        **settings,
    )


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    file, image = tmp_path / "ensemble.sparsemble", Path("a[old].png")
    packed.save(ensemble_of(("[/]x", "[red]y[/]", "\u200d döner")), file)
    with contextlib.chdir(tmp_path):
        Image.new("RGB", (1, 1), (0, 255, 0)).save(image)
        told = call("predict", file, image)
    assert "a[old].png" in told
    assert "[red]y[/]" in told
    assert "[/]x, [red]y[/], \u200d döner" in call("show", file)


def test_what_would_steer_a_terminal_is_escaped(tmp_path: Path) -> None:
    file, image = tmp_path / "ensemble.sparsemble", tmp_path / "a\x1b[2J\n.png"
    packed.save(ensemble_of(("x", "y"), provenance={"ru\x1b[31mn": "a\r\n\udc80\u202e"}), file)
    Image.new("RGB", (1, 1)).save(image)
    assert "ru\\x1b[31mn a\\r\\n\\udc80\\u202e\n" in call("show", file)
    told = call("predict", file, image).replace("\n", "")
    assert "\x1b" not in told
    image.write_text("none")
    with pytest.raises(InputError, match=r"a\\x1b\[2J\\n.png cannot be read as an image"):
        call("predict", file, image)


def test_images_of_16_bits_are_read_as_bright_as_they_are(tmp_path: Path) -> None:
    path, deep = tmp_path / "a.png", np.arange(0, 65536, 13, np.uint16)[:5040].reshape(60, 84)
    Image.fromarray(deep).save(path)
    with Image.open(path) as opened:
        assert opened.mode.startswith("I")
    expected = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(read_image(path, (1, 60, 84))[..., 0], expected)
    assert np.array_equal(read_image(path, (3, 60, 84)), expected[..., None].repeat(3, -1))
    Image.fromarray(deep).save(tmp_path / "a.pgm")
    assert np.array_equal(read_image(tmp_path / "a.pgm", (1, 60, 84))[..., 0], expected)


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_images_of_32_bits_get_a_sentence(kind: type[np.generic], mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.ones((2, 2), kind)).save(path)
    with pytest.raises(RuntimeInputError, match=rf"a.tiff has pixels of 32 bits \(mode {mode}\)"):
        read_image(path, (1, 2, 2))
