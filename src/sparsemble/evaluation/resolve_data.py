"""Which images `--data` names: a folder's files are prepared as those that the model was trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from sparsemble.core.artifacts import META, Artifact
from sparsemble.core.config import parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.source_file import first_line
from sparsemble.data import names_folder
from sparsemble.data.dataset import DataSource, data_sources
from sparsemble.data.image_folder import ImageFolder
from sparsemble.evaluation.run_models import INDEX, RunIndex, stored_ensemble
from sparsemble.models.model_io import SPEC, load_spec
from sparsemble.models.onnx_file import onnx_packages
from sparsemble.runtime.errors import RuntimeInputError
from sparsemble.runtime.format import packed
from sparsemble.runtime.format.header import Fields
from sparsemble.runtime.format.validate import read_preprocessing
from sparsemble.runtime.images import Preprocessing


class Trained(NamedTuple):
    """What a model says about the images that it was trained on."""

    source: DataSource | None = None
    preprocessing: Preprocessing | None = None


def resolve_data(text: str, target: str = "") -> DataSource:
    """Return the data source that `digits`, a table in TOML, the path of an .npz file or of a folder of images names.

    Args:
        text: what the user wrote.
        target: path of the classifier; the images of a folder are prepared, and split, as those it was trained on.

    Raises:
        InputError: unknown.
    """
    if text.endswith(".npz"):
        return data_sources.build({"name": "arrays", "path": text}, "--data")
    if not names_folder(text):
        return data_sources.build(component_spec(text, "--data"), "--data")
    trained = _trained_on(target)
    if isinstance(trained.source, ImageFolder):
        return replace(trained.source, root=text)
    record = trained.preprocessing
    known = {"size": record.size, "grey": record.mode == "L"} if record and record.resize == record.size else {}
    return data_sources.build({"name": "image_folder", "root": text, **known}, "--data")


def component_spec(text: str, option: str) -> str | dict[str, Any]:
    """Read a component's name, or a table in TOML such as `{name = "tiny", width = 16}`."""
    if not text.lstrip().startswith("{"):
        return text
    spec: dict[str, Any] = parse_toml(f"value = {text}", option)["value"]
    return spec


def data_source_in(spec: Any) -> DataSource | None:
    """Return the data source in the specification of an artifact; None where it was made from tensors."""
    if not isinstance(spec, dict) or "name" not in spec:
        return None
    return data_sources.build({name: value for name, value in spec.items() if name != "version"})


def members_of(artifact: Artifact) -> Artifact:
    """Return where the networks of an artifact are: of a stopping rule, those of its ensemble."""
    return stored_ensemble(artifact)[0]


def _trained_on(target: str) -> Trained:
    """Return what the file or folder of a model says; nothing where it does not say, or is none of ours."""
    path = Path(target)
    if target.endswith(packed.SUFFIX) and path.is_file():
        try:
            ensemble = packed.load(path)
        except RuntimeInputError as error:
            raise InputError(f"{target}: {error}") from error
        return Trained(data_source_in(ensemble.recipe.get("data")), ensemble.preprocessing)
    if target.endswith(".onnx") and path.is_file():
        return Trained(preprocessing=_onnx_record(path))
    if (path / META).is_file():
        artifact = Artifact(path)
        return Trained(data_source_in(artifact.meta["spec"].get("data")), _stored_record(members_of(artifact)))
    if (path / INDEX).is_file():
        return Trained(RunIndex.load(path).data)
    return Trained()


def _stored_record(artifact: Artifact) -> Preprocessing | None:
    return load_spec(artifact.path).preprocessing if artifact.file(SPEC).is_file() else None


def _onnx_record(path: Path) -> Preprocessing | None:
    """Return the record in the metadata of an ONNX file that `sparsemble export` wrote; None in other files."""
    onnx = onnx_packages()[0]
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's parser has errors of many kinds
        raise InputError(f"{path} cannot be read as an ONNX file: {first_line(error)}") from error
    try:
        values = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "preprocessing"))
        return read_preprocessing(Fields({"preprocessing": values}, str(path)))
    except (StopIteration, json.JSONDecodeError, RuntimeInputError):
        return None
