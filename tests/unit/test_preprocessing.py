"""How files become images: made by the data set, kept beside the model, and applied to files at prediction."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import sparsemble as sp
from sparsemble.api.results import TrainedModel
from sparsemble.cli import app
from sparsemble.core.artifacts import META, write_json
from sparsemble.core.errors import InputError
from sparsemble.core.threat import ThreatModel
from sparsemble.core.types import seeded
from sparsemble.data import data_sources
from sparsemble.data.dataset import Dataset
from sparsemble.ensemble.combiners.mean_probability import MeanProbability
from sparsemble.evaluation.loaded_model import load_target
from sparsemble.evaluation.resolve_data import resolve_data
from sparsemble.evaluation.run_models import RunIndex
from sparsemble.export.hub import load_folder, save_folder
from sparsemble.export.onnx import write_graphs
from sparsemble.models import architectures
from sparsemble.models.model_io import ModelSpec, load_spec, save_model
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.header import Fields
from sparsemble.runtime.format.validate import read_preprocessing
from sparsemble.runtime.images import Preprocessing

pytestmark = pytest.mark.usefixtures("cache")
RECORD = {"orientation": "exif", "mode": "L", "resize": 8, "crop": [8, 8], "range": [0, 1]}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs of many sizes, turned and in several modes."""
    rng = np.random.default_rng(0)
    tag = Image.Exif()
    tag[0x0112] = 6
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(5):
                sides = rng.integers(9, 30, 2)
                image = Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8))
                image.convert(("P", "L", "RGBA", "CMYK", "RGB")[number]).save(
                    tmp_path / part / name / f"{number}.{'tif' if number == 3 else 'png'}", exif=tag
                )
            deep = rng.integers(0, 65536, (12, 9), dtype=np.uint16)
            Image.fromarray(deep).save(tmp_path / part / name / "5.png", exif=tag)
            frames = [Image.fromarray(rng.integers(0, 256, (11, 14, 3), dtype=np.uint8)) for _ in range(2)]
            frames[0].save(tmp_path / part / name / "6.gif", save_all=True, append_images=frames[1:])
    return tmp_path


@pytest.fixture
def data(photos: Path) -> Dataset:
    return data_sources.build(
        {"name": "image_folder", "root": str(photos), "size": 8, "grey": True, "held_out": 0.4}
    ).load()


def untrained(data: Dataset) -> TrainedModel:
    spec = ModelSpec.of(architectures.build({"name": "tiny", "width": 4}), data)
    return TrainedModel(model=spec.build(rng=seeded(3)).eval(), spec=spec)


def predict(*words: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["predict", *map(str, words), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_a_prediction_on_a_file_is_that_on_the_image_that_training_saw(photos: Path, data: Dataset) -> None:
    model = untrained(data)
    file = sp.export(model, photos / "m.sparsemble", values="float32")
    rows = predict(file, photos / "test")
    x, _ = data.test.tensors()
    with torch.no_grad():
        probabilities = model(x).softmax(1)
    assert [row["label"] for row in rows] == [data.classes[k] for k in probabilities.argmax(1)]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)
    assert rows == predict(file, photos / "test", "--resize")  # the record decides, not the option
    files = sorted((photos / "test").rglob("*.*"))
    assert np.array_equal(sp.runtime.load(file).predict(files).labels, probabilities.argmax(1).numpy())
    shown = CliRunner().invoke(app, ["show", str(file)]).stdout
    assert "files     turned upright, grey, short side resized to 8, centre of 8 x 8 cut out" in shown


def test_a_folder_is_evaluated_as_the_ensemble_prepares_its_files(photos: Path, data: Dataset, tmp_path: Path) -> None:
    file = sp.export(untrained(data), photos / "m.sparsemble")
    source = resolve_data(str(photos), str(file))
    assert source == data_sources.build({"name": "image_folder", "root": str(photos), "size": 8, "grey": True})
    assert resolve_data(str(photos)) == data_sources.build({"name": "image_folder", "root": str(photos)})
    (tmp_path / "damaged.sparsemble").write_bytes(b"none")
    with pytest.raises(InputError, match=r"damaged.sparsemble: this is no packed ensemble"):
        resolve_data(str(photos), str(tmp_path / "damaged.sparsemble"))


def test_every_form_of_a_model_says_how_a_folder_is_prepared(photos: Path, data: Dataset, tmp_path: Path) -> None:
    training = data_sources.build({"name": "image_folder", "root": str(photos), "size": 8, "grey": True})
    model = untrained(data)
    (tmp_path / "model").mkdir()
    save_model(model.model, tmp_path / "model", model.spec)
    write_json(tmp_path / "model" / META, {"spec": {}})
    own = data_sources.build({"name": "image_folder", "root": "elsewhere", "size": 8, "grey": True, "test": 0.3})
    index = RunIndex(
        data=own, threat=ThreatModel(norm="linf", eps=0.1), combiner=MeanProbability(), rows={}, claimed_sparsity={}
    )
    (tmp_path / "run").mkdir()
    index.save(tmp_path / "run")
    assert resolve_data(str(photos), str(tmp_path / "model")) == training
    assert resolve_data(str(photos), str(tmp_path / "run")) == replace(own, root=str(photos))  # type: ignore[type-var]
    pytest.importorskip("onnxruntime")
    write_graphs(packed.load(sp.export(model, photos / "m.sparsemble")), tmp_path / "onnx")
    assert resolve_data(str(photos), str(tmp_path / "onnx" / "ensemble.onnx")) == training


def test_images_of_other_classes_are_refused(photos: Path, data: Dataset) -> None:
    target = load_target(str(sp.export(untrained(data), photos / "m.sparsemble")))
    assert target.class_names == ("cat", "dog")
    for names in (("cat", "dog"), ("Cat", "Dog"), ("0", "1")):
        target.check_class_names(names)
    with pytest.raises(InputError, match=r'the images have no class "dog"; give images of the classes that m was'):
        target.check_class_names(("cat", "wolf"))
    with pytest.raises(InputError, match=r'the model has no class "bird"'):
        target.check_class_names(("cat", "dog", "bird"))


def test_a_damaged_file_is_a_row_with_an_error(photos: Path, data: Dataset, tmp_path: Path) -> None:
    file = sp.export(untrained(data), photos / "m.sparsemble")
    (photos / "test" / "cat" / "1b.png").write_bytes(b"not an image")
    (photos / "test" / "notes.txt").write_text("no image")
    rows = predict(file, photos / "test")
    assert len(rows) == 15
    wrong = [row for row in rows if "error" in row]
    assert [Path(row["image"]).name for row in wrong] == ["1b.png"]
    assert wrong[0]["label"] is wrong[0]["probability"] is wrong[0]["members_run"] is None
    assert "1b.png cannot be read as an image" in wrong[0]["error"]
    told = CliRunner().invoke(app, ["predict", str(file), str(photos / "test")])
    assert told.exit_code == 0
    assert "error: " in told.stdout
    assert "1 file is left out, hidden or without the ending of an image: " in told.stderr
    with pytest.raises(InputError, match=r"1b.png cannot be read as an image"):
        predict(file, photos / "test" / "cat" / "1b.png")


def test_the_record_is_in_every_format(photos: Path, data: Dataset, tmp_path: Path) -> None:
    model = untrained(data)
    assert data.preprocessing == Preprocessing(mode="L", resize=8, size=8)
    save_model(model.model, tmp_path, model.spec)
    assert load_spec(tmp_path) == model.spec
    assert load_spec(tmp_path).preprocessing == data.preprocessing
    file = sp.export(model, photos / "m.sparsemble")
    assert packed.describe(file)["preprocessing"] == RECORD
    ensemble = packed.load(file)
    assert ensemble.preprocessing == data.preprocessing
    save_folder(ensemble, tmp_path / "hub", None, values="float16")
    assert load_folder(tmp_path / "hub").preprocessing == data.preprocessing
    onnx = pytest.importorskip("onnx")
    for graph in (*(write_graphs(ensemble, tmp_path / "onnx"))[0], tmp_path / "onnx" / "ensemble.onnx"):
        properties = {entry.key: entry.value for entry in onnx.load(graph).metadata_props}
        assert json.loads(properties["preprocessing"]) == RECORD
    assert json.loads((tmp_path / "onnx" / "manifest.json").read_text())["preprocessing"] == RECORD


def test_arrays_have_no_record_and_their_files_are_as_before(tmp_path: Path) -> None:
    digits = sp.data.load("digits")
    model = untrained(digits)
    assert digits.preprocessing is None
    save_model(model.model, tmp_path, model.spec)
    assert "preprocessing" not in json.loads((tmp_path / "architecture.json").read_text())
    file = sp.export(model, tmp_path / "m.sparsemble")
    assert "preprocessing" not in packed.describe(file)
    assert packed.load(file).preprocessing is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "CMYK"}, "mode = 'CMYK' must be one of L, RGB"),
        ({"orientation": "none"}, "orientation = 'none' must be one of exif"),
        ({"resize": 7}, r"size = 8 must lie in 1\.\.7"),
        ({"resize": 10**9}, "resize = 1000000000 must be a whole number from 1 to 16384"),
        ({"resize": None}, "resize = None must be a whole number"),
        ({"crop": [8, 9]}, "must have the form"),
        ({"crop": [8]}, "must be a list of 2"),
        ({"range": [0, 255]}, "must have the form"),
        ({"colour": "sRGB"}, "must have the form"),
    ],
)
def test_a_forged_record_is_refused(changes: dict[str, Any], message: str) -> None:
    assert read_preprocessing(Fields({"preprocessing": RECORD}, "the header")) is not None
    assert read_preprocessing(Fields({}, "the header")) is None
    with pytest.raises(RuntimeInputError, match=message):
        read_preprocessing(Fields({"preprocessing": {**RECORD, **changes}}, "the header"))


def test_a_record_of_other_images_is_refused(photos: Path, data: Dataset) -> None:
    ensemble = packed.load(sp.export(untrained(data), photos / "m.sparsemble"))
    with pytest.raises(RuntimeInputError, match=r"files become images of \(3, 8, 8\); the ensemble takes \(1, 8, 8\)"):
        type(ensemble)(
            members=ensemble.members,
            combiner=ensemble.combiner,
            rule=ensemble.rule,
            classes=ensemble.classes,
            parent_weights=ensemble.parent_weights,
            preprocessing=Preprocessing(mode="RGB", resize=8, size=8),
        )
